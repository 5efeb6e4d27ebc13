"""Helpers of the tests of sweeps: the command, outcomes without runs, and states of cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedsgd.cli import main
from fedsgd.scenario.scenario import Scenario
from fedsgd.sweeps import Sweep, executor

Make = Callable[..., Scenario]
SHORT_RUN = ("--set", "rounds=2", "--set", "client.epochs=1")


def run_command(*arguments: str | Path) -> Result:
    """Run `fedsgd sweep`."""
    return CliRunner().invoke(main, ["sweep", *(str(argument) for argument in arguments)])


def replace_outcomes(monkeypatch: pytest.MonkeyPatch, outcomes: Sequence[executor.CellOutcome]) -> None:
    """Replace runs by these outcomes, one after the other. Each cell leaves the file of an incomplete run."""
    next_outcomes = iter(outcomes)

    def run_cell(scenario: Scenario, folder: Path, on_round: object = None, **settings: object) -> executor.CellOutcome:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scenario.toml").write_text(scenario.to_toml())
        return next(next_outcomes)

    monkeypatch.setattr(executor, "run_cell", run_cell)


def states(sweep: Sweep) -> list[str]:
    """Return the states of all cells."""
    return [cell.state for cell in sweep.cells]


def summary_stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of each summary, which differ if a file was replaced."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(out.rglob("summary.json"))}
