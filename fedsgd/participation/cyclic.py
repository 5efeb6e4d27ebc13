"""Everybody in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.participation.base import Draw, Drawn, Pool, Sampler, check_wanted, shuffled


@dataclass(frozen=True)
class Cyclic(Sampler):
    """Clients in turn: the next m in each round, of an order that is shuffled once, and again from its start.

    Cyclic participation (Eichner et al. 2019; Cho et al. 2023). With the same m in all rounds, no client takes part for the
    second time before every client has for the first.
    """

    name: ClassVar[str] = "cyclic"

    def over(self, pool: Pool) -> Draw:
        order = shuffled(pool)

        def draw(round: int, wanted: int) -> Drawn:
            check_wanted(wanted, pool.clients)
            begin = (round - 1) * wanted % pool.clients
            return Drawn(tuple(sorted(order[(begin + np.arange(wanted)) % pool.clients].tolist())))

        return draw
