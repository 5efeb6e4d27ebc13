"""Many clients at once: the recorded step with an axis of clients, for models so small that calls cost more than arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph

from fedsgd.data import Examples
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training.base import (
    LocalTraining,
    NotCapturableError,
    TrainingJob,
    TrainingResult,
    UpdateMode,
    distinct_batch_sizes,
    initial_training_state,
)
from fedsgd.training.captured import BatchBuffer
from fedsgd.training.evaluation_result import EvaluationResult
from fedsgd.training.flat_module import TensorFormat, as_tensor, batch_tensors, check_attributes, copy_for_capture
from fedsgd.training.graph.passes import write_gradients
from fedsgd.training.graph.program import Program
from fedsgd.training.graph.stacked_step import SMALL_CLIENT_COUNT, record_stacked_step
from fedsgd.training.graph.step import (
    RELATIVE_TOLERANCE,
    FusedUpdate,
    StepBuffers,
    add_placeholders,
    append_update,
    fusable_update,
)
from fedsgd.training.stack_schedule import StackedStepRange, schedule_steps


class ClientStack:
    """The tensors [K, *shape] that the steps of a stack of K clients work on."""

    def __init__(self, layout: ParameterLayout, local_training: LocalTraining, capacity: int) -> None:
        self.layout = layout
        self.capacity = capacity
        self.w = [torch.zeros(capacity, *shape) for shape in layout.shapes]
        self.g = [torch.zeros_like(w) for w in self.w]
        self.optimizer_buffers = [local_training.optimizer.init(w) for w in self.w]
        self.received_weights: list[Tensor] = []
        self.corrections: list[Tensor] = []

    def load_models(self, models: Sequence[F32]) -> None:
        """A client for each of these models [P], which it received; nothing remembered, nothing to correct."""
        same = all(model is models[0] for model in models)
        self.received_weights, self.corrections = self._split_rows(np.stack(models[:1] if same else models)), []
        for w, received in zip(self.w, self.received_weights, strict=True):
            w[: len(models)] = received
        for memory in self.optimizer_buffers:
            for value in memory.values():
                value[: len(models)] = 0

    def restore_optimizer_state(self, client: int, optimizer_state: Mapping[str, F32]) -> None:
        """Let this client begin with what its optimiser remembers, each [P]."""
        for name, values in optimizer_state.items():
            for buffers, part in zip(self.optimizer_buffers, self._split_rows(values[np.newaxis]), strict=True):
                buffers[name][client] = part[0]

    def set_corrections(self, corrections: Sequence[F32]) -> None:
        """What is added to the gradients of each client [P]."""
        self.corrections = self._split_rows(np.stack(corrections))

    def optimizer_states(self, k: int) -> dict[str, F32]:
        """What the optimisers of the first k clients remember, [k, P] each."""
        return {
            name: self.flatten([memory[name][:k] for memory in self.optimizer_buffers]) for name in self.optimizer_buffers[0]
        }

    def _split_rows(self, rows: F32) -> list[Tensor]:
        """Rows [k, P] as tensors [k, *shape], in the rows' memory."""
        return [as_tensor(rows[:, where]).view(-1, *shape) for _, where, shape in self.layout.list_slices()]

    def compute_updates(self, k: int) -> F32:
        """What the first k clients' training gave: w − received, [k, P]."""
        return self.flatten([w[:k] - received for w, received in zip(self.w, self.received_weights, strict=True)])

    def flatten(self, parts: Sequence[Tensor]) -> F32:
        """Tensors [k, *shape] as rows [k, P]."""
        rows: F32 = torch.cat([part.reshape(len(part), -1) for part in parts], dim=1).numpy()
        return rows


class StackedStep:
    """The step of one batch size, for the clients from `start` to before `stop` of the stack. used: whether batches use each
    of the module's parameters."""

    def __init__(
        self, step_buffers: StepBuffers, client_stack: ClientStack, fused_update: FusedUpdate | None, batch: Examples
    ) -> None:
        graph, gradients, unused = record_stacked_step(step_buffers, batch, client_stack.capacity)
        self.used_parameters = [where not in unused for _, where, _ in client_stack.layout.list_slices()]
        _bind_placeholders(graph, client_stack.w)
        write_gradients(graph, gradients, add_placeholders(graph, "g", client_stack.g))
        self.bind_gradient = functools.lru_cache(512)(Program(graph).bind)
        self.bind_update: Callable[[int, int], Callable[..., None]] | None = None
        if fused_update is not None and fused_update.is_applicable(unused):
            self.bind_update = functools.lru_cache(512)(
                _build_fused_program(step_buffers, client_stack, fused_update, batch).bind
            )


def _build_fused_program(
    step_buffers: StepBuffers, client_stack: ClientStack, fused_update: FusedUpdate, batch: Examples
) -> Program:
    """The step with the update folded in."""
    graph, gradients, _ = record_stacked_step(step_buffers, batch, client_stack.capacity)
    _bind_placeholders(graph, client_stack.w)
    targets = [memory["velocity"] for memory in client_stack.optimizer_buffers] if fused_update.has_velocity else client_stack.w
    append_update(graph, gradients, fused_update, targets, (client_stack.w, targets))
    return Program(graph)


