"""What a sweep finds in its folder when it begins: the cells that are done, and what must not be touched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsgd.errors import OutputError, ReportError, ScenarioError
from fedsgd.scenario.parsing import dump_table, flatten_settings
from fedsgd.scenario.scenario import Scenario, load
from fedsgd.storage.parquet import count_rows
from fedsgd.storage.run_directory import OVERWRITE_HINT, find_files_to_remove, write_atomically
from fedsgd.sweeps.cells import DETERMINISTIC_ERRORS, SWEEP_FILE, Cell, PlannedCell, Sweep, collect_keys


@contextmanager
def locked_directory(out: Path) -> Iterator[None]:
    """The folder, made if need be, for one sweep at a time. OutputError if it is not a sweep's, or another one is at it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        present = sorted(path.name for path in out.iterdir())
    except OSError as error:
        raise OutputError(f"{out}: cannot be made or read ({error.strerror}); choose a folder with --out") from None
    if present and SWEEP_FILE not in present:
        shown = ", ".join(present[:3])
        raise OutputError(f"{out}: holds no {SWEEP_FILE} (but {shown}), so it is not a sweep's; choose another folder")
    try:
        import fcntl
    except ImportError:  # not on this system
        yield
        return
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone when this process is, however it ends
    except BlockingIOError:
        os.close(descriptor)
        raise OutputError(f"{out}: another sweep is writing to it") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def save(sweep: Sweep) -> None:
    """Write sweep.json."""
    write_atomically(sweep.out / SWEEP_FILE, sweep.to_json().encode())


def resume(out: Path, plan: Sequence[PlannedCell], overwrite: bool, retry_failed: bool) -> Sweep:
    """The planned cells, each as far as it is done already, and finished ones that are no longer asked for.

    OutputError, and nothing is changed, if a cell is finished with another scenario, unless `overwrite`: then it is waiting.
    """
    before = {cell.folder: cell for cell in Sweep.read(out).cells} if (out / SWEEP_FILE).exists() else {}
    cells = [_resume_cell(out, one, before.get(one.cell.folder), overwrite, retry_failed) for one in plan]
    asked = {cell.folder for cell in cells}
    others = [cell for cell in before.values() if cell.folder not in asked and _is_finished(out / cell.folder)]
    cells += [replace(cell, state="finished", error=None, cause=None) for cell in others]
    tuned, grid = collect_keys(cell.tuned for cell in cells), collect_keys(cell.grid for cell in cells)
    return Sweep(out, plan[0].scenario.name, tuned, grid, tuple(cells))


def _is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file() and not _is_truncated(folder)


def _is_truncated(folder: Path) -> bool:
    """Return whether the disk was full when the run was over: no parameters beside the tables, or tables without their end."""
    tables = [folder / name for name in ("rounds.parquet", "ledger.parquet")]
    if not all(path.exists() for path in tables):
        return False
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        expected = [summary["rounds"], summary["uplink"]["frames"] + summary["downlink"]["frames"]]
        return not (folder / "params.safetensors").exists() or [*map(count_rows, tables)] != expected
    except (OSError, ValueError, LookupError, TypeError, ReportError):
        return True


def _resume_cell(out: Path, planned_cell: PlannedCell, previous_cell: Cell | None, overwrite: bool, retry_failed: bool) -> Cell:
    folder, cell = out / planned_cell.cell.folder, planned_cell.cell
    if not folder.exists():
        return cell
    find_files_to_remove(folder, overwrite=True)
    difference = _find_difference(folder / "scenario.toml", planned_cell.scenario)
    if _is_finished(folder):
        if not difference:
            return replace(cell, state="finished")
        if overwrite:
            return cell
        raise OutputError(
            f'{folder}: cell "{cell}" is finished with another scenario: {difference}; choose another folder with --out, '
            f"or {OVERWRITE_HINT}"
        )
    if (
        previous_cell is not None
        and previous_cell.state == "failed"
        and previous_cell.cause in DETERMINISTIC_ERRORS
        and not (retry_failed or difference)
    ):
        return replace(cell, state="failed", error=previous_cell.error, cause=previous_cell.cause)
    return cell


def _find_difference(path: Path, scenario: Scenario) -> str:
    """What is another setting in the resolved scenario there than in the one asked for; nothing if none is."""
    try:
        there = load(path)
    except ScenarioError as error:
        return str(error)
    if scenario.engine.name == "auto":  # which is resolved there
        there = there.with_settings({"engine": {**dump_table(scenario.engine), "update": there.engine.update}})
    found, wanted = dict(flatten_settings(dump_table(there))), dict(flatten_settings(dump_table(scenario)))
    for key in dict.fromkeys([*wanted, *found]):
        if found.get(key) != wanted.get(key):
            return f"{key} is {_value_text(found, key)} there, and {_value_text(wanted, key)} was asked for"
    return ""


def _value_text(table: Mapping[str, Any], key: str) -> str:
    return repr(table[key]) if key in table else "unset"
