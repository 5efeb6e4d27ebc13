"""One client after the other, one step after the other, plain autograd: the oracle that faster engines are held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fedsgd.arrays import F32, F64, I64
from fedsgd.data import Examples
from fedsgd.engine.base import Evaluated, Local, Recipe, Work, batches
from fedsgd.errors import ModelError
from fedsgd.models import Task
from fedsgd.rng import torch_seed
from fedsgd.torch_scope import one_thread, torch_generator

EVALUATION_SLICE = 100
"""Slices of 1,000 were 1.3 to 1.6 times slower on the convolutional networks, and no faster on the others."""


class Sequential:
    """The parameters of the task's module are views of one flat vector w [P], so a step is one operation on it."""

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self.task = task
        self.recipe = recipe
        by_name = dict(task.module.named_parameters())
        self._parameters = [by_name[name] for name in task.layout.names]
        self._buffers = {name: buffer.clone() for name, buffer in task.module.named_buffers()}

    def train(self, works: Sequence[Work]) -> Iterator[Local]:
        """The results, in the order of `works`."""
        for work in works:
            with one_thread(), torch_generator(torch_seed(work.seed, "module", work.round, work.client)), self._own_buffers():
                local = self._train_one(work)
            yield local

    def _train_one(self, work: Work) -> Local:
        n_steps = self.recipe.n_steps(len(work.examples))
        x, y = _tensors(work.examples)
        start = torch.from_numpy(np.array(work.weights))
        w = start.clone()
        self._point_at(w)
        self.task.module.train()
        buffers = self.recipe.optimizer.init(w)
        only_step = torch.zeros_like(w)
        for step, batch in enumerate(batches(work, self.recipe), start=1):
            gradient = self._gradient(*_take(x, y, batch))
            direction, alpha = self.recipe.increment(w, start, gradient, buffers, (work.round, step, n_steps))
            if n_steps == 1:
                only_step = direction * alpha
            else:
                w.add_(direction, alpha=alpha)
        update = only_step if n_steps == 1 else w - start
        return Local(work.client, update.numpy(), len(work.examples), n_steps)

    def _gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of the loss of one batch, flat [P]; zero for a parameter that the loss does not reach."""
        with torch.enable_grad():
            loss = self.task.loss(self.task.module(x), y)
        if not isinstance(loss, Tensor) or loss.dim():
            raise ModelError(f"the loss is {_what(loss)}, expected a tensor that is a scalar: the mean over the batch")
        gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in gradients])

    def evaluate(self, weights: F32, examples: Examples) -> Evaluated:
        """The loss and the metrics of the model with these weights [P], in slices of 100 examples."""
        self._point_at(torch.from_numpy(np.array(weights)))
        self.task.module.eval()
        loss, scores = 0.0, {name: np.empty(len(examples)) for name in self.task.metrics}
        with one_thread(), torch.no_grad(), torch_generator(0), self._own_buffers():
            for start in range(0, len(examples), EVALUATION_SLICE):
                x, target = _tensors(examples.part(start, start + EVALUATION_SLICE))
                output = self.task.module(x.clone())
                loss += float(self.task.loss(output, target)) * len(target)
                for name, metric in self.task.metrics.items():
                    scores[name][start : start + len(target)] = _by_example(name, metric(output, target), len(target))
        return Evaluated(loss / len(examples), scores)

    def _point_at(self, w: Tensor) -> None:
        for parameter, (_, where, shape) in zip(self._parameters, self.task.layout.slices(), strict=True):
            parameter.data = w[where].view(shape)

    @contextmanager
    def _own_buffers(self) -> Iterator[None]:
        """Buffers that a module changes while it runs are as they were for the next client."""
        try:
            yield
        finally:
            for name, buffer in self.task.module.named_buffers():
                before = self._buffers.get(name)
                if before is None or before.shape != buffer.shape:
                    raise ModelError(
                        f"buffer {name} appeared or changed its shape while the module ran; register it beforehand"
                    )
                with torch.no_grad():
                    buffer.copy_(before)


def _by_example(name: str, score: object, n: int) -> F64:
    if not isinstance(score, Tensor) or tuple(score.shape) != (n,):
        raise ModelError(f"metric {name} is {_what(score)}, expected a tensor with one number per example, of shape [{n}]")
    return score.double().numpy()


def _what(value: object) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _tensors(examples: Examples) -> tuple[Tensor, Tensor]:
    """x and y as tensors that share memory with the arrays, unless those are read-only."""
    x, y = (torch.from_numpy(np.require(a, requirements="W")) for a in examples.gather())
    return x, y


def _take(x: Tensor, y: Tensor, batch: I64) -> tuple[Tensor, Tensor]:
    """The examples of one batch as copies, so that a module that works in place changes them only for itself."""
    if len(batch) == len(y):
        return x.clone(), y.clone()
    rows = torch.from_numpy(batch)
    return x.index_select(0, rows), y.index_select(0, rows)
