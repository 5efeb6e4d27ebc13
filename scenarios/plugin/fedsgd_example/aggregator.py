"""An aggregator: the mean of the values around the median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.aggregation import AggregationResult, CohortAggregator, DecodedCohort
from fedsgd.aggregation.base import AcceptedWeights
from fedsgd.compression import StateArrays
from fedsgd.config.component import FractionBelowHalf
from fedsgd.numerics.arrays import F32, F64


@dataclass(frozen=True)
class MeanAroundMedian(CohortAggregator):
    """Mean of the C − ⌊βC⌋ values of each coordinate that are closest to its median.

    The rule MeaMed of Xie, Koyejo and Gupta 2018 ("Generalized Byzantine-tolerant SGD", arXiv 1802.10116). The breakdown point
    is β.

    Attributes:
        discarded: β, share of the values that is left out, below 1/2.
    """

    name: ClassVar[str] = "mean-around-median"
    accepted_weights: ClassVar[AcceptedWeights] = "equal"

    discarded: FractionBelowHalf = 0.2

    def aggregate_cohort(self, state: StateArrays, cohort: DecodedCohort) -> AggregationResult:
        n_closest = len(cohort) - self.tolerated(len(cohort))
        out = np.zeros(cohort.size, dtype=np.float32)
        for block in cohort.blocks():  # coordinates that no client sent are in no block, and stay 0
            out[block.positions] = _mean_of_closest(block.values, n_closest)
        return out, state

    def tolerated(self, n_updates: int) -> int:
        return int(self.discarded * n_updates)


def _mean_of_closest(values: F32, n_closest: int) -> F64:
    """Return the mean of the values closest to the median, for each column of values [C, width], which are sorted in place."""
    values.sort(axis=0)
    median = np.mean(values[(len(values) - 1) // 2 : len(values) // 2 + 1], axis=0, dtype=np.float64)
    smallest_radius = np.full(values.shape[1], np.inf)
    mean = np.zeros(values.shape[1])
    for first in range(len(values) - n_closest + 1):  # in a sorted column, the closest values are neighbours
        window = values[first : first + n_closest]
        radius = np.maximum(median - window[0], window[-1] - median)
        np.copyto(mean, window.mean(axis=0, dtype=np.float64), where=radius < smallest_radius)
        np.minimum(smallest_radius, radius, out=smallest_radius)
    return mean
