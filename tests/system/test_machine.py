"""Peak memory of a run, and the memory of a million registered clients."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.execution import InProcessExecution
from fedsgd.experiment.runner import run
from fedsgd.scenario.scenario import Scenario, load
from fedsgd.system.machine import measure_peak_memory
from tests.effort import nightly_unless
from tests.executions import run_rounds

pytestmark = pytest.mark.slow

FEW, MANY = 10**4, 10**6
STORED_BYTES = {"uniform": 0, "cyclic": 4, "weighted": 16}
PEAK_BYTES = {"uniform": 0, "cyclic": 16, "weighted": 48}
"""Bytes for each registered client by sampler: stored during the run, and at the peak while it is built."""
TOLERANCE = 500_000


def load_scenario(clients: int, sampler: str) -> Scenario:
    """Load the scenario with ten clients a round and held-out examples, so that all parts that may depend on N exist."""
    file = Path(__file__).parents[2] / "scenarios" / "million_clients.toml"
    return load(file, {"data.clients": clients, "server.cohort": 10, "server.sampler.name": sampler, "data.held_out": 0.2})


@contextmanager
def trace_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sampler", nightly_unless("uniform".__eq__, STORED_BYTES))
def test_memory_of_registered_clients_is_a_few_bytes_each(sampler: str) -> None:
    build_experiment(load_scenario(FEW, sampler))  # allocates what a process allocates once
    stored, peaks, rounds = {}, {}, {}
    for clients in (FEW, MANY):
        with trace_memory():
            experiment = build_experiment(load_scenario(clients, sampler))
            stored[clients], peaks[clients] = tracemalloc.get_traced_memory()
            iterator = run_rounds(
                experiment.plan,
                experiment.initial_server_state,
                InProcessExecution(experiment).__enter__().runtime,
                experiment.participation,
                lambda crossing: None,
            )
            for _ in range(3):
                next(iterator)
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            next(iterator)
            rounds[clients] = tracemalloc.get_traced_memory()[1] - before
    assert stored[MANY] - stored[FEW] < STORED_BYTES[sampler] * MANY + TOLERANCE
    assert peaks[MANY] - peaks[FEW] < PEAK_BYTES[sampler] * MANY + TOLERANCE
    assert rounds[MANY] < rounds[FEW] + TOLERANCE


def test_peak_of_a_child_process_excludes_its_parent() -> None:
    ballast = bytearray(200 * 2**20)
    ballast[:: 2**12] = b"x" * len(ballast[:: 2**12])
    code = "from fedsgd.system.machine import measure_peak_memory; print(measure_peak_memory())"
    own_peak = measure_peak_memory()
    child_peak = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    if own_peak is None:
        assert child_peak == "None"
    else:
        assert len(ballast) < own_peak < 2**40
        if sys.platform == "linux":
            assert 2**20 < int(child_peak) < len(ballast)


def test_peak_without_a_status_file_is_that_of_getrusage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  123 kB\n")
    assert measure_peak_memory(status) == 123 * 1024
    rusage_peak, status_peak = measure_peak_memory(tmp_path / "none"), measure_peak_memory()
    assert (rusage_peak is None) == (status_peak is None)
    assert rusage_peak is None or status_peak is None or rusage_peak > 0.9 * status_peak
    monkeypatch.setitem(sys.modules, "resource", None)
    assert measure_peak_memory(tmp_path / "none") is None


def test_summary_of_a_run_has_the_peak_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = load_scenario(FEW, "uniform").with_settings({"rounds": 1})
    first = run(scenario)
    peak = measure_peak_memory()  # the kernel's count is approximate: a later number may be a few pages less
    assert first.summary["peak_memory_bytes"] == (None if peak is None else pytest.approx(peak, rel=0.05))
    monkeypatch.setattr("fedsgd.experiment.summary.measure_peak_memory", lambda: None)
    second = run(scenario)
    assert second.summary["peak_memory_bytes"] is None
    assert [second.summary[key] == first.summary[key] for key in ("params_sha256", "ledger_sha256")] == [True, True]
