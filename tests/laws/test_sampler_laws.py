"""The law suite of samplers, over their registry. N clients, m wanted."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsgd.sampling import SAMPLERS, CohortSampler, SamplingPool

NAMES = list(SAMPLERS)
FILES = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


def write_trace(folder: Path, lines: Sequence[tuple[int, int, int]]) -> str:
    path = folder / f"{next(FILES)}.csv"
    path.write_text("client,first_round,last_round\n" + "".join(f"{c},{a},{b}\n" for c, a, b in lines))
    return path.name


def over(
    name: str, folder: Path, seed: int, sizes: np.ndarray, trace: Sequence[tuple[int, int, int]] | None = None
) -> CohortSampler:
    """The member's draws; trace: who is there, by default all clients in all of the first 10⁵ rounds."""
    own: dict[str, Any] = {}
    if name == "trace":
        own = {"file": write_trace(folder, [(c, 1, 10**5) for c in range(len(sizes))] if trace is None else trace)}
    return SAMPLERS[name](**own).bind(SamplingPool(seed, len(sizes), lambda: sizes, folder))


def some_sizes(clients: int) -> np.ndarray:
    """Log-normal, so that with many wanted a few are certain."""
    return np.ceil(50 * np.exp(np.random.default_rng(0).standard_normal(clients))).astype(np.int64)


def traces(clients: int) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    line = st.tuples(st.integers(0, clients - 1), st.integers(1, 30), st.integers(0, 30))
    return st.lists(line, min_size=1, max_size=40).map(lambda lines: [(c, first, first + more) for c, first, more in lines])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100)
