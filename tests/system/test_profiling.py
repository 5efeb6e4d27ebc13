"""Phases add up to the time that passed, nested ones are not counted twice, and nothing is measured unless asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

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
    """Seconds, to be set."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_phase_within_another_is_not_counted_in_it(clock: list[float]) -> None:
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


def test_an_error_ends_its_phase_and_none_is_measured_without_a_profile(clock: list[float]) -> None:
    @timed("train")
    def fails() -> None:
        clock[0] += 1
        raise KeyError

    profile = Profile()
    for target in (None, profile):
        with profiling_into(target), pytest.raises(KeyError):
            fails()
    clock[0] += 5
    profile.accrue()
    assert (profile.seconds["train"], profile.seconds["other"]) == (1, 6)


def test_what_is_done_between_results_is_not_part_of_their_phase(clock: list[float]) -> None:
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


def test_the_first_round_counts_only_if_it_is_the_only_one(clock: list[float]) -> None:
    account = RoundProfile()
    clock[0] = 8
    account.record_round(None)
    assert account.average_per_round()["server"]["other"] == 8
    for end in (10, 14):
        clock[0] = end
        account.record_round(None)
    assert account.average_per_round()["server"]["other"] == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_profile_of_a_run(scenario: Callable[..., Scenario], workers: int) -> None:
    result = run(scenario({"rounds": 3}), workers=workers, profile=True)
    profile = result.summary["profile"]
    assert list(profile) == (["server"] if workers == 1 else ["server", "workers"])
    by_clients = profile["server" if workers == 1 else "workers"]
    assert all(tuple(spent) == PHASES for spent in profile.values())
    assert all(by_clients[phase] > 0 for phase in ("gather", "train", "compress", "encode", "decode"))
    assert all(profile["server"][phase] > 0 for phase in ("encode", "decode", "aggregate", "evaluate", "ledger"))
    assert sum(profile["server"].values()) == pytest.approx(sum(r.seconds for r in result.history[1:]) / 2, rel=0.5)
    assert "profile" not in run(scenario()).summary


def test_the_command_prints_it(quickstart: str) -> None:
    shown = CliRunner().invoke(main, ["run", quickstart, "--set", "rounds=2", "--profile", "--quiet"])
    assert shown.exit_code == 0, shown.output
    assert "a round, in milliseconds" in shown.output
    assert all(phase in shown.output for phase in PHASES)


@pytest.fixture
def quickstart(root: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(root / "scenarios" / "quickstart.toml")
