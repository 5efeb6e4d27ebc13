"""Sampling in proportion to the clients' examples, with exact inclusion probabilities."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.config.component import NonNegativeFloat
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I32, I64
from fedsgd.numerics.rng import derive_generator
from fedsgd.sampling.base import (
    CohortSampler,
    SampledCohort,
    Sampler,
    SamplingPool,
    check_cohort_size,
    narrow_integers,
    shuffle_clients,
)


@dataclass(frozen=True)
class Weighted(Sampler):
    """Sampling without replacement, with probabilities in proportion to examples ** `exponent`.

    The m clients are drawn by systematic sampling over an order that is shuffled once (Madow 1949). The inclusion probabilities
    are exact and add up to m; drawing one client after another without replacement would distort the probabilities. The mean is
    corrected by the probabilities and is therefore unbiased (Horvitz and Thompson 1952). A client whose probability would be
    above 1 is in every cohort, and the rest of the cohort is drawn from the other clients in proportion. Clients without
    examples are never drawn, unless `exponent` is 0.

    Attributes:
        exponent: 1 for probabilities in proportion to the number of examples, 0 for equal probabilities.
    """

    name: ClassVar[str] = "weighted"
    yields_inclusion_probabilities: ClassVar[bool] = True

    exponent: NonNegativeFloat = 1.0

    def bind(self, pool: SamplingPool) -> CohortSampler:
        systematic = _SystematicSampler.from_weights(_integer_weights(pool.sizes(), self.exponent), shuffle_clients(pool))

        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            check_cohort_size(cohort_size, pool.clients)
            if cohort_size > systematic.n_drawable:
                problem = f"has to draw {cohort_size} clients a round, but only {systematic.n_drawable} have any examples"
                raise DataError(f'"weighted" {problem}')
            return systematic.sample(cohort_size, derive_generator(pool.seed, "cohort", round))

        return sample_cohort


def _integer_weights(sizes: I64, exponent: float) -> I64:
    """Return integers in proportion to sizes ** exponent, [N] int64, at least 1 for each client with examples.

    The sum of the integers is below 2⁶³. Later rounding errors cannot affect the draw, because the draw uses integers alone.
    """
    scale = 2.0 ** min(52, 62 - len(sizes).bit_length())
    shares = sizes / max(1, sizes.max())  # in place from here on, because there may be millions of clients
    shares **= exponent
    shares *= scale
    weights: I64 = np.rint(shares, out=shares).astype(np.int64)
    np.maximum(weights, 1, out=weights)
    if exponent:
        weights[sizes <= 0] = 0
    return weights


@dataclass(frozen=True, eq=False)
class _SystematicSampler:
    """Systematic sampling along a line on which each client has an interval as long as the client's integer weight.

    Attributes:
        order: [N], clients in the order of their intervals.
        cumulative_weights: [N + 1], start of each interval, and end of the last interval.
        positions_by_weight: [N], positions in `order` by weight, largest first.
        n_drawable: number of clients with a weight above 0.
    """

    order: I32 | I64
    cumulative_weights: I64
    positions_by_weight: I32 | I64
    n_drawable: int

    @staticmethod
    def from_weights(weights: I64, order: I32 | I64) -> _SystematicSampler:
        ordered_weights, cumulative_weights = weights[order], np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(ordered_weights, out=cumulative_weights[1:])
        n_drawable = int(np.count_nonzero(ordered_weights))
        positions_by_weight = narrow_integers(np.argsort(np.negative(ordered_weights, out=ordered_weights), kind="stable"))
        return _SystematicSampler(order, cumulative_weights, positions_by_weight, n_drawable)

    def weights_at(self, positions: I32 | I64) -> I64:
        """Return the weights of the clients at positions of `order`, [len(positions)]."""
        weights: I64 = self.cumulative_weights[positions + 1] - self.cumulative_weights[positions]
        return weights

    def count_certain(self, cohort_size: int) -> tuple[int, int]:
        """Return the number k of clients that are in every cohort of this size ≥ 1, and the total weight of the other clients.

        k is the least number for which no client after the k heaviest has a probability above 1: (cohort_size − k) · largest
        weight ≤ total weight of these clients. The condition holds for k = cohort_size − 1, and for k + 1 if it holds for k.
        Clients of equal weight are either all among the first k, or all among the others.
        """
        largest_weights = self.weights_at(self.positions_by_weight[:cohort_size])
        # Total weight after the k heaviest clients, for each k.
        remaining_weights = self.cumulative_weights[-1] - np.cumsum(largest_weights) + largest_weights

        def has_valid_probabilities(k: int) -> bool:
            return (cohort_size - k) * int(largest_weights[k]) <= int(remaining_weights[k])

        k = bisect_left(range(cohort_size), True, key=has_valid_probabilities)
        return k, int(remaining_weights[k])

    def sample(self, cohort_size: int, rng: np.random.Generator) -> SampledCohort:
        """Return a cohort of `cohort_size` in [0, n_drawable] clients in O(cohort_size · log N)."""
        if not cohort_size:
            return SampledCohort((), np.empty(0))
        k, total_weight = self.count_certain(cohort_size)
        n_points = cohort_size - k
        start = int(rng.integers(total_weight))
        # The points begin at start / n_points and have the distance total_weight / n_points. Over all starts, the points meet
        # each unit of the line equally often. No interval is longer than the distance, so no two points meet the same client.
        # Python's integers do not overflow.
        points = np.array([(i * total_weight + start) // n_points for i in range(n_points)], dtype=np.int64)
        offsets = self._restore_offsets(self.positions_by_weight[:k], points)
        drawn_positions = np.searchsorted(self.cumulative_weights[1:], offsets, side="right")
        drawn_probabilities = np.minimum(1.0, self.weights_at(drawn_positions) * (n_points / total_weight))
        probabilities = np.concatenate([np.ones(k), drawn_probabilities])
        cohort = self.order[np.concatenate([self.positions_by_weight[:k], drawn_positions])]
        sorted_indices = np.argsort(cohort)
        return SampledCohort(tuple(cohort[sorted_indices].tolist()), probabilities[sorted_indices])

    def _restore_offsets(self, excluded_positions: I32 | I64, points: I64) -> I64:
        """Map points [n] of the line from which some intervals were removed to points of the whole line."""
        sorted_positions = excluded_positions[np.argsort(excluded_positions)]
        removed_weights = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.weights_at(sorted_positions))])
        cuts = self.cumulative_weights[sorted_positions + 1] - removed_weights[1:]  # points at which intervals were removed
        offsets: I64 = points + removed_weights[np.searchsorted(cuts, points, side="right")]
        return offsets
