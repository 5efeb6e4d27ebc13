"""What a run has needed: read from where the system says it, and a million registered clients add next to nothing to it."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.runner import run
from fedsgd.federation.round_loop import run_rounds as run_rounds
from fedsgd.scenario.scenario import Scenario, load
from fedsgd.system.machine import measure_peak_memory

FEW, MANY = 10**4, 10**6
HELD = {"uniform": 0, "cyclic": 4, "weighted": 16}
BUILDING = {"uniform": 0, "cyclic": 16, "weighted": 48}
"""Bytes a registered client by sampler: kept for the run, and at most while it is made."""
SLACK = 500_000


def of(clients: int, sampler: str) -> Scenario:
    """Ten clients a round in place of a hundred, and held-out examples: all that may depend on N is there."""
    file = Path(__file__).parents[2] / "scenarios" / "million_clients.toml"
    return load(file, {"data.clients": clients, "server.cohort": 10, "server.sampler.name": sampler, "data.held_out": 0.2})


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sampler", list(HELD))
def test_a_registered_client_costs_a_few_bytes_and_a_round_nothing(sampler: str) -> None:
    build_experiment(of(FEW, sampler))  # what is made once in a process
    held, building, rounds = {}, {}, {}
    for clients in (FEW, MANY):
        with traced():
            experiment = build_experiment(of(clients, sampler))
            held[clients], building[clients] = tracemalloc.get_traced_memory()
            going = run_rounds(
                experiment.plan,
                experiment.initial_server_state,
                experiment.runtime,
                experiment.participation,
                lambda crossing: None,
            )
            for _ in range(3):
                next(going)
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            next(going)
            rounds[clients] = tracemalloc.get_traced_memory()[1] - before
    assert held[MANY] - held[FEW] < HELD[sampler] * MANY + SLACK
    assert building[MANY] - building[FEW] < BUILDING[sampler] * MANY + SLACK
    assert rounds[MANY] < rounds[FEW] + SLACK


def test_the_peak_is_that_of_the_process_and_not_of_who_started_it() -> None:
    ballast = bytearray(200 * 2**20)
    ballast[:: 2**12] = b"x" * len(ballast[:: 2**12])
    code = "from fedsgd.system.machine import peak_memory; print(peak_memory())"
    mine = measure_peak_memory()
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    if mine is None:
        assert told == "None"
    else:
        assert len(ballast) < mine < 2**40
        if sys.platform == "linux":
            assert 2**20 < int(told) < len(ballast)


def test_where_the_kernel_does_not_say_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  123 kB\n")
    assert measure_peak_memory(status) == 123 * 1024
    asked, known = measure_peak_memory(tmp_path / "none"), measure_peak_memory()
    assert (asked is None) == (known is None)
    assert asked is None or known is None or asked > 0.9 * known
    monkeypatch.setitem(sys.modules, "resource", None)
    assert measure_peak_memory(tmp_path / "none") is None


def test_a_run_says_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = of(FEW, "uniform").with_settings({"rounds": 1})
    first = run(asked)
    known = measure_peak_memory()  # the kernel counts roughly: a later figure may be a few pages less
    assert first.summary["peak_memory_bytes"] == (None if known is None else pytest.approx(known, rel=0.05))
    monkeypatch.setattr("fedsgd.experiment.summary.peak_memory", lambda: None)
    again = run(asked)
    assert again.summary["peak_memory_bytes"] is None
    assert [again.summary[key] == first.summary[key] for key in ("params_sha256", "ledger_sha256")] == [True, True]
