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


def pool(clients: int, seed: int = 0, folder: Path | None = None) -> SamplingPool:
    def sizes() -> np.ndarray:
        raise AssertionError("nobody's business")

    return SamplingPool(seed, clients, sizes, folder)


def of_sizes(*sizes: int, seed: int = 0) -> SamplingPool:
    return SamplingPool(seed, len(sizes), lambda: np.array(sizes))


@dataclass(frozen=True)
class Both(SettingsSection):
    """A key for each family."""

    sampler: Sampler = Uniform()
    durations: DurationModel = LogNormalDurations()


def test_every_member_survives_toml() -> None:
    needed = {"trace": {"file": "f.csv"}}
    for key, registry in (("sampler", SAMPLERS), ("durations", DURATIONS)):
        for name in registry:
            both = parse_table(Both, {key: {"name": name, **needed.get(name, {})}})
            assert type(getattr(both, key)) is registry[name]
            assert parse_table(Both, tomllib.loads(tomli_w.dumps(dump_table(both)))) == both


# ------------------------------------------------------------------------------------------------------------- uniform


@pytest.mark.parametrize(("clients", "wanted"), [(5, 5), (100, 10), (20_000, 1000), (1_000_000, 100)])
def test_uniform_draws_what_has_always_been_drawn(clients: int, wanted: int) -> None:
    """The expression that recorded runs were made with."""
    draw = Uniform().bind(pool(clients, seed=7))
    for round in (1, 2, 50):
        chosen = derive_generator(7, "cohort", round).choice(clients, size=wanted, replace=False)
        assert draw(round, wanted).cohort == tuple(sorted(chosen.tolist()))


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
def test_cohorts_are_those_of_earlier_versions(sampler: Sampler, cohort: tuple[int, ...]) -> None:
    """Cohorts decide digests: of 100 clients of 1 to 100 examples, with seed 0, in round 3."""
    assert sampler.bind(of_sizes(*range(1, 101)))(3, 10).cohort == cohort


# ------------------------------------------------------------------------------------------------------------ weighted


def capped(weights: np.ndarray, wanted: int) -> np.ndarray:
    """Inclusion probabilities, naively: whoever has more than 1 gets 1, and the rest is dealt again, until nobody has."""
    chance = np.zeros(len(weights))
    sure = np.zeros(len(weights), bool)
    while True:
        chance[~sure] = (wanted - sure.sum()) * weights[~sure] / weights[~sure].sum()
        chance[sure] = 1.0
        if not (chance > 1 + 1e-12).any():
            return chance
        sure |= chance > 1 + 1e-12


@given(
    sizes=st.lists(st.integers(1, 10**4), min_size=1, max_size=40),
    exponent=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    data=st.data(),
)
def test_weighted_chances_are_capped_and_dealt_again(sizes: list[int], exponent: float, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, len(sizes)))
    expected = capped(np.array(sizes, dtype=float) ** exponent, wanted)
    assert expected.sum() == pytest.approx(wanted)
    draw = Weighted(exponent=exponent).bind(of_sizes(*sizes))
    for round in range(1, 4):
        drawn = draw(round, wanted)
        assert set(np.flatnonzero(expected == 1)) <= set(drawn.cohort)
        assert drawn.inclusion_probabilities == pytest.approx(expected[list(drawn.cohort)], rel=1e-6)


def test_weighted_takes_all_who_are_certain() -> None:
    draw = Weighted().bind(of_sizes(1000, 1, 1, 500, 1, 1))
    for round in range(1, 30):
        drawn = draw(round, 3)
        assert {0, 3} < set(drawn.cohort)
        assert drawn.inclusion_probabilities is not None
        assert sorted(drawn.inclusion_probabilities) == [0.25, 1, 1]
    assert draw(1, 6).cohort == tuple(range(6))


def test_weighted_by_nothing_is_the_same_chance_for_all() -> None:
    drawn = Weighted(exponent=0.0).bind(of_sizes(0, 5, 100, 10**9))(1, 2)
    assert drawn.inclusion_probabilities == pytest.approx([0.5, 0.5])


