"""Run of a sweep: plan the cells, read the finished cells, and run the remaining cells."""

from __future__ import annotations

import math
import multiprocessing as mp
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fedsgd.config.argument_checks import resolve_config, resolve_whole_number
from fedsgd.config.component import Component
from fedsgd.errors import ScenarioError, ScenarioWarning, suggest_name, warn_once
from fedsgd.scenario.parsing import dump_table
from fedsgd.scenario.scenario import Scenario, open_scenario
from fedsgd.sweeps.cells import DETERMINISTIC_ERRORS, Cell, PlannedCell, Sweep, plan_cells
from fedsgd.sweeps.directory import locked_directory, resume_sweep, save
from fedsgd.sweeps.executor import CellOutcome, CellResults, bind_run_cell, run_in_processes, run_sequentially
from fedsgd.sweeps.launcher import LAUNCHERS, run_with_launcher
from fedsgd.sweeps.options import RoundCallback, SweepCallbacks, SweepConfig
from fedsgd.sweeps.settings import DottedSettings, check_grids, normalize_methods, read_methods
from fedsgd.system.forkserver import EXIT_MISSING_MAIN_GUARD, MAX_PROCESSES, MAX_SEEDS
from fedsgd.system.user_files import check_paths, expand_user_path, search_scenario_folder
from fedsgd.trackers import check_callbacks


def sweep(
    scenario: Scenario | str | Path,
    *,
    methods: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    out: str | Path | None = None,
    execution: SweepConfig | None = None,
    callbacks: SweepCallbacks | None = None,
) -> Sweep:
    """Run a scenario with every combination of method, grid values, tuned values and seed, each into a run folder.

    All scenarios are checked before the first run. Finished cells do not run again. A RunError is a cell's result: the cell
    runs again only with `retry_failed`. An OutputError ends the sweep. Any other error of fedsgd, for example for missing data,
    ends the sweep if no cell of this call has ended before. Otherwise the error counts as the cell's failure, and the cell runs
    again in the next call.

    A cell reports the peak memory of its process, which includes earlier cells in the process. A ScenarioWarning of several
    cells is issued once, with the label of the first cell.

    Args:
        scenario: scenario, or the path of a scenario file.
        methods: settings over the scenario by label, nested or dotted; or a TOML file with a table for each label.
        grid: values by dotted key, which become part of the label.
        tune: values by dotted key, of which an analysis selects one for each label. Each cell then has
            `[evaluation] validation = 0.1`, unless the scenario or the method sets this key: the value is selected by the
            figures on these validation examples. 0: by the figures on the test examples.
        seeds: number of seeds, from the scenario's seed on.
        out: folder of the sweep, by default runs/NAME-sweep.
        execution: processes, data folder, and cells that run again; None for the defaults.
        callbacks: functions that are called during the sweep; None for none.

    Raises:
        ScenarioError: a setting or an argument is wrong, or the script starts the sweep without `if __name__ == "__main__":`.
        OutputError: the folder is not a sweep's, is in use or cannot be written; or a cell is finished with another scenario or
            with another source of a user's class.
        FedsgdError: the first cell that ended raised an error other than a RunError, or a process was killed.
    """
    if getattr(mp.current_process(), "_inheriting", False):
        os._exit(EXIT_MISSING_MAIN_GUARD)  # this process was started for a cell, and imports a main script without a guard
    execution = resolve_config("execution", execution, SweepConfig)
    callbacks = resolve_config("callbacks", callbacks, SweepCallbacks)
    check_callbacks((), {f"callbacks.{f.name}": getattr(callbacks, f.name) for f in fields(callbacks)})
    _check_options(seeds, execution)
    check_paths(out=out, data=execution.data)
    with search_scenario_folder(scenario):
        plan = _plan_sweep(scenario, methods, {} if grid is None else grid, {} if tune is None else tune, seeds)
        folder = Path("runs") / f"{plan[0].scenario.name}-sweep" if out is None else expand_user_path(out)
        return run_plan(plan, folder, execution, callbacks)


