"""Training with steps of frequent batch sizes that are recorded once and replayed without autograd or module calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsgd.data import Examples
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.rng import derive_torch_seed
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.profiling import timed
from fedsgd.training.base import (
    LocalTraining,
    NotCapturableError,
    TrainingJob,
    TrainingResult,
    UpdateMode,
    distinct_batch_sizes,
    epochs,
    initial_training_state,
)
from fedsgd.training.device import HOST, EngineDevice
from fedsgd.training.evaluation_result import EvaluationResult
from fedsgd.training.flat_module import TensorFormat, check_attributes, copy_for_capture
from fedsgd.training.graph.step import CapturedStep, StepBuffers, capture_step, fusable_update


class Captured:
    """Engine that runs the steps of a module as lists of tensor operations, client after client.

    Args:
        sample: examples to record and to check steps with.
        batch_sizes: batch sizes to record, the most frequent first; steps of other sizes run with autograd.
        device: device of the engine; on a GPU, a step's kernels are started together (`ReplayedStep`).
        update_mode: "exact" gives the bits of the sequential engine. "fused" adds gradients of weights to the parameters or the
            velocity while computing them, unless the local step needs the gradient itself. It also stores weights of
            convolutions with their channels last, if the module allows it. The sums of "fused" round in another order. Deep
            networks amplify the difference, which `python -m tests.bench.engine rounding` prints.
    """

    preferred_batch_of_clients = 1

    def __init__(
        self,
        task: LearningTask,
        local_training: LocalTraining,
        sample: Examples,
        batch_sizes: Sequence[int],
        update_mode: UpdateMode = "fused",
        device: EngineDevice = HOST,
    ) -> None:
        self.local_training = local_training
        self._device = device
        self._flat_module = copy_for_capture(task, device)
        self._sample = sample
        self._batch_sizes = frozenset(batch_sizes)
        self._fused_update = fusable_update(local_training, device.replays_steps) if update_mode == "fused" else None
        self._x_buffer, self._y_buffer = BatchBuffer(device), BatchBuffer(device)
        may_reorder = update_mode == "fused" and device.is_cpu and not device.keeps_updates
        has_images = may_reorder and any(len(shape) == 4 for shape in task.layout.shapes)
        self._step_buffers, self._steps = self._capture_first_step(batch_sizes[0], has_images)

    def _capture_first_step(self, batch_size: int, has_images: bool) -> tuple[StepBuffers, dict[int, CapturedStep | None]]:
        """Return buffers in the tensor format in which the module can be captured, and the step of the first batch size."""
        layout, optimizer = self._flat_module.task.layout, self.local_training.optimizer
        for channels_last in (True, False) if has_images else (False,):
            buffers = StepBuffers(self._flat_module, TensorFormat(layout, channels_last, self._device), optimizer)
            try:
                steps: dict[int, CapturedStep | None] = {batch_size: self._capture_step(buffers, batch_size)}
                if channels_last:  # metrics may not support outputs with channels last
                    self._flat_module.evaluate(
                        self._flat_module.task.initial_parameters, self._sample.slice(0, batch_size), buffers.tensor_format
                    )
                return buffers, steps
            except Exception:  # NotCapturableError, memory, and errors of the user's metrics
                if not channels_last:
                    raise
        raise AssertionError("unreachable")

    def _capture_step(self, step_buffers: StepBuffers, batch_size: int) -> CapturedStep:
        rows = np.arange(len(self._sample))
        with self._device.scope(), self._flat_module.isolated_buffers():
            step = capture_step(
                step_buffers,
                self._fused_update,
                self._sample.select(rows[:batch_size]),
                self._sample.select(rows[::-1][:batch_size].copy()),
            )
            check_attributes(self._flat_module)
            step_buffers.release_module_parameters()
            return step

    def _get_or_capture_step(self, batch_size: int) -> CapturedStep | None:
        """Return the step of a batch size; None if its batches run with autograd."""
        if batch_size not in self._steps:
            step = None
            if batch_size in self._batch_sizes:
                with suppress(NotCapturableError):
                    step = self._capture_step(self._step_buffers, batch_size)
            self._steps[batch_size] = step
        return self._steps[batch_size]

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """Yield the results in the order of `jobs`."""
        for job in jobs:
            sizes = distinct_batch_sizes(len(job.examples), self.local_training.with_work(job.work))
            steps = {size: self._get_or_capture_step(size) for size in sizes}
            with (
                self._device.scope(),
                torch.no_grad(),
                self._flat_module.isolated_buffers(),
                self._seed_client_generators(job, steps.values()),
            ):
                result = self._train_client(job, steps)
            yield result

    def _seed_client_generators(self, job: TrainingJob, steps: Iterable[CapturedStep | None]) -> AbstractContextManager[Any]:
        """Return a scope with the client's seeds of the global generators; an empty scope if no step draws random numbers."""
        if not any(step is None or step.is_random for step in steps):
            return nullcontext()
        return isolate_generators(derive_torch_seed(job.seed, "module", job.round, job.client))

    def _train_client(self, job: TrainingJob, steps: Mapping[int, CapturedStep | None]) -> TrainingResult:
        buffers, optimizer = self._step_buffers, self.local_training.optimizer
        n_steps = self.local_training.with_work(job.work).n_steps(len(job.examples))
        n_scheduled_steps = self.local_training.n_scheduled_steps(len(job.examples))
        initial_state, correction_array = initial_training_state(job, self.local_training)
        buffers.load_client(job.weights, initial_state)
        correction = None if correction_array is None else buffers.to_internal_order(correction_array)
        start = buffers.w.clone() if self.local_training.proximal else buffers.w
        buffers.flat_module.task.module.train()
        for number, (x, y) in enumerate(self._gather_batches(job), start=1):
            step, time = steps[y.shape[0]], (job.round, number, n_scheduled_steps)
            if step is not None and step.apply_update is not None and n_steps > 1:
                step.apply_update(x, y, -optimizer.learning_rate(*time))
                continue
            if step is None:
                unused_slices: Sequence[slice] = buffers.compute_eager_gradient(x, y)
            else:
                unused_slices = step.unused_slices
                step.compute_gradient(x, y)
            local_step = self.local_training.local_step(
                buffers.w, start, buffers.g, buffers.optimizer_buffers, time, correction, unused_slices
            )
            if n_steps == 1:
                return self._build_result(job, self._finish_update(local_step.compute_difference(buffers.w)))
            local_step.add_to(buffers.w)
        if self._device.keeps_updates:
            return self._build_result(job, self._finish_update(buffers.w - self._device.to_device(job.weights)))
        update = buffers.tensor_format.to_wire_order(buffers.w)
        np.subtract(update, job.weights, out=update)
        return self._build_result(job, update)

    def _finish_update(self, update: Tensor) -> F32:
        """Return an update in the order of the wire, as `EngineDevice.finish_update`."""
        if self._device.keeps_updates:  # then tensors have the order of the wire
            return self._device.finish_update(update)
        return self._step_buffers.tensor_format.to_wire_order(update)

    def _build_result(self, job: TrainingJob, update: F32) -> TrainingResult:
        """Return the result of a client, with the optimizer's buffers under `keep_optimizer_state`."""
        self._flat_module.state.check_copies_unchanged(self._step_buffers.module_buffers)
        buffers, n = self._step_buffers, len(job.examples)
        final_state = (
            {name: buffers.tensor_format.to_wire_order(value) for name, value in buffers.optimizer_buffers.items()}
            if self.local_training.keep_optimizer_state
            else {}
        )
        return TrainingResult(job.client, update, n, self.local_training.with_work(job.work).n_steps(n), final_state)

    def _gather_batches(self, job: TrainingJob) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield x and y of each step, valid until the next step."""
        sizes = self.local_training.plan_batches(len(job.examples)).batch_sizes
        for order, n_steps in epochs(job, self.local_training):
            rows = torch.split(self._device.to_device(job.examples.row_indices(order)), sizes)
            for batch in rows[:n_steps]:
                yield self._x_buffer.gather(job.examples.x, batch), self._y_buffer.gather(job.examples.y, batch)

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """Return the loss and the metrics of a model: see `TrainingEngine.evaluate`."""
        tensor_format, memory = self._step_buffers.tensor_format, self._step_buffers.w  # the next client overwrites the memory
        return self._flat_module.evaluate(weights, examples, tensor_format, buffers, memory)


class BatchBuffer:
    """Memory for the rows of a batch, which the next batch overwrites.

    Rows start at the beginning of the memory, because a matrix product may round differently for other alignments.
    """

    def __init__(self, device: EngineDevice = HOST) -> None:
        self._device = device
        self._array: NDArray[Any] | None = None
        self._source = self._storage = torch.empty(0, device=device.torch_device)
        self._views_by_size: dict[int, Tensor] = {}

    @timed("gather")
    def gather(self, array: NDArray[Any], rows: Tensor) -> Tensor:
        """Return rows of an array as a tensor, valid until the next call."""
        if self._array is not array:
            self._array, self._source, self._views_by_size = array, self._device.get_examples(array), {}
        n = rows.numel()
        view = self._views_by_size.get(n)
        if view is None:
            view = self._reserve_rows(n)
        return torch.index_select(self._source, 0, rows, out=view)

    def _reserve_rows(self, n: int) -> Tensor:
        """Return memory for n rows: the beginning of the storage, which grows if it is too small."""
        shape = self._source.shape[1:]
        if self._storage.shape[0] < n or self._storage.shape[1:] != shape or self._storage.dtype != self._source.dtype:
            self._storage, self._views_by_size = self._source.new_empty((n, *shape)), {}
        self._views_by_size[n] = self._storage[:n]
        return self._views_by_size[n]
