"""An aggregator: the mean of the values around the median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.aggregation import AggregationResult, CohortAggregator, DecodedCohort
from fedsgd.aggregation.base import AcceptedWeights
from fedsgd.compression import StateArrays
from fedsgd.config.component import FractionBelowHalf


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
            values = np.sort(block.values, axis=0).astype(np.float64)
            distances = np.abs(values - np.median(values, axis=0))
            closest = np.argsort(distances, axis=0, kind="stable")[:n_closest]
            out[block.positions] = np.take_along_axis(values, closest, axis=0).mean(axis=0)
        return out, state

    def tolerated(self, n_updates: int) -> int:
        return int(self.discarded * n_updates)