def _bind_placeholders(graph: Graph, stacked_tensors: Sequence[Tensor]) -> None:
    """Let the placeholders w0, w1, ... stand for these stacks."""
    by_name = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for i, stack in enumerate(stacked_tensors):
        by_name[f"w{i}"].meta.update(value=stack, varies=True)


class Stacked:
    """SGD of a small module, `together` clients at a time, each on its own parameters.

    Clients are sorted by how many examples they have, so that those with a step of the same size to make stand together: no
    padding, no wasted work. like, update: as for `Captured`; sizes: batch sizes to record at once, others are when
    they come. No result depends on who else is in the stack.
    """

    def __init__(
        self,
        task: LearningTask,
        local_training: LocalTraining,
        sample: Examples,
        batch_sizes: Sequence[int],
        update_mode: UpdateMode = "fused",
        stack_size: int = 32,
    ) -> None:
        """CaptureError, with the reason, if the module cannot be stacked."""
        self.local_training = local_training
        self.preferred_batch_of_clients = stack_size
        self._flat_module = copy_for_capture(task)
        self._sample = sample
        self._fused_update = fusable_update(local_training) if update_mode == "fused" else None
        self._step_buffers = StepBuffers(self._flat_module, TensorFormat(task.layout), local_training.optimizer)
        self._client_stack = ClientStack(task.layout, local_training, max(stack_size, SMALL_CLIENT_COUNT + 1))
        self._x_buffer, self._y_buffer = BatchBuffer(), BatchBuffer()
        self._steps: dict[int, StackedStep] = {}
        for size in batch_sizes:
            self._record_step(size)

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """The results, those with many examples first."""
        by_data: dict[tuple[int, int], list[TrainingJob]] = {}
        for work in jobs:
            by_data.setdefault((id(work.examples.x), id(work.examples.y)), []).append(work)
        for same in by_data.values():
            same.sort(key=lambda work: (-len(work.examples), work.round))
            for first in range(0, len(same), self.preferred_batch_of_clients):
                yield from self._train_stack(same[first : first + self.preferred_batch_of_clients])

    def _train_stack(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """One stack, sorted."""
        stacks, counts = self._client_stack, [self.local_training.n_steps(len(work.examples)) for work in jobs]
        for size in {
            size for n in {len(work.examples) for work in jobs} for size in distinct_batch_sizes(n, self.local_training)
        }:
            self._record_step(size)
        with use_single_thread(), torch.no_grad():
            self._load_clients(jobs)
            only: dict[int, F32] = {}
            for run in schedule_steps(jobs, self.local_training):
                x, y = self._gather(jobs[0].examples, run)
                step = self._steps[run.batch_size]
                if step.bind_update is not None and not run.is_only_step:
                    step.bind_update(run.start, run.stop)(run.stop - run.start, x, y, -run.learning_rate)
                    continue
                step.bind_gradient(run.start, run.stop)(run.stop - run.start, x, y)
                steps = self._apply_optimizer(run, step.used_parameters)
                if steps is not None:
                    only.update(zip(range(run.start, run.stop), steps, strict=True))
            updates = stacks.compute_updates(len(jobs))
            remembered = stacks.optimizer_states(len(jobs)) if self.local_training.keep_optimizer_state else {}
        for i, work in enumerate(jobs):
            memory = {name: rows[i].copy() for name, rows in remembered.items()}
            yield TrainingResult(work.client, only.get(i, updates[i]), len(work.examples), counts[i], memory)

    def _load_clients(self, jobs: Sequence[TrainingJob]) -> None:
        """What the clients of a stack begin with."""
        self._client_stack.load_models([work.weights for work in jobs])
        corrections = []
        for i, work in enumerate(jobs):
            memory, correction = initial_training_state(work, self.local_training)
            self._client_stack.restore_optimizer_state(i, memory)
            if correction is not None:
                corrections.append(correction)
        if corrections:
            self._client_stack.set_corrections(corrections)

    def _gather(self, examples: Examples, step_range: StackedStepRange) -> tuple[Tensor, Tensor]:
        """x and y of the run's batches, [k, B, ...]."""
        rows, shape = (
            torch.from_numpy(step_range.concatenate_rows()),
            (step_range.stop - step_range.start, step_range.batch_size),
        )
        x, y = self._x_buffer.gather(examples.x, rows), self._y_buffer.gather(examples.y, rows)
        return x.view(*shape, *x.shape[1:]), y.view(*shape, *y.shape[1:])

    def _apply_optimizer(self, step_range: StackedStepRange, used_parameters: Sequence[bool]) -> F32 | None:
        """The optimiser's own step from the gradients, for the parameters that the batch uses; instead of making it, returned
        as rows [k, P] if it is all that these clients do in the round."""
        stacks, optimizer, clients = self._client_stack, self.local_training.optimizer, slice(step_range.start, step_range.stop)
        made: list[Tensor] = []
        parts = [(w[clients], g[clients]) for w, g in zip(stacks.w, stacks.g, strict=True)]
        if self.local_training.proximal:
            for (w, g), received in zip(parts, stacks.received_weights, strict=True):
                g.add_(w - (received[clients] if len(received) > 1 else received), alpha=self.local_training.proximal)
        for (_, g), correction in zip(parts, stacks.corrections, strict=False):  # there may be none at all
            g.add_(correction[clients])
        if optimizer.clip_norm is not None:
            self._clip_per_client([g for _, g in parts])
        for (w, g), memory, moves in zip(parts, stacks.optimizer_buffers, used_parameters, strict=True):
            if not moves and self.local_training.skips_unused_parameters:
                made.append(torch.zeros_like(w))
                continue
            buffers = {name: value[clients] for name, value in memory.items()}
            direction, alpha = optimizer.step_after_clipping(w, g, buffers, step_range.learning_rate)
            if step_range.is_only_step:
                made.append(direction * alpha)
            else:
                w.add_(direction, alpha=alpha)
        return stacks.flatten(made) if step_range.is_only_step else None

    def _clip_per_client(self, gradients: Sequence[Tensor]) -> None:
        """Each client's gradient, as one vector [P]."""
        for parts in zip(*gradients, strict=True):
            whole = torch.cat([part.reshape(-1) for part in parts])
            self.local_training.optimizer.clip(whole)
            for part, clipped in zip(parts, torch.split(whole, [part.numel() for part in parts]), strict=True):
                part.copy_(clipped.view_as(part))

    def _record_step(self, batch_size: int) -> None:
        """Record the step for batches of this size, unless that is done."""
        if batch_size in self._steps:
            return
        with use_single_thread(), torch.no_grad(), self._flat_module.isolated_buffers():
            self._flat_module.task.module.train()
            self._step_buffers.load_client(self._flat_module.task.initial_parameters)
            try:
                step = StackedStep(
                    self._step_buffers, self._client_stack, self._fused_update, self._sample_batch(batch_size, 0)
                )
                self._verify_step(step, batch_size)
                check_attributes(self._flat_module)
            except NotCapturableError:
                raise
            except Exception as error:  # whatever the module does that is not made for being recorded, or batched
                raise NotCapturableError(f"{type(error).__name__}: {error}") from error
        self._steps[batch_size] = step

    def _sample_batch(self, batch_size: int, client: int) -> Examples:
        return self._sample.select((np.arange(batch_size) + client * batch_size) % len(self._sample))

    def _verify_step(self, step: StackedStep, batch_size: int) -> None:
        """CaptureError unless clients in a stack get the bits of clients alone, and those are close to autograd's."""
        stacks, initial, k = self._client_stack, self._flat_module.task.initial_parameters, self._client_stack.capacity
        models = [initial * np.float32(1 + 0.1 * client / k) for client in range(k)]
        batches = [batch_tensors(self._sample_batch(batch_size, client)) for client in range(k)]
        x, y = (torch.stack([batch[i] for batch in batches]) for i in (0, 1))
        for bound, results, rate in ((step.bind_gradient, stacks.g, ()), (step.bind_update, stacks.w, (-1.0,))):
            if bound is None:
                continue
            stacks.load_models(models)
            bound(0, k)(k, x, y, *rate)
            together = [result.clone() for result in results]
            for i in range(k):  # alone, in the first place
                stacks.load_models(models[i : i + 1])
                bound(0, 1)(1, x[i : i + 1].clone(), y[i : i + 1].clone(), *rate)
                if not all(torch.equal(a[i], b[0]) for a, b in zip(together, results, strict=True)):
                    raise NotCapturableError("a client's result depends on who else is in its stack")
            rows = stacks.flatten(together) if not rate else np.stack(models) - stacks.flatten(together)
            for model, batch, row in list(zip(models, batches, rows, strict=True))[:SMALL_CLIENT_COUNT]:
                self._flat_module.bind_parameters(self._step_buffers.tensor_format.view_tensors(torch.from_numpy(model.copy())))
                twice = [self._flat_module.compute_flat_gradient(*batch)[0] for _ in range(2)]
                if not torch.equal(*twice):
                    raise NotCapturableError("a step depends on those before it")
                expected = twice[0].numpy()
                off, scale = float(np.linalg.norm(row - expected)), float(np.linalg.norm(expected))
                if not off <= RELATIVE_TOLERANCE * (scale + (float(np.linalg.norm(model)) if rate else 0)):
                    raise NotCapturableError(
                        f"the step is not autograd's: off by {off:.3g}, the gradient's norm is {scale:.3g}"
                    )

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """The loss and the metrics of the model with these weights [P] and running statistics [S] (None: as it was made)."""
        return self._flat_module.evaluate(weights, examples, self._step_buffers.tensor_format, buffers)