@given(data=st.data(), seed=st.integers(0, 1000), round=st.integers(1, 100))
def test_cohorts_are_distinct_ascending_in_range_and_of_the_size_wanted(
    name: str, folder: Path, data: st.DataObject, seed: int, round: int
) -> None:
    sizes = np.array(data.draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=60)))
    wanted = data.draw(st.integers(0, len(sizes)))
    trace = data.draw(traces(len(sizes))) if name == "trace" else None
    drawn = over(name, folder, seed, sizes, trace)(round, wanted)
    assert all(type(client) is int for client in drawn.cohort)
    assert list(drawn.cohort) == sorted(set(drawn.cohort))
    assert all(0 <= client < len(sizes) for client in drawn.cohort)
    there = {c for c, first, last in trace if first <= round <= last} if trace else set(range(len(sizes)))
    assert len(drawn.cohort) == min(wanted, len(there))
    assert SAMPLERS[name].always_full <= (len(drawn.cohort) == wanted)
    if drawn.inclusion_probabilities is not None:
        assert drawn.inclusion_probabilities.shape == (len(drawn.cohort),)
        assert ((drawn.inclusion_probabilities > 0) & (drawn.inclusion_probabilities <= 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_cohort_depends_on_seed_and_round_alone(name: str, folder: Path) -> None:
    sizes = some_sizes(200)
    forwards, backwards = over(name, folder, 1, sizes), over(name, folder, 1, sizes)
    first = {round: forwards(round, 20) for round in range(1, 13)}
    backwards(5, 7)
    np.random.default_rng(5).random(100)
    for round in reversed(first):
        again = backwards(round, 20)
        assert again.cohort == first[round].cohort
        assert (
            np.array_equal(again.inclusion_probabilities, first[round].inclusion_probabilities)
            or again.inclusion_probabilities is first[round].inclusion_probabilities is None
        )
    assert len({drawn.cohort for drawn in first.values()}) > 8, "rounds differ"
    assert over(name, folder, 2, sizes)(1, 20).cohort != first[1].cohort, "seeds differ"


@pytest.mark.parametrize("name", NAMES)
def test_more_than_there_are_cannot_be_drawn(name: str, folder: Path) -> None:
    draw = over(name, folder, 0, some_sizes(10))
    for wanted in (11, -1):
        with pytest.raises(ValueError, match=rf"got a cohort of {wanted}, expected 0 to 10 distinct clients"):
            draw(1, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_who_is_not_corrected_for_takes_part_as_often_as_all_others(name: str, folder: Path) -> None:
    """20 clients, 5 wanted, 4000 rounds: a frequency's standard deviation is 0.0068 at most; five of them."""
    draw = over(name, folder, 3, some_sizes(20))
    drawn = [draw(round, 5) for round in range(1, 4001)]
    if drawn[0].inclusion_probabilities is None:
        counts = np.bincount([client for one in drawn for client in one.cohort], minlength=20)
        assert np.abs(counts / 4000 - 0.25).max() < 0.035


@pytest.mark.parametrize("wanted", [1, 4, 12, 19], ids=lambda m: f"{m} of 20")
@pytest.mark.parametrize("name", NAMES)
def test_chances_are_frequencies_and_correct_for_themselves(name: str, wanted: int, folder: Path) -> None:
    """Over 4000 rounds each client's frequency, and the mean of Σ x_i / chance_i, are within five standard errors."""
    draw, rounds = over(name, folder, 4, some_sizes(20)), 4000
    drawn = [draw(round, wanted) for round in range(1, rounds + 1)]
    if any(one.inclusion_probabilities is None for one in drawn):
        assert all(one.inclusion_probabilities is None for one in drawn)
        return
    chance, counts = np.zeros(20), np.zeros(20)
    for one in drawn:
        cohort = list(one.cohort)
        assert ((chance[cohort] == 0) | (chance[cohort] == one.inclusion_probabilities)).all(), "the same in every round"
        chance[cohort] = one.inclusion_probabilities
        counts[cohort] += 1
    assert chance.sum() == pytest.approx(wanted, abs=1e-9)
    assert (np.abs(counts / rounds - chance) <= 5 * np.sqrt(chance * (1 - chance) / rounds)).all()
    x = np.random.default_rng(1).standard_normal(20) + 3
    sums = np.array([np.sum(x[list(one.cohort)] / one.inclusion_probabilities) for one in drawn])
    assert abs(sums.mean() - x.sum()) < 5 * sums.std() / np.sqrt(rounds)


# --------------------------------------------------------------------------------------------------------- a round's cost

SMALL, LARGE = 10_000, 1_000_000


@pytest.fixture(scope="module", params=NAMES)
def small_and_large(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[CohortSampler, CohortSampler]]:
    def draws(clients: int) -> CohortSampler:
        trace = [(c, 1 + c % 10, 20 + c % 10) for c in range(clients)] if request.param == "trace" else None
        return over(request.param, folder, 0, some_sizes(clients), trace)

    yield draws(SMALL), draws(LARGE)
    for path in folder.glob("*.csv"):
        path.unlink()


def peak_bytes(draw: CohortSampler, wanted: int) -> int:
    """The most memory that a draw holds at once beyond what was there before it."""
    draw(1, wanted)
    tracemalloc.start()
    try:
        draw(15, wanted)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def fastest(draw: CohortSampler) -> float:
    """Seconds of the fastest of many draws, which other processes disturb least."""
    seconds = []
    for round in [*range(10, 20)] * 6:  # with everybody there
        begun = time.perf_counter()
        draw(round, 100)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def test_a_draw_costs_a_million_clients_what_it_costs_ten_thousand(
    small_and_large: tuple[CohortSampler, CohortSampler],
) -> None:
    """A hundred times the clients: nothing is allocated for each, and time is not a hundredfold either, to say the least."""
    small, large = small_and_large
    assert peak_bytes(large, 100) < 1.5 * peak_bytes(small, 100) + 4096 < LARGE / 10
    assert fastest(large) < 5 * fastest(small)


def test_a_draw_of_many_costs_as_many(small_and_large: tuple[CohortSampler, CohortSampler]) -> None:
    """m = N/100: between Floyd's algorithm and a shuffle there is no gap in which all N are listed."""
    _, large = small_and_large
    assert peak_bytes(large, LARGE // 100) < 0.4 * 8 * LARGE
