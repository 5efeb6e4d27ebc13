"""Samplers and duration models, one by one; what they share is in laws/test_sampler_laws.py."""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.config.component import FieldError
from fedsgd.errors import DataError, ScenarioError
from fedsgd.numerics.rng import derive_generator
from fedsgd.sampling import (
    DURATIONS,
    SAMPLERS,
    CohortSampler,
    DurationModel,
    ParticipationModel,
    Sampler,
    SamplingPool,
    first_within_deadline,
    is_lost,
)
from fedsgd.sampling.availability_trace import TraceSampler
from fedsgd.sampling.client_durations import LogNormalDurations
from fedsgd.sampling.cyclic import Cyclic
from fedsgd.sampling.interval_tree import MAX_POINT, IntervalTree
from fedsgd.sampling.uniform import Uniform
from fedsgd.sampling.weighted import Weighted
from fedsgd.scenario.parsing import SettingsSection, dump_table, parse_table


def make_pool(clients: int, seed: int = 0, folder: Path | None = None) -> SamplingPool:
    def sizes() -> np.ndarray:
        raise AssertionError("this sampler does not use sizes")

    return SamplingPool(seed, clients, sizes, folder)


def make_pool_of_sizes(*sizes: int, seed: int = 0) -> SamplingPool:
    return SamplingPool(seed, len(sizes), lambda: np.array(sizes))


@dataclass(frozen=True)
class SamplingSection(SettingsSection):
    """Section with a key for each family."""

    sampler: Sampler = Uniform()
    durations: DurationModel = LogNormalDurations()


def test_member_round_trips_through_toml() -> None:
    required_keys = {"trace": {"file": "f.csv"}}
    for key, registry in (("sampler", SAMPLERS), ("durations", DURATIONS)):
        for name in registry:
            section = parse_table(SamplingSection, {key: {"name": name, **required_keys.get(name, {})}})
            assert type(getattr(section, key)) is registry[name]
            assert parse_table(SamplingSection, tomllib.loads(tomli_w.dumps(dump_table(section)))) == section


# ------------------------------------------------------------------------------------------------------------- uniform


@pytest.mark.parametrize(("clients", "cohort_size"), [(5, 5), (100, 10), (20_000, 1000), (1_000_000, 100)])
def test_uniform_cohort_equals_numpy_choice(clients: int, cohort_size: int) -> None:
    """Recorded runs were made with this expression."""
    sample_cohort = Uniform().bind(make_pool(clients, seed=7))
    for round in (1, 2, 50):
        drawn = derive_generator(7, "cohort", round).choice(clients, size=cohort_size, replace=False)
        assert sample_cohort(round, cohort_size).cohort == tuple(sorted(drawn.tolist()))


@pytest.mark.parametrize(
    ("sampler", "cohort"),
    [
        (Uniform(), (12, 15, 24, 30, 39, 50, 64, 67, 86, 90)),
        (Weighted(), (13, 17, 38, 55, 56, 62, 80, 85, 87, 95)),
        (Weighted(exponent=0.5), (13, 17, 30, 40, 44, 55, 56, 73, 85, 87)),
        (Cyclic(), (4, 10, 12, 27, 28, 45, 55, 77, 86, 97)),
    ],
    ids=str,
)
def test_cohort_equals_that_of_earlier_versions(sampler: Sampler, cohort: tuple[int, ...]) -> None:
    """Digests of runs depend on cohorts: here round 3 of 100 clients with 1 to 100 examples, seed 0."""
    assert sampler.bind(make_pool_of_sizes(*range(1, 101)))(3, 10).cohort == cohort


# ------------------------------------------------------------------------------------------------------------ weighted


def capped_probabilities(weights: np.ndarray, cohort_size: int) -> np.ndarray:
    """Return inclusion probabilities by a direct loop: clients above 1 get 1, and the rest is redistributed until no client is
    above 1.
    """
    probabilities = np.zeros(len(weights))
    is_certain = np.zeros(len(weights), bool)
    while True:
        probabilities[~is_certain] = (cohort_size - is_certain.sum()) * weights[~is_certain] / weights[~is_certain].sum()
        probabilities[is_certain] = 1.0
        if not (probabilities > 1 + 1e-12).any():
            return probabilities
        is_certain |= probabilities > 1 + 1e-12


