"""Clients with more data more often, each with exactly the chance it is said to have."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.arrays import I64
from fedsgd.component import NonNegative
from fedsgd.errors import DataError
from fedsgd.participation.base import Draw, Drawn, Population, Sampler, check_wanted
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

    exponent: NonNegative = 1.0

    def over(self, population: Population) -> Draw:
        order = stream(population.seed, "cohort/order").permutation(population.clients)
        line = _Line.of(_ticks(population.sizes(), self.exponent), order)

        def draw(round: int, wanted: int) -> Drawn:
            check_wanted(wanted, population.clients)
            if wanted > line.drawable:
                raise DataError(f'"weighted" is to draw {wanted} clients a round, but only {line.drawable} have any examples')
            return line.draw(wanted, stream(population.seed, "cohort", round))

        return draw


def _ticks(sizes: I64, exponent: float) -> I64:
    """Integers in proportion to sizes ** exponent [N], which add up to less than 2⁶³; at least 1 for who has any examples.

    Integers, so that no rounding decides who is drawn: chances are those of the integers, exactly.
    """
    scale = 2.0 ** min(52, 62 - len(sizes).bit_length())
    ticks = np.rint((sizes / max(1, sizes.max())) ** exponent * scale).astype(np.int64)
    return np.where((sizes > 0) | (exponent == 0), np.maximum(ticks, 1), 0)


@dataclass(frozen=True, eq=False)
class _Line:
    """Clients laid end to end on a line, each as long as its ticks: what systematic sampling walks along.

    ticks: of each client [N]; order: the clients as they lie [N]; place: of each client in `order` [N]; ends: where each place
    ends [N]; ranked: clients by ticks, most first [N]; rest: the ticks of ranked[k:], for each k [N]; drawable: how many
    clients have ticks.
    """

    ticks: I64
    order: I64
    place: I64
    ends: I64
    ranked: I64
    rest: I64
    drawable: int

    @staticmethod
    def of(ticks: I64, order: I64) -> _Line:
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        ranked = np.argsort(-ticks, kind="stable")
        rest = np.cumsum(ticks[ranked][::-1])[::-1]
        return _Line(ticks, order, place, np.cumsum(ticks[order]), ranked, rest, int(np.count_nonzero(ticks)))

    def certain(self, wanted: int) -> int:
        """How many clients are sure to be among `wanted`: the least k for which nobody in ranked[k:] has a chance above 1.

        That nobody has, (wanted − k) · largest ≤ their sum, stays true as k grows; and it is true for k = wanted − 1.
        """

        def fair(k: int) -> bool:
            return (wanted - k) * int(self.ticks[self.ranked[k]]) <= int(self.rest[k])

        return bisect_left(range(wanted), True, key=fair)

    def draw(self, wanted: int, rng: np.random.Generator) -> Drawn:
        """`wanted` clients, in [0, drawable]: O(wanted · log N)."""
        if not wanted:
            return Drawn((), np.empty(0))
        k = self.certain(wanted)
        length, points = int(self.rest[k]), wanted - k
        start = int(rng.integers(length))
        # A point every length/points ticks from start/points on. Over all starts the points meet each tick of the line equally
        # often, and no two of them the same client, as none is longer than their distance. Python's integers do not overflow.
        at = np.array([(t * length + start) // points for t in range(points)], dtype=np.int64)
        drawn = self.order[np.searchsorted(self.ends, self._past(self.ranked[:k], at), side="right")]
        chances = np.concatenate([np.ones(k), np.minimum(1.0, self.ticks[drawn] * (points / length))])
        cohort = np.concatenate([self.ranked[:k], drawn])
        ascending = np.argsort(cohort)
        return Drawn(tuple(cohort[ascending].tolist()), chances[ascending])

    def _past(self, without: I64, at: I64) -> I64:
        """Where these points of the line without some clients lie on the whole line. without: clients; at: [points]."""
        places = np.sort(self.place[without])
        lengths = self.ticks[self.order[places]]
        removed = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        seams = self.ends[places] - removed[1:]  # where each of them was cut out of the line
        past: I64 = at + removed[np.searchsorted(seams, at, side="right")]
        return past
