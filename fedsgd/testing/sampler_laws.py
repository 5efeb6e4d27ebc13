"""Laws of samplers. A cohort of m is drawn from N clients; π_i is the inclusion probability of client i."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fedsgd.certification.law import Law, make_law
from fedsgd.certification.operator_laws import require
from fedsgd.certification.simulate_rounds import rebuild
from fedsgd.errors import LawError
from fedsgd.numerics.arrays import F64, I64
from fedsgd.numerics.rng import derive_generator
from fedsgd.sampling import CohortSampler, SampledCohort, Sampler, SamplingPool, bind_with_checks
from fedsgd.testing.component_laws import arrange_laws

POOL_SIZES = (1, 2, 20, 150)
"""Numbers N of clients of the default pools."""
PROBABILITY_POOL_SIZE = 20
"""Number of clients of the pool in which frequencies are counted."""
ROUNDS = (1, 2, 3, 4, 5, 6, 7, 8, 40, 1000)
N_DRAWS = 1200
"""Number of rounds in which the frequencies of clients are counted."""
MAX_STANDARD_ERRORS = 5
"""Allowed error of a frequency, in standard errors."""
SMALL_POOL_SIZE, LARGE_POOL_SIZE, LARGE_COHORT_SIZE = 2000, 200_000, 20
"""Numbers of clients, and the size of the cohort, for which the memory of a draw is compared."""
LARGE_ROUND = 15
SEEDS = (0, 1)


def make_pool(clients: int, seed: int = 0) -> SamplingPool:
    """Return a pool whose clients have log-normal numbers of examples."""
    numbers = derive_generator(0, "laws/sampler").standard_normal(clients)
    sizes = np.ceil(50 * np.exp(numbers)).astype(np.int64)
    return SamplingPool(seed, clients, sizes.copy)


def _draw(sampler: Sampler, pool: SamplingPool) -> CohortSampler:
    """Bind a sampler, and check every cohort."""
    return bind_with_checks(sampler, pool)


def _list_cohort_sizes(pool: SamplingPool) -> list[int]:
    """Return sizes of cohorts up to the number of clients with examples."""
    n = int(np.count_nonzero(pool.sizes() > 0))
    return sorted({0, 1, n // 4, n // 2, n - 1, n})


def _read_bits(cohort: SampledCohort) -> tuple[tuple[int, ...], bytes]:
    probabilities = cohort.inclusion_probabilities
    return cohort.cohort, b"" if probabilities is None else probabilities.tobytes()


def valid_cohort(sampler: Sampler, pools: Sequence[SamplingPool]) -> None:
    """A cohort has m distinct clients in [0, N), ascending, or at most m if `always_full` is False; each π_i is in (0, 1]."""
    for pool in pools:
        sample_cohort = _draw(sampler, pool)
        for cohort_size in _list_cohort_sizes(pool):
            for round in ROUNDS:
                sample_cohort(round, cohort_size)


def refused_sizes(sampler: Sampler, pools: Sequence[SamplingPool]) -> None:
    """A size m below 0 or above N raises ValueError."""
    for pool in pools:
        sample_cohort = sampler.bind(pool)
        for cohort_size in (-1, pool.clients + 1):
            try:
                cohort = sample_cohort(1, cohort_size)
            except ValueError:
                continue
            figures = f"a cohort of {cohort_size} of {pool.clients} clients is {cohort}, expected a ValueError"
            raise LawError(f"refused_sizes: {sampler}: {figures}")


def equal_cohorts(sampler: Sampler, pools: Sequence[SamplingPool]) -> None:
    """A cohort depends on the settings, the pool, the round and m alone, in any order of calls."""
    for pool in pools:
        calls = [(round, cohort_size) for cohort_size in _list_cohort_sizes(pool) for round in ROUNDS]
        first, second = (
            {call: _read_bits(sample_cohort(*call)) for call in order}
            for sample_cohort, order in ((_draw(sampler, pool), calls), (_draw(rebuild(sampler), pool), calls[::-1]))
        )
        for (round, cohort_size), bits in first.items():
            figures = f"round {round}, {cohort_size} of {pool.clients} clients: another cohort in a second call"
            require(second[round, cohort_size] == bits, "equal_cohorts", sampler, figures)


def unchanged_arguments(sampler: Sampler, pools: Sequence[SamplingPool]) -> None:
    """The sampler does not write to the sizes of the pool."""
    for pool in pools:
        arrays: list[I64] = []

        def read_sizes(pool: SamplingPool = pool, arrays: list[I64] = arrays) -> I64:
            arrays.append(pool.sizes().copy())
            return arrays[-1]

        sample_cohort = _draw(sampler, replace(pool, sizes=read_sizes))
        for round in ROUNDS:
            sample_cohort(round, _list_cohort_sizes(pool)[-1] // 2)
        is_unchanged = all(np.array_equal(array, pool.sizes()) for array in arrays)
        require(is_unchanged, "unchanged_arguments", sampler, "writes to the array of pool.sizes()")


def inclusion_probabilities(sampler: Sampler, pool: SamplingPool) -> None:
    """Σ x_i / π_i over the cohort estimates Σ x_i over all clients with examples without bias (Horvitz and Thompson 1952).

    For each client, the mean of 1/π_i over the rounds that have client i, and 0 for the others, is 1 within five standard
    errors.
    """
    clients = np.flatnonzero(pool.sizes() > 0)
    for cohort_size in sorted({max(1, len(clients) // 4), max(1, 2 * len(clients) // 3)}):
        sums, limits = _count_draws(_draw(sampler, pool), pool.clients, cohort_size)
        excesses = (np.abs(sums - 1) - limits)[clients]
        worst = clients[int(excesses.argmax())]
        place = f"client {worst} in {N_DRAWS} cohorts of {cohort_size} of {pool.clients}"
        figures = f"{place}: the mean of 1/π is {sums[worst]:.4g}, expected 1 ± {limits[worst]:.2g}"
        require(bool(excesses.max() <= 0), "inclusion_probabilities", sampler, figures)


def _count_draws(sample_cohort: CohortSampler, clients: int, cohort_size: int) -> tuple[F64, F64]:
    """Return for each client the mean of 1/π_i over some rounds, and the allowed error, [N] each."""
    sums, variances = np.zeros(clients), np.zeros(clients)
    for round in range(1, N_DRAWS + 1):
        sampled = sample_cohort(round, cohort_size)
        probabilities = sampled.inclusion_probabilities
        assert probabilities is not None  # `bind_with_checks` checks the cohort
        positions = np.array(sampled.cohort, dtype=np.int64)
        sums[positions] += 1 / probabilities
        variances[positions] += (1 - probabilities) / probabilities**2
    return sums / N_DRAWS, MAX_STANDARD_ERRORS * np.sqrt(variances) / N_DRAWS + 1e-9


def _run(sampler: Sampler, pools: Sequence[SamplingPool]) -> None:
    """Draw cohorts from all pools."""
    for pool in pools:
        sample_cohort = _draw(rebuild(sampler), pool)
        for round in ROUNDS:
            sample_cohort(round, _list_cohort_sizes(pool)[-2])


def memory_of_a_draw(sampler: Sampler) -> None:
    """The memory of a draw does not grow with N."""
    small, large = (_measure_peak_bytes(sampler, clients) for clients in (SMALL_POOL_SIZE, LARGE_POOL_SIZE))
    sizes = f"of {SMALL_POOL_SIZE:,} clients takes {small:,} bytes, of {LARGE_POOL_SIZE:,} clients {large:,}"
    figures = f"a cohort of {LARGE_COHORT_SIZE} {sizes}; work that depends on N belongs into bind"
    require(large <= 1.5 * small + 4096, "memory_of_a_draw", sampler, figures)


def _measure_peak_bytes(sampler: Sampler, clients: int) -> int:
    """Return the largest memory that a draw allocates at once."""
    sample_cohort = sampler.bind(make_pool(clients))
    sample_cohort(1, LARGE_COHORT_SIZE)
    tracemalloc.start()
    try:
        sample_cohort(LARGE_ROUND, LARGE_COHORT_SIZE)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


POOL_LAWS = (valid_cohort, unchanged_arguments, equal_cohorts, refused_sizes)
"""Laws of a sampler on some pools."""


def list_sampler_laws(sampler: Sampler, pool: SamplingPool | None = None) -> list[Law]:
    """Return the laws of a sampler; cohorts are drawn from `pool`, by default from pools of several sizes."""
    pools = [make_pool(clients, seed) for clients in POOL_SIZES for seed in SEEDS] if pool is None else [pool]
    laws = [make_law(law, sampler, partial(law, sampler, pools)) for law in POOL_LAWS]
    if sampler.yields_inclusion_probabilities:
        probability_pool = make_pool(PROBABILITY_POOL_SIZE) if pool is None else pool
        check = partial(inclusion_probabilities, sampler, probability_pool)
        laws.append(make_law(inclusion_probabilities, sampler, check))
    if pool is None:
        laws.append(make_law(memory_of_a_draw, sampler))
    return arrange_laws(sampler, laws, partial(_run, sampler, pools))
