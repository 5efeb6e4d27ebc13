"""Folders of client state on a node's own disk. Flower's Context, which crosses the loopback with each message and is gone with
the SuperNode, has one small record: the folder, and the number of messages that it has seen.

Environment variables:

* FEDSGD_STATE: the root folder of all runs, and of compiled loops where numba has no folder for them; by default `fedsgd` in
  Flower's home.
* FEDSGD_STATE_BUDGET: the most bytes that all runs under the root may take, like "2 GiB"; by default what the disk has.

A run's folder is removed when another run begins under the root and nothing was written to it for a week. The folder of a
session is removed when a later session of the same strategy begins.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flwr.app import ConfigRecord, Context, RecordDict

from fedsgd.config.quantities import format_binary_bytes, format_bytes, parse_memory_size
from fedsgd.errors import ModelError, OutputError, ScenarioError
from fedsgd.flower.records import RECORD_KEY
from fedsgd.numerics.kernels import set_fallback_cache
from fedsgd.runtime.stores.directory import CLIENT_PREFIX, FolderStore
from fedsgd.system.user_files import expand_user_path

RETENTION_DAYS = 7
ROOT_VARIABLE, BUDGET_VARIABLE = "FEDSGD_STATE", "FEDSGD_STATE_BUDGET"
_RUN_PREFIX, _KERNEL_FOLDER = "run-", "kernels"
_FOLDER_KEY, _GENERATION_KEY = "folder", "generation"


def open_state_store(context: Context, name: str = "", session: int | None = None, expected_bytes: int = 0) -> FolderStore:
    """Open the states of this node's clients in this run.

    The disk has precedence, also where it is ahead of the Context (a process was killed between two writes) and where the
    Context is new (the SuperNode was started again). Where the disk is behind the Context, another folder stands in its place:
    all of it is removed, and the node's clients are caught up as clients that were away.

    Args:
        context: Flower's context of the node.
        name: name of the federation, where a run has several.
        session: number of the federation's session; folders of earlier sessions of the same name are removed.
        expected: bytes that the folder will take at most, for which there must be room before its first state; 0: no check.

    Raises:
        ModelError: the app has a record of its own under our name in `context.state`.
        OutputError: the folder cannot be used, or there is no room.
        ScenarioError: the budget cannot be read.
    """
    set_fallback_cache(_get_root() / _KERNEL_FOLDER)
    node = context.node_config.get("partition-id", context.node_id)
    series = f"node-{node}{name and '-'}{name}"
    folder = _get_root() / f"{_RUN_PREFIX}{context.run_id}" / (series if session is None else f"{series}-{session}")
    known = context.state[RECORD_KEY] if _check_record_name(context.state) else ConfigRecord()
    assert isinstance(known, ConfigRecord)
    try:
        if not folder.exists():
            _prepare_run_folder(folder, f"{series}-", session or 0)
        if expected_bytes and not any(folder.glob(f"{CLIENT_PREFIX}*")):
            with _reserve_space(folder.parent, max(0, expected_bytes - _count_folder_bytes(folder))):
                pass
        store = FolderStore(folder, _reserve_space)
        generation = known.get(_GENERATION_KEY, 0) if known.get(_FOLDER_KEY) == str(folder) else 0
        if isinstance(generation, int) and store.generation < generation:
            store.clear()
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be used for client state ({error.strerror}); {ROOT_VARIABLE} names another"
        ) from None
    return store


def commit_state(context: Context, store: FolderStore) -> None:
    """Make the store's content final, and store its generation in the Context. ModelError if the app uses our name."""
    _check_record_name(context.state)
    context.state[RECORD_KEY] = ConfigRecord({_FOLDER_KEY: str(store.folder), _GENERATION_KEY: store.commit()})


@contextmanager
def hide_record(context: Context) -> Iterator[None]:
    """Take our record out of the Context's state, and put it back whatever happens.

    Raises:
        ModelError: the app has stored a record of its own under our name.
    """
    state = context.state
    record = state.pop(RECORD_KEY) if _has_fedsgd_record(state) else None
    try:
        yield
        if record is not None:
            _check_record_name(context.state)
    finally:
        if record is not None:
            context.state[RECORD_KEY] = record  # in the state that is there now: an app may have replaced it