@given(
    sizes=st.lists(st.integers(1, 10**4), min_size=1, max_size=40),
    exponent=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    data=st.data(),
)
def test_weighted_probabilities_are_capped_at_one_and_redistributed(
    sizes: list[int], exponent: float, data: st.DataObject
) -> None:
    cohort_size = data.draw(st.integers(1, len(sizes)))
    expected = capped_probabilities(np.array(sizes, dtype=float) ** exponent, cohort_size)
    assert expected.sum() == pytest.approx(cohort_size)
    sample_cohort = Weighted(exponent=exponent).bind(make_pool_of_sizes(*sizes))
    for round in range(1, 4):
        sampled = sample_cohort(round, cohort_size)
        assert set(np.flatnonzero(expected == 1)) <= set(sampled.cohort)
        assert sampled.inclusion_probabilities == pytest.approx(expected[list(sampled.cohort)], rel=1e-6)


def test_weighted_cohort_has_all_clients_of_probability_one() -> None:
    sample_cohort = Weighted().bind(make_pool_of_sizes(1000, 1, 1, 500, 1, 1))
    for round in range(1, 30):
        sampled = sample_cohort(round, 3)
        assert {0, 3} < set(sampled.cohort)
        assert sampled.inclusion_probabilities is not None
        assert sorted(sampled.inclusion_probabilities) == [0.25, 1, 1]
    assert sample_cohort(1, 6).cohort == tuple(range(6))


def test_weighted_with_exponent_zero_has_equal_probabilities() -> None:
    sampled = Weighted(exponent=0.0).bind(make_pool_of_sizes(0, 5, 100, 10**9))(1, 2)
    assert sampled.inclusion_probabilities == pytest.approx([0.5, 0.5])


def test_weighted_never_draws_clients_without_examples() -> None:
    sample_cohort = Weighted().bind(make_pool_of_sizes(0, 3, 0, 2))
    assert {sample_cohort(round, 2).cohort for round in range(1, 30)} == {(1, 3)}
    with pytest.raises(DataError, match='"weighted" has to draw 3 clients a round, but only 2 have any examples'):
        sample_cohort(1, 3)
    with pytest.raises(DataError, match="but only 0 have any examples"):
        Weighted().bind(make_pool_of_sizes(0, 0))(1, 1)


def test_weighted_probability_that_underflows_stays_above_zero() -> None:
    """(1/10⁶)¹⁰⁰ underflows to 0. A client with examples can be drawn nevertheless."""
    sampled = Weighted(exponent=100.0).bind(make_pool_of_sizes(1, 10**6, 1))(1, 3)
    assert sampled.cohort == (0, 1, 2)


def test_weighted_probabilities_are_exact_for_a_million_clients() -> None:
    sizes = np.random.default_rng(0).integers(1, 1000, 10**6)
    sizes[::100_000] = 10**9
    sample_cohort = Weighted().bind(SamplingPool(0, 10**6, lambda: sizes))
    is_small = np.arange(10**6) % 100_000 != 0
    for round in range(1, 20):
        sampled = sample_cohort(round, 1000)
        assert len(set(sampled.cohort)) == 1000
        assert {*range(0, 10**6, 100_000)} <= set(sampled.cohort)
        assert sampled.inclusion_probabilities is not None
        small_clients = [c for c in sampled.cohort if is_small[c]]
        assert sampled.inclusion_probabilities[sampled.inclusion_probabilities < 1] == pytest.approx(
            990 * sizes[small_clients] / sizes[is_small].sum(), rel=1e-4
        )


# -------------------------------------------------------------------------------------------------------------- cyclic


@given(clients=st.integers(1, 40), seed=st.integers(0, 100), data=st.data())
def test_cyclic_counts_of_participation_differ_by_at_most_one(clients: int, seed: int, data: st.DataObject) -> None:
    cohort_size = data.draw(st.integers(1, clients))
    sample_cohort = Cyclic().bind(make_pool(clients, seed))
    counts: Counter[int] = Counter(dict.fromkeys(range(clients), 0))
    for round in range(1, clients + 1):
        counts.update(sample_cohort(round, cohort_size).cohort)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert set(counts.values()) == {cohort_size}


