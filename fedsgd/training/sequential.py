"""One client after the other, one step after the other, plain autograd: the oracle that faster engines are held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from fedsgd.data import Examples
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.rng import derive_torch_seed
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training.base import LocalTraining, TrainingJob, TrainingResult, batches, initial_training_state
from fedsgd.training.evaluation_result import EvaluationResult
from fedsgd.training.flat_module import FlatModule, TensorFormat, as_tensor, batch_tensors


class Sequential:
    """The parameters of the task's module are views of one flat vector w [P], so a step is one operation on it."""

    preferred_batch_of_clients = 1

    def __init__(self, task: LearningTask, local_training: LocalTraining) -> None:
        self.local_training = local_training
        self._flat_module = FlatModule(task)
        self._tensor_format = TensorFormat(task.layout)

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """The results, in the order of `jobs`."""
        for work in jobs:
            seed = derive_torch_seed(work.seed, "module", work.round, work.client)
            with use_single_thread(), isolate_generators(seed), self._flat_module.isolated_buffers(work.buffers):
                local = self._train_client(work)
            yield local

    def _train_client(self, job: TrainingJob) -> TrainingResult:
        n_steps = self.local_training.n_steps(len(job.examples))
        start = torch.from_numpy(np.array(job.weights))
        w = start.clone()
        self._flat_module.bind_parameters(self._tensor_format.view_tensors(w))
        self._flat_module.task.module.train()
        memory, correction = initial_training_state(job, self.local_training)
        added = None if correction is None else torch.from_numpy(correction)
        buffers = self.local_training.optimizer.init(w)
        for name, value in memory.items():
            buffers[name].copy_(as_tensor(value))
        only_step = torch.zeros_like(w)
        for step, batch in enumerate(batches(job, self.local_training), start=1):
            gradient, unused = self._flat_module.compute_flat_gradient(*batch_tensors(job.examples.select(batch)))
            direction, alpha = self.local_training.local_step(
                w, start, gradient, buffers, (job.round, step, n_steps), added, unused
            )
            if n_steps == 1:
                only_step = direction * alpha
            else:
                w.add_(direction, alpha=alpha)
        update = only_step if n_steps == 1 else w - start
        kept = {name: value.numpy() for name, value in buffers.items()} if self.local_training.keep_optimizer_state else {}
        self._flat_module.state.check_unchanged()
        return TrainingResult(
            job.client, update.numpy(), len(job.examples), n_steps, kept, self._flat_module.state.read_buffers()
        )

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """The loss and the metrics of the model with these weights [P] and running statistics [S] (None: as it was made)."""
        return self._flat_module.evaluate(weights, examples, self._tensor_format, buffers)
