"""Selection of the engine. "auto" applies a rule to the model, the batch sizes and the cohort.

The rule uses no timings, so that a rerun selects the same engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsgd.data import Examples
from fedsgd.errors import FedsgdError, ModelError, ScenarioError, describe_error
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import I64
from fedsgd.system.compute_device import CPU, describe_device, find_nondeterministic_operation, resolve_device
from fedsgd.training.base import (
    EngineName,
    LocalTraining,
    NotCapturableError,
    TrainingEngine,
    TrainingJob,
    UpdateMode,
    distinct_batch_sizes,
    explain_restart,
)
from fedsgd.training.captured import Captured
from fedsgd.training.device import EngineDevice
from fedsgd.training.device_memory import DeviceMemory, choose_example_capacity
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
MIN_CLIENTS_PER_STEP = 4.0
"""Minimum mean number of clients in a step of a stack of "auto". Below it, calls for one client are faster: a call for a stack
costs as much as 3 to 5 of them."""
DEFAULT_STACK_SIZE = 32
"""Number of clients in a stack if the request has no number."""
PARAMETERS_PER_STACK = 2**19
"""Intended parameters of all clients in a stack of "auto". The stack has 16 to 50 clients, or all of a smaller cohort."""
PARAMETERS_PER_GPU_STACK = 24_000_000
"""Intended parameters of all clients in a stack on a GPU: 120 clients of the 2NN. The stack has at most a cohort's clients."""
MIN_GPU_STACK = 2
"""Minimum number of clients that "auto" stacks on a GPU."""


@dataclass(frozen=True)
class EngineChoice:
    """Requested or selected engine.

    Attributes:
        name: name of the engine; "auto", in requests only: `select_engine` decides.
        update: "exact": the bits of the sequential engine, except in stacks; "fused": faster, with other rounding.
        stack: number of clients that the stacked engine trains at once; None: a default number, or another engine.
        reason: reason for the engine, for messages.
        device: device of the engine: "cpu", or a GPU such as "cuda:0".
        deterministic: on a GPU, refuse operations that have no deterministic form.
        keeps_updates: on a GPU, updates are compressed there.
    """

    name: EngineName = "auto"
    update: UpdateMode = "fused"
    stack: int | None = None
    reason: str = "requested"
    device: str = CPU
    deterministic: bool = True
    keeps_updates: bool = False

    def __str__(self) -> str:
        update = "" if self.name == "sequential" else f", {self.update} update"
        stack = "" if self.stack is None else f", {self.stack} clients at a time"
        device = "" if self.device == CPU else f", on {describe_device(self.device)}"
        determinism = "" if self.deterministic or self.device == CPU else ", with operations that are not deterministic"
        return f"{self.name}{update}{stack}{device}{determinism}: {self.reason}"


def make_engine(
    choice: EngineChoice, batch_sizes: Sequence[int], task: LearningTask, local_training: LocalTraining, sample: Examples
) -> TrainingEngine:
    """Return the named engine, or without batch sizes the sequential engine; ModelError if it cannot train the task."""
    try:
        return _create(choice, task, local_training, sample, batch_sizes)
    except NotCapturableError as error:
        _refuse_nondeterministic_operation(error)
        raise ModelError(
            f"the {choice.name} engine cannot train the model: {error}; the sequential engine trains any model"
        ) from error


