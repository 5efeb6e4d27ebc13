"""Clients with more data more often, each with exactly the chance it is said to have."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.arrays import I32, I64
from fedsgd.component import NonNegative
from fedsgd.errors import DataError
from fedsgd.participation.base import Draw, Drawn, Pool, Sampler, check_wanted, narrowed, shuffled
from fedsgd.rng import stream


@dataclass(frozen=True)
class Weighted(Sampler):
    """A chance in proportion to examples ** `exponent`: 1 for the number of examples, 0 for the same chance for all.

    Who would have a chance above 1 always takes part, and the rest of the cohort is drawn from the others, in proportion
    again. m clients without replacement, by systematic sampling over an order that is shuffled once (Madow 1949): the
    chances add up to m and are exact, where drawing one after the other without replacement would distort them. They are handed
    on, so that a mean can be corrected for them. Clients without examples are never drawn (unless `exponent` is 0).
    """

    name: ClassVar[str] = "weighted"
    corrects: ClassVar[bool] = True

    exponent: NonNegative = 1.0

    def over(self, pool: Pool) -> Draw:
        line = _Line.of(_ticks(pool.sizes(), self.exponent), shuffled(pool))

        def draw(round: int, wanted: int) -> Drawn:
            check_wanted(wanted, pool.clients)
            if wanted > line.drawable:
                raise DataError(f'"weighted" is to draw {wanted} clients a round, but only {line.drawable} have any examples')
            return line.draw(wanted, stream(pool.seed, "cohort", round))

        return draw


def _ticks(sizes: I64, exponent: float) -> I64:
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
class _Line:
    """Clients laid end to end on a line, each as long as its ticks: what systematic sampling walks along. 16 bytes each.

    order: the clients as they lie, place by place [N]; bounds: where places begin and, one further on, end [N + 1]; ranked:
    places by ticks, most first [N]; drawable: how many clients have ticks.
    """

    order: I32 | I64
    bounds: I64
    ranked: I32 | I64
    drawable: int

    @staticmethod
    def of(ticks: I64, order: I32 | I64) -> _Line:
        laid, bounds = ticks[order], np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(laid, out=bounds[1:])
        drawable = int(np.count_nonzero(laid))
        ranked = narrowed(np.argsort(np.negative(laid, out=laid), kind="stable"))
        return _Line(order, bounds, ranked, drawable)

    def ticks(self, places: I32 | I64) -> I64:
        """Of who lies at these places [len(places)]."""
        ticks: I64 = self.bounds[places + 1] - self.bounds[places]
        return ticks

    def certain(self, wanted: int) -> tuple[int, int]:
        """(how many clients are sure to be among `wanted`, at least 1, the ticks of all others).

        It is the least k for which nobody in ranked[k:] has a chance above 1. That nobody has, (wanted − k) · largest ≤ their
        sum, stays true as k grows; and it is true for k = wanted − 1. Clients with as many ticks are all before k, or none.
        """
        most = self.ticks(self.ranked[:wanted])
        rest = self.bounds[-1] - np.cumsum(most) + most  # the ticks of ranked[k:], for each k

        def fair(k: int) -> bool:
            return (wanted - k) * int(most[k]) <= int(rest[k])

        k = bisect_left(range(wanted), True, key=fair)
        return k, int(rest[k])

    def draw(self, wanted: int, rng: np.random.Generator) -> Drawn:
        """`wanted` clients, in [0, drawable]: O(wanted · log N)."""
        if not wanted:
            return Drawn((), np.empty(0))
        k, length = self.certain(wanted)
        points = wanted - k
        start = int(rng.integers(length))
        # A point every length/points ticks from start/points on. Over all starts the points meet each tick of the line equally
        # often, and no two of them the same client, as none is longer than their distance. Python's integers do not overflow.
        at = np.array([(t * length + start) // points for t in range(points)], dtype=np.int64)
        drawn = np.searchsorted(self.bounds[1:], self._past(self.ranked[:k], at), side="right")
        chances = np.concatenate([np.ones(k), np.minimum(1.0, self.ticks(drawn) * (points / length))])
        cohort = self.order[np.concatenate([self.ranked[:k], drawn])]
        ascending = np.argsort(cohort)
        return Drawn(tuple(cohort[ascending].tolist()), chances[ascending])

    def _past(self, without: I32 | I64, at: I64) -> I64:
        """Where these points of the line without some places lie on the whole line. at: [points]."""
        places = without[np.argsort(without)]
        removed = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.ticks(places))])
        seams = self.bounds[places + 1] - removed[1:]  # where each of them was cut out of the line
        past: I64 = at + removed[np.searchsorted(seams, at, side="right")]
        return past
