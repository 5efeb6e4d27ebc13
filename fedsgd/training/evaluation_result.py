"""Result of an evaluation, and how results of slices are joined."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsgd.data import Examples
from fedsgd.numerics.arrays import F64, I64

EVALUATION_SLICE_SIZE = 100
"""Slices of 1,000 were 1.3 to 1.6 times slower on the convolutional networks, and no faster on the others."""
SET_LABELS = {"test": "test examples", "clients": "test examples of clients", "training": "training examples"}
"""Names of sets in words."""


@dataclass(frozen=True, eq=False)
class EvaluationSets:
    """Examples on which a run evaluates models.

    Attributes:
        together: name of a set -> its examples, evaluated by one model.
        alone: name of a set -> its examples, the numbers of examples of the clients whose own models are evaluated, and how
            many clients have each.
    """

    global_sets: Mapping[str, Examples]
    local_sets: Mapping[str, tuple[Examples, I64, I64]]

    def iterate_slices(self) -> Iterator[tuple[str, str, Examples]]:
        """Yield (name of the set, its examples in words, slice) for a slice of each size that occurs, whole ones first."""
        for name, examples in self.global_sets.items():
            what, rest = f"the {len(examples):,} {SET_LABELS[name]}", len(examples) % EVALUATION_SLICE_SIZE
            yield name, what, examples.slice(0, EVALUATION_SLICE_SIZE)
            if rest and rest < len(examples):
                yield name, what, examples.slice(len(examples) - rest, len(examples))
        for name, (examples, sizes, clients) in self.local_sets.items():
            whole, rests = np.minimum(sizes, EVALUATION_SLICE_SIZE), sizes % EVALUATION_SLICE_SIZE
            for size in np.unique(np.concatenate([whole, rests]))[::-1].tolist():
                n_clients = clients[(whole == size) | (rests == size)].sum()
                if size:
                    yield name, f"the test examples of {n_clients:,} of {clients.sum():,} clients", examples.slice(0, size)


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Loss and metrics of a model on n examples.

    Attributes:
        examples: n.
        losses: by slice of `EVALUATION_SLICE_SIZE` examples, in order, the loss times its weight; one entry where the loss was
            computed in one call.
        scores: each metric by example, [n].
        weights: weights of the scores by example, [n], of the metrics that have any.
        loss_weights: by entry of `losses`, what it weighs; None: the numbers of examples.
        summed: the loss of the set is the sum of `losses`, not their mean.
    """

    n_examples: int
    losses: Sequence[float]
    scores: Mapping[str, F64]
    score_weights: Mapping[str, F64] = field(default_factory=dict)
    loss_weights: Sequence[float] | None = None
    is_loss_sum: bool = False

    @staticmethod
    def join(parts: Sequence[EvaluationResult]) -> EvaluationResult:
        """Join parts that follow each other, each but the last whole slices: what one evaluation of all would return."""
        first = parts[0]
        losses = [loss for part in parts for loss in part.losses]
        scores = {name: np.concatenate([part.scores[name] for part in parts]) for name in first.scores}
        weighted = [name for name in first.scores if any(name in part.score_weights for part in parts)]
        weights = {name: np.concatenate([part.get_score_weights(name) for part in parts]) for name in weighted}
        loss_weights = None
        if first.loss_weights is not None:
            loss_weights = [weight for part in parts for weight in part.loss_weights or ()]
        return EvaluationResult(
            sum(part.n_examples for part in parts), losses, scores, weights, loss_weights, first.is_loss_sum
        )

    def get_score_weights(self, name: str) -> F64:
        """Return the weights of a metric by example, [n]; all ones if it has none."""
        return self.score_weights[name] if name in self.score_weights else np.ones(self.n_examples)

    def sum_weights(self, name: str) -> float:
        """Return what a metric, or "loss", weighs among those of other sets: examples, or what counts of them."""
        if name == "loss":
            return float(self.n_examples) if self.loss_weights is None else _add_up(self.loss_weights)
        return float(self.score_weights[name].sum()) if name in self.score_weights else float(self.n_examples)

    @property
    def loss(self) -> float:
        """Loss of the examples together. Slices are added in their order, whoever evaluated them; sum() would compensate."""
        total = _add_up(self.losses)
        if self.is_loss_sum:
            return total
        weight = self.sum_weights("loss")
        return total / weight if weight else math.nan

    @property
    def means(self) -> dict[str, float]:
        """ "loss" and the weighted mean of each metric."""
        with np.errstate(over="ignore", invalid="ignore"):  # a user's metric may be infinite
            means = {name: average(score, self.score_weights.get(name)) for name, score in self.scores.items()}
            return {"loss": self.loss, **means}


def _add_up(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


def average(values: F64, weights: F64 | None) -> float:
    """Return the mean of values [n] with weights [n], the plain one where all weights are equal; NaN if all are zero."""
    if weights is None or (weights == weights[0]).all():
        return float(values.mean()) if weights is None or weights[0] else math.nan
    counted = weights > 0
    return float((values[counted] * weights[counted]).sum() / weights[counted].sum())
