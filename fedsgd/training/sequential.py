"""Training of one client after another with plain autograd: the reference that tests compare faster engines with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from fedsgd.data import Examples
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.rng import derive_torch_seed
from fedsgd.system.global_generators import isolate_generators
from fedsgd.training.base import LocalTraining, TrainingJob, TrainingResult, batches, initial_training_state
from fedsgd.training.device import HOST, EngineDevice
from fedsgd.training.evaluation_result import EvaluationResult
from fedsgd.training.flat_module import FlatModule, TensorFormat, batch_tensors


class Sequential:
    """Engine that trains one client after another with autograd. The parameters are views of one flat vector w [P]."""

    preferred_batch_of_clients = 1

    def __init__(self, task: LearningTask, local_training: LocalTraining, device: EngineDevice = HOST) -> None:
        self.local_training = local_training
        self._device = device
        self._flat_module = FlatModule(task, device)
        self._tensor_format = TensorFormat(task.layout, device=device)

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """Yield the results in the order of `jobs`."""
        for job in jobs:
            seed = derive_torch_seed(job.seed, "module", job.round, job.client)
            with (
                self._device.scope(),
                isolate_generators(seed),
                self._flat_module.isolated_buffers(job.buffers),
            ):
                result = self._train_client(job)
            yield result

    def _train_client(self, job: TrainingJob) -> TrainingResult:
        n_steps = self.local_training.with_work(job.work).n_steps(len(job.examples))
        n_scheduled_steps = self.local_training.n_scheduled_steps(len(job.examples))
        start = self._device.to_device(np.array(job.weights))
        w = start.clone()
        self._flat_module.bind_parameters(self._tensor_format.view_tensors(w))
        self._flat_module.task.module.train()
        initial_state, correction_array = initial_training_state(job, self.local_training)
        correction = None if correction_array is None else self._device.to_device(correction_array)
        optimizer_buffers = self.local_training.optimizer.init(w)
        for name, value in initial_state.items():
            optimizer_buffers[name].copy_(self._device.to_device(value))
        only_step = torch.zeros_like(w)  # returned as it is: (w + step) − w would be rounded
        for number, batch in enumerate(batches(job, self.local_training), start=1):
            x, y = batch_tensors(job.examples.select(batch), self._device)
            gradient, unused_slices = self._flat_module.compute_flat_gradient(x, y)
            time = job.round, number, n_scheduled_steps
            step = self.local_training.local_step(w, start, gradient, optimizer_buffers, time, correction, unused_slices)
            if n_steps == 1:
                only_step = step.compute_difference(w)
            else:
                step.add_to(w)
        update = only_step if n_steps == 1 else w - start
        final_state: dict[str, F32] = {}
        if self.local_training.keep_optimizer_state:
            final_state = {name: self._device.to_host(value) for name, value in optimizer_buffers.items()}
        self._flat_module.state.check_unchanged()
        buffers = self._flat_module.state.read_buffers()
        return TrainingResult(job.client, self._device.finish_update(update), len(job.examples), n_steps, final_state, buffers)

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """Return the loss and the metrics of a model: see `TrainingEngine.evaluate`."""
        return self._flat_module.evaluate(weights, examples, self._tensor_format, buffers)
