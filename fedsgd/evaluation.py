"""What a model is worth: on the test examples, by client, and on what it was trained on."""

from __future__ import annotations

import math
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

    def evaluate(self, weights: F32, examples: Examples) -> Evaluated:
        """The loss and the metrics of the model with these weights [P]."""


@dataclass(frozen=True, eq=False)
class Evaluator:
    """test: the examples that every evaluation is on. held_out: each client's own test examples, for accuracy by client;
    train: what clients train on, for loss and metrics of training; None: not asked for."""

    engine: Evaluates
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

    def __call__(self, weights: F32) -> tuple[dict[str, float], F64 | None]:
        """(name → value, the accuracy on each client's examples [N] if that was asked for) of the model with these weights [P].
        The accuracy of a client that has no examples is NaN."""
        values = self.engine.evaluate(weights, self.test).means
        accuracy = None
        if self.held_out is not None:
            accuracy = self._by_client(weights, self.held_out)
            values.update(_spread(accuracy[self.held_out.sizes() > 0]))
        if self.train is not None:
            trained_on = self.engine.evaluate(weights, self.train.all()).means
            values.update({f"train_{name}": value for name, value in trained_on.items()})
        return values, accuracy

    def _by_client(self, weights: F32, data: ClientData) -> F64:
        scores = self.engine.evaluate(weights, data.all()).scores["accuracy"]
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