def test_weighted_draws_nobody_without_examples() -> None:
    draw = Weighted().bind(of_sizes(0, 3, 0, 2))
    assert {draw(round, 2).cohort for round in range(1, 30)} == {(1, 3)}
    with pytest.raises(DataError, match='"weighted" has to draw 3 clients a round, but only 2 have any examples'):
        draw(1, 3)
    with pytest.raises(DataError, match="but only 0 have any examples"):
        Weighted().bind(of_sizes(0, 0))(1, 1)


def test_weighted_gives_the_smallest_a_chance_too() -> None:
    """(1/10⁶)¹⁰⁰ is no float above 0; a client with examples is none the less drawable."""
    drawn = Weighted(exponent=100.0).bind(of_sizes(1, 10**6, 1))(1, 3)
    assert drawn.cohort == (0, 1, 2)


def test_weighted_holds_for_a_million_clients() -> None:
    sizes = np.random.default_rng(0).integers(1, 1000, 10**6)
    sizes[::100_000] = 10**9
    draw = Weighted().bind(SamplingPool(0, 10**6, lambda: sizes))
    small = np.arange(10**6) % 100_000 != 0
    for round in range(1, 20):
        drawn = draw(round, 1000)
        assert len(set(drawn.cohort)) == 1000
        assert {*range(0, 10**6, 100_000)} <= set(drawn.cohort)
        assert drawn.inclusion_probabilities is not None
        others = [c for c in drawn.cohort if small[c]]
        assert drawn.inclusion_probabilities[drawn.inclusion_probabilities < 1] == pytest.approx(
            990 * sizes[others] / sizes[small].sum(), rel=1e-4
        )


# -------------------------------------------------------------------------------------------------------------- cyclic


@given(clients=st.integers(1, 40), seed=st.integers(0, 100), data=st.data())
def test_cyclic_lets_nobody_wait_longer_than_a_turn(clients: int, seed: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, clients))
    draw = Cyclic().bind(pool(clients, seed))
    seen: Counter[int] = Counter(dict.fromkeys(range(clients), 0))
    for round in range(1, clients + 1):
        seen.update(draw(round, wanted).cohort)
        assert max(seen.values()) - min(seen.values()) <= 1
    assert set(seen.values()) == {wanted}


def test_the_order_of_turns_is_shuffled() -> None:
    firsts = {Cyclic().bind(pool(100, seed))(1, 10).cohort for seed in range(5)}
    assert len(firsts | {tuple(range(10))}) == 6


# --------------------------------------------------------------------------------------------------------------- trace

LINES = "client,first_round,last_round\n"


@given(
    lines=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40), st.integers(0, 20)), min_size=1, max_size=60),
    point=st.integers(0, 70),
)
def test_intervals_that_hold_a_point_are_found_each_owner_once(lines: list[tuple[int, int, int]], point: int) -> None:
    owner, first, more = np.array(lines).T
    found = IntervalTree.from_intervals(owner, first, first + more).owners_at(point)
    assert all(len(some) for some in found)
    owners = [int(c) for some in found for c in some]
    assert sorted(owners) == sorted({c for c, a, m in lines if a <= point <= a + m})


def test_intervals_reach_to_their_limits() -> None:
    ends = np.array([MAX_POINT]), np.array([1]), np.array([MAX_POINT])
    assert [some.tolist() for some in IntervalTree.from_intervals(*ends).owners_at(MAX_POINT)] == [[MAX_POINT]]
    assert IntervalTree.from_intervals(*ends).owners_at(MAX_POINT + 1) == []


def made(tmp_path: Path, text: str | bytes, clients: int = 5, period: int = 0) -> CohortSampler:
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return TraceSampler(file="t.csv", period=period).bind(pool(clients, folder=tmp_path))


