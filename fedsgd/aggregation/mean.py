"""Means of the updates: over all clients, and over the clients that sent a coordinate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.aggregation.base import AggregationContext, AggregationResult, Aggregator, WeightedUpdate, weighted_sum
from fedsgd.compression import StateArrays


@dataclass(frozen=True)
class WeightedMean(Aggregator):
    """Weighted mean of all updates.

        Δ = Σ_i p_i x_i

    McMahan et al. 2017, algorithm 1. The sum is in float64, in ascending order of clients. A coordinate that a client did not
    send counts as 0. Sparse updates are added without being expanded. The breakdown point is 0: one hostile client moves the
    mean anywhere.
    """

    name: ClassVar[str] = "weighted-mean"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        return weighted_sum(updates, ctx).astype(np.float32), state


@dataclass(frozen=True)
class MeanOfSenders(Aggregator):
    """Weighted mean of each coordinate over the clients that sent it.

        Δ_j = Σ_{i in S_j} p_i x_ij / Σ_{i in S_j} p_i,   S_j the clients that sent coordinate j

    Methods that share a part of the parameters in each round average like this. A coordinate that no client sent is 0. For
    dense updates the rule is the weighted mean.

    Traps: a coordinate that one client of a hundred sends gets that client's full step, a hundred times its step under the
    weighted mean, so the learning rate may have to be smaller. The breakdown point is 0.
    """

    name: ClassVar[str] = "mean-of-senders"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        total, weights = np.zeros(ctx.layout.size), np.zeros(ctx.layout.size)
        for update in updates:
            decoded = ctx.decode(update)
            decoded.add_to(total, update.weight)
            decoded.add_support_to(weights, update.weight)
        return np.divide(total, weights, out=total, where=weights > 0).astype(np.float32), state
