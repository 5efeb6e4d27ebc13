"""Robust rules that treat each coordinate on its own: median and trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.aggregation.base import AcceptedWeights, AggregationResult
from fedsgd.aggregation.blocks import CohortAggregator, DecodedCohort
from fedsgd.compression import StateArrays
from fedsgd.config.component import FractionBelowHalf
from fedsgd.numerics.arrays import F32


@dataclass(frozen=True)
class Median(CohortAggregator):
    """Median of each coordinate.

        Δ_j = median(x_1j, ..., x_Cj), the mean of the two middle values for even C

    Yin, Chen, Ramchandran and Bartlett 2018 (arXiv 1803.01498), algorithm 1, option I. The breakdown point is 1/2.

    Traps: a coordinate that a client did not send counts as 0, so a coordinate that fewer than half of the clients send is 0.
    The rule has no weights: set server.weighting = "uniform".
    """

    name: ClassVar[str] = "median"
    accepted_weights: ClassVar[AcceptedWeights] = "equal"

    def aggregate_cohort(self, state: StateArrays, cohort: DecodedCohort) -> AggregationResult:
        return _mean_of_middle(cohort, (len(cohort) - 1) // 2), state

    def tolerated(self, n_updates: int) -> int:
        return (n_updates - 1) // 2


@dataclass(frozen=True)
class TrimmedMean(CohortAggregator):
    """Mean of each coordinate without its ⌊βC⌋ smallest and ⌊βC⌋ largest values.

    Yin, Chen, Ramchandran and Bartlett 2018 (arXiv 1803.01498), algorithm 1, option II. The breakdown point is β.

    Traps: a coordinate that a client did not send counts as 0, and one that at most βC clients send with one sign is 0. With
    βC < 1 nothing is trimmed. The rule has no weights: set server.weighting = "uniform".

    Attributes:
        trim: β, share of the values that is removed at each end, below 1/2.
    """

    name: ClassVar[str] = "trimmed-mean"
    accepted_weights: ClassVar[AcceptedWeights] = "equal"

    trim: FractionBelowHalf = 0.1

    def aggregate_cohort(self, state: StateArrays, cohort: DecodedCohort) -> AggregationResult:
        return _mean_of_middle(cohort, self.tolerated(len(cohort))), state

    def tolerated(self, n_updates: int) -> int:
        return int(self.trim * n_updates)


def _mean_of_middle(cohort: DecodedCohort, n_removed: int) -> F32:
    """Return the mean of each coordinate [P] without its `n_removed` smallest and largest values."""
    out = np.zeros(cohort.size, dtype=np.float32)
    for block in cohort.blocks():
        block.values.sort(axis=0)
        middle = block.values[n_removed : len(cohort) - n_removed]
        out[block.positions] = middle.mean(axis=0, dtype=np.float64)
    return out
