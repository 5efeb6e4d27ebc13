"""Which engine trains: the one that was asked for, or by a rule on the model and its clients. Never by a timing: a rerun must
choose the same. torch is imported when an engine is made, so that settings can be read without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedsgd.data import Examples
from fedsgd.errors import ModelError
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import I64
from fedsgd.training.base import (
    EngineName,
    LocalTraining,
    NotCapturableError,
    TrainingEngine,
    UpdateMode,
    distinct_batch_sizes,
    explain_restart,
)
from fedsgd.training.captured import Captured
from fedsgd.training.sequential import Sequential
from fedsgd.training.stacked import Stacked

if TYPE_CHECKING:
    from torch import nn

MAX_RECORDED_BATCH_SIZES = 32
"""Batch sizes beyond these are not worth the time to record them: they go through autograd."""
MAX_STACKED_PARAMETERS = 65_536
"""Larger models gain nothing in a stack: their weights leave the cache."""
MIN_STACKED_CLIENTS = 8
DEFAULT_STACK_SIZE = 32
PARAMETERS_PER_STACK = 2**19
"""Parameters in a stack: as many clients as have so many, 16 to 50 of them."""


@dataclass(frozen=True)
class EngineChoice:
    """An engine. stack: how many clients it trains at once, if it stacks them; reason: why this one."""

    name: EngineName = "auto"
    update: UpdateMode = "fused"
    stack: int | None = None
    reason: str = "asked for"

    def __str__(self) -> str:
        update = "" if self.name == "sequential" else f", {self.update} update"
        stack = "" if self.stack is None else f", {self.stack} clients at a time"
        return f"{self.name}{update}{stack}: {self.reason}"


def make_engine(
    choice: EngineChoice, batch_sizes: Sequence[int], task: LearningTask, local_training: LocalTraining, sample: Examples
) -> TrainingEngine:
    """That engine; ModelError if it cannot train this task. like: training examples; sizes: see `rank_batch_sizes`."""
    try:
        return _create(choice, task, local_training, sample, batch_sizes)
    except NotCapturableError as error:
        raise ModelError(f"the {choice.name} engine cannot train it: {error}; the sequential engine trains anything") from error


def select_engine(
    request: EngineChoice,
    task: LearningTask,
    local_training: LocalTraining,
    sample: Examples,
    batch_sizes: Sequence[int],
    cohort_size: int,
) -> tuple[TrainingEngine, EngineChoice]:
    """(the engine, what it is). For "auto": stacked if the rule and the module allow it, else captured if the module does, else
    sequential."""
    if request.name != "auto":
        reason = (
            request.reason if task.reset_attribute is None else f"{request.reason}; {explain_restart(task.reset_attribute)}"
        )
        return make_engine(request, batch_sizes, task, local_training, sample), replace(request, reason=reason)
    if not batch_sizes:
        chosen = replace(request, name="sequential", stack=None, reason="no client has any examples")
        return _create(chosen, task, local_training, sample, batch_sizes), chosen
    against = _reason_not_to_stack(task, batch_sizes, cohort_size)
    tried: list[tuple[EngineName, str]] = [("captured", against)]
    if not against:
        tried = [
            ("stacked", f"{task.layout.size:,} parameters in linear layers, {cohort_size} clients a round"),
            ("captured", ""),
        ]
    stack = request.stack or min(50, max(16, PARAMETERS_PER_STACK // task.layout.size), cohort_size)
    reason = ""
    for name, why in tried:
        chosen = replace(request, name=name, stack=stack if name == "stacked" else None, reason=why or reason)
        try:
            return _create(chosen, task, local_training, sample, batch_sizes), chosen
        except NotCapturableError as error:
            reason = f"it cannot be {name}: {error}"
    chosen = replace(request, name="sequential", stack=None, reason=reason)
    return _create(chosen, task, local_training, sample, batch_sizes), chosen


def _create(
    choice: EngineChoice, task: LearningTask, local_training: LocalTraining, sample: Examples, batch_sizes: Sequence[int]
) -> TrainingEngine:
    if choice.name == "captured" and batch_sizes:
        return Captured(task, local_training, sample, batch_sizes, choice.update)
    if choice.name == "stacked" and len(batch_sizes) == MAX_RECORDED_BATCH_SIZES:
        raise NotCapturableError("its clients' batches have too many sizes for a stack")
    if choice.name == "stacked" and batch_sizes:
        return Stacked(task, local_training, sample, batch_sizes, choice.update, choice.stack or DEFAULT_STACK_SIZE)
    return Sequential(task, local_training)


def _reason_not_to_stack(task: LearningTask, batch_sizes: Sequence[int], cohort_size: int) -> str:
    """Why clients are not stacked; nothing if they may be."""
    if not all(_is_linear(module) for module in task.module.modules()):
        return "not all its layers are linear"
    if task.layout.size > MAX_STACKED_PARAMETERS:
        return f"{task.layout.size:,} parameters, more than {MAX_STACKED_PARAMETERS:,}, gain nothing in a stack"
    if cohort_size < MIN_STACKED_CLIENTS:
        return f"{cohort_size} clients a round, fewer than {MIN_STACKED_CLIENTS}, gain nothing in a stack"
    return ""


def _is_linear(module: nn.Module) -> bool:
    """Whether what it has parameters for, if anything, is a linear layer or an embedding."""
    from torch import nn

    return not module._parameters or type(module) in (nn.Linear, nn.Embedding)


def rank_batch_sizes(example_counts: I64, local_training: LocalTraining, client_counts: I64 | None = None) -> list[int]:
    """The sizes of the batches of clients with so many examples each, the most frequent first, at most 32. clients: how many
    have each of these counts, one if not given; of the same length."""
    steps: Counter[int] = Counter()
    for n, n_clients in zip(
        *np.unique(example_counts, return_counts=True) if client_counts is None else (example_counts, client_counts),
        strict=True,
    ):
        plan = local_training.plan_batches(int(n))
        for size in distinct_batch_sizes(int(n), local_training):
            steps[size] += int(n_clients) * (1 if size == plan.last_size else plan.n_full)
    return [size for size, _ in sorted(steps.items(), key=lambda item: (-item[1], -item[0]))[:MAX_RECORDED_BATCH_SIZES]]
