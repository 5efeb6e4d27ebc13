"""Which engine trains: the one that was asked for, or by a rule on the model and its clients. Never by a timing: a rerun must
choose the same. torch is imported when an engine is made, so that settings can be read without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedsgd.arrays import I64
from fedsgd.data import Examples
from fedsgd.engine.base import CaptureError, Engine, EngineName, Recipe, Update, explain_restart, step_sizes
from fedsgd.errors import ModelError
from fedsgd.models import Task

if TYPE_CHECKING:
    from torch import nn

MOST_SIZES = 32
"""Batch sizes beyond these are not worth the time to record them: they go through autograd."""
MOST_STACKED_PARAMETERS = 65_536
"""Larger models gain nothing in a stack: their weights leave the cache."""
FEWEST_STACKED_CLIENTS = 8
DEFAULT_STACK = 32
STACKED_NUMBERS = 2**19
"""Parameters in a stack: as many clients as have so many, 16 to 50 of them."""


@dataclass(frozen=True)
class Chosen:
    """An engine. stack: how many clients it trains at once, if it stacks them; reason: why this one."""

    name: EngineName = "auto"
    update: Update = "fused"
    stack: int | None = None
    reason: str = "asked for"

    def __str__(self) -> str:
        update = "" if self.name == "sequential" else f", {self.update} update"
        stack = "" if self.stack is None else f", {self.stack} clients at a time"
        return f"{self.name}{update}{stack}: {self.reason}"


def make_engine(chosen: Chosen, sizes: Sequence[int], task: Task, recipe: Recipe, like: Examples) -> Engine:
    """That engine; ModelError if it cannot train this task. like: training examples; sizes: see `batch_sizes`."""
    try:
        return _made(chosen, task, recipe, like, sizes)
    except CaptureError as error:
        raise ModelError(f"the {chosen.name} engine cannot train it: {error}; the sequential engine trains anything") from error


def choose(
    asked: Chosen, task: Task, recipe: Recipe, like: Examples, sizes: Sequence[int], cohort: int
) -> tuple[Engine, Chosen]:
    """(the engine, what it is). For "auto": stacked if the rule and the module allow it, else captured if the module does, else
    sequential."""
    if asked.name != "auto":
        reason = asked.reason if task.restarts is None else f"{asked.reason}; {explain_restart(task.restarts)}"
        return make_engine(asked, sizes, task, recipe, like), replace(asked, reason=reason)
    if not sizes:
        chosen = replace(asked, name="sequential", stack=None, reason="no client has any examples")
        return _made(chosen, task, recipe, like, sizes), chosen
    against = _against_stacking(task, sizes, cohort)
    tried: list[tuple[EngineName, str]] = [("captured", against)]
    if not against:
        tried = [("stacked", f"{task.layout.size:,} parameters in linear layers, {cohort} clients a round"), ("captured", "")]
    stack = asked.stack or min(50, max(16, STACKED_NUMBERS // task.layout.size), cohort)
    reason = ""
    for name, why in tried:
        chosen = replace(asked, name=name, stack=stack if name == "stacked" else None, reason=why or reason)
        try:
            return _made(chosen, task, recipe, like, sizes), chosen
        except CaptureError as error:
            reason = f"it cannot be {name}: {error}"
    chosen = replace(asked, name="sequential", stack=None, reason=reason)
    return _made(chosen, task, recipe, like, sizes), chosen


def _made(chosen: Chosen, task: Task, recipe: Recipe, like: Examples, sizes: Sequence[int]) -> Engine:
    from fedsgd.engine.captured import Captured
    from fedsgd.engine.sequential import Sequential
    from fedsgd.engine.stacked import Stacked

    if chosen.name == "captured" and sizes:
        return Captured(task, recipe, like, sizes, chosen.update)
    if chosen.name == "stacked" and len(sizes) == MOST_SIZES:
        raise CaptureError("its clients' batches have too many sizes for a stack")
    if chosen.name == "stacked" and sizes:
        return Stacked(task, recipe, like, sizes, chosen.update, chosen.stack or DEFAULT_STACK)
    return Sequential(task, recipe)


def _against_stacking(task: Task, sizes: Sequence[int], cohort: int) -> str:
    """Why clients are not stacked; nothing if they may be."""
    if not all(_is_linear(module) for module in task.module.modules()):
        return "not all its layers are linear"
    if task.layout.size > MOST_STACKED_PARAMETERS:
        return f"{task.layout.size:,} parameters, more than {MOST_STACKED_PARAMETERS:,}, gain nothing in a stack"
    if cohort < FEWEST_STACKED_CLIENTS:
        return f"{cohort} clients a round, fewer than {FEWEST_STACKED_CLIENTS}, gain nothing in a stack"
    return ""


def _is_linear(module: nn.Module) -> bool:
    """Whether what it has parameters for, if anything, is a linear layer or an embedding."""
    from torch import nn

    return not module._parameters or type(module) in (nn.Linear, nn.Embedding)


def batch_sizes(counts: I64, recipe: Recipe, clients: I64 | None = None) -> list[int]:
    """The sizes of the batches of clients with so many examples each, the most frequent first, at most 32. clients: how many
    have each of these counts, one if not given; of the same length."""
    steps: Counter[int] = Counter()
    for n, n_clients in zip(*np.unique(counts, return_counts=True) if clients is None else (counts, clients), strict=True):
        plan = recipe.batch_plan(int(n))
        for size in step_sizes(int(n), recipe):
            steps[size] += int(n_clients) * (1 if size == plan.last else plan.full)
    return [size for size, _ in sorted(steps.items(), key=lambda item: (-item[1], -item[0]))[:MOST_SIZES]]