def test_cyclic_order_is_shuffled() -> None:
    first_cohorts = {Cyclic().bind(make_pool(100, seed))(1, 10).cohort for seed in range(5)}
    assert len(first_cohorts | {tuple(range(10))}) == 6


# --------------------------------------------------------------------------------------------------------------- trace

LINES = "client,first_round,last_round\n"


@given(
    lines=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40), st.integers(0, 20)), min_size=1, max_size=60),
    point=st.integers(0, 70),
)
def test_tree_returns_each_owner_of_a_point_once(lines: list[tuple[int, int, int]], point: int) -> None:
    owner, first, length = np.array(lines).T
    groups = IntervalTree.from_intervals(owner, first, first + length).owners_at(point)
    assert all(len(group) for group in groups)
    owners = [int(c) for group in groups for c in group]
    assert sorted(owners) == sorted({c for c, a, m in lines if a <= point <= a + m})


def test_tree_accepts_the_largest_point_and_owner() -> None:
    interval = np.array([MAX_POINT]), np.array([1]), np.array([MAX_POINT])
    assert [group.tolist() for group in IntervalTree.from_intervals(*interval).owners_at(MAX_POINT)] == [[MAX_POINT]]
    assert IntervalTree.from_intervals(*interval).owners_at(MAX_POINT + 1) == []


def bind_trace(tmp_path: Path, text: str | bytes, clients: int = 5, period: int = 0) -> CohortSampler:
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return TraceSampler(file="t.csv", period=period).bind(make_pool(clients, folder=tmp_path))


def test_trace_cohort_has_available_clients_only(tmp_path: Path) -> None:
    sample_cohort = bind_trace(tmp_path, LINES + "3,2,3\n0,1,2\n\n 3 ,3, 5\n")
    assert [sample_cohort(round, 5).cohort for round in range(1, 8)] == [(0,), (0, 3), (3,), (3,), (3,), (), ()]
    assert {sample_cohort(2, 1).cohort for _ in range(3)} < {(0,), (3,)}
    assert sample_cohort(2, 2).inclusion_probabilities is None


def test_trace_with_period_repeats(tmp_path: Path) -> None:
    sample_cohort = bind_trace(tmp_path, LINES + "0,1,2\n1,3,4\n", period=4)
    assert [sample_cohort(round, 5).cohort for round in range(1, 10)] == [(0,), (0,), (1,), (1,)] * 2 + [(0,)]


def test_trace_draws_available_clients_uniformly(tmp_path: Path) -> None:
    """Clients 0 to 9 are available in different intervals. Each is in 3 of 10 cohorts, to five standard deviations."""
    sample_cohort = bind_trace(tmp_path, LINES + "".join(f"{c},1,{5000 + 7 * c}\n" for c in range(10)), clients=20)
    counts = Counter(client for round in range(1, 4001) for client in sample_cohort(round, 3).cohort)
    assert set(counts) == set(range(10))
    assert max(abs(n / 4000 - 0.3) for n in counts.values()) < 5 * math.sqrt(0.21 / 4000)


def test_trace_with_all_clients_available_draws_as_uniform(tmp_path: Path) -> None:
    """The lines of a client may be split and in any order."""
    lines = [f"{c},1,10\n" if c % 3 else f"{c},6,10\n{c},1,5\n" for c in reversed(range(500))]
    sample_from_trace, sample_uniformly = (
        bind_trace(tmp_path, LINES + "".join(lines), clients=500),
        Uniform().bind(make_pool(500)),
    )
    assert [sample_from_trace(r, 90).cohort for r in range(1, 11)] == [sample_uniformly(r, 90).cohort for r in range(1, 11)]


def test_trace_does_not_depend_on_the_order_of_lines(tmp_path: Path) -> None:
    lines = [f"{c},{1 + c % 3},{4 + c % 5}\n" for c in range(40)]
    forwards, backwards = (
        bind_trace(tmp_path, LINES + "".join(ordered_lines), clients=40) for ordered_lines in (lines, lines[::-1])
    )
    assert [forwards(r, 5).cohort for r in range(1, 10)] == [backwards(r, 5).cohort for r in range(1, 10)]


