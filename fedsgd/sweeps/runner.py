"""Making a sweep: what is asked, what is done already, and the rest run."""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsgd.errors import ScenarioError, ScenarioWarning, warn_once
from fedsgd.scenario.scenario import Scenario, open_scenario
from fedsgd.sweeps.cells import DETERMINISTIC_ERRORS, Cell, PlannedCell, Sweep, plan_cells
from fedsgd.sweeps.directory import locked_directory, resume, save
from fedsgd.sweeps.executor import CellOutcome, CellResults, RoundCallback, run_in_processes, run_sequentially
from fedsgd.sweeps.settings import DottedSettings, check_grids, normalize_methods, read_methods
from fedsgd.system.forkserver import EXIT_MISSING_MAIN_GUARD, MAX_PROCESSES, MAX_SEEDS
from fedsgd.system.user_files import check_paths, expand_user_path


def sweep(
    scenario: Scenario | str | Path,
    *,
    methods: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    jobs: int = 1,
    out: str | Path | None = None,
    data: str | Path | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    on_begin: Callable[[Sweep], None] | None = None,
    on_round: RoundCallback | None = None,
    on_cell: Callable[[Sweep, Cell, float], None] | None = None,
) -> Sweep:
    """Run a scenario with every method, grid value, tuned value and seed, each into a run folder.

    methods: label → settings over the scenario, nested or dotted; or a TOML file with a table for each. grid: dotted key → its
    values, which become part of the label. tune: the same for what is to be chosen for each label by whoever compares. seeds:
    how many, from the scenario's on. jobs: processes; results do not depend on it, and with several a script must start its
    sweep under `if __name__ == "__main__":`. out: by default runs/NAME-sweep. What is finished there is not run again, nor
    what failed by itself unless `retry_failed`; cells that are finished with another scenario are an OutputError, or run anew
    with `overwrite`. Every cell's scenario is checked before any runs.

    A RunError is a cell's own result. Any other error of ours ends the sweep if no cell has ended before, as with data that
    are not there, and else counts as that cell's failure, which is tried again next time. on_begin: called with what is done
    already; on_round: after each round, with one job; on_cell: after each cell, with the seconds that it took. Cells that run
    in the same process have the peak memory of the largest so far. A ScenarioWarning of several cells is issued once, after the
    first of them, with its label.
    """
    if getattr(mp.current_process(), "_inheriting", False):
        os._exit(
            EXIT_MISSING_MAIN_GUARD
        )  # a process that was started for a cell is importing the script, which lacks its guard
    for name, number, most in (("seeds", seeds, MAX_SEEDS), ("jobs", jobs, MAX_PROCESSES)):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
            raise ScenarioError(f"{name}: got {number!r}, expected 1 or more, at most {most}")
    check_paths(out=out, data=data)
    plan = _plan_sweep(scenario, methods, grid or {}, tune or {}, seeds)
    folder = Path("runs") / f"{plan[0].scenario.name}-sweep" if out is None else expand_user_path(out)
    with locked_directory(folder):
        made = resume(folder, plan, overwrite, retry_failed)
        save(made)
        if on_begin is not None:
            on_begin(made)
        waiting = {cell.folder for cell in made.cells if cell.state == "waiting"}
        todo, known = [one for one in plan if one.cell.folder in waiting], set[str]()
        with closing(_run_cells(todo, folder, None if data is None else str(data), jobs, on_round)) as ended:
            for cell, outcome in ended:
                made = _with_outcome(made, cell, outcome)
                save(made)
                for text in (text for text in outcome.warnings if text not in known):
                    known.add(text)
                    warn_once(f"{cell.label}: {text}", ScenarioWarning, stacklevel=2)
                if on_cell is not None:
                    on_cell(made, next(c for c in made.cells if c.folder == cell.folder), outcome.seconds)
    return made


def _plan_sweep(
    scenario: Scenario | str | Path,
    methods: str | Path | Mapping[str, Mapping[str, Any]] | None,
    grid: Mapping[str, Sequence[Any]],
    tune: Mapping[str, Sequence[Any]],
    seeds: int,
) -> list[PlannedCell]:
    """Every cell, checked."""
    check_grids(grid, tune)
    _, scenario = open_scenario(scenario)
    asked: Mapping[str, DottedSettings] = {scenario.name: {}}
    where = ""
    if isinstance(methods, str | Path):
        where, methods = f"{methods}: ", read_methods(expand_user_path(methods))
    if methods is not None:
        asked = normalize_methods(methods, where)
    return plan_cells(scenario, asked, grid, tune, seeds, where)


def _run_cells(
    planned_cells: Sequence[PlannedCell], out: Path, data: str | None, jobs: int, on_round: RoundCallback | None
) -> CellResults:
    """The cells as they end. An error that is none of the experiment's own is raised where nothing has been learnt before."""
    if not planned_cells:
        return
    learnt = False
    cells = (
        run_sequentially(planned_cells, out, data, on_round) if jobs == 1 else run_in_processes(planned_cells, out, data, jobs)
    )
    with closing(cells):
        for cell, outcome in cells:
            if outcome.cause is not None and outcome.cause not in DETERMINISTIC_ERRORS and not learnt:
                raise outcome.to_error()
            learnt = True
            yield cell, outcome


def _with_outcome(current_sweep: Sweep, cell: Cell, outcome: CellOutcome) -> Sweep:
    ended = replace(cell, state="finished" if outcome.cause is None else "failed", error=outcome.error, cause=outcome.cause)
    return replace(current_sweep, cells=tuple(ended if one.folder == cell.folder else one for one in current_sweep.cells))
