"""Selection of the engine. "auto" applies a rule to the model, the batch sizes and the cohort.

The rule uses no timings, so that a rerun selects the same engine.
"""

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
"""Maximum number of recorded batch sizes. Steps of rarer sizes use autograd, which takes less time than recording."""
MAX_STACKED_PARAMETERS = 65_536
"""Maximum of P for a stack of "auto": the stacked weights of larger models do not fit in the cache."""
MIN_STACKED_CLIENTS = 8
"""Minimum number of clients in a cohort that "auto" stacks."""
DEFAULT_STACK_SIZE = 32
"""Number of clients in a stack if the request has no number."""
PARAMETERS_PER_STACK = 2**19
"""Intended parameters of all clients in a stack of "auto". The stack has 16 to 50 clients, or all of a smaller cohort."""


@dataclass(frozen=True)
class EngineChoice:
    """Requested or selected engine.

    Attributes:
        name: name of the engine; "auto", in requests only: `select_engine` decides.
        update: "exact": the bits of the sequential engine, except in stacks; "fused": faster, with other rounding.
        stack: number of clients that the stacked engine trains at once; None: a default number, or another engine.
        reason: reason for the engine, for messages.
    """

    name: EngineName = "auto"
    update: UpdateMode = "fused"
    stack: int | None = None
    reason: str = "requested"

    def __str__(self) -> str:
        update = "" if self.name == "sequential" else f", {self.update} update"
        stack = "" if self.stack is None else f", {self.stack} clients at a time"
        return f"{self.name}{update}{stack}: {self.reason}"


def make_engine(
    choice: EngineChoice, batch_sizes: Sequence[int], task: LearningTask, local_training: LocalTraining, sample: Examples
) -> TrainingEngine:
    """Return the named engine, or without batch sizes the sequential engine; ModelError if it cannot train the task."""
    try:
        return _create(choice, task, local_training, sample, batch_sizes)
    except NotCapturableError as error:
        raise ModelError(
            f"the {choice.name} engine cannot train the model: {error}; the sequential engine trains any model"
        ) from error


def select_engine(
    request: EngineChoice,
    task: LearningTask,
    local_training: LocalTraining,
    sample: Examples,
    batch_sizes: Sequence[int],
    cohort_size: int,
) -> tuple[TrainingEngine, EngineChoice]:
    """Return an engine and its description; raise ModelError if the requested engine cannot train the task.

    "auto" selects the first engine that can train the task: stacked (only a small model of linear layers and embeddings, and a
    large cohort), captured, sequential. Steps are recorded and checked with examples of `sample`, for `batch_sizes`, the most
    frequent size first. Without batch sizes, the engine is sequential.
    """
    if request.name != "auto":
        reason = (
            request.reason if task.reset_attribute is None else f"{request.reason}; {explain_restart(task.reset_attribute)}"
        )
        return make_engine(request, batch_sizes, task, local_training, sample), replace(request, reason=reason)
    if not batch_sizes:
        choice = replace(request, name="sequential", stack=None, reason="no client has any examples")
        return _create(choice, task, local_training, sample, batch_sizes), choice
    objection = _find_reason_not_to_stack(task, batch_sizes, cohort_size)
    candidates: list[tuple[EngineName, str]] = [("captured", objection)]
    if not objection:
        candidates.insert(0, ("stacked", f"{task.layout.size:,} parameters in linear layers, {cohort_size} clients a round"))
    stack = request.stack or min(50, max(16, PARAMETERS_PER_STACK // task.layout.size), cohort_size)
    reason = ""
    for name, rule in candidates:
        choice = replace(request, name=name, stack=stack if name == "stacked" else None, reason=rule or reason)
        try:
            return _create(choice, task, local_training, sample, batch_sizes), choice
        except NotCapturableError as error:
            reason = f"the model cannot be {name}: {error}"
    choice = replace(request, name="sequential", stack=None, reason=reason)
    return _create(choice, task, local_training, sample, batch_sizes), choice


def _create(
    choice: EngineChoice, task: LearningTask, local_training: LocalTraining, sample: Examples, batch_sizes: Sequence[int]
) -> TrainingEngine:
    if choice.name == "captured" and batch_sizes:
        return Captured(task, local_training, sample, batch_sizes, choice.update)
    if choice.name == "stacked" and len(batch_sizes) == MAX_RECORDED_BATCH_SIZES:
        raise NotCapturableError(f"the clients' batches have {MAX_RECORDED_BATCH_SIZES} sizes or more, too many for a stack")
    if choice.name == "stacked" and batch_sizes:
        return Stacked(task, local_training, sample, batch_sizes, choice.update, choice.stack or DEFAULT_STACK_SIZE)
    return Sequential(task, local_training)


def _find_reason_not_to_stack(task: LearningTask, batch_sizes: Sequence[int], cohort_size: int) -> str:
    """Return the reason not to stack clients; "" if nothing prevents a stack."""
    if not all(_is_linear(module) for module in task.module.modules()):
        return "not stacked, because a layer is neither linear nor an embedding"
    if task.layout.size > MAX_STACKED_PARAMETERS:
        return f"not stacked, because the model has {task.layout.size:,} parameters, more than {MAX_STACKED_PARAMETERS:,}"
    if cohort_size < MIN_STACKED_CLIENTS:
        return f"not stacked, because a cohort of {cohort_size} is smaller than {MIN_STACKED_CLIENTS}"
    return ""


def _is_linear(module: nn.Module) -> bool:
    """Return True for a linear layer, an embedding, or a module without parameters of its own."""
    from torch import nn

    return not module._parameters or type(module) in (nn.Linear, nn.Embedding)


def rank_batch_sizes(example_counts: I64, local_training: LocalTraining, client_counts: I64 | None = None) -> list[int]:
    """Return at most `MAX_RECORDED_BATCH_SIZES` batch sizes, the most frequent in a pass over all examples first.

    `client_counts` [m] has the number of clients with each number of examples in `example_counts` [m]; None: one each.
    """
    n_batches: Counter[int] = Counter()
    for n, n_clients in zip(
        *np.unique(example_counts, return_counts=True) if client_counts is None else (example_counts, client_counts),
        strict=True,
    ):
        plan = local_training.plan_batches(int(n))
        for size in distinct_batch_sizes(int(n), local_training):
            n_batches[size] += int(n_clients) * (1 if size == plan.last_size else plan.n_full)
    return [size for size, _ in sorted(n_batches.items(), key=lambda item: (-item[1], -item[0]))[:MAX_RECORDED_BATCH_SIZES]]
