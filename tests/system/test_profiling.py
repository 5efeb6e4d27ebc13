"""Phases add up to the elapsed time, nested phases count once, and nothing is measured without a profile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from fedsgd import ExecutionConfig
from fedsgd.cli import main
from fedsgd.experiment.runner import run
from fedsgd.scenario.scenario import Scenario
from fedsgd.system.profiling import (
    PHASES,
    PhaseTimer,
    Profile,
    RoundProfile,
    profiling_into,
    timed,
    timed_iterator,
    unpack_seconds,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the clock's seconds, which tests set."""
    seconds = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    return seconds


def test_nested_phase_does_not_count_in_the_outer_phase(clock: list[float]) -> None:
    profile = Profile()
    with profiling_into(profile):
        clock[0] = 1
        with PhaseTimer("aggregate"):
            clock[0] = 3
            with PhaseTimer("decode"):
                clock[0] = 7
            clock[0] = 15
        clock[0] = 31
    profile.accrue()
    assert {phase: s for phase, s in profile.seconds.items() if s} == {"aggregate": 10, "decode": 4, "other": 17}
    assert unpack_seconds(profile.pack()) == profile.seconds


def test_phase_with_an_error_ends_and_counts_only_under_a_profile(clock: list[float]) -> None:
    @timed("train")
    def fail() -> None:
        clock[0] += 1
        raise KeyError

    profile = Profile()
    for active_profile in (None, profile):
        with profiling_into(active_profile), pytest.raises(KeyError):
            fail()
    clock[0] += 5
    profile.accrue()
    assert (profile.seconds["train"], profile.seconds["other"]) == (1, 6)


def test_time_between_results_does_not_count_in_the_phase(clock: list[float]) -> None:
    def results() -> Any:
        for n in (1, 2):
            clock[0] += n
            yield n

    profile = Profile()
    with profiling_into(profile):
        for _ in timed_iterator("train", results()):
            clock[0] += 100
    profile.accrue()
    assert (profile.seconds["train"], profile.seconds["other"]) == (3, 200)


def test_first_round_counts_only_if_it_is_the_only_round(clock: list[float]) -> None:
    round_profile = RoundProfile()
    clock[0] = 8
    round_profile.record_round(None)
    assert round_profile.average_per_round()["server"]["other"] == 8
    for end in (10, 14):
        clock[0] = end
        round_profile.record_round(None)
    assert round_profile.average_per_round()["server"]["other"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_profile_of_a_run_has_all_phases(scenario: Callable[..., Scenario], workers: int) -> None:
    result = run(scenario({"rounds": 3}), execution=ExecutionConfig(workers=workers, profile=True))
    profile = result.summary["profile"]
    assert list(profile) == (["server"] if workers == 1 else ["server", "workers"])
    client_seconds = profile["server" if workers == 1 else "workers"]
    assert all(tuple(seconds) == PHASES for seconds in profile.values())
    assert all(client_seconds[phase] > 0 for phase in ("gather", "train", "compress", "encode", "decode"))
    assert all(profile["server"][phase] > 0 for phase in ("encode", "decode", "aggregate", "evaluate", "ledger"))
    assert sum(profile["server"].values()) == pytest.approx(sum(r.seconds for r in result.history[1:]) / 2, rel=0.5)
    assert "profile" not in run(scenario()).summary


@pytest.mark.slow
def test_run_command_prints_the_profile(quickstart: str) -> None:
    result = CliRunner().invoke(main, ["run", quickstart, "--set", "rounds=2", "--profile", "--quiet"])
    assert result.exit_code == 0, result.output
    assert "a round, in milliseconds" in result.output
    assert all(phase in result.output for phase in PHASES)


@pytest.fixture
def quickstart(root: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(root / "scenarios" / "quickstart.toml")