def test_a_trace_says_who_is_there(tmp_path: Path) -> None:
    draw = made(tmp_path, LINES + "3,2,3\n0,1,2\n\n 3 ,3, 5\n")
    assert [draw(round, 5).cohort for round in range(1, 8)] == [(0,), (0, 3), (3,), (3,), (3,), (), ()]
    assert {draw(2, 1).cohort for _ in range(3)} < {(0,), (3,)}
    assert draw(2, 2).inclusion_probabilities is None


def test_a_trace_repeats(tmp_path: Path) -> None:
    draw = made(tmp_path, LINES + "0,1,2\n1,3,4\n", period=4)
    assert [draw(round, 5).cohort for round in range(1, 10)] == [(0,), (0,), (1,), (1,)] * 2 + [(0,)]


def test_a_trace_is_drawn_from_uniformly(tmp_path: Path) -> None:
    """Clients 0 to 9 by way of ever different intervals: each in 3 of 10 rounds, to five standard deviations."""
    draw = made(tmp_path, LINES + "".join(f"{c},1,{5000 + 7 * c}\n" for c in range(10)), clients=20)
    counts = Counter(client for round in range(1, 4001) for client in draw(round, 3).cohort)
    assert set(counts) == set(range(10))
    assert max(abs(n / 4000 - 0.3) for n in counts.values()) < 5 * math.sqrt(0.21 / 4000)


def test_when_all_are_there_a_trace_draws_what_uniform_does(tmp_path: Path) -> None:
    """However their lines say so."""
    lines = [f"{c},1,10\n" if c % 3 else f"{c},6,10\n{c},1,5\n" for c in reversed(range(500))]
    draw, plain = made(tmp_path, LINES + "".join(lines), clients=500), Uniform().bind(pool(500))
    assert [draw(r, 90).cohort for r in range(1, 11)] == [plain(r, 90).cohort for r in range(1, 11)]


def test_a_trace_does_not_depend_on_the_order_of_its_lines(tmp_path: Path) -> None:
    lines = [f"{c},{1 + c % 3},{4 + c % 5}\n" for c in range(40)]
    one, other = (made(tmp_path, LINES + "".join(some), clients=40) for some in (lines, lines[::-1]))
    assert [one(r, 5).cohort for r in range(1, 10)] == [other(r, 5).cohort for r in range(1, 10)]


def test_a_trace_is_looked_for_in_the_folder_and_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    Path("t.csv").write_text(LINES + "1,1,1\n")
    trace = TraceSampler(file="t.csv")
    assert trace.bind(pool(5))(1, 5).cohort == (1,)
    assert trace.bind(pool(5, folder=tmp_path / "d"))(1, 5).cohort == (1,)
    (tmp_path / "d" / "t.csv").write_text(LINES + "2,1,1\n")
    assert trace.bind(pool(5, folder=tmp_path / "d"))(1, 5).cohort == (2,)
    assert TraceSampler(file=str(tmp_path / "t.csv")).bind(pool(5))(1, 5).cohort == (1,)
    with pytest.raises(DataError, match=r"^trace: u\.csv not found \(looked for .*d/u\.csv, u\.csv\)$"):
        TraceSampler(file="u.csv").bind(pool(5, folder=tmp_path / "d"))
    with pytest.raises(ScenarioError, match=r"^sampler\.file: missing, expected for example file = "):
        parse_table(Both, {"sampler": {"name": "trace"}})


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
def test_a_wrong_trace_is_pointed_at(tmp_path: Path, text: str | bytes, period: int, message: str) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/t\.csv: {message}"):
        made(tmp_path, text, period=period)


def test_a_trace_as_spreadsheets_write_it(tmp_path: Path) -> None:
    assert made(tmp_path, b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode() + b'"4",1,1\r\n')(1, 5).cohort == (4,)


# ----------------------------------------------------------------------------------------------------------- durations


