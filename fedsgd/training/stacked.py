"""Training of many clients at once with recorded steps that have an axis of clients.

A stack is faster if the model is so small that calls take longer than arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsgd.config.user_errors import wrap_user_errors
from fedsgd.data import Examples
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32
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
from fedsgd.training.client_stack import ClientStack, StackedStep
from fedsgd.training.device import HOST, EngineDevice
from fedsgd.training.evaluation_result import EvaluationResult
from fedsgd.training.flat_module import TensorFormat, batch_tensors, check_attributes, copy_for_capture
from fedsgd.training.graph.stacked_step import SMALL_CLIENT_COUNT
from fedsgd.training.graph.step import (
    RELATIVE_TOLERANCE,
    StepBuffers,
    fusable_update,
)
from fedsgd.training.stack_schedule import StackedStepRange, schedule_steps

DEPENDENT_CLIENTS = "a client's result depends on the other clients in its stack"
"""Reason of a NotCapturableError."""


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
            return [self._device.finish_update(row.clone()) for row in rows]  # a view would keep the rows of all clients
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
            except (NotCapturableError, torch.OutOfMemoryError):
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
            if self._computes_all:
                results = self._compute_in_all_places(step, models, x, y)
            else:
                results = self._compute_alone(bind, models, x, y, tensors, rate)
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

    def _compute_alone(
        self,
        bind: Callable[[int, int], Callable[..., None]],
        models: Sequence[F32],
        x: Tensor,
        y: Tensor,
        tensors: Sequence[Tensor],
        rate: tuple[float, ...],
    ) -> list[Tensor]:
        """Return the results of a step of all clients, after a comparison with each client alone in the first row."""
        stack, k = self._client_stack, len(models)
        stack.load_models(models)
        bind(0, k)(k, x, y, *rate)
        results = [tensor.clone() for tensor in tensors]
        for i in range(k):
            stack.load_models(models[i : i + 1])
            bind(0, 1)(1, x[i : i + 1].clone(), y[i : i + 1].clone(), *rate)
            if not all(torch.equal(result[i], tensor[0]) for result, tensor in zip(results, tensors, strict=True)):
                raise NotCapturableError(DEPENDENT_CLIENTS)
        return results

    def _compute_in_all_places(self, step: StackedStep, models: Sequence[F32], x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the gradients of all clients, after a comparison with each client in three other places of the stack."""
        stack, k = self._client_stack, len(models)
        stack.load_models(models)
        step.compute_gradients(0, k, x, y)
        results = [tensor.clone() for tensor in stack.g]
        for shift in (1, k // 2, k - 1):
            stack.load_models([*models[shift:], *models[:shift]])
            step.compute_gradients(0, k, x.roll(-shift, 0), y.roll(-shift, 0))
            if not all(torch.equal(result.roll(-shift, 0), g) for result, g in zip(results, stack.g, strict=True)):
                raise NotCapturableError(DEPENDENT_CLIENTS)
        return results

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """Return the loss and the metrics of a model: see `TrainingEngine.evaluate`."""
        return self._flat_module.evaluate(weights, examples, self._step_buffers.tensor_format, buffers)