def add_user_folder_to_path() -> None:
    """Append the user's working folder (FEDSGD_FOLDER) to the module path, behind all that is installed."""
    folder = os.environ.get("FEDSGD_FOLDER")
    if folder and folder not in sys.path:
        sys.path.append(folder)


def _get_root() -> Path:
    if named := os.environ.get(ROOT_VARIABLE):
        return expand_user_path(named)
    home = os.environ.get("FLWR_HOME")
    return (Path(home) if home else Path.home() / ".flwr") / "fedsgd"


def _has_fedsgd_record(state: RecordDict) -> bool:
    record = state.get(RECORD_KEY)
    return isinstance(record, ConfigRecord) and set(record) == {_FOLDER_KEY, _GENERATION_KEY}


def _check_record_name(state: RecordDict) -> bool:
    """Return True if our record is there, False if nothing has its name. ModelError for a record of the app's."""
    if RECORD_KEY in state and not _has_fedsgd_record(state):
        raise ModelError(
            f'context.state has a record "{RECORD_KEY}" of the app, but compression_mod() needs that name: rename it'
        )
    return RECORD_KEY in state


# ----------------------------------------------------------------------------------------------------------------- room on disk


def _prepare_run_folder(folder: Path, series: str, session: int) -> None:
    """Make the folder above, without folders that are out of use."""
    run = folder.parent
    _remove_expired_runs(run.parent)
    for other in run.iterdir() if run.is_dir() else ():
        number = other.name.removeprefix(series)
        if other.name.startswith(series) and number.isdecimal() and int(number) < session:
            shutil.rmtree(other, ignore_errors=True)
    for above in (run.parent, run):
        above.mkdir(mode=0o700, parents=True, exist_ok=True)


def _remove_expired_runs(root: Path) -> None:
    before = time.time() - RETENTION_DAYS * 86400
    for run in root.glob(f"{_RUN_PREFIX}*") if root.is_dir() else ():
        with suppress(OSError):  # another node may be at it too
            if max(path.stat().st_mtime for path in (run, *run.glob("*"))) < before:
                shutil.rmtree(run, ignore_errors=True)


@contextmanager
def _reserve_space(folder: Path, n_bytes: int) -> Iterator[None]:
    """Write n bytes in a run's folder, or in a folder of it, while no other node under the root writes.

    Raises:
        OutputError: the bytes exceed the budget or the disk, or cannot be written.
        ScenarioError: the budget cannot be read.
    """
    budget = _read_budget()
    try:
        with _lock_root(_get_root(), budget is not None):
            _check_space(folder, n_bytes, budget)
            yield
    except OSError as error:
        raise OutputError(f"{folder}: client state cannot be written ({error.strerror})") from None


def _check_space(folder: Path, n_bytes: int, budget: int | None) -> None:
    available = shutil.disk_usage(folder).free
    problem, remedy = f"{format_bytes(available)} free on its disk", "free some"
    if budget is not None and (left := max(0, budget - _count_run_bytes(_get_root()))) < available:
        problem = f"{format_bytes(left)} left of the budget of {format_binary_bytes(budget)} for all runs in {_get_root()}"
        available, remedy = left, f"raise {BUDGET_VARIABLE}"
    if n_bytes > available:
        ways = f"{remedy}, remove folders of runs that are over, or name another folder in {ROOT_VARIABLE}"
        raise OutputError(f"{folder}: no room for client state: {format_bytes(n_bytes)} needed, {problem}; {ways}")


def _read_budget() -> int | None:
    if not (text := os.environ.get(BUDGET_VARIABLE)):
        return None
    try:
        return parse_memory_size(text)
    except ScenarioError as error:
        raise ScenarioError(f"{BUDGET_VARIABLE}: {error}") from None


def _count_run_bytes(root: Path) -> int:
    """Return the bytes of all files of runs under the root.

    All files are looked at for each write. A stored sum would be wrong as soon as a process is killed between a file and the
    sum, or a user removes the folder of a run. There are few files: one for each client, and one for each model.
    """
    return sum(_count_folder_bytes(run) for run in root.glob(f"{_RUN_PREFIX}*"))


def _count_folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another node has replaced it
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextmanager
def _lock_root(root: Path, is_needed: bool) -> Iterator[None]:
    """Hold the lock of the root folder, if needed. The system releases it if its holder dies."""
    if not is_needed or os.name != "posix":
        yield
        return
    import fcntl  # not on every system

    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
