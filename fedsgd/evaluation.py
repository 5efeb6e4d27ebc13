"""What a model is worth: on the test examples, by client, and on what it was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsgd.arrays import F32, F64
from fedsgd.data import ClientData, Examples
from fedsgd.engine import Engine

BY_CLIENT = ("client_accuracy_mean", "client_accuracy_worst_tenth", "client_accuracy_std")
RESERVED = ("client_accuracy_", "train_")
"""How the names of what is measured by client and on training examples begin; a user's metric may not."""


@dataclass(frozen=True, eq=False)
class Evaluator:
    """test: the examples that every evaluation is on. held_out: each client's own test examples, for accuracy by client;
    train: what clients train on, for loss and metrics of training; None: not asked for."""

    engine: Engine
    metrics: tuple[str, ...]
    test: Examples
    held_out: ClientData | None
    train: ClientData | None

    @property
    def names(self) -> tuple[str, ...]:
        """What `__call__` gives, in order: "loss", the task's metrics, those by client, those of training."""
        measured = ("loss", *self.metrics)
        by_client = () if self.held_out is None else BY_CLIENT
        return (*measured, *by_client, *(() if self.train is None else (f"train_{name}" for name in measured)))

    def __call__(self, weights: F32) -> dict[str, float]:
        """Name → value, for the model with these weights [P]."""
        values = self.engine.evaluate(weights, self.test).means
        if self.held_out is not None:
            values.update(_spread(self.by_client(weights, self.held_out)))
        if self.train is not None:
            trained_on = self.engine.evaluate(weights, _all_of(self.train)).means
            values.update({f"train_{name}": value for name, value in trained_on.items()})
        return values

    def by_client(self, weights: F32, data: ClientData) -> F64:
        """The accuracy of the model on each client's examples [N]; NaN for a client that has none."""
        scores = self.engine.evaluate(weights, _all_of(data)).scores["accuracy"]
        sizes = data.partition.sizes()
        totals = np.bincount(data.partition.clients(), weights=scores, minlength=len(sizes))
        accuracy: F64 = np.divide(totals, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
        return accuracy


def _spread(accuracy: F64) -> dict[str, float]:
    """Over the clients that have test examples, each counting the same: mean, mean of the worst tenth (Li et al. 2020, "Fair
    resource allocation", rounded up to whole clients), standard deviation."""
    known = np.sort(accuracy[~np.isnan(accuracy)])
    worst = known[: math.ceil(len(known) / 10)]
    return dict(zip(BY_CLIENT, (float(known.mean()), float(worst.mean()), float(known.std())), strict=True))


def _all_of(data: ClientData) -> Examples:
    """The examples of all clients, client after client."""
    return Examples(data.examples.x, data.examples.y, data.partition.order)
