"""Tests of the execution of cells: outcomes, and processes that are interrupted or killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import fedsgd
from fedsgd.errors import OutputError, RunError
from fedsgd.scenario.scenario import Scenario
from fedsgd.sweeps import Sweep, executor
from tests.sweeps.helpers import states

pytestmark = pytest.mark.slow

StartScript = Callable[[str, str], subprocess.Popen[str]]


def test_error_of_fedsgd_is_an_outcome_and_other_errors_are_raised(
    short_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class UserError(RunError):
        """Subclass of a user."""

    def run_cell_with(error: Exception) -> executor.CellOutcome:
        def run(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("fedsgd.experiment.runner.run", run)
        return executor.run_cell(short_scenario, tmp_path, data=None)

    assert run_cell_with(UserError(3, 4, "x")).cause == "RunError"
    assert run_cell_with(fedsgd.WireError(3, "x")).to_error().args == ("byte 3: x",)
    assert type(run_cell_with(fedsgd.DataError("x")).to_error()) is fedsgd.DataError
    with pytest.raises(OutputError):
        run_cell_with(OutputError("full"))
    with pytest.raises(ZeroDivisionError):
        run_cell_with(ZeroDivisionError())


# ------------------------------------------------------------------------------------------------------------------ in processes


def test_number_of_jobs_does_not_change_results(short_scenario: Scenario, tmp_path: Path) -> None:
    methods = {"top-k": {}, "nothing left out": {"uplink": {"compressor": "dense", "error_feedback": "none"}}}
    first, second = (
        fedsgd.sweep(short_scenario, methods=methods, execution=fedsgd.SweepConfig(jobs=n), out=tmp_path / str(n))
        for n in (1, 2)
    )
    assert first.cells == second.cells
    for cell in first.cells:
        assert cell.state == "finished"
        first_summary, second_summary = first.read_summary(cell), second.read_summary(cell)
        assert first_summary is not None
        assert second_summary is not None
        for digest in ("params_sha256", "ledger_sha256"):
            assert first_summary[digest] == second_summary[digest]
    single_run = fedsgd.run(tmp_path / "2" / cell.folder / "scenario.toml").summary
    assert single_run["params_sha256"] == second_summary["params_sha256"]


@pytest.mark.nightly
def test_error_in_a_process_is_raised_or_recorded(
    short_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDSGD_DATA", raising=False)
    with pytest.raises(fedsgd.DataError, match="no data folder is set"):
        fedsgd.sweep(
            short_scenario.with_settings({"data.name": "mnist"}), seeds=2, execution=fedsgd.SweepConfig(jobs=2), out=tmp_path
        )
    sweep = fedsgd.sweep(
        short_scenario.with_settings({"client.optimizer.lr": 1e30}), execution=fedsgd.SweepConfig(jobs=2), out=tmp_path / "o"
    )
    assert sweep.cells[0].diverged


SCRIPT = """
    import sys, time
    from pathlib import Path

    import numpy as np
    from torch import nn
    import fedsgd

    def make():
        (Path.cwd() / f"started-{{__import__('os').getpid()}}").touch()
        {body}
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def begin():
        base = fedsgd.load({scenario!r}, {{"rounds": 1, "model": {{"module": "slow:make"}}}})
        fedsgd.sweep(base, seeds=4, out="o", execution=fedsgd.SweepConfig(jobs=2))
"""


@pytest.fixture
def start_script(quickstart: Path) -> Iterator[StartScript]:
    """Yield a function that starts a script with a sweep in a new session; all of its processes are killed at the end.

    The arguments of the function are the code that builds the model, and the code at the end of the script.
    """
    scripts = []

    def start(body: str, end: str) -> subprocess.Popen[str]:
        text = textwrap.dedent(SCRIPT).format(body=body, scenario=str(quickstart))
        Path("slow.py").write_text(text + textwrap.dedent(end))
        pipes: Any = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        scripts.append(subprocess.Popen([sys.executable, "slow.py"], start_new_session=True, **pipes))
        return scripts[-1]

    yield start
    for process in scripts:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


SLEEP = """
    try:
        time.sleep(600)
    except BaseException:
        Path("interrupted").touch()
        raise
"""
MAIN_GUARD = """
    if __name__ == "__main__":
        begin()
"""


def wait_for_cells(n: int) -> list[psutil.Process]:
    """Return the processes of cells as soon as n of them have started."""
    for _ in range(1200):
        pids = [int(path.name.removeprefix("started-")) for path in Path.cwd().glob("started-*")]
        if len(pids) >= n:
            return [psutil.Process(pid) for pid in pids]
        time.sleep(0.05)
    raise AssertionError("no cell has started")


def have_ended(processes: Sequence[psutil.Process]) -> bool:
    """Return whether all processes end within 20 seconds."""
    return not psutil.wait_procs(processes, timeout=20)[1]


@pytest.mark.nightly
def test_ctrl_c_in_a_terminal_leaves_no_process(start_script: StartScript) -> None:
    script = start_script(SLEEP, MAIN_GUARD)
    workers = wait_for_cells(2)
    os.killpg(script.pid, signal.SIGINT)  # all processes receive the signal, as from a terminal
    _, errors = script.communicate(timeout=30)
    assert have_ended(workers)
    assert "KeyboardInterrupt" in errors
    assert not Path("interrupted").exists(), "processes of cells ignore the signal"
    assert script.returncode in (130, -signal.SIGINT)
    assert states(Sweep.read("o")) == ["waiting"] * 4


@pytest.mark.nightly
def test_processes_of_a_killed_sweep_end(start_script: StartScript) -> None:
    script = start_script(SLEEP, MAIN_GUARD)
    workers = wait_for_cells(2)
    script.kill()
    script.communicate(timeout=30)
    assert have_ended(workers)


@pytest.mark.nightly
def test_killed_process_is_an_error_of_one_line(start_script: StartScript) -> None:
    body = "__import__('os').kill(__import__('os').getpid(), 9)"
    script = start_script(
        body,
        """
        if __name__ == "__main__":
            try:
                begin()
            except fedsgd.FedsgdError as error:
                print(type(error).__name__, error)
        """,
    )
    output, errors = script.communicate(timeout=60)
    expected = "FedsgdError a process of the sweep was killed; it may have run out of memory: use fewer --jobs\n"
    assert output == expected, errors


@pytest.mark.nightly
def test_script_without_main_guard_is_an_error(start_script: StartScript) -> None:
    script = start_script("pass", "begin()\n")
    _, errors = script.communicate(timeout=60)
    assert errors.splitlines()[-1].startswith("fedsgd.errors.ScenarioError: jobs: each process imports the main script")
    assert errors.count("Traceback") == 1
