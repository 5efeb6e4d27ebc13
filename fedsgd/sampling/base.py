"""Base class of samplers, which draw the cohort of each round.

A federation may have a million clients, and a cohort a hundred. Therefore `Sampler.bind` does the work that depends on N once,
and returns a function whose cost depends on the size of the cohort.
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
    """Clients from which cohorts are drawn.

    Attributes:
        seed: seed of the scenario.
        clients: N, number of registered clients, numbered from 0 to N − 1.
        sizes: function that returns each client's number of examples, [N] int64. The call is expensive for large N.
        data_folder: folder of data files; None if there is none.
    """

    seed: int
    clients: int
    sizes: Callable[[], I64]
    data_folder: Path | None = None


@dataclass(frozen=True, eq=False)
class SampledCohort:
    """Cohort of a round.

    Attributes:
        cohort: distinct clients, ascending.
        inclusion_probabilities: [len(cohort)] float64 in (0, 1], probability π_i that client i is in the cohort; None if the
            mean is not corrected. Σ x_i / π_i over the cohort estimates Σ x_i over all clients (Horvitz and Thompson 1952).
    """

    cohort: tuple[int, ...]
    inclusion_probabilities: F64 | None = None


CohortSampler = Callable[[int, int], SampledCohort]
"""Function of (round from 1, cohort size in [0, N]) to the cohort. The function raises a ValueError for other sizes."""


@dataclass(frozen=True)
class Sampler(Component, ABC):
    """Base class of rules that draw the cohort of each round.

    Law (cohort): a cohort has distinct clients in [0, N), ascending: m clients, or at most m if `always_full` is False.

    Law (determinism): a cohort depends on the sampler's settings and files, the pool, m and the round alone.

    Law (cost): time and memory of a draw do not grow with N, except for the log N of a search.

    `fedsgd.testing.check_sampler` checks the laws.

    >>> from fedsgd.sampling import SAMPLERS, SamplingPool
    >>> pool = SamplingPool(seed=0, clients=6, sizes=lambda: np.full(6, 10))
    >>> sample_cohort = SAMPLERS["cyclic"]().bind(pool)
    >>> sorted(sample_cohort(1, 3).cohort + sample_cohort(2, 3).cohort)
    [0, 1, 2, 3, 4, 5]
    """

    always_full: ClassVar[bool] = True
    """True if a cohort always has m clients; if False, a cohort may have fewer clients or none."""
    yields_inclusion_probabilities: ClassVar[bool] = False
    """True if cohorts have inclusion probabilities, by which the mean is corrected."""

    @abstractmethod
    def bind(self, pool: SamplingPool) -> CohortSampler:
        """Return the function that draws cohorts from a pool.

        Args:
            pool: clients from which cohorts are drawn.

        Raises:
            DataError: a data file is missing or wrong.
        """


def bind_with_checks(sampler: Sampler, pool: SamplingPool, key: str = "server.sampler") -> CohortSampler:
    """Bind a sampler, and check each cohort against the laws of samplers. `key` is the sampler's dotted key, for messages.

    A ScenarioError is raised if a user's `bind` raises, or returns no function. The returned function raises a RunError if a
    user's sampler raises, or a draw breaks a law. A FedsgdError of the sampler passes unchanged.
    """
    with wrap_user_errors(key, sampler):
        bound_sampler: Any = sampler.bind(pool)
    if not callable(bound_sampler):
        problem = f"bind returned {describe_value(bound_sampler)}, expected a function of (round, cohort_size)"
        raise make_component_error(key, sampler, problem)

    def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
        with wrap_user_errors(key, sampler, round):
            sampled_cohort = bound_sampler(round, cohort_size)
        problem = _find_broken_law(sampler, sampled_cohort, cohort_size, pool.clients)
        if problem:
            raise make_component_error(key, sampler, problem, round)
        return SampledCohort(tuple(map(int, sampled_cohort.cohort)), sampled_cohort.inclusion_probabilities)

    return sample_cohort


def _find_broken_law(sampler: Sampler, sampled_cohort: Any, cohort_size: int, clients: int) -> str | None:
    """Describe the law that a draw breaks; None if the draw breaks no law."""
    if not isinstance(sampled_cohort, SampledCohort):
        return f"returned {describe_value(sampled_cohort)}, expected a fedsgd.sampling.SampledCohort"
    cohort = sampled_cohort.cohort if isinstance(sampled_cohort.cohort, tuple | list | np.ndarray) else None
    has_integers = cohort is not None and all(isinstance(c, int | np.integer) and not isinstance(c, bool) for c in cohort)
    if cohort is None or not has_integers:
        return f"drew the cohort {describe_value(sampled_cohort.cohort)}, expected a tuple of client numbers"
    outside_client = next((client for client in cohort if not 0 <= client < clients), None)
    if outside_client is not None:
        return f"drew client {outside_client}, expected 0 to {clients - 1}"
    for client, next_client in pairwise(cohort):
        if next_client <= client:
            order = "twice" if next_client == client else f"after client {client}"
            return f"drew client {next_client} {order}, expected distinct clients, ascending"
    if len(cohort) > cohort_size or (sampler.always_full and len(cohort) < cohort_size):
        hint = "; a sampler that may draw fewer has always_full: ClassVar[bool] = False" if len(cohort) < cohort_size else ""
        limit = cohort_size if sampler.always_full else f"at most {cohort_size}"
        return f"drew {len(cohort)} of {cohort_size} clients, expected {limit}{hint}"
    return _find_probability_fault(sampler, sampled_cohort)


def _find_probability_fault(sampler: Sampler, sampled_cohort: SampledCohort) -> str | None:
    """Describe the fault of a draw's inclusion probabilities; None if there is no fault."""
    probabilities: Any = sampled_cohort.inclusion_probabilities
    if not sampler.yields_inclusion_probabilities:
        remedy = "a sampler that has them sets yields_inclusion_probabilities = True"
        return None if probabilities is None else f"gave inclusion probabilities, expected None; {remedy}"
    has_floats = isinstance(probabilities, np.ndarray) and probabilities.dtype.kind == "f"
    is_valid = has_floats and probabilities.shape == (len(sampled_cohort.cohort),)
    if not is_valid or not ((probabilities > 0) & (probabilities <= 1)).all():
        return f"gave {describe_value(probabilities)}, expected an array of floats in (0, 1], one for each client"
    return None


def shuffle_clients(pool: SamplingPool) -> I32 | I64:
    """Return all clients in an order that is shuffled once for the run, [N], narrowed by `narrow_integers`."""
    return narrow_integers(derive_generator(pool.seed, "cohort/order").permutation(pool.clients))


def narrow_integers(numbers: I64) -> I32 | I64:
    """Return [N] integers in [0, N] as int32 if N fits in int32, else unchanged."""
    return numbers.astype(np.int32) if len(numbers) <= np.iinfo(np.int32).max else numbers


def check_cohort_size(cohort_size: int, clients: int) -> None:
    """Raise ValueError unless a cohort of `cohort_size` distinct clients can be drawn."""
    if not 0 <= cohort_size <= clients:
        raise ValueError(f"got a cohort of {cohort_size}, expected 0 to {clients} distinct clients")