def test_trace_file_is_looked_for_in_data_folder_and_then_in_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    Path("t.csv").write_text(LINES + "1,1,1\n")
    trace = TraceSampler(file="t.csv")
    assert trace.bind(make_pool(5))(1, 5).cohort == (1,)
    assert trace.bind(make_pool(5, folder=tmp_path / "d"))(1, 5).cohort == (1,)
    (tmp_path / "d" / "t.csv").write_text(LINES + "2,1,1\n")
    assert trace.bind(make_pool(5, folder=tmp_path / "d"))(1, 5).cohort == (2,)
    assert TraceSampler(file=str(tmp_path / "t.csv")).bind(make_pool(5))(1, 5).cohort == (1,)
    with pytest.raises(DataError, match=r"^trace: u\.csv not found \(looked for .*d/u\.csv, u\.csv\)$"):
        TraceSampler(file="u.csv").bind(make_pool(5, folder=tmp_path / "d"))
    with pytest.raises(ScenarioError, match=r"^sampler\.file: missing, expected for example file = "):
        parse_table(SamplingSection, {"sampler": {"name": "trace"}})


@pytest.mark.parametrize(
    ("text", "period", "message"),
    [
        ("", 0, "line 1: expected the header client,first_round,last_round, got nothing"),
        ("1,1,2\n", 0, "line 1: expected the header client,first_round,last_round, got 1,1,2"),
        (LINES, 0, "no client is ever available: expected lines below the header, got none"),
        (LINES + "1,1\n", 0, r"line 2: expected 3 values \(client, first_round, last_round\), got 2"),
        (LINES + "1,1,2,\n", 0, "line 2: expected 3 values .*, got 4"),
        (LINES + "0,1,1\n\nx,1,2\n", 0, "line 4: client: expected a whole number, got 'x'"),
        (LINES + "0,1,2.5\n", 0, "line 2: last_round: expected a whole number, got '2.5'"),
        (LINES + "0,,2\n", 0, "line 2: first_round: expected a whole number, got ''"),
        (LINES + "-1,1,2\n", 0, "line 2: client: expected a whole number, got '-1'"),
        (LINES + "0,1," + "9" * 5000, 0, "line 2: last_round: expected a whole number, got '999"),
        (LINES + "5,1,2\n", 0, "line 2: client: expected 0 to 4, got 5"),
        (LINES + "0,0,2\n", 0, "line 2: first_round: expected 1 or more, got 0"),
        (LINES + "0,3,2\n", 0, "line 2: last_round: expected 3, the line's first_round, or later, got 2"),
        (LINES + "0,3,11\n", 10, "line 2: last_round: expected at most 10, the period, got 11"),
        (LINES + "0,3,3000000000\n", 0, "line 2: last_round: expected at most 2147483647, got 3000000000"),
        (LINES.encode() + b"\xff,1,2\n", 0, r"cannot be read as CSV \('utf-8' codec"),
    ],
)
def test_invalid_trace_raises_error_with_file_and_line(tmp_path: Path, text: str | bytes, period: int, message: str) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/t\.csv: {message}"):
        bind_trace(tmp_path, text, period=period)


def test_trace_with_byte_order_mark_and_quotes_is_read(tmp_path: Path) -> None:
    assert bind_trace(tmp_path, b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode() + b'"4",1,1\r\n')(1, 5).cohort == (4,)


# ----------------------------------------------------------------------------------------------------------- durations


@pytest.mark.parametrize("name", list(DURATIONS))
@given(seed=st.integers(0, 1000), round=st.integers(1, 1000), client=st.integers(0, 10**6), steps=st.integers(0, 10**4))
def test_duration_is_finite_deterministic_and_grows_with_steps(
    name: str, seed: int, round: int, client: int, steps: int
) -> None:
    model = DURATIONS[name]()
    seconds = model.reply_seconds(seed, round, client, steps)
    assert type(seconds) is float
    assert 0 <= seconds < math.inf
    assert model.reply_seconds(seed, round, client, steps) == seconds
    assert model.reply_seconds(seed, round, client, steps + 1) >= seconds


