"""Sampling of available clients."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from fedsgd.errors import DataError, ScenarioError
from fedsgd.sampling import (
    CohortSampler,
)
from fedsgd.sampling.availability_trace import TraceSampler
from fedsgd.sampling.uniform import Uniform
from fedsgd.scenario.parsing import parse_table
from tests.sampling.pools import SamplingSection, make_pool

LINES = "client,first_round,last_round\n"


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


@pytest.mark.slow
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
