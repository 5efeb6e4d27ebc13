"""Who takes part in a round: the contract of samplers. N clients in all, m of them wanted.

A sampler is used in two steps, because a federation may have a million clients and a round a hundred: `over` does once what
depends on N, and returns a function whose cost a round does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedsgd.arrays import F64, I32, I64
from fedsgd.component import Component, value_text
from fedsgd.rng import stream
from fedsgd.user_code import code_error, user_code


@dataclass(frozen=True, eq=False)
class Pool:
    """What clients are drawn from. seed: the scenario's; clients: N, called 0 to N − 1; sizes: gives the number of examples of
    each client [N], and is called only by samplers that look at it; folder: where data files are looked for."""

    seed: int
    clients: int
    sizes: Callable[[], I64]
    folder: Path | None = None


@dataclass(frozen=True, eq=False)
class Drawn:
    """A round's clients. cohort: distinct, ascending.

    chances: the inclusion probability of each [len(cohort)], in (0, 1], where a mean over the cohort is to be corrected for
    it: Σ x_i / chance_i over the cohort has the mean Σ x_i over all clients (Horvitz and Thompson 1952). None: no correction.
    """

    cohort: tuple[int, ...]
    chances: F64 | None = None


Draw = Callable[[int, int], Drawn]
"""(round, from 1; m, in [0, N]) to who takes part. ValueError for any other m."""


@dataclass(frozen=True)
class Sampler(Component, ABC):
    """A rule for who takes part in each round.

    Laws: a cohort's clients are distinct, ascending and in [0, N); there are m of them, or at most m with a sampler that knows
    who is available; the result depends on the pool, m, the seed and the round alone, whatever was drawn before; a
    draw's time and memory do not grow with N (but for the log N of a search).
    """

    fills: ClassVar[bool] = True
    """Whether a cohort always has the m clients that were wanted; if not, it may have fewer, and none."""
    corrects: ClassVar[bool] = False
    """Whether it hands on chances, so that the mean is corrected for them."""

    @abstractmethod
    def over(self, pool: Pool) -> Draw:
        """What draws this pool's cohorts. DataError if a file that is needed is missing or wrong."""


def checked_draw(sampler: Sampler, pool: Pool, key: str = "server.sampler") -> Draw:
    """Return what draws a pool's cohorts, and compare each cohort with the laws of samplers.

    Args:
        sampler: rule for who takes part.
        pool: clients that are drawn from.
        key: dotted key of the sampler, for messages.

    Raises:
        ScenarioError: a sampler of the user's own raises, or gives no function. The function raises a RunError for a draw that
            raises or that breaks a law.
    """
    with user_code(key, sampler):
        draw: Any = sampler.over(pool)
    if not callable(draw):
        raise code_error(key, sampler, f"over returned {value_text(draw)}, expected a function of (round, wanted)")

    def checked(round: int, wanted: int) -> Drawn:
        with user_code(key, sampler, round):
            drawn = draw(round, wanted)
        problem = _broken_law(sampler, drawn, wanted, pool.clients)
        if problem:
            raise code_error(key, sampler, problem, round)
        return Drawn(tuple(map(int, drawn.cohort)), drawn.chances)

    return checked


def _broken_law(sampler: Sampler, drawn: Any, wanted: int, clients: int) -> str | None:
    """Return the law that a draw breaks, in words; None if it breaks none."""
    if not isinstance(drawn, Drawn):
        return f"returned {value_text(drawn)}, expected a fedsgd.participation.Drawn(cohort, chances)"
    cohort = drawn.cohort if isinstance(drawn.cohort, tuple | list | np.ndarray) else None
    whole = cohort is not None and all(isinstance(c, int | np.integer) and not isinstance(c, bool) for c in cohort)
    if cohort is None or not whole:
        return f"drew the cohort {value_text(drawn.cohort)}, expected a tuple of client numbers"
    stray = next((client for client in cohort if not 0 <= client < clients), None)
    if stray is not None:
        return f"drew client {stray}, expected 0 to {clients - 1}"
    for earlier, later in pairwise(cohort):
        if later <= earlier:
            order = "twice" if later == earlier else f"after client {earlier}"
            return f"drew client {later} {order}, expected distinct clients, ascending"
    if len(cohort) > wanted or (sampler.fills and len(cohort) < wanted):
        fewer = "; a sampler that may draw fewer has fills: ClassVar[bool] = False" if len(cohort) < wanted else ""
        return f"drew {len(cohort)} of {wanted} clients, expected {wanted}{fewer}"
    return _broken_chances(sampler, drawn)


def _broken_chances(sampler: Sampler, drawn: Drawn) -> str | None:
    """Return the fault of a draw's inclusion probabilities, in words; None if there is none."""
    chances: Any = drawn.chances
    if not sampler.corrects:
        return None if chances is None else "gave chances, expected None; a sampler with chances has corrects = True"
    fits = isinstance(chances, np.ndarray) and chances.dtype.kind == "f" and chances.shape == (len(drawn.cohort),)
    if not fits or not ((chances > 0) & (chances <= 1)).all():
        return f"gave the chances {value_text(chances)}, expected a probability above 0 for each client of the cohort"
    return None


def shuffled(pool: Pool) -> I32 | I64:
    """All clients in an order that is shuffled once for the run [N]: four bytes each, as long as that holds their numbers."""
    return narrowed(stream(pool.seed, "cohort/order").permutation(pool.clients))


def narrowed(numbers: I64) -> I32 | I64:
    """Numbers from 0 to one less than how many they are, in four bytes each if these hold all of them, and how many [N]."""
    return numbers.astype(np.int32) if len(numbers) <= np.iinfo(np.int32).max else numbers


def check_wanted(wanted: int, clients: int) -> None:
    """ValueError unless so many distinct clients can be drawn."""
    if not 0 <= wanted <= clients:
        raise ValueError(f"{wanted} distinct clients wanted of {clients}")