def run_plan(
    plan: Sequence[PlannedCell], folder: Path, execution: SweepConfig, callbacks: SweepCallbacks, has_result: bool = False
) -> Sweep:
    """Run the planned cells that are not finished, each into a run folder in the folder of the sweep; errors as in `sweep`.

    With `has_result`, cells that ended in an earlier call count, so that an error of the first cell does not end the sweep.
    """
    with locked_directory(folder):
        current_sweep = resume_sweep(folder, plan, execution.overwrite, execution.retry_failed)
        save(current_sweep)
        if callbacks.on_begin is not None:
            callbacks.on_begin(current_sweep)
        waiting_folders = {cell.folder for cell in current_sweep.cells if cell.state == "waiting"}
        waiting_cells = [planned_cell for planned_cell in plan if planned_cell.cell.folder in waiting_folders]
        issued_warnings = set[str]()
        with closing(_run_cells(waiting_cells, folder, execution, callbacks.on_round, has_result)) as results:
            for cell, outcome in results:
                if not outcome.is_run:
                    continue
                current_sweep = _record_outcome(current_sweep, cell, outcome)
                save(current_sweep)
                for text in (text for text in outcome.warnings if text not in issued_warnings):
                    issued_warnings.add(text)
                    warn_once(f"{cell.label}: {text}", ScenarioWarning, stacklevel=2)
                if callbacks.on_cell is not None:
                    new_cell = next(c for c in current_sweep.cells if c.folder == cell.folder)
                    callbacks.on_cell(current_sweep, new_cell, outcome.seconds)
    return current_sweep


def _check_options(seeds: int, execution: SweepConfig) -> None:
    """Raise ScenarioError for a number or a name that is not valid."""
    for name, number, limit in (("seeds", seeds, MAX_SEEDS), ("jobs", execution.jobs, MAX_PROCESSES)):
        resolve_whole_number(name, number, 1, limit)
    stop_after: Any = execution.stop_after
    is_number = isinstance(stop_after, int | float) and not isinstance(stop_after, bool)
    if stop_after is not None and not (is_number and stop_after >= 0):
        raise ScenarioError(f"stop_after: got {stop_after!r}, expected seconds, 0 or more")
    if execution.launcher is not None and execution.launcher not in LAUNCHERS:
        raise ScenarioError(f"launcher: got {execution.launcher!r}{suggest_name(execution.launcher, LAUNCHERS)}")
    if execution.launcher is None and execution.launcher_options:
        raise ScenarioError('launcher options: got some without a launcher, expected launcher = "slurm"')


def _plan_sweep(
    scenario: Scenario | str | Path,
    methods: str | Path | Mapping[str, Mapping[str, Any]] | None,
    grid: Mapping[str, Sequence[Any]],
    tune: Mapping[str, Sequence[Any]],
    seeds: int,
) -> list[PlannedCell]:
    """Check the arguments of a sweep, and return all cells with checked scenarios."""
    check_grids(grid, tune)
    grid, tune = _dump_components(grid), _dump_components(tune)
    _, scenario = open_scenario(scenario)
    settings_by_method: Mapping[str, DottedSettings] = {scenario.name: {}}
    message_prefix = ""
    if isinstance(methods, str | Path):
        message_prefix, methods = f"{methods}: ", read_methods(expand_user_path(methods))
    if methods is not None:
        settings_by_method = normalize_methods(methods, message_prefix)
    return plan_cells(scenario, settings_by_method, grid, tune, seeds, message_prefix)


def _dump_components(grid: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Return values by dotted key, with the table of each component in its place, as in a file."""
    return {key: [dump_table(v) if isinstance(v, Component) else v for v in values] for key, values in grid.items()}


def _run_cells(
    planned_cells: Sequence[PlannedCell],
    out: Path,
    execution: SweepConfig,
    on_round: RoundCallback | None,
    has_result: bool,
) -> CellResults:
    """Yield cells in the order in which they end. Raise an error that is not deterministic if there is no result before."""
    if not planned_cells:
        return
    end = math.inf if execution.stop_after is None else time.time() + execution.stop_after
    run = bind_run_cell(None if execution.data is None else str(execution.data), end)
    if execution.launcher is not None:
        launcher, options = execution.launcher, execution.launcher_options
        cells = run_with_launcher(planned_cells, out, run, launcher, execution.jobs, options)
    elif execution.jobs == 1:
        cells = run_sequentially(planned_cells, out, run, on_round)
    else:
        cells = run_in_processes(planned_cells, out, run, execution.jobs)
    with closing(cells):
        for cell, outcome in cells:
            if outcome.cause is not None and outcome.cause not in DETERMINISTIC_ERRORS and not has_result:
                raise outcome.to_error()
            has_result = has_result or outcome.is_run
            yield cell, outcome


def _record_outcome(current_sweep: Sweep, cell: Cell, outcome: CellOutcome) -> Sweep:
    new_cell = replace(cell, state="finished" if outcome.cause is None else "failed", error=outcome.error, cause=outcome.cause)
    return replace(current_sweep, cells=tuple(new_cell if c.folder == cell.folder else c for c in current_sweep.cells))