@pytest.mark.parametrize("name", list(DURATIONS))
@given(seed=st.integers(0, 1000), round=st.integers(1, 1000), client=st.integers(0, 10**6), steps=st.integers(0, 10**4))
def test_the_laws_of_durations(name: str, seed: int, round: int, client: int, steps: int) -> None:
    model = DURATIONS[name]()
    seconds = model.reply_seconds(seed, round, client, steps)
    assert type(seconds) is float
    assert 0 <= seconds < math.inf
    assert model.reply_seconds(seed, round, client, steps) == seconds
    assert model.reply_seconds(seed, round, client, steps + 1) >= seconds


def test_log_normal_durations_have_the_moments_they_say() -> None:
    """4000 clients, then 4000 rounds of one: standard errors of mean and deviation are 0.016 and 0.011 of the deviation."""
    base = LogNormalDurations(fixed=3.0, per_step=0.5, spread=0.7)
    logs = np.log([base.reply_seconds(0, 1, client, 10) for client in range(4000)])
    assert logs.mean() == pytest.approx(math.log(8.0), abs=0.06)
    assert logs.std() == pytest.approx(0.7, rel=0.06)
    assert base.reply_seconds(0, 2, 17, 10) == base.reply_seconds(0, 1, 17, 10) != base.reply_seconds(1, 1, 17, 10)
    jittery = LogNormalDurations(fixed=3.0, per_step=0.5, spread=0.7, jitter=0.2)
    logs = np.log([jittery.reply_seconds(0, round, 17, 10) / base.reply_seconds(0, round, 17, 10) for round in range(1, 4001)])
    assert logs.mean() == pytest.approx(0, abs=0.02)
    assert logs.std() == pytest.approx(0.2, rel=0.06)


def test_without_spread_durations_are_arithmetic() -> None:
    assert LogNormalDurations(fixed=2.0, per_step=0.25, spread=0.0).reply_seconds(0, 1, 2, 8) == 4.0


def test_durations_that_cannot_be() -> None:
    with pytest.raises(FieldError, match="per_step: got 0 for both fixed and per_step, expected one above 0"):
        LogNormalDurations(per_step=0.0)
    with pytest.raises(FieldError, match=r"log-normal\.spread: got 1000000\.0, with which the duration of client \d overflows"):
        _ = [LogNormalDurations(spread=1e6).reply_seconds(0, 1, client, 1) for client in range(10)]


# ------------------------------------------------------------------------------------------------------------- replies


@pytest.mark.parametrize(
    ("seconds", "wanted", "deadline", "accepted"),
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
def test_the_first_replies_in_time_are_accepted(
    seconds: dict[int, float], wanted: int, deadline: float | None, accepted: list[int]
) -> None:
    assert first_within_deadline(seconds, wanted, deadline) == accepted
    assert first_within_deadline(dict(reversed(seconds.items())), wanted, deadline) == accepted


@pytest.mark.parametrize(
    ("wanted", "over_selection", "asked"),
    [(100, 1.1, 110), (50, 1.1, 55), (10, 1.3, 13), (10, 1.25, 13), (7, 1.0, 7), (900, 2.0, 1000)],
)
def test_over_selection_asks_as_many_as_the_decimal_says(wanted: int, over_selection: float, asked: int) -> None:
    assert ParticipationModel(0, Uniform().bind(pool(1000)), 1000, wanted, over_selection).n_invited == asked


def test_replies_are_lost_with_their_probability() -> None:
    """8000 replies: a frequency's standard deviation is 0.0051."""
    asked = [(round, client) for round in range(1, 81) for client in range(100)]
    gone = [is_lost(3, round, client, 0.3) for round, client in asked]
    assert np.mean(gone) == pytest.approx(0.3, abs=0.025)
    assert gone == [is_lost(3, round, client, 0.3) for round, client in asked]
    assert gone != [is_lost(4, round, client, 0.3) for round, client in asked]
    assert not any(is_lost(3, round, client, 0.0) for round, client in asked)
    assert all(is_lost(3, round, client, 1.0) for round, client in asked)
    assert all(is_lost(3, *one, 0.5) for one, was in zip(asked, gone, strict=True) if was), "who is lost at 0.3 is at 0.5"
