"""Every cohort as likely as any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsgd.participation.base import Draw, Drawn, Pool, Sampler, check_wanted
from fedsgd.rng import stream


@dataclass(frozen=True)
class Uniform(Sampler):
    """The same chance for every client: m distinct ones, uniformly.

    FedAvg's sampling (McMahan et al. 2017, algorithm 1). numpy's `choice` is Floyd's algorithm, O(m), up to N = 10 000 clients
    and wherever m ≤ N/50. Beyond that it shuffles the end of a list of all N, which are then less than 50 m: O(m) again.
    """

    name: ClassVar[str] = "uniform"

    def over(self, pool: Pool) -> Draw:
        def draw(round: int, wanted: int) -> Drawn:
            check_wanted(wanted, pool.clients)
            chosen = stream(pool.seed, "cohort", round).choice(pool.clients, size=wanted, replace=False)
            return Drawn(tuple(sorted(chosen.tolist())))

        return draw
