"""Everybody in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.participation.base import Draw, Drawn, Population, Sampler, check_wanted
from fedsgd.rng import stream


@dataclass(frozen=True)
class Cyclic(Sampler):
    """Clients in turn: the next m in each round, of an order that is shuffled once, and again from its start.

    Cyclic participation (Eichner et al. 2019; Cho et al. 2023). With the same m in all rounds, no client takes part for the
    second time before every client has for the first.
    """

    name: ClassVar[str] = "cyclic"

    def over(self, population: Population) -> Draw:
        order = stream(population.seed, "cohort/order").permutation(population.clients)

        def draw(round: int, wanted: int) -> Drawn:
            check_wanted(wanted, population.clients)
            begin = (round - 1) * wanted % population.clients
            return Drawn(tuple(sorted(order[(begin + np.arange(wanted)) % population.clients].tolist())))

        return draw
