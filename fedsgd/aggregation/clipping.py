"""Rules that bound the influence of each update by its norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedsgd.aggregation.base import AcceptedWeights, AggregationResult
from fedsgd.aggregation.blocks import CohortAggregator, DecodedCohort, clipping_factors
from fedsgd.compression import StateArrays
from fedsgd.config.component import PositiveFloat, PositiveInt


@dataclass(frozen=True)
class NormClipping(CohortAggregator):
    """Weighted mean of the updates, each scaled to a maximum norm.

        Δ = Σ_i p_i x_i min(1, τ / |x_i|)

    Sun, Kairouz, Suresh and McMahan 2019 (arXiv 1911.07963). Sparse updates stay sparse. With τ fixed, the aggregate
    never exceeds Σ p_i τ, whatever clients send, and f hostile clients move it by at most their weight times 2τ. With the
    median norm as τ this holds for fewer than half of the clients. Within τ a hostile client moves the mean as it likes.

    With `mean_over` = "senders", the sum at a coordinate j is divided by Σ p_i over the clients that sent j, as
    `mean-of-senders` does. Covenant-72B (arXiv 2603.08163) clips sparse updates to the median norm. Then each coordinate of
    the aggregate is at most τ, and its norm may be larger.

    Trap: the norms are those of decoded updates, which a compressor changes.

    Attributes:
        max_norm: τ, maximum norm of an update; unset, the median norm of the round's updates.
        mean_over: "clients": a coordinate that a client did not send counts as 0. "senders": each coordinate is a mean over the
            clients that sent it.
    """

    name: ClassVar[str] = "norm-clipping"

    max_norm: PositiveFloat | None = None
    mean_over: Literal["clients", "senders"] = "clients"

    def aggregate_cohort(self, state: StateArrays, cohort: DecodedCohort) -> AggregationResult:
        norms = cohort.norms()
        max_norm = self.max_norm if self.max_norm is not None else float(np.median(norms))
        total = cohort.combination(cohort.weights * clipping_factors(norms, max_norm))
        if self.mean_over == "senders":
            weights = cohort.support_weights()
            np.divide(total, weights, out=total, where=weights > 0)
        return total.astype(np.float32), state

    def tolerated(self, n_updates: int) -> int:
        return n_updates if self.max_norm is not None else (n_updates - 1) // 2


@dataclass(frozen=True)
class CenteredClipping(CohortAggregator):
    """Last aggregate, plus the weighted mean of the updates' clipped differences from it.

        v ← v + Σ_i p_i (x_i − v) min(1, τ / |x_i − v|), repeated; Δ = v

    Karimireddy, He and Jaggi 2021 (arXiv 2012.10333). v begins at the last round's aggregate, 0 before round 1. The
    server stores v. A round moves v by at most `iterations` · τ, whatever clients send.

    Traps: with a τ above all distances, the rule is the weighted mean. A coordinate that a client did not send counts as 0, so
    it pulls v to 0.

    Attributes:
        radius: τ, maximum norm of a clipped difference.
        iterations: steps of a round. Each decodes all updates.
    """

    name: ClassVar[str] = "centered-clipping"
    accepted_weights: ClassVar[AcceptedWeights] = "normalized"

    radius: PositiveFloat = 1.0
    iterations: PositiveInt = 1

    def aggregate_cohort(self, state: StateArrays, cohort: DecodedCohort) -> AggregationResult:
        center = np.zeros(cohort.size) if "center" not in state else state["center"].astype(np.float64)
        for _ in range(self.iterations):
            coefficients = cohort.weights * clipping_factors(cohort.distances(center), self.radius)
            center = center * (1 - coefficients.sum()) + cohort.combination(coefficients)
        aggregate = center.astype(np.float32)
        return aggregate, {"center": aggregate}

    def tolerated(self, n_updates: int) -> int:
        return n_updates
