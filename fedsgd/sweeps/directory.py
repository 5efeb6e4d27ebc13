"""Folder of a sweep: its lock, its file, and the state of cells from earlier calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsgd.config.user_classes import digest_user_code, name_source
from fedsgd.errors import FedsgdError, OutputError, ReportError, ScenarioError
from fedsgd.scenario.parsing import dump_table, flatten_settings
from fedsgd.scenario.scenario import Scenario, load
from fedsgd.storage.parquet import count_rows
from fedsgd.storage.run_directory import OVERWRITE_HINT, find_files_to_remove, lock_folder, write_atomically
from fedsgd.sweeps.cells import DETERMINISTIC_ERRORS, SWEEP_FILE, Cell, PlannedCell, Sweep, collect_keys

NO_VALIDATION = "evaluation.validation is unset there"
"""Begin of the difference of a cell that was tuned on the test examples, as by earlier releases."""


@contextmanager
def locked_directory(out: Path) -> Iterator[None]:
    """Create the folder if necessary, and lock it against other sweeps in the context, if the system supports locks.

    After an error, a new folder that has only sweep.json is removed. A folder that another sweep has locked, and a folder with
    other files but no sweep.json, raise an OutputError.
    """
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in out.iterdir())
    except OSError as error:
        raise OutputError(f"{out}: cannot be created or read ({error.strerror}); choose a folder with --out") from None
    if names and SWEEP_FILE not in names:
        examples = ", ".join(names[:3])
        raise OutputError(f"{out}: not the folder of a sweep: it has no {SWEEP_FILE}, but {examples}; choose another folder")
    with lock_folder(out, f"{out}: another sweep is writing to it"):
        try:
            yield
        except FedsgdError:
            with suppress(OSError):
                if is_new and [path.name for path in out.iterdir()] == [SWEEP_FILE]:
                    (out / SWEEP_FILE).unlink()
                    out.rmdir()
            raise


def save(sweep: Sweep) -> None:
    """Write sweep.json."""
    write_atomically(sweep.out / SWEEP_FILE, sweep.to_json().encode())


def resume_sweep(out: Path, plan: Sequence[PlannedCell], overwrite: bool, retry_failed: bool) -> Sweep:
    """Return the planned cells with their present states, then finished cells of earlier calls that are not planned.

    Without `overwrite`, a cell that is finished with another scenario, or with another source of a user's class, raises an
    OutputError, and no file changes; with `overwrite` the cell runs again. Finished cells with other tuned settings raise one,
    too. With `retry_failed`, cells that failed with a deterministic error run again.
    """
    previous_cells = {cell.folder: cell for cell in Sweep.read(out).cells} if (out / SWEEP_FILE).exists() else {}
    cells = [
        _resume_cell(out, planned_cell, previous_cells.get(planned_cell.cell.folder), overwrite, retry_failed)
        for planned_cell in plan
    ]
    planned_folders = {cell.folder for cell in cells}
    other_cells = [
        cell for cell in previous_cells.values() if cell.folder not in planned_folders and _is_finished(out / cell.folder)
    ]
    _check_tuned_keys(out, cells, other_cells)
    cells += [replace(cell, state="finished", error=None, cause=None) for cell in other_cells]
    tuned, grid = collect_keys(cell.tuned for cell in cells), collect_keys(cell.grid for cell in cells)
    return Sweep(out, plan[0].scenario.name, tuned, grid, tuple(cells))


def _check_tuned_keys(out: Path, cells: Sequence[Cell], other_cells: Sequence[Cell]) -> None:
    """Raise an OutputError if a cell that stays has other tuned settings than the planned cells of its label.

    Such cells are runs of one method that differ in more than tuned values and seeds, which no command can compare.
    """
    tuned_keys = {cell.label: tuple(cell.tuned) for cell in cells}
    for cell in other_cells:
        planned_keys = tuned_keys.get(cell.label, tuple(cell.tuned))
        if sorted(planned_keys) != sorted(cell.tuned):
            found, planned = (f"tuned settings {', '.join(keys) or 'none'}" for keys in (cell.tuned, planned_keys))
            problem = f'cell "{cell}" is finished with {found}, but the cells of this command have {planned}'
            raise OutputError(f"{out}: {problem}, so that they cannot be compared; choose another folder with --out")


def _is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file() and not _is_truncated(folder)


def _is_truncated(folder: Path) -> bool:
    """Return True if the parameters or rows of a table are missing, as after a full disk; False if a table was removed."""
    tables = [folder / name for name in ("rounds.parquet", "ledger.parquet")]
    if not all(path.exists() for path in tables):
        return False
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        n_silent = summary.get("diverged_clients", 0) + summary.get("dropped_stragglers", 0)  # rows without a frame
        n_frames = summary["uplink"]["frames"] + summary["downlink"]["frames"]
        expected_rows = [summary["rounds"], n_frames + n_silent]
        return not (folder / "params.safetensors").exists() or [*map(count_rows, tables)] != expected_rows
    except (OSError, ValueError, LookupError, TypeError, ReportError):
        return True


def _resume_cell(out: Path, planned_cell: PlannedCell, previous_cell: Cell | None, overwrite: bool, retry_failed: bool) -> Cell:
    folder, cell = out / planned_cell.cell.folder, planned_cell.cell
    if not folder.exists():
        return cell
    find_files_to_remove(folder, overwrite=True)
    difference = find_difference(folder / "scenario.toml", planned_cell.scenario)
    if _is_finished(folder):
        code_difference = "" if difference else _find_code_difference(folder / "summary.json", planned_cell.scenario)
        if not difference and not code_difference:
            return replace(cell, state="finished")
        if overwrite:
            return cell
        problem = f"another scenario: {difference}" if difference else code_difference
        remedy = "set evaluation.validation = 0 to continue as before, " * difference.startswith(NO_VALIDATION)
        raise OutputError(
            f'{folder}: cell "{cell}" is finished with {problem}; {remedy}choose another folder with --out, or {OVERWRITE_HINT}'
        )
    if (
        previous_cell is not None
        and previous_cell.state == "failed"
        and previous_cell.cause in DETERMINISTIC_ERRORS
        and not (retry_failed or difference)
    ):
        return replace(cell, state="failed", error=previous_cell.error, cause=previous_cell.cause)
    return cell


def find_difference(path: Path, scenario: Scenario) -> str:
    """Return the first setting in which a stored scenario differs from the planned scenario, as text; "" if none differs.

    Settings of [checkpoint] may differ.

    Args:
        path: scenario file of a run directory.
        scenario: the planned scenario.
    """
    try:
        stored_scenario = load(path)
    except ScenarioError as error:
        return str(error)
    planned, stored = scenario.engine, stored_scenario.engine
    engine = dump_table(stored)
    if planned.name == "auto":  # the stored scenario has the selected engine and device
        stored_keys = {"update": stored.update, "device": stored.device, "deterministic": stored.deterministic}
        engine = {**dump_table(planned), **stored_keys}
    if planned.device in ("auto", stored.device.removesuffix(":0")):
        engine["device"] = planned.device
    stored_scenario = stored_scenario.with_settings({"engine": engine})
    stored_settings = dict(flatten_settings(dump_table(stored_scenario)))
    planned_settings = dict(flatten_settings(dump_table(scenario)))
    for key in dict.fromkeys([*planned_settings, *stored_settings]):
        if not key.startswith("checkpoint.") and stored_settings.get(key) != planned_settings.get(key):
            texts = _format_setting(stored_settings, key), _format_setting(planned_settings, key)
            return f"{key} is {texts[0]} there, but {texts[1]} in this sweep"
    return ""


def _find_code_difference(path: Path, scenario: Scenario) -> str:
    """Return the first class or function whose source has changed since the run of a summary, as text; "" if none has.

    Summaries of earlier releases have no digests, which differ from no source.
    """
    try:
        recorded_digests = json.loads(path.read_text(encoding="utf-8")).get("user_code") or {}
    except (OSError, ValueError, AttributeError):
        return ""
    for name, digest in (digest_user_code(scenario) if recorded_digests else {}).items():
        if recorded_digests.get(name, digest) != digest:
            return f"another source of {name_source(name)}: its sha256 is {recorded_digests[name]} there, but {digest} now"
    return ""


def _format_setting(table: Mapping[str, Any], key: str) -> str:
    return repr(table[key]) if key in table else "unset"
