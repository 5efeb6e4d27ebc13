"""Geometric median of the updates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.aggregation.base import AcceptedWeights, AggregationResult
from fedsgd.aggregation.blocks import CohortAggregator, DecodedCohort, clipping_factors
from fedsgd.compression import StateArrays
from fedsgd.config.component import PositiveFloat, PositiveInt
from fedsgd.numerics.reductions import squared_norm

TOLERANCE = 1e-6
"""Step of z, as a share of the median distance of z from the updates, at which the iteration ends."""


@dataclass(frozen=True)
class GeometricMedian(CohortAggregator):
    """Vector with the smallest weighted sum of distances to the updates.

        Δ = argmin_z Σ_i p_i |z − x_i|

    Pillutla, Kakade and Harchaoui 2022 (arXiv 1912.13445), the smoothed Weiszfeld iteration:

        β_i = p_i / max(ν, |z − x_i|);  z ← Σ β_i x_i / Σ β_i

    The iteration ends when z moves by less than a millionth of its median distance from the updates. The paper starts at the
    weighted mean; here z starts at the mean of the updates clipped to their median norm, so that a distant update costs no
    iterations. The minimum is the same. The breakdown point is 1/2 of the weight.

    Traps: with weights in proportion to examples, a client that reports many examples has a large weight. Distances of sparse
    updates are between the vectors with 0 at coordinates that were not sent. Each iteration reads all updates.

    Attributes:
        smoothing: ν, smallest distance that is divided by.
        iterations: maximum number of iterations.
    """

    name: ClassVar[str] = "geometric-median"
    accepted_weights: ClassVar[AcceptedWeights] = "normalized"

    smoothing: PositiveFloat = 1e-6
    iterations: PositiveInt = 100

    def aggregate_cohort(self, state: StateArrays, cohort: DecodedCohort) -> AggregationResult:
        weights = cohort.weights
        norms = cohort.norms()
        z = cohort.combination(weights * clipping_factors(norms, float(np.median(norms))))
        for _ in range(self.iterations):
            distances = cohort.distances(z)
            coefficients = weights / np.maximum(self.smoothing, distances)
            previous, z = z, cohort.combination(coefficients / coefficients.sum())
            if math.sqrt(squared_norm((z - previous).astype(np.float32))) <= TOLERANCE * float(np.median(distances)):
                break
        return z.astype(np.float32), state

    def tolerated(self, n_updates: int) -> int:
        return (n_updates - 1) // 2
