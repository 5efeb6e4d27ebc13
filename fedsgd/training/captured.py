"""The step recorded once for each batch size, and replayed without autograd or module calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from fedsgd.system.torch_threads import use_single_thread
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
from fedsgd.training.evaluation_result import EvaluationResult
from fedsgd.training.flat_module import TensorFormat, as_tensor, check_attributes, copy_for_capture
from fedsgd.training.graph.step import CapturedStep, StepBuffers, capture_step, fusable_update


class Captured:
    """SGD of any module, as a list of tensor operations.

    like: examples to record and to try steps with; sizes: the batch sizes that are worth recording, the most frequent first
    (others go through autograd). update: "exact" gives the oracle's bits; "fused" adds the gradients of weights to the
    parameters as they are computed, and has the channels of images last. So it rounds in another order, which deep networks
    amplify: `python -m tests.bench.engine rounding` prints how far updates end from the oracle's. An optimiser that needs the
    gradient itself is exact in its update either way.
    """

    preferred_batch_of_clients = 1

    def __init__(
        self,
        task: LearningTask,
        local_training: LocalTraining,
        sample: Examples,
        batch_sizes: Sequence[int],
        update_mode: UpdateMode = "fused",
    ) -> None:
        """CaptureError, with the reason, if the module cannot be captured."""
        self.local_training = local_training
        self._flat_module = copy_for_capture(task)
        self._sample = sample
        self._batch_sizes = frozenset(batch_sizes)
        self._fused_update = fusable_update(local_training) if update_mode == "fused" else None
        self._x_buffer, self._y_buffer = BatchBuffer(), BatchBuffer()
        has_images = update_mode == "fused" and any(len(shape) == 4 for shape in task.layout.shapes)
        self._step_buffers, self._steps = self._capture_first_step(batch_sizes[0], has_images)

    def _capture_first_step(self, batch_size: int, has_images: bool) -> tuple[StepBuffers, dict[int, CapturedStep | None]]:
        """The workspace in the arrangement in which the module can be captured, and the step that shows it."""
        layout, optimizer = self._flat_module.task.layout, self.local_training.optimizer
        for channels_last in (True, False) if has_images else (False,):
            space = StepBuffers(self._flat_module, TensorFormat(layout, channels_last), optimizer)
            try:
                steps: dict[int, CapturedStep | None] = {batch_size: self._capture_step(space, batch_size)}
                if channels_last:  # metrics see the outputs as they stand
                    self._flat_module.evaluate(
                        self._flat_module.task.initial_parameters, self._sample.slice(0, batch_size), space.tensor_format
                    )
                return space, steps
            except Exception:  # CaptureError, and whatever a metric does
                if not channels_last:
                    raise
        raise AssertionError("unreachable")

    def _capture_step(self, step_buffers: StepBuffers, batch_size: int) -> CapturedStep:
        rows = np.arange(len(self._sample))
        with use_single_thread(), self._flat_module.isolated_buffers():
            step = capture_step(
                step_buffers,
                self._fused_update,
                self._sample.select(rows[:batch_size]),
                self._sample.select(rows[::-1][:batch_size].copy()),
            )
            check_attributes(self._flat_module)
            return step

    def _get_or_capture_step(self, batch_size: int) -> CapturedStep | None:
        """The step for batches of this size; None if they go through autograd."""
        if batch_size not in self._steps:
            step = None
            if batch_size in self._batch_sizes:
                try:
                    step = self._capture_step(self._step_buffers, batch_size)
                except NotCapturableError:
                    step = None
            self._steps[batch_size] = step
        return self._steps[batch_size]

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """The results, in the order of `jobs`."""
        for work in jobs:
            steps = {
                size: self._get_or_capture_step(size) for size in distinct_batch_sizes(len(work.examples), self.local_training)
            }
            with (
                use_single_thread(),
                torch.no_grad(),
                self._flat_module.isolated_buffers(),
                self._seed_client_generators(work, steps.values()),
            ):
                local = self._train_client(work, steps)
            yield local

    def _seed_client_generators(self, job: TrainingJob, steps: Iterable[CapturedStep | None]) -> AbstractContextManager[Any]:
        """The client's own, as far as its steps draw any."""
        if not any(step is None or step.is_random for step in steps):
            return nullcontext()
        return isolate_generators(derive_torch_seed(job.seed, "module", job.round, job.client))

    def _train_client(self, job: TrainingJob, steps: Mapping[int, CapturedStep | None]) -> TrainingResult:
        space, optimizer, n_steps = (
            self._step_buffers,
            self.local_training.optimizer,
            self.local_training.n_steps(len(job.examples)),
        )
        memory, correction = initial_training_state(job, self.local_training)
        space.load_client(job.weights, memory)
        added = None if correction is None else space.to_internal_order(correction)
        start = space.w.clone() if self.local_training.proximal else space.w
        space.flat_module.task.module.train()
        for number, (x, y) in enumerate(self._gather_batches(job), start=1):
            step, at = steps[y.shape[0]], (job.round, number, n_steps)
            if step is not None and step.apply_update is not None and n_steps > 1:
                step.apply_update(x, y, -optimizer.learning_rate(*at))
                continue
            if step is None:
                unused: Sequence[slice] = space.compute_eager_gradient(x, y)
            else:
                unused = step.unused_slices
                step.compute_gradient(x, y)
            direction, alpha = self.local_training.local_step(
                space.w, start, space.g, space.optimizer_buffers, at, added, unused
            )
            if n_steps == 1:
                return self._build_result(job, space.tensor_format.to_wire_order(direction * alpha))
            space.w.add_(direction, alpha=alpha)
        update = space.tensor_format.to_wire_order(space.w)
        np.subtract(update, job.weights, out=update)
        return self._build_result(job, update)

    def _build_result(self, job: TrainingJob, update: F32) -> TrainingResult:
        """The result, with what is now remembered."""
        self._flat_module.state.check_copies_unchanged(self._step_buffers.module_buffers)
        space, n = self._step_buffers, len(job.examples)
        kept = (
            {name: space.tensor_format.to_wire_order(value) for name, value in space.optimizer_buffers.items()}
            if self.local_training.keep_optimizer_state
            else {}
        )
        return TrainingResult(job.client, update, n, self.local_training.n_steps(n), kept)

    def _gather_batches(self, job: TrainingJob) -> Iterator[tuple[Tensor, Tensor]]:
        """The examples of each step."""
        sizes = self.local_training.plan_batches(len(job.examples)).batch_sizes
        for order, n_steps in epochs(job, self.local_training):
            rows = torch.split(torch.from_numpy(job.examples.row_indices(order)), sizes)
            for batch in rows[:n_steps]:
                yield self._x_buffer.gather(job.examples.x, batch), self._y_buffer.gather(job.examples.y, batch)

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """The loss and the metrics of the model with these weights [P] and running statistics [S] (None: as it was made)."""
        return self._flat_module.evaluate(weights, examples, self._step_buffers.tensor_format, buffers)


class BatchBuffer:
    """Rows of an array, in memory that is used again and again.

    Always from its beginning: what a matrix product rounds to may depend on how its operands are aligned.
    """

    def __init__(self) -> None:
        self._array: NDArray[Any] | None = None
        self._source = self._storage = torch.empty(0)
        self._views_by_size: dict[int, Tensor] = {}

    @timed("gather")
    def gather(self, array: NDArray[Any], rows: Tensor) -> Tensor:
        """These rows of it, valid until the next are taken."""
        if self._array is not array:
            self._array, self._source, self._views_by_size = array, as_tensor(array), {}
        n = rows.numel()
        beginning = self._views_by_size.get(n)
        if beginning is None:
            beginning = self._reserve_rows(n)
        return torch.index_select(self._source, 0, rows, out=beginning)

    def _reserve_rows(self, n: int) -> Tensor:
        """Room for n rows: the beginning of what there is, if that is enough."""
        shape = self._source.shape[1:]
        if self._storage.shape[0] < n or self._storage.shape[1:] != shape or self._storage.dtype != self._source.dtype:
            self._storage, self._views_by_size = torch.empty((n, *shape), dtype=self._source.dtype), {}
        self._views_by_size[n] = self._storage[:n]
        return self._views_by_size[n]
