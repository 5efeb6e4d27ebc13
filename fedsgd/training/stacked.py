"""Training of many clients at once with recorded steps that have an axis of clients.

A stack is faster if the model is so small that calls take longer than arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, Node

from fedsgd.config.user_errors import wrap_user_errors
from fedsgd.data import Examples
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
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
from fedsgd.training.device import HOST, EngineDevice
from fedsgd.training.evaluation_result import EvaluationResult
from fedsgd.training.flat_module import TensorFormat, batch_tensors, check_attributes, copy_for_capture
from fedsgd.training.graph.passes import write_gradients
from fedsgd.training.graph.program import Program
from fedsgd.training.graph.recorder import copy_graph
from fedsgd.training.graph.replay import ReplayedStep
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
    """Tensors of a stack of clients, [capacity, *shape] each: parameters w, gradients g, and the optimizer's buffers."""

    def __init__(
        self, layout: ParameterLayout, local_training: LocalTraining, capacity: int, device: EngineDevice = HOST
    ) -> None:
        self.layout = layout
        self.capacity = capacity
        self._device = device
        self.w = [torch.zeros(capacity, *shape, device=device.torch_device) for shape in layout.shapes]
        self.g = [torch.zeros_like(w) for w in self.w]
        self._optimizer = local_training.optimizer
        self.optimizer_buffers = [self._optimizer.init(w) for w in self.w]
        self.received_weights: list[Tensor] = []
        self.corrections: list[Tensor] = []

    def load_models(self, models: Sequence[F32]) -> None:
        """Load the received model [P] of each client, with initial optimizer buffers and without corrections."""
        is_shared = all(model is models[0] for model in models)
        self.received_weights, self.corrections = self._split_rows(np.stack(models[:1] if is_shared else models)), []
        for w, received_w in zip(self.w, self.received_weights, strict=True):
            w[: len(models)] = received_w
        for w, buffers in zip(self.w, self.optimizer_buffers, strict=True):
            for name, initial_values in self._optimizer.init(w[: len(models)]).items():
                buffers[name][: len(models)] = initial_values

    def restore_optimizer_state(self, client: int, optimizer_state: Mapping[str, F32]) -> None:
        """Load the optimizer's buffers, each [P], of the client in row `client` of the stack."""
        for name, values in optimizer_state.items():
            for buffers, tensor in zip(self.optimizer_buffers, self._split_rows(values[np.newaxis]), strict=True):
                buffers[name][client] = tensor[0]

    def set_corrections(self, corrections: Sequence[F32]) -> None:
        """Set the vector [P] that is added to each gradient of a client, for all clients."""
        self.corrections = self._split_rows(np.stack(corrections))

    def optimizer_states(self, k: int) -> dict[str, F32]:
        """Return the optimizer's buffers of the first k clients by name, each [k, P]."""
        names = self.optimizer_buffers[0]
        rows = {name: self.flatten([buffers[name][:k] for buffers in self.optimizer_buffers]) for name in names}
        return {name: self._device.to_host(values) for name, values in rows.items()}

    def _split_rows(self, rows: F32) -> list[Tensor]:
        """Return rows [k, P] as tensors [k, *shape]; on the CPU in the rows' memory."""
        tensor = self._device.to_device(rows)
        return [tensor[:, segment].view(-1, *shape) for _, segment, shape in self.layout.list_slices()]

    def compute_updates(self, k: int) -> Tensor:
        """Return the updates of the first k clients, w − received weights, [k, P]."""
        return self.flatten([w[:k] - received_w for w, received_w in zip(self.w, self.received_weights, strict=True)])

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return tensors [k, *shape] as rows [k, P]."""
        return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], dim=1)


class StackedStep:
    """Step of one batch size for consecutive clients of a stack.

    Attributes:
        used_parameters: for each tensor of the layout, True if batches use the tensor.
        bind_gradient: function of a range of clients that returns the program of the clients' gradients.
        bind_update: function of a range of clients that returns the program of the whole step; None: not fused.
    """

    def __init__(
        self,
        step_buffers: StepBuffers,
        client_stack: ClientStack,
        fused_update: FusedUpdate | None,
        batch: Examples,
    ) -> None:
        graph, gradients, unused_slices = record_stacked_step(step_buffers, batch, client_stack.capacity)
        update_graph = copy_graph(graph, gradients)
        self.used_parameters = [segment not in unused_slices for _, segment, _ in client_stack.layout.list_slices()]
        _bind_placeholders(graph, client_stack.w)
        write_gradients(graph, gradients, add_placeholders(graph, "g", client_stack.g))
        self.bind_gradient = functools.lru_cache(512)(Program(graph).bind)
        self.bind_update: Callable[[int, int], Callable[..., None]] | None = None
        if fused_update is not None and fused_update.is_applicable(unused_slices):
            self.bind_update = functools.lru_cache(512)(_build_fused_program(client_stack, fused_update, *update_graph).bind)
        self._replayed: ReplayedStep | None = None
        if step_buffers.device.replays_steps:
            compute_all = functools.partial(self.bind_gradient(0, client_stack.capacity), client_stack.capacity)
            self._replayed = ReplayedStep(compute_all, [*client_stack.w, *client_stack.g], step_buffers.device)

    def compute_gradients(self, start: int, stop: int, x: Tensor, y: Tensor) -> None:
        """Write the gradients of the clients from `start` to before `stop` to the stack; those of the others may change.

        x and y [k, B, ...] have the batches of these clients or, on a GPU, of all places.
        """
        if self._replayed is not None:
            self._replayed(x, y)
        else:
            self.bind_gradient(start, stop)(stop - start, x, y)


def _build_fused_program(
    client_stack: ClientStack, fused_update: FusedUpdate, graph: Graph, gradients: Sequence[Node]
) -> Program:
    _bind_placeholders(graph, client_stack.w)
    targets = client_stack.w
    if fused_update.has_velocity:
        targets = [buffers["velocity"] for buffers in client_stack.optimizer_buffers]
    append_update(graph, gradients, fused_update, targets, (client_stack.w, targets))
    return Program(graph)


def _bind_placeholders(graph: Graph, stacked_tensors: Sequence[Tensor]) -> None:
    """Set the values of the placeholders w0, w1, ..."""
    by_name = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for i, tensor in enumerate(stacked_tensors):
        by_name[f"w{i}"].meta.update(value=tensor, varies=True)


class Stacked:
    """Engine that trains the clients of a stack at once, each on its own parameters, for small modules.

    Clients are sorted by their numbers of examples, so that clients with equal batch sizes are consecutive and no batch is
    padded. No result depends on the other clients of the stack. For the arguments, see `Captured`, but "exact" gives other bits
    than the sequential engine, and batch sizes outside `batch_sizes` are recorded before their first step. `stack_size` is the
    maximum number of clients in a stack.

    On a GPU, gradients are computed for all places of the stack, also for those without a step, and updates are not fused:
    libraries select kernels by the number of clients, and the kernels round differently.
    """

    def __init__(
        self,
        task: LearningTask,
        local_training: LocalTraining,
        sample: Examples,
        batch_sizes: Sequence[int],
        update_mode: UpdateMode = "fused",
        stack_size: int = 32,
        device: EngineDevice = HOST,
    ) -> None:
        self.local_training = local_training
        self.preferred_batch_of_clients = stack_size
        self._device = device
        self._computes_all = device.replays_steps
        self._flat_module = copy_for_capture(task, device)
        self._sample = sample
        self._fused_update = fusable_update(local_training) if update_mode == "fused" and not self._computes_all else None
        self._step_buffers = StepBuffers(self._flat_module, TensorFormat(task.layout, device=device), local_training.optimizer)
        self._client_stack = ClientStack(task.layout, local_training, max(stack_size, SMALL_CLIENT_COUNT + 1), device)
        self._x_buffer, self._y_buffer = BatchBuffer(device), BatchBuffer(device)
        self._steps: dict[int, StackedStep] = {}
        for size in batch_sizes:
            self._record_step(size)

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """Yield the results by dataset; in each dataset, clients with many examples come first."""
        by_dataset: dict[tuple[int, int], list[TrainingJob]] = {}
        for job in jobs:
            by_dataset.setdefault((id(job.examples.x), id(job.examples.y)), []).append(job)
        for group in by_dataset.values():
            group.sort(key=lambda job: (-len(job.examples), job.round, job.work or 0))
            for start in range(0, len(group), self.preferred_batch_of_clients):
                yield from self._train_stack(group[start : start + self.preferred_batch_of_clients])

    def _train_stack(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """Train the clients of one stack, whose jobs are sorted as `schedule_steps` requires."""
        stack = self._client_stack
        n_steps = [self.local_training.with_work(job.work).n_steps(len(job.examples)) for job in jobs]
        for n in {len(job.examples) for job in jobs}:
            for size in distinct_batch_sizes(n, self.local_training):
                self._record_step(size)
        with self._device.scope(), torch.no_grad():
            self._load_clients(jobs)
            only_steps: dict[int, Tensor] = {}
            for step_range in schedule_steps(jobs, self.local_training):
                start, stop = step_range.start, step_range.stop
                x, y = self._gather(jobs[0].examples, step_range)
                step = self._steps[step_range.batch_size]
                if step.bind_update is not None and not step_range.is_only_step:
                    step.bind_update(start, stop)(stop - start, x, y, -step_range.learning_rate)
                    continue
                step.compute_gradients(start, stop, x, y)
                rows = self._apply_optimizer(step_range, step.used_parameters)
                if rows is not None:
                    only_steps.update(zip(range(start, stop), rows, strict=True))
            updates = self._split_updates(stack.compute_updates(len(jobs)), only_steps)
            states = stack.optimizer_states(len(jobs)) if self.local_training.keep_optimizer_state else {}
        for i, job in enumerate(jobs):
            state = {name: rows[i].copy() for name, rows in states.items()}
            yield TrainingResult(job.client, updates[i], len(job.examples), n_steps[i], state)

    def _split_updates(self, rows: Tensor, only_steps: Mapping[int, Tensor]) -> list[F32]:
        """Return the update of each client from rows [k, P], or the only step of a client that makes one."""
        for client, step in only_steps.items():
            rows[client] = step
        if self._device.keeps_updates:
            return [self._device.finish_update(row) for row in rows]
        return list(self._device.to_host(rows))

    def _load_clients(self, jobs: Sequence[TrainingJob]) -> None:
        """Load models, optimizer states and corrections of the clients of a stack."""
        self._client_stack.load_models([job.weights for job in jobs])
        corrections = []
        for i, job in enumerate(jobs):
            state, correction = initial_training_state(job, self.local_training)
            self._client_stack.restore_optimizer_state(i, state)
            if correction is not None:
                corrections.append(correction)
        if corrections:
            self._client_stack.set_corrections(corrections)

    def _gather(self, examples: Examples, step_range: StackedStepRange) -> tuple[Tensor, Tensor]:
        """Return x and y of a step's batches, [k, B, ...]; in a stack that is computed as a whole, of all its places.

        A place without a step has the first batch of the others.
        """
        shape, indices = (step_range.stop - step_range.start, step_range.batch_size), step_range.concatenate_rows()
        if self._computes_all:
            batches = indices.reshape(shape)
            shape = self._client_stack.capacity, step_range.batch_size
            places = np.repeat(batches[:1], shape[0], axis=0)
            places[step_range.start : step_range.stop] = batches
            indices = places.reshape(-1)
        rows = self._device.to_device(indices)
        x, y = self._x_buffer.gather(examples.x, rows), self._y_buffer.gather(examples.y, rows)
        return x.view(*shape, *x.shape[1:]), y.view(*shape, *y.shape[1:])

    def _apply_optimizer(self, step_range: StackedStepRange, used_parameters: Sequence[bool]) -> Tensor | None:
        """Make the optimizer's step; the only step of a round does not change w, but is returned for each client, [k, P]."""
        stack, optimizer, clients = self._client_stack, self.local_training.optimizer, slice(step_range.start, step_range.stop)
        steps: list[Tensor] = []
        tensors = [(w[clients], g[clients]) for w, g in zip(stack.w, stack.g, strict=True)]
        if self.local_training.proximal:
            for (w, g), received_w in zip(tensors, stack.received_weights, strict=True):
                g.add_(w - (received_w[clients] if len(received_w) > 1 else received_w), alpha=self.local_training.proximal)
        for (_, g), correction in zip(tensors, stack.corrections, strict=False):  # the stack may have no corrections
            g.add_(correction[clients])
        if optimizer.clip_norm is not None:
            self._clip_per_client([g for _, g in tensors])
        for (w, g), stacked_buffers, is_used in zip(tensors, stack.optimizer_buffers, used_parameters, strict=True):
            if not is_used and self.local_training.skips_unused_parameters:
                steps.append(torch.zeros_like(w))
                continue
            buffers = {name: buffer[clients] for name, buffer in stacked_buffers.items()}
            with wrap_user_errors("client.optimizer", optimizer):
                step = optimizer.step_after_clipping(w, g, buffers, step_range.learning_rate)
            if step_range.is_only_step:
                steps.append(step.compute_difference(w))
            else:
                step.add_to(w)
        return stack.flatten(steps) if step_range.is_only_step else None

    def _clip_per_client(self, gradients: Sequence[Tensor]) -> None:
        """Clip the gradient of each client as one vector [P]; `gradients` has a tensor [k, *shape] for each parameter."""
        for tensors in zip(*gradients, strict=True):
            vector = torch.cat([tensor.reshape(-1) for tensor in tensors])
            self.local_training.optimizer.clip(vector)
            for tensor, clipped in zip(tensors, torch.split(vector, [tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(clipped.view_as(tensor))

    def _record_step(self, batch_size: int) -> None:
        """Record the step of a batch size, unless it is recorded already."""
        if batch_size in self._steps:
            return
        with self._device.scope(), torch.no_grad(), self._flat_module.isolated_buffers():
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
            except Exception as error:  # of a module that cannot be recorded or batched
                raise NotCapturableError(f"{type(error).__name__}: {error}") from error
        self._steps[batch_size] = step

    def _sample_batch(self, batch_size: int, client: int) -> Examples:
        return self._sample.select((np.arange(batch_size) + client * batch_size) % len(self._sample))

    def _verify_step(self, step: StackedStep, batch_size: int) -> None:
        """Raise NotCapturableError unless a client in a stack gets the bits of a client alone, close to autograd's results."""
        stack, weights, k = self._client_stack, self._flat_module.task.initial_parameters, self._client_stack.capacity
        models = [weights * np.float32(1 + 0.1 * client / k) for client in range(k)]
        batches = [batch_tensors(self._sample_batch(batch_size, client), self._device) for client in range(k)]
        x, y = (torch.stack([batch[i] for batch in batches]) for i in (0, 1))
        for bind, tensors, rate in ((step.bind_gradient, stack.g, ()), (step.bind_update, stack.w, (-1.0,))):
            if bind is None:
                continue
            stack.load_models(models)
            bind(0, k)(k, x, y, *rate)
            results = [tensor.clone() for tensor in tensors]
            for i in range(k):  # client i alone, in the first row of the stack, or next to others than before
                if self._computes_all:
                    stack.load_models([*models[i:], *models[:i]])
                    bind(0, k)(k, x.roll(-i, 0), y.roll(-i, 0))
                else:
                    stack.load_models(models[i : i + 1])
                    bind(0, 1)(1, x[i : i + 1].clone(), y[i : i + 1].clone(), *rate)
                if not all(torch.equal(result[i], tensor[0]) for result, tensor in zip(results, tensors, strict=True)):
                    raise NotCapturableError("a client's result depends on the other clients in its stack")
            rows = self._device.to_host(stack.flatten(results))
            rows = np.stack(models) - rows if rate else rows
            for model, batch, row in list(zip(models, batches, rows, strict=True))[:SMALL_CLIENT_COUNT]:
                self._flat_module.load_weights(model)
                gradients = [self._flat_module.compute_flat_gradient(*batch)[0] for _ in range(2)]
                if not torch.equal(*gradients):
                    raise NotCapturableError("a step depends on the steps before it")
                gradient = self._device.to_host(gradients[0])
                error, norm = float(np.linalg.norm(row - gradient)), float(np.linalg.norm(gradient))
                if not error <= RELATIVE_TOLERANCE * (norm + (float(np.linalg.norm(model)) if rate else 0)):
                    raise NotCapturableError(
                        f"the step differs from autograd's: the error's norm is {error:.3g}, the gradient's {norm:.3g}"
                    )

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """Return the loss and the metrics of a model: see `TrainingEngine.evaluate`."""
        return self._flat_module.evaluate(weights, examples, self._step_buffers.tensor_format, buffers)
