"""One client after the other, one step after the other, plain autograd: the oracle that faster engines are held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from fedsgd.arrays import F32
from fedsgd.data import Examples
from fedsgd.engine.arrangement import Arrangement
from fedsgd.engine.base import Evaluated, Local, Recipe, Work, batches, beginning
from fedsgd.engine.network import Network, shared, tensors
from fedsgd.generators import seeded_generators
from fedsgd.models import Task
from fedsgd.rng import torch_seed
from fedsgd.torch_scope import one_thread


class Sequential:
    """The parameters of the task's module are views of one flat vector w [P], so a step is one operation on it."""

    together = 1

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self.recipe = recipe
        self._network = Network(task)
        self._arrangement = Arrangement(task.layout)

    def train(self, works: Sequence[Work]) -> Iterator[Local]:
        """The results, in the order of `works`."""
        for work in works:
            seed = torch_seed(work.seed, "module", work.round, work.client)
            with one_thread(), seeded_generators(seed), self._network.own_buffers(work.buffers):
                local = self._train_one(work)
            yield local

    def _train_one(self, work: Work) -> Local:
        n_steps = self.recipe.n_steps(len(work.examples))
        start = torch.from_numpy(np.array(work.weights))
        w = start.clone()
        self._network.point_at(self._arrangement.views(w))
        self._network.task.module.train()
        memory, correction = beginning(work, self.recipe)
        added = None if correction is None else torch.from_numpy(correction)
        buffers = self.recipe.optimizer.init(w)
        for name, value in memory.items():
            buffers[name].copy_(shared(value))
        only_step = torch.zeros_like(w)
        for step, batch in enumerate(batches(work, self.recipe), start=1):
            gradient, unused = self._network.gradient(*tensors(work.examples.take(batch)))
            direction, alpha = self.recipe.increment(w, start, gradient, buffers, (work.round, step, n_steps), added, unused)
            if n_steps == 1:
                only_step = direction * alpha
            else:
                w.add_(direction, alpha=alpha)
        update = only_step if n_steps == 1 else w - start
        kept = {name: value.numpy() for name, value in buffers.items()} if self.recipe.carry else {}
        self._network.state.check()
        return Local(work.client, update.numpy(), len(work.examples), n_steps, kept, self._network.state.read())

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> Evaluated:
        """The loss and the metrics of the model with these weights [P] and running statistics [S] (None: as it was made)."""
        return self._network.evaluate(weights, examples, self._arrangement, buffers)