def test_log_normal_durations_have_the_configured_moments() -> None:
    """Of 4000 clients, and of 4000 rounds of one client, the standard errors of mean and deviation are 0.016 and 0.011 of the
    deviation.
    """
    base = LogNormalDurations(fixed=3.0, per_step=0.5, spread=0.7)
    logs = np.log([base.reply_seconds(0, 1, client, 10) for client in range(4000)])
    assert logs.mean() == pytest.approx(math.log(8.0), abs=0.06)
    assert logs.std() == pytest.approx(0.7, rel=0.06)
    assert base.reply_seconds(0, 2, 17, 10) == base.reply_seconds(0, 1, 17, 10) != base.reply_seconds(1, 1, 17, 10)
    with_jitter = LogNormalDurations(fixed=3.0, per_step=0.5, spread=0.7, jitter=0.2)
    logs = np.log(
        [with_jitter.reply_seconds(0, round, 17, 10) / base.reply_seconds(0, round, 17, 10) for round in range(1, 4001)]
    )
    assert logs.mean() == pytest.approx(0, abs=0.02)
    assert logs.std() == pytest.approx(0.2, rel=0.06)


def test_log_normal_duration_without_spread_is_linear_in_steps() -> None:
    assert LogNormalDurations(fixed=2.0, per_step=0.25, spread=0.0).reply_seconds(0, 1, 2, 8) == 4.0


def test_log_normal_without_time_or_with_overflow_raises_field_error() -> None:
    with pytest.raises(FieldError, match="per_step: got 0 for both fixed and per_step, expected one above 0"):
        LogNormalDurations(per_step=0.0)
    with pytest.raises(FieldError, match=r"log-normal\.spread: got 1000000\.0, with which the duration of client \d overflows"):
        _ = [LogNormalDurations(spread=1e6).reply_seconds(0, 1, client, 1) for client in range(10)]


# ------------------------------------------------------------------------------------------------------------- replies


@pytest.mark.parametrize(
    ("seconds", "max_replies", "deadline", "accepted"),
    [
        ({4: 2.0, 1: 3.0, 7: 1.0}, 2, None, [4, 7]),
        ({4: 2.0, 1: 3.0, 7: 1.0}, 9, 2.0, [4, 7]),
        ({4: 2.0, 1: 3.0, 7: 1.0}, 1, 2.5, [7]),
        ({4: 2.0, 1: 3.0}, 2, 1.0, []),
        ({9: 1.0, 3: 1.0, 6: 1.0}, 2, None, [3, 6]),
        ({}, 3, None, []),
        ({1: 1.0}, 0, None, []),
    ],
)
def test_first_replies_within_the_deadline_are_accepted(
    seconds: dict[int, float], max_replies: int, deadline: float | None, accepted: list[int]
) -> None:
    assert first_within_deadline(seconds, max_replies, deadline) == accepted
    assert first_within_deadline(dict(reversed(seconds.items())), max_replies, deadline) == accepted


@pytest.mark.parametrize(
    ("target_cohort", "over_selection", "n_invited"),
    [(100, 1.1, 110), (50, 1.1, 55), (10, 1.3, 13), (10, 1.25, 13), (7, 1.0, 7), (900, 2.0, 1000)],
)
def test_over_selection_rounds_the_decimal_product_up(target_cohort: int, over_selection: float, n_invited: int) -> None:
    assert ParticipationModel(0, Uniform().bind(make_pool(1000)), 1000, target_cohort, over_selection).n_invited == n_invited


def test_replies_are_lost_with_the_given_probability() -> None:
    """8000 replies: a frequency's standard deviation is 0.0051."""
    pairs = [(round, client) for round in range(1, 81) for client in range(100)]
    lost = [is_lost(3, round, client, 0.3) for round, client in pairs]
    assert np.mean(lost) == pytest.approx(0.3, abs=0.025)
    assert lost == [is_lost(3, round, client, 0.3) for round, client in pairs]
    assert lost != [is_lost(4, round, client, 0.3) for round, client in pairs]
    assert not any(is_lost(3, round, client, 0.0) for round, client in pairs)
    assert all(is_lost(3, round, client, 1.0) for round, client in pairs)
    assert all(is_lost(3, *pair, 0.5) for pair, is_lost_at_0_3 in zip(pairs, lost, strict=True) if is_lost_at_0_3), (
        "a reply that is lost at 0.3 is lost at 0.5"
    )
