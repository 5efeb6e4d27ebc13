"""Properties of each registered sampler in addition to the laws of `fedsgd.testing`. N clients, cohorts of m."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.sampling import SAMPLERS, CohortSampler, SamplingPool
from tests.effort import examples, nightly_unless

NAMES = list(SAMPLERS)
FILES = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


def write_trace(folder: Path, lines: Sequence[tuple[int, int, int]]) -> str:
    path = folder / f"{next(FILES)}.csv"
    path.write_text("client,first_round,last_round\n" + "".join(f"{c},{a},{b}\n" for c, a, b in lines))
    return path.name


def bind_sampler(
    name: str, folder: Path, seed: int, sizes: np.ndarray, trace: Sequence[tuple[int, int, int]] | None = None
) -> CohortSampler:
    """Return the sampler's function. By default, a trace has all clients available in the first 10⁵ rounds."""
    options: dict[str, Any] = {}
    if name == "trace":
        options = {"file": write_trace(folder, [(c, 1, 10**5) for c in range(len(sizes))] if trace is None else trace)}
    return SAMPLERS[name](**options).bind(SamplingPool(seed, len(sizes), lambda: sizes, folder))


def make_sizes(clients: int) -> np.ndarray:
    """Return log-normal sizes, so that in a large cohort a few clients are certain."""
    return np.ceil(50 * np.exp(np.random.default_rng(0).standard_normal(clients))).astype(np.int64)


def trace_lines(clients: int) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    line = st.tuples(st.integers(0, clients - 1), st.integers(1, 30), st.integers(0, 30))
    return st.lists(line, min_size=1, max_size=40).map(lambda lines: [(c, first, first + length) for c, first, length in lines])


@pytest.mark.parametrize("name", NAMES)
@examples(30)
@given(data=st.data(), seed=st.integers(0, 1000), round=st.integers(1, 100))
def test_cohort_is_distinct_ascending_in_range_and_of_the_requested_size(
    name: str, folder: Path, data: st.DataObject, seed: int, round: int
) -> None:
    sizes = np.array(data.draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=60)))
    cohort_size = data.draw(st.integers(0, len(sizes)))
    trace = data.draw(trace_lines(len(sizes))) if name == "trace" else None
    sampled = bind_sampler(name, folder, seed, sizes, trace)(round, cohort_size)
    assert all(type(client) is int for client in sampled.cohort)
    assert list(sampled.cohort) == sorted(set(sampled.cohort))
    assert all(0 <= client < len(sizes) for client in sampled.cohort)
    available = {c for c, first, last in trace if first <= round <= last} if trace else set(range(len(sizes)))
    assert len(sampled.cohort) == min(cohort_size, len(available))
    assert SAMPLERS[name].always_full <= (len(sampled.cohort) == cohort_size)
    if sampled.inclusion_probabilities is not None:
        assert sampled.inclusion_probabilities.shape == (len(sampled.cohort),)
        assert ((sampled.inclusion_probabilities > 0) & (sampled.inclusion_probabilities <= 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_cohorts_of_other_rounds_and_seeds_differ(name: str, folder: Path) -> None:
    sizes = make_sizes(200)
    sample_cohort = bind_sampler(name, folder, 1, sizes)
    cohorts = [sample_cohort(round, 20).cohort for round in range(1, 13)]
    assert len({*cohorts}) > 8
    assert bind_sampler(name, folder, 2, sizes)(1, 20).cohort != cohorts[0]


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", NAMES)
def test_clients_without_inclusion_probabilities_are_drawn_equally_often(name: str, folder: Path) -> None:
    """In 4000 cohorts of 5 of 20 clients, a frequency's standard deviation is 0.0068 at most; five of them are allowed."""
    sample_cohort = bind_sampler(name, folder, 3, make_sizes(20))
    cohorts = [sample_cohort(round, 5) for round in range(1, 4001)]
    if cohorts[0].inclusion_probabilities is None:
        counts = np.bincount([client for sampled in cohorts for client in sampled.cohort], minlength=20)
        assert np.abs(counts / 4000 - 0.25).max() < 0.035


# --------------------------------------------------------------------------------------------------------- cost of a draw

SMALL, LARGE = 10_000, 1_000_000


@pytest.fixture(scope="module", params=nightly_unless("trace".__ne__, NAMES))
def small_and_large(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[CohortSampler, CohortSampler]]:
    def bind_for(clients: int) -> CohortSampler:
        trace = [(c, 1 + c % 10, 20 + c % 10) for c in range(clients)] if request.param == "trace" else None
        return bind_sampler(request.param, folder, 0, make_sizes(clients), trace)

    yield bind_for(SMALL), bind_for(LARGE)
    for path in folder.glob("*.csv"):
        path.unlink()


def measure_peak_bytes(sample_cohort: CohortSampler, cohort_size: int) -> int:
    """Return the largest memory that a draw allocates at once."""
    sample_cohort(1, cohort_size)
    tracemalloc.start()
    try:
        sample_cohort(15, cohort_size)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure_fastest_draw(sample_cohort: CohortSampler) -> float:
    """Return the seconds of the fastest of many draws, which other processes disturb least."""
    seconds = []
    for round in [*range(10, 20)] * 6:  # all clients are available in these rounds
        start_time = time.perf_counter()
        sample_cohort(round, 100)
        seconds.append(time.perf_counter() - start_time)
    return min(seconds)


def test_cost_of_a_draw_does_not_grow_with_registered_clients(
    small_and_large: tuple[CohortSampler, CohortSampler],
) -> None:
    """With a hundred times the clients, a draw allocates nothing per client and takes less than five times as long."""
    small, large = small_and_large
    assert measure_peak_bytes(large, 100) < 1.5 * measure_peak_bytes(small, 100) + 4096 < LARGE / 10
    assert measure_fastest_draw(large) < 5 * measure_fastest_draw(small)


def test_memory_of_a_large_cohort_is_below_a_list_of_all_clients(small_and_large: tuple[CohortSampler, CohortSampler]) -> None:
    """With m = N/100, neither Floyd's algorithm nor a shuffle lists all N clients."""
    _, large = small_and_large
    assert measure_peak_bytes(large, LARGE // 100) < 0.4 * 8 * LARGE
