"""Sets of examples that models are evaluated on, and results of evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsgd.data import Examples
from fedsgd.numerics.arrays import F64, I64

EVALUATION_SLICE_SIZE = 100
"""Examples in a slice. Slices of 1,000 were 1.3 to 1.6 times slower on convolutional networks, and not faster on others."""
SET_LABELS = {
    "test": "test examples",
    "clients": "test examples of clients",
    "training": "training examples",
    "validation": "validation examples",
}
"""Descriptions of sets for messages, by name."""


@dataclass(frozen=True, eq=False)
class EvaluationSets:
    """Examples on which a run evaluates models.

    Attributes:
        global_sets: examples by name of the set; one model is evaluated on all examples.
        local_sets: examples, distinct numbers of examples of a client, and the number of clients with each, by name of the set;
            each client's own model is evaluated on the client's examples.
    """

    global_sets: Mapping[str, Examples]
    local_sets: Mapping[str, tuple[Examples, I64, I64]]

    def iterate_slices(self) -> Iterator[tuple[str, str, Examples]]:
        """Yield a set's name, a description and a slice, for each size of a slice that occurs, full slices first."""
        for name, examples in self.global_sets.items():
            description, n_rest = f"the {len(examples):,} {SET_LABELS[name]}", len(examples) % EVALUATION_SLICE_SIZE
            yield name, description, examples.slice(0, EVALUATION_SLICE_SIZE)
            if n_rest and n_rest < len(examples):
                yield name, description, examples.slice(len(examples) - n_rest, len(examples))
        for name, (examples, sizes, client_counts) in self.local_sets.items():
            first_sizes, last_sizes = np.minimum(sizes, EVALUATION_SLICE_SIZE), sizes % EVALUATION_SLICE_SIZE
            for size in np.unique(np.concatenate([first_sizes, last_sizes]))[::-1].tolist():
                n_clients = client_counts[(first_sizes == size) | (last_sizes == size)].sum()
                if size:
                    kind = SET_LABELS[name].removesuffix(" of clients")
                    description = f"the {kind} of {n_clients:,} of {client_counts.sum():,} clients"
                    yield name, description, examples.slice(0, size)


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Loss and metrics of a model on n examples.

    Attributes:
        losses: loss times weight of each slice of `EVALUATION_SLICE_SIZE` examples, in order; one entry if the loss was
            computed in one call.
        scores: [n] float64 by name of the metric, value for each example.
        score_weights: [n] float64 by name of the metric, weights of the values; only for metrics with weights.
        loss_weights: weight of each entry of `losses`; None: the entry's number of examples, or 1 if `is_loss_sum`. Under
            `is_loss_sum`, the number of terms of each entry, if it is known.
        is_loss_sum: True if the loss of the set is the sum of `losses`, False if it is their weighted mean.
        outputs: (output of the module, targets) of all examples, for metrics of a whole set; None: there are none.
    """

    n_examples: int
    losses: Sequence[float]
    scores: Mapping[str, F64]
    score_weights: Mapping[str, F64] = field(default_factory=dict)
    loss_weights: Sequence[float] | None = None
    is_loss_sum: bool = False
    outputs: tuple[Any, Any] | None = None

    @staticmethod
    def join(parts: Sequence[EvaluationResult]) -> EvaluationResult:
        """Join consecutive parts, each but the last of full slices, into the result of one evaluation, without outputs."""
        first = parts[0]
        losses = [loss for part in parts for loss in part.losses]
        scores = {name: np.concatenate([part.scores[name] for part in parts]) for name in first.scores}
        weighted_names = [name for name in first.scores if any(name in part.score_weights for part in parts)]
        weights = {name: np.concatenate([part.get_score_weights(name) for part in parts]) for name in weighted_names}
        loss_weights = None
        if first.loss_weights is not None:
            loss_weights = [weight for part in parts for weight in part.loss_weights or ()]
        return EvaluationResult(
            sum(part.n_examples for part in parts), losses, scores, weights, loss_weights, first.is_loss_sum
        )

    def get_score_weights(self, name: str) -> F64:
        """Return the weights of a metric's values, [n]; ones for a metric without weights."""
        return self.score_weights[name] if name in self.score_weights else np.ones(self.n_examples)

    def sum_weights(self, name: str) -> float:
        """Return this result's weight in a mean of a metric, or of "loss", over sets: sum of weights or number of examples."""
        if name == "loss":
            return float(self.n_examples) if self.loss_weights is None else _add_up(self.loss_weights)
        return float(self.score_weights[name].sum()) if name in self.score_weights else float(self.n_examples)

    @property
    def loss(self) -> float:
        """Loss of all examples; NaN if all weights are 0. Losses are added in order: `sum` would compensate for rounding."""
        total = _add_up(self.losses)
        if self.is_loss_sum:
            return total
        weight = self.sum_weights("loss")
        return total / weight if weight else math.nan

    @property
    def mean_loss(self) -> float:
        """Mean loss over all terms, also of a loss that is a sum; NaN if there are none."""
        if not self.is_loss_sum:
            return self.loss
        n_terms = self.sum_weights("loss")
        return self.loss / n_terms if n_terms else math.nan

    @property
    def means(self) -> dict[str, float]:
        """Loss under "loss", and the weighted mean of each metric by its name."""
        with np.errstate(over="ignore", invalid="ignore"):  # a user's metric may be infinite
            means = {name: average(score, self.score_weights.get(name)) for name, score in self.scores.items()}
            return {"loss": self.loss, **means}


def _add_up(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


def average(values: F64, weights: F64 | None) -> float:
    """Return the mean of values [n] with weights [n]: the unweighted mean if all weights are equal, NaN if all are 0."""
    if weights is None or (weights == weights[0]).all():
        return float(values.mean()) if weights is None or weights[0] else math.nan
    is_weighted = weights > 0
    return float((values[is_weighted] * weights[is_weighted]).sum() / weights[is_weighted].sum())
