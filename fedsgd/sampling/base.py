"""Who takes part in a round: the contract of samplers. N clients in all, m of them wanted.

A sampler is used in two steps, because a federation may have a million clients and a round a hundred: `bind` does once what
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

from fedsgd.config.component import Component, describe_value
from fedsgd.config.user_errors import make_component_error, wrap_user_errors
from fedsgd.numerics.arrays import F64, I32, I64
from fedsgd.numerics.rng import derive_generator


@dataclass(frozen=True, eq=False)
class SamplingPool:
    """What clients are drawn from. seed: the scenario's; clients: N, called 0 to N − 1; sizes: gives the number of examples of
    each client [N], and is called only by samplers that look at it; folder: where data files are looked for."""

    seed: int
    clients: int
    sizes: Callable[[], I64]
    data_folder: Path | None = None


@dataclass(frozen=True, eq=False)
class SampledCohort:
    """A round's clients. cohort: distinct, ascending.

    chances: the inclusion probability of each [len(cohort)], in (0, 1], where a mean over the cohort is to be corrected for
    it: Σ x_i / chance_i over the cohort has the mean Σ x_i over all clients (Horvitz and Thompson 1952). None: no correction.
    """

    cohort: tuple[int, ...]
    inclusion_probabilities: F64 | None = None


CohortSampler = Callable[[int, int], SampledCohort]
"""(round, from 1; m, in [0, N]) to who takes part. ValueError for any other m."""


@dataclass(frozen=True)
class Sampler(Component, ABC):
    """A rule for who takes part in each round.

    Laws: a cohort's clients are distinct, ascending and in [0, N); there are m of them, or at most m with a sampler that knows
    who is available; the result depends on the pool, m, the seed and the round alone, whatever was drawn before; a
    draw's time and memory do not grow with N (but for the log N of a search).
    """

    always_full: ClassVar[bool] = True
    """Whether a cohort always has the m clients that were wanted; if not, it may have fewer, and none."""
    yields_inclusion_probabilities: ClassVar[bool] = False
    """Whether it hands on chances, so that the mean is corrected for them."""

    @abstractmethod
    def bind(self, pool: SamplingPool) -> CohortSampler:
        """What draws this pool's cohorts. DataError if a file that is needed is missing or wrong."""


def bind_with_checks(sampler: Sampler, pool: SamplingPool, key: str = "server.sampler") -> CohortSampler:
    """Return what draws a pool's cohorts, and compare each cohort with the laws of samplers.

    Args:
        sampler: rule for who takes part.
        pool: clients that are drawn from.
        key: dotted key of the sampler, for messages.

    Raises:
        ScenarioError: a sampler of the user's own raises, or gives no function. The function raises a RunError for a draw that
            raises or that breaks a law.
    """
    with wrap_user_errors(key, sampler):
        draw: Any = sampler.bind(pool)
    if not callable(draw):
        raise make_component_error(
            key, sampler, f"over returned {describe_value(draw)}, expected a function of (round, wanted)"
        )

    def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
        with wrap_user_errors(key, sampler, round):
            drawn = draw(round, cohort_size)
        problem = _find_broken_law(sampler, drawn, cohort_size, pool.clients)
        if problem:
            raise make_component_error(key, sampler, problem, round)
        return SampledCohort(tuple(map(int, drawn.cohort)), drawn.inclusion_probabilities)

    return sample_cohort


def _find_broken_law(sampler: Sampler, sampled_cohort: Any, cohort_size: int, clients: int) -> str | None:
    """Return the law that a draw breaks, in words; None if it breaks none."""
    if not isinstance(sampled_cohort, SampledCohort):
        return f"returned {describe_value(sampled_cohort)}, expected a fedsgd.sampling.SampledCohort"
    cohort = sampled_cohort.cohort if isinstance(sampled_cohort.cohort, tuple | list | np.ndarray) else None
    whole = cohort is not None and all(isinstance(c, int | np.integer) and not isinstance(c, bool) for c in cohort)
    if cohort is None or not whole:
        return f"drew the cohort {describe_value(sampled_cohort.cohort)}, expected a tuple of client numbers"
    stray = next((client for client in cohort if not 0 <= client < clients), None)
    if stray is not None:
        return f"drew client {stray}, expected 0 to {clients - 1}"
    for earlier, later in pairwise(cohort):
        if later <= earlier:
            order = "twice" if later == earlier else f"after client {earlier}"
            return f"drew client {later} {order}, expected distinct clients, ascending"
    if len(cohort) > cohort_size or (sampler.always_full and len(cohort) < cohort_size):
        fewer = "; a sampler that may draw fewer has always_full: ClassVar[bool] = False" if len(cohort) < cohort_size else ""
        return f"drew {len(cohort)} of {cohort_size} clients, expected {cohort_size}{fewer}"
    return _find_probability_fault(sampler, sampled_cohort)


def _find_probability_fault(sampler: Sampler, sampled_cohort: SampledCohort) -> str | None:
    """Return the fault of a draw's inclusion probabilities, in words; None if there is none."""
    chances: Any = sampled_cohort.inclusion_probabilities
    if not sampler.yields_inclusion_probabilities:
        remedy = "a sampler that has them sets yields_inclusion_probabilities = True"
        return None if chances is None else f"gave inclusion probabilities, expected None; {remedy}"
    fits = isinstance(chances, np.ndarray) and chances.dtype.kind == "f" and chances.shape == (len(sampled_cohort.cohort),)
    if not fits or not ((chances > 0) & (chances <= 1)).all():
        return f"gave {describe_value(chances)}, expected an inclusion probability above 0 for each client of the cohort"
    return None


def shuffle_clients(pool: SamplingPool) -> I32 | I64:
    """All clients in an order that is shuffled once for the run [N]: four bytes each, as long as that holds their numbers."""
    return narrow_integers(derive_generator(pool.seed, "cohort/order").permutation(pool.clients))


def narrow_integers(numbers: I64) -> I32 | I64:
    """Numbers from 0 to one less than how many they are, in four bytes each if these hold all of them, and how many [N]."""
    return numbers.astype(np.int32) if len(numbers) <= np.iinfo(np.int32).max else numbers


def check_cohort_size(cohort_size: int, clients: int) -> None:
    """ValueError unless so many distinct clients can be drawn."""
    if not 0 <= cohort_size <= clients:
        raise ValueError(f"{cohort_size} distinct clients wanted of {clients}")
