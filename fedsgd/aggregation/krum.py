"""Krum and Multi-Krum: the updates that are closest to their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.aggregation.base import AcceptedWeights, AggregationResult
from fedsgd.aggregation.blocks import CohortAggregator, DecodedCohort
from fedsgd.compression import StateArrays
from fedsgd.config.component import FieldError, NonNegativeInt, PositiveInt
from fedsgd.numerics.arrays import F32, I64


@dataclass(frozen=True)
class MultiKrum(CohortAggregator):
    """Mean of the m updates that are closest to their neighbours.

        s_i = Σ |x_i − x_j|² over the C − f − 2 updates j closest to i;  Δ = mean of the m updates with the smallest s_i

    Blanchard, El Mhamdi, Guerraoui and Stainer 2017 (arXiv 1703.02757). Ties go to the lowest client. The breakdown law holds
    for f hostile clients if 2f + 2 < C. The cost is C(C − 1)/2 distances of vectors of P numbers.

    Traps: a coordinate that a client did not send counts as 0 in a distance. The rule has no weights: set server.weighting =
    "uniform".

    Attributes:
        hostile: f, maximum number of hostile clients in a cohort.
        keep: m, at most C − f; unset, C − f.
    """

    name: ClassVar[str] = "multi-krum"
    accepted_weights: ClassVar[AcceptedWeights] = "equal"

    hostile: NonNegativeInt = 0
    keep: PositiveInt | None = None

    def aggregate_cohort(self, state: StateArrays, cohort: DecodedCohort) -> AggregationResult:
        n_honest = max(1, len(cohort) - self.hostile)
        return _mean_of_selected(cohort, self.hostile, min(n_honest, self.keep or n_honest)), state

    def tolerated(self, n_updates: int) -> int:
        return min(self.hostile, max(0, (n_updates - 3) // 2))

    def check_cohort(self, n_updates: int) -> None:
        limit, n_honest = max(0, (n_updates - 3) // 2), n_updates - self.hostile
        if self.hostile > limit:
            problem = f"got {self.hostile}, expected at most {limit} in a cohort of {n_updates}: 2f + 2 < C must hold"
            raise FieldError(self.name, "hostile", problem)
        if self.keep is not None and self.keep > n_honest:
            problem = f"got {self.keep}, expected at most {n_honest}: {n_updates} clients, {self.hostile} of them hostile"
            raise FieldError(self.name, "keep", problem)


@dataclass(frozen=True)
class Krum(CohortAggregator):
    """The update that is closest to its neighbours: `MultiKrum` with m = 1, with its paper and traps.

    The aggregate is the update of one client, so its variance is a client's. On clients with different data it follows one of
    them.

    Attributes:
        hostile: f, maximum number of hostile clients in a cohort.
    """

    name: ClassVar[str] = "krum"
    accepted_weights: ClassVar[AcceptedWeights] = "equal"

    hostile: NonNegativeInt = 0

    def aggregate_cohort(self, state: StateArrays, cohort: DecodedCohort) -> AggregationResult:
        return self._rule.aggregate_cohort(state, cohort)

    def tolerated(self, n_updates: int) -> int:
        return self._rule.tolerated(n_updates)

    def check_cohort(self, n_updates: int) -> None:
        MultiKrum(self.hostile).check_cohort(n_updates)

    @property
    def _rule(self) -> MultiKrum:
        return MultiKrum(self.hostile, keep=1)


def _mean_of_selected(cohort: DecodedCohort, hostile: int, n_selected: int) -> F32:
    """Return the mean [P] of the updates with the smallest scores; with fewer than C − f − 2 replies, of one neighbour each."""
    n_neighbours = min(len(cohort) - 1, max(1, len(cohort) - hostile - 2))
    distances = np.sort(cohort.squared_distances(), axis=1)  # the first column holds the distances to the updates themselves
    scores = distances[:, 1 : 1 + n_neighbours].sum(axis=1)
    selected: I64 = np.argsort(scores, kind="stable")[:n_selected]
    coefficients = np.zeros(len(cohort))
    coefficients[selected] = 1 / n_selected
    return cohort.combination(coefficients).astype(np.float32)
