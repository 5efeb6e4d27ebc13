"""What a model is worth: on the test examples, by client, and on what it was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedsgd.arrays import F32, F64
from fedsgd.data import ClientData, Examples
from fedsgd.engine import Evaluated

BY_CLIENT = ("client_accuracy_mean", "client_accuracy_worst_tenth", "client_accuracy_std")
RESERVED = ("client_accuracy_", "train_")
"""How the names of what is measured by client and on training examples begin; a user's metric may not."""


class Evaluates(Protocol):
    """An engine, or whoever shares an evaluation out to several."""

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> Evaluated:
        """The loss and the metrics of the model with these weights [P] and running statistics [S]."""


Own = Callable[[int, F32 | None], tuple[F32, F32 | None]]
"""From a client and the buffers that are averaged [S'] to (the parameters of its model that never leave it [L], all its buffers
[S])."""


@dataclass(frozen=True, eq=False)
class Evaluator:
    """test: the examples that every evaluation is on. held_out: each client's own test examples, for accuracy by client;
    train: what clients train on, for loss and metrics of training; None: not asked for. own: what of its model each client has
    for itself; then there is no one model to test, and all figures are of the clients' own models on their own examples."""

    engine: Evaluates
    metrics: tuple[str, ...]
    test: Examples
    held_out: ClientData | None
    train: ClientData | None
    own: Own | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What `__call__` gives, in order: "loss", the task's metrics, those by client, those of training."""
        measured = ("loss", *self.metrics)
        by_client = () if self.held_out is None else BY_CLIENT
        return (*measured, *by_client, *(() if self.train is None else (f"train_{name}" for name in measured)))

    def __call__(self, weights: F32, buffers: F32 | None = None) -> tuple[dict[str, float], F64 | None]:
        """(name → value, the accuracy on each client's examples [N] if that was asked for) of the model with these weights [P]
        and running statistics [S]. The accuracy of a client that has no examples is NaN."""
        if self.own is not None and self.held_out is not None:
            return self._of_own_models(weights, buffers, self.own, self.held_out)
        values = self.engine.evaluate(weights, self.test, buffers).means
        accuracy = None
        if self.held_out is not None:
            accuracy = self._by_client(weights, self.held_out, buffers)
            values.update(_spread(accuracy[self.held_out.sizes() > 0]))
        if self.train is not None:
            trained_on = self.engine.evaluate(weights, self.train.all(), buffers).means
            values.update({f"train_{name}": value for name, value in trained_on.items()})
        return values, accuracy

    def _of_own_models(self, weights: F32, buffers: F32 | None, own: Own, data: ClientData) -> tuple[dict[str, float], F64]:
        """The same of each client's own model on its own examples; means are over the examples of all."""
        sizes = data.sizes()
        accuracy, total = np.full(len(data), np.nan), dict.fromkeys(("loss", *self.metrics), 0.0)
        for client in np.flatnonzero(sizes).tolist():
            parameters, statistics = own(client, buffers)
            means = self.engine.evaluate(np.concatenate([weights, parameters]), data.of(client), statistics).means
            accuracy[client] = means["accuracy"]
            total = {name: value + means[name] * float(sizes[client]) for name, value in total.items()}
        values = {name: value / float(sizes.sum()) for name, value in total.items()}
        return {**values, **_spread(accuracy[sizes > 0])}, accuracy

    def _by_client(self, weights: F32, data: ClientData, buffers: F32 | None) -> F64:
        scores = self.engine.evaluate(weights, data.all(), buffers).scores["accuracy"]
        sizes = data.sizes()
        totals = np.bincount(np.repeat(np.arange(len(sizes)), sizes), weights=scores, minlength=len(sizes))
        accuracy: F64 = np.divide(totals, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
        return accuracy


def _spread(accuracy: F64) -> dict[str, float]:
    """Over clients, each counting the same: mean, mean of the worst tenth (Li et al. 2020, "Fair resource allocation", rounded
    up to whole clients), standard deviation; all NaN if one is, as a user's own accuracy may be."""
    if not np.isfinite(accuracy).all():
        return dict.fromkeys(BY_CLIENT, math.nan)
    worst = np.sort(accuracy)[: math.ceil(len(accuracy) / 10)]
    return dict(zip(BY_CLIENT, (float(accuracy.mean()), float(worst.mean()), float(accuracy.std())), strict=True))