def select_engine(
    request: EngineChoice,
    task: LearningTask,
    local_training: LocalTraining,
    sample: Examples,
    batch_sizes: Sequence[int],
    cohort: I64,
    memory: DeviceMemory | None = None,
) -> tuple[TrainingEngine, EngineChoice]:
    """Return an engine and its description; raise ModelError if the requested engine cannot train the task.

    "auto" selects the first engine that can train the task: stacked (on the CPU only a small model of linear layers and
    embeddings, and a large cohort without clients that train alone for most of the time), captured, sequential. `cohort` has
    the numbers of examples of a typical cohort's clients, [k]. Steps are recorded and checked with examples of `sample`, for
    `batch_sizes`, the most frequent size first. Without batch sizes, the engine is sequential. On a GPU, `memory` limits the
    stack; ScenarioError if the run does not fit.
    """
    cohort_size = len(cohort)
    if memory is not None:
        stack = memory.choose_stack(request.stack, min(cohort_size, max(1, PARAMETERS_PER_GPU_STACK // task.layout.size)))
        request = replace(request, stack=stack if request.name in ("auto", "stacked") else None)
    if request.name != "auto":
        reason = (
            request.reason if task.reset_attribute is None else f"{request.reason}; {explain_restart(task.reset_attribute)}"
        )
        return make_engine(request, batch_sizes, task, local_training, sample), replace(request, reason=reason)
    if not batch_sizes:
        choice = replace(request, name="sequential", stack=None, reason="no client has any examples")
        return _create(choice, task, local_training, sample, batch_sizes), choice
    stack = request.stack or min(50, max(16, PARAMETERS_PER_STACK // task.layout.size), cohort_size)
    if memory is None:
        objection = _find_reason_not_to_stack(task, local_training, cohort, stack)
        argument = f"{task.layout.size:,} parameters in linear layers, {cohort_size} clients a round"
    else:
        objection = f"not stacked, because {request.stack} client fits" if (request.stack or 0) < MIN_GPU_STACK else ""
        argument = f"{cohort_size} clients a round, {memory}"
    candidates: list[tuple[EngineName, str]] = [("captured", objection)]
    if not objection:
        candidates.insert(0, ("stacked", argument))
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
    try:
        engine = _create_on_device(choice, task, local_training, sample, batch_sizes)
        if choice.device != CPU and batch_sizes:
            _try_step(engine, task, sample.slice(0, batch_sizes[0]))
    except torch.OutOfMemoryError as error:
        raise ScenarioError(
            f"engine.device: {choice.device} has too little memory for a step ({describe_error(error)}); set a smaller "
            'engine.stack or client.batch_size, or engine.device = "cpu"'
        ) from error
    return engine


def _create_on_device(
    choice: EngineChoice, task: LearningTask, local_training: LocalTraining, sample: Examples, batch_sizes: Sequence[int]
) -> TrainingEngine:
    name = resolve_device(choice.device, choice.deterministic)
    capacity = None if name == CPU else choose_example_capacity(name, sample)
    device = EngineDevice(name, choice.deterministic, capacity, choice.keeps_updates)
    if choice.name == "captured" and batch_sizes:
        return Captured(task, local_training, sample, batch_sizes, choice.update, device)
    if choice.name == "stacked" and len(batch_sizes) == MAX_RECORDED_BATCH_SIZES:
        raise NotCapturableError(f"the clients' batches have {MAX_RECORDED_BATCH_SIZES} sizes or more, too many for a stack")
    if choice.name == "stacked" and batch_sizes:
        return Stacked(task, local_training, sample, batch_sizes, choice.update, choice.stack or DEFAULT_STACK_SIZE, device)
    return Sequential(task, local_training, device)


def _try_step(engine: TrainingEngine, task: LearningTask, examples: Examples) -> None:
    """Train and evaluate on a few examples; raise ModelError for an operation that has no deterministic form on a GPU."""
    try:
        list(engine.train([TrainingJob(0, 1, 0, task.initial_parameters, examples, buffers=task.initial_buffers, work=1)]))
        engine.evaluate(task.initial_parameters, examples, task.initial_buffers)
    except (FedsgdError, NotCapturableError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of the user's module, loss or metrics, which run on the CPU
        _refuse_nondeterministic_operation(error)
        hint = "; tensors that are no buffers or parameters stay on the CPU: use register_buffer" * ("device" in str(error))
        raise ModelError(f"the model cannot be run on the GPU: {describe_error(error)}{hint}") from error


def _refuse_nondeterministic_operation(error: Exception) -> None:
    """Raise ModelError if torch refused an operation on a GPU that has no deterministic form."""
    operation = find_nondeterministic_operation(error)
    if operation is not None:
        raise ModelError(
            f"engine.deterministic: {operation} has no deterministic form on a GPU; use another layer or loss, or set "
            "engine.deterministic = false, which the summary then says"
        ) from error


def _find_reason_not_to_stack(task: LearningTask, local_training: LocalTraining, cohort: I64, stack: int) -> str:
    """Return the reason not to stack clients; "" if nothing prevents a stack."""
    if not all(_is_linear(module) for module in task.module.modules()):
        return "not stacked, because a layer is neither linear nor an embedding"
    if task.layout.size > MAX_STACKED_PARAMETERS:
        return f"not stacked, because the model has {task.layout.size:,} parameters, more than {MAX_STACKED_PARAMETERS:,}"
    if len(cohort) < MIN_STACKED_CLIENTS:
        return f"not stacked, because a cohort of {len(cohort)} is smaller than {MIN_STACKED_CLIENTS}"
    sizes, places = np.unique(-cohort, return_inverse=True)  # the order of a stack: many examples first
    n_steps = np.array([local_training.n_steps(-int(n)) for n in sizes])[np.sort(places)]
    clients_per_step = n_steps.sum() / max(n_steps[::stack].sum(), 1)
    if clients_per_step < MIN_CLIENTS_PER_STEP:
        return (
            f"not stacked, because clients differ in their steps: a step of a stack would have {clients_per_step:.1f} clients "
            f"on average, fewer than {MIN_CLIENTS_PER_STEP:g}"
        )
    return ""


def _is_linear(module: nn.Module) -> bool:
    """Return True for a linear layer, an embedding, or a module without parameters of its own."""
    from torch import nn

    return not module._parameters or type(module) in (nn.Linear, nn.Embedding)


def choose_typical_cohort(example_counts: I64, client_counts: I64, cohort_size: int) -> I64:
    """Return the numbers of examples of clients at equal distances in the order of their sizes, [cohort_size].

    >>> choose_typical_cohort(np.array([1, 5, 9]), np.array([2, 3, 1]), 3).tolist()
    [1, 5, 9]

    Args:
        example_counts: distinct numbers of examples, ascending, [m].
        client_counts: number of clients with each number of examples, [m].
        cohort_size: number of clients in a cohort.
    """
    ends = np.cumsum(client_counts)
    places = (2 * np.arange(cohort_size) + 1) * ends[-1] // (2 * cohort_size)
    return np.asarray(example_counts[np.searchsorted(ends, places, side="right")], dtype=np.int64)


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
