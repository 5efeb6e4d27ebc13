"""Clients with more data more often, each with exactly the chance it is said to have."""

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
    """A chance in proportion to examples ** `exponent`: 1 for the number of examples, 0 for the same chance for all.

    Who would have a chance above 1 always takes part, and the rest of the cohort is drawn from the others, in proportion
    again. m clients without replacement, by systematic sampling over an order that is shuffled once (Madow 1949): the
    chances add up to m and are exact, where drawing one after the other without replacement would distort them. They are handed
    on, so that a mean can be corrected for them. Clients without examples are never drawn (unless `exponent` is 0).
    """

    name: ClassVar[str] = "weighted"
    yields_inclusion_probabilities: ClassVar[bool] = True

    exponent: NonNegativeFloat = 1.0

    def bind(self, pool: SamplingPool) -> CohortSampler:
        line = _SystematicSampler.from_weights(_integer_weights(pool.sizes(), self.exponent), shuffle_clients(pool))

        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            check_cohort_size(cohort_size, pool.clients)
            if cohort_size > line.n_drawable:
                raise DataError(
                    f'"weighted" is to draw {cohort_size} clients a round, but only {line.n_drawable} have any examples'
                )
            return line.sample(cohort_size, derive_generator(pool.seed, "cohort", round))

        return sample_cohort


def _integer_weights(sizes: I64, exponent: float) -> I64:
    """Integers in proportion to sizes ** exponent [N], which add up to less than 2⁶³; at least 1 for who has any examples.

    Integers, so that no rounding decides who is drawn: chances are those of the integers, exactly.
    """
    scale = 2.0 ** min(52, 62 - len(sizes).bit_length())
    shares = sizes / max(1, sizes.max())  # in place from here on: there may be millions of them
    shares **= exponent
    shares *= scale
    ticks: I64 = np.rint(shares, out=shares).astype(np.int64)
    np.maximum(ticks, 1, out=ticks)
    if exponent:
        ticks[sizes <= 0] = 0
    return ticks


@dataclass(frozen=True, eq=False)
class _SystematicSampler:
    """Clients laid end to end on a line, each as long as its ticks: what systematic sampling walks along. 16 bytes each.

    order: the clients as they lie, place by place [N]; bounds: where places begin and, one further on, end [N + 1]; ranked:
    places by ticks, most first [N]; drawable: how many clients have ticks.
    """

    order: I32 | I64
    cumulative_weights: I64
    positions_by_weight: I32 | I64
    n_drawable: int

    @staticmethod
    def from_weights(weights: I64, order: I32 | I64) -> _SystematicSampler:
        laid, bounds = weights[order], np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(laid, out=bounds[1:])
        drawable = int(np.count_nonzero(laid))
        ranked = narrow_integers(np.argsort(np.negative(laid, out=laid), kind="stable"))
        return _SystematicSampler(order, bounds, ranked, drawable)

    def weights_at(self, positions: I32 | I64) -> I64:
        """Of who lies at these places [len(places)]."""
        ticks: I64 = self.cumulative_weights[positions + 1] - self.cumulative_weights[positions]
        return ticks

    def count_certain(self, cohort_size: int) -> tuple[int, int]:
        """(how many clients are sure to be among `cohort_size`, at least 1, the ticks of all others).

        It is the least k for which nobody in ranked[k:] has a chance above 1. That nobody has, (wanted − k) · largest ≤ their
        sum, stays true as k grows; and it is true for k = wanted − 1. Clients with as many ticks are all before k, or none.
        """
        most = self.weights_at(self.positions_by_weight[:cohort_size])
        rest = self.cumulative_weights[-1] - np.cumsum(most) + most  # the ticks of ranked[k:], for each k

        def is_fair(k: int) -> bool:
            return (cohort_size - k) * int(most[k]) <= int(rest[k])

        k = bisect_left(range(cohort_size), True, key=is_fair)
        return k, int(rest[k])

    def sample(self, cohort_size: int, rng: np.random.Generator) -> SampledCohort:
        """`cohort_size` clients, in [0, drawable]: O(wanted · log N)."""
        if not cohort_size:
            return SampledCohort((), np.empty(0))
        k, length = self.count_certain(cohort_size)
        points = cohort_size - k
        start = int(rng.integers(length))
        # A point every length/points ticks from start/points on. Over all starts the points meet each tick of the line equally
        # often, and no two of them the same client, as none is longer than their distance. Python's integers do not overflow.
        at = np.array([(t * length + start) // points for t in range(points)], dtype=np.int64)
        drawn = np.searchsorted(
            self.cumulative_weights[1:], self._restore_offsets(self.positions_by_weight[:k], at), side="right"
        )
        chances = np.concatenate([np.ones(k), np.minimum(1.0, self.weights_at(drawn) * (points / length))])
        cohort = self.order[np.concatenate([self.positions_by_weight[:k], drawn])]
        ascending = np.argsort(cohort)
        return SampledCohort(tuple(cohort[ascending].tolist()), chances[ascending])

    def _restore_offsets(self, excluded_positions: I32 | I64, points: I64) -> I64:
        """Where these points of the line without some places lie on the whole line. at: [points]."""
        places = excluded_positions[np.argsort(excluded_positions)]
        removed = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.weights_at(places))])
        seams = self.cumulative_weights[places + 1] - removed[1:]  # where each of them was cut out of the line
        past: I64 = points + removed[np.searchsorted(seams, points, side="right")]
        return past
