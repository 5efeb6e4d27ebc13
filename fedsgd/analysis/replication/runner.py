"""Run of a study: the runs and scripts that have no result, and their records."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fedsgd.analysis.replication.plan import StudyPlan, StudyRun
from fedsgd.analysis.replication.records import ComputedCell, RunRecord, describe_origin, digest_settings, record_run
from fedsgd.analysis.replication.study import Study
from fedsgd.config.component import FieldError
from fedsgd.errors import FedsgdError, ReportError, suggest_name
from fedsgd.sweeps.cells import DETERMINISTIC_ERRORS, Cell, Sweep
from fedsgd.sweeps.options import SweepCallbacks, SweepConfig
from fedsgd.sweeps.runner import run_plan
from fedsgd.system.user_files import search_folders


def run_study(plan: StudyPlan, out: Path, save: Callable[[], None], callbacks: SweepCallbacks) -> None:
    """Run what has no record, and save the results after each run.

    Args:
        plan: study, chosen cells and results.
        out: folder of the run folders.
        save: function that writes the results, called after each run.
        callbacks: functions that are called during each of the sweeps, for tuning and final runs.

    Raises:
        FedsgdError: an error of the sweep engine or of a study's script.
    """
    if plan.study.script is not None:
        plan.results.computed |= {label: cell for label, cell in compute_cells(plan.study).items() if label in plan.labels}
        save()
        return
    end = None if plan.config.execution.stop_after is None else time.time() + plan.config.execution.stop_after
    has_result = False
    for runs in divide_tuning(plan.find_waiting(plan.plan_tuning()), plan.config.execution.jobs):
        if end is None or time.time() < end:
            _run_phase(plan, runs, out / "tuning", _limit_time(plan, end), save, callbacks, has_result)
            has_result = True
    final = plan.find_waiting(plan.plan_final())
    if final:
        _run_phase(plan, final, out / "final", _limit_time(plan, end), save, callbacks)


def _limit_time(plan: StudyPlan, end: float | None) -> SweepConfig:
    """Return the execution of the next runs. A run folder of other settings has no valid record, so it may be replaced."""
    stop_after = None if end is None else max(0.0, end - time.time())
    return replace(plan.config.execution, stop_after=stop_after, overwrite=True)


def divide_tuning(waiting: Sequence[StudyRun], jobs: int) -> list[list[StudyRun]]:
    """Return tuning runs in groups: the first value of each cell, then the second, because a value limits the next.

    A group has `jobs` runs or more, except for the last one, so that all processes have work.

    Args:
        waiting: tuning runs without a record, in the order of the study.
        jobs: processes.
    """
    by_number: defaultdict[int, list[StudyRun]] = defaultdict(list)
    n_values: Counter[str] = Counter()
    for run in waiting:
        by_number[n_values[run.cell]].append(run)
        n_values[run.cell] += 1
    groups: list[list[StudyRun]] = []
    for runs in by_number.values():
        if groups and len(groups[-1]) < jobs:
            groups[-1] += runs
        else:
            groups.append(runs)
    return groups


def _run_phase(
    plan: StudyPlan,
    waiting: Sequence[StudyRun],
    folder: Path,
    execution: SweepConfig,
    save: Callable[[], None],
    callbacks: SweepCallbacks,
    has_result: bool = False,
) -> None:
    runs = {run.planned_cell.cell.folder: run for run in waiting}
    cells = {folder: plan.limit_run(run) for folder, run in runs.items()}

    def add(cell: Cell, is_new: bool) -> None:
        if cell.state == "failed" and cell.cause not in DETERMINISTIC_ERRORS:
            plan.errors.append((f"{runs[cell.folder].cell}, seed {cell.seed}", str(cell.error)))
        elif cell.state != "waiting":
            record = _make_record(runs[cell.folder], folder, cell, plan.study)
            if cells[cell.folder] != runs[cell.folder].planned_cell:
                record = replace(record, round_limit=cells[cell.folder].scenario.rounds)
            plan.results.add(record if is_new else replace(record, made=_describe_earlier_run(folder / cell.folder)))

    def record(sweep: Sweep, cell: Cell, seconds: float) -> None:
        add(cell, is_new=True)
        save()
        if callbacks.on_cell is not None:
            callbacks.on_cell(sweep, cell, seconds)

    def begin(sweep: Sweep) -> None:
        for cell in sweep.cells:
            if cell.folder in runs:  # finished by an earlier call, which was interrupted before it saved the record
                add(cell, is_new=False)
        if callbacks.on_begin is not None:
            callbacks.on_begin(sweep)

    new_callbacks = SweepCallbacks(begin, callbacks.on_round, record)
    run_plan([*cells.values()], folder, execution, new_callbacks, has_result)
    save()


def _make_record(run: StudyRun, folder: Path, cell: Cell, study: Study) -> RunRecord:
    scenario, tuned = run.planned_cell.scenario, run.planned_cell.cell.tuned
    if cell.state == "finished":
        return record_run(folder / cell.folder, run.cell, run.phase, tuned, scenario, study)
    made = describe_origin(study)
    return RunRecord(run.cell, run.phase, cell.seed, digest_settings(scenario), dict(tuned), error=cell.error, made=made)


def _describe_earlier_run(folder: Path) -> dict[str, str]:
    """Return the date of a run of an earlier call, whose commit is not known."""
    path = folder / "summary.json"
    return {"date": time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))} if path.exists() else {}


def compute_cells(study: Study) -> dict[str, ComputedCell]:
    """Return the figures of the cells of a study's script, from its function `compute_cells()`.

    The function returns a table by label with the keys `value`, `own_value`, `rule_bytes` and `n_bytes` of `ComputedCell`, of
    which only `value` is required.

    Raises:
        ReportError: the script cannot be run, or has no such function, or its cells are not those of the study.
    """
    path = (Path(study.folder) / str(study.script)).resolve()
    cells = _run_script(path, study)
    if not isinstance(cells, Mapping) or set(cells) != set(study.cells):
        got = sorted({*cells} ^ {*study.cells}) if isinstance(cells, Mapping) else cells
        raise ReportError(f"{path}: compute_cells() returned other cells than those of study.toml: {got!r}")
    made, names = describe_origin(study), [f.name for f in fields(ComputedCell) if f.name != "made"]
    computed = {}
    for label, figures in cells.items():
        try:
            for key in figures:
                if key not in names:
                    raise ReportError(f"{path}: cell {label!r}: {key!r}{suggest_name(key, names)}")
            computed[label] = ComputedCell(**figures, made=made)
        except FieldError as error:
            raise ReportError(f"{path}: cell {label!r}: {error.field}: {error.problem}") from None
        except TypeError:
            raise ReportError(f"{path}: cell {label!r}: got {figures!r}, expected a table with `value`") from None
        if not math.isfinite(computed[label].value) or computed[label].value <= 0:
            raise ReportError(f"{path}: cell {label!r}: value: got {computed[label].value}, expected a number above 0")
    return computed


def _run_script(path: Path, study: Study) -> Any:
    """Return what the function `compute_cells` of a script returns; ReportError if there is none, or if it fails."""
    spec = importlib.util.spec_from_file_location(f"fedsgd_study_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ReportError(f"{path}: cannot be read; it is the script of {study.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the script look their module up
    try:
        with search_folders([path.parent]):
            spec.loader.exec_module(module)
            if not hasattr(module, "compute_cells"):
                raise ReportError(f"{path}: has no function compute_cells()")
            return module.compute_cells()
    except FedsgdError:
        raise
    except Exception as error:
        raise ReportError(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        del sys.modules[spec.name]
