"""Folders of client state on a node's own disk.

Flower sends its Context over the loopback with each message and loses it when the SuperNode stops. So the Context has only one
small record: the folder's path, and the folder's generation, which counts the commits. A new run removes the folders of runs
that wrote nothing for a week.

The states of a run that can be resumed are in the run's directory instead.

- FEDSGD_STATE: root folder of all runs, by default `fedsgd` in Flower's home. The root also stores compiled loops if numba
  has no folder for them.
- FEDSGD_STATE_BUDGET: maximum number of bytes of all runs under the root, like "2 GiB"; by default no limit but the disk.
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
from fedsgd.flower.deployment.app_bundle import MODULE_FOLDER
from fedsgd.flower.records import RECORD_KEY
from fedsgd.numerics.kernels import set_fallback_cache
from fedsgd.runtime.stores.directory import CLIENT_PREFIX, FolderStore
from fedsgd.storage.run_directory import lock_folder
from fedsgd.system.user_files import append_to_path, expand_user_path

RETENTION_DAYS = 7
LOCK_SECONDS = 60.0
"""Time limit for a process of an earlier launch to release a node's states; the guard ends it within seconds."""
ROOT_VARIABLE, BUDGET_VARIABLE = "FEDSGD_STATE", "FEDSGD_STATE_BUDGET"
_RUN_PREFIX, _KERNEL_FOLDER = "run-", "kernels"
_FOLDER_KEY, _GENERATION_KEY = "folder", "generation"


def open_state_store(
    context: Context,
    name: str = "",
    session: int | None = None,
    expected_bytes: int = 0,
    run_folder: Path | None = None,
) -> FolderStore:
    """Open the stored states of this node's clients in this run.

    The disk has precedence over the Context: the disk is ahead if a process was killed between the two writes, or if the
    SuperNode was started again with a new Context. A folder that is behind the Context was replaced by an older folder. The
    folder's states are removed, and the node's clients get a catch-up.

    Args:
        context: Flower's context of the node.
        name: name of the federation, for a run with several federations; its folders are named after Flower's id of the node.
            "": the only federation, whose nodes have different partitions.
        session: number of the federation's session; folders of earlier sessions of this name are removed.
        expected_bytes: maximum size of the folder, for which space is checked before the first state is stored; 0: no check.
        run_folder: folder of all nodes of a run that can be resumed, which another SuperLink finds, too; None for the folder of
            Flower's run below the root.
    """
    set_fallback_cache(_get_root() / _KERNEL_FOLDER)
    # by Flower's id in a user's app, whose nodes may have equal partitions; by partition otherwise, because a SuperNode without
    # authentication has another id after each start
    series = f"node-{context.node_id}-{name}" if name else _name_partition(context)
    folder = (run_folder or _get_run_folder(context)) / (series if session is None else f"{series}-{session}")
    record = context.state[RECORD_KEY] if _check_record_name(context.state) else ConfigRecord()
    assert isinstance(record, ConfigRecord)
    try:
        _get_root().mkdir(mode=0o700, parents=True, exist_ok=True)  # the lock of the budget needs it
        if not folder.exists():
            _prepare_run_folder(folder, f"{series}-", session or 0)
        if expected_bytes and not any(folder.glob(f"{CLIENT_PREFIX}*")):
            with _reserve_space(folder.parent, max(0, expected_bytes - _count_folder_bytes(folder))):
                pass
        store = FolderStore(folder, _reserve_space, is_durable=run_folder is not None)
        generation = record.get(_GENERATION_KEY, 0) if record.get(_FOLDER_KEY) == str(folder) else 0
        if isinstance(generation, int) and store.generation < generation:
            store.clear()
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be used for client state ({error.strerror}); set {ROOT_VARIABLE} to another folder"
        ) from None
    return store


@contextmanager
def use_state_store(context: Context, run_folder: Path | None) -> Iterator[FolderStore]:
    """Open the stored states, and in a run that can be resumed lock them against a process of an earlier launch.

    Args:
        context: Flower's context of the node.
        run_folder: as for `open_state_store`.

    Raises:
        OutputError: the folder cannot be used, or another process does not release it within `LOCK_SECONDS`.
    """
    store = open_state_store(context, run_folder=run_folder)
    if run_folder is None:
        yield store
        return
    with lock_folder(store.folder, f"{store.folder}: another process uses these client states", LOCK_SECONDS):
        yield open_state_store(context, run_folder=run_folder)  # the other process may have written states


def prepare_cache_folder(context: Context, store: FolderStore) -> Path:
    """Return the folder of the node's cache, which ends with the deployment: it has pickled objects, unlike a run directory."""
    if store.folder.is_relative_to(_get_root()):
        return store.folder
    folder = _get_run_folder(context) / _name_partition(context)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def commit_state(context: Context, store: FolderStore) -> None:
    """Commit the store's content, and write its generation into the Context. ModelError if the app uses fedsgd's name."""
    _check_record_name(context.state)
    context.state[RECORD_KEY] = ConfigRecord({_FOLDER_KEY: str(store.folder), _GENERATION_KEY: store.commit()})


@contextmanager
def hide_record(context: Context) -> Iterator[None]:
    """Hide fedsgd's record, if any, from the app in this context. ModelError if the app stores another record in its place."""
    state = context.state
    record = state.pop(RECORD_KEY) if _has_fedsgd_record(state) else None
    try:
        yield
        if record is not None:
            _check_record_name(context.state)
    finally:
        if record is not None:
            context.state[RECORD_KEY] = record  # not into `state`: the app may have replaced `context.state`


def add_user_folders_to_path() -> None:
    """Append the user's modules in the app and the user's working folder (FEDSGD_FOLDER) to the path, after installed modules.

    Flower puts the folder of the app on the path before it imports the app.
    """
    app_folders = [str(path) for entry in sys.path if (path := Path(entry, MODULE_FOLDER)).is_dir()]
    for folder in (*app_folders, os.environ.get("FEDSGD_FOLDER")):
        if folder:
            append_to_path(folder)


def _name_partition(context: Context) -> str:
    return f"node-{context.node_config['partition-id']}"


def _get_run_folder(context: Context) -> Path:
    return _get_root() / f"{_RUN_PREFIX}{context.run_id}"


def _get_root() -> Path:
    if root := os.environ.get(ROOT_VARIABLE):
        return expand_user_path(root)
    home = os.environ.get("FLWR_HOME")
    return (Path(home) if home else Path.home() / ".flwr") / "fedsgd"


def _has_fedsgd_record(state: RecordDict) -> bool:
    record = state.get(RECORD_KEY)
    return isinstance(record, ConfigRecord) and set(record) == {_FOLDER_KEY, _GENERATION_KEY}


def _check_record_name(state: RecordDict) -> bool:
    """Return True if a state has fedsgd's record, False if it has no record of this name. ModelError for the app's record."""
    if RECORD_KEY in state and not _has_fedsgd_record(state):
        raise ModelError(
            f'context.state has a record "{RECORD_KEY}" of the app, but compression_mod() uses this name: rename the record'
        )
    return RECORD_KEY in state


# ------------------------------------------------------------------------------------------------------------------- disk space


def _prepare_run_folder(folder: Path, series: str, session: int) -> None:
    """Create the run's folder above a session's folder, and remove expired runs and earlier sessions of the series."""
    run = folder.parent
    _remove_expired_runs(_get_root())
    for session_folder in run.iterdir() if run.is_dir() else ():
        number = session_folder.name.removeprefix(series)
        if session_folder.name.startswith(series) and number.isdecimal() and int(number) < session:
            shutil.rmtree(session_folder, ignore_errors=True)
    run.mkdir(mode=0o700, parents=True, exist_ok=True)


def _remove_expired_runs(root: Path) -> None:
    expiry_time = time.time() - RETENTION_DAYS * 86400
    for run in root.glob(f"{_RUN_PREFIX}*") if root.is_dir() else ():
        with suppress(OSError):  # another node may remove the same folder
            if max(path.stat().st_mtime for path in (run, *run.glob("*"))) < expiry_time:
                shutil.rmtree(run, ignore_errors=True)


@contextmanager
def _reserve_space(folder: Path, n_bytes: int) -> Iterator[None]:
    """Check that a folder has space for n bytes. With a budget, other nodes under the root wait until the context ends."""
    budget = _read_budget()
    try:
        with _lock_root(_get_root(), budget is not None):
            _check_space(folder, n_bytes, budget)
            yield
    except OSError as error:
        raise OutputError(f"{folder}: client state cannot be written ({error.strerror})") from None


def _check_space(folder: Path, n_bytes: int, budget: int | None) -> None:
    space = shutil.disk_usage(folder).free
    problem, remedy = f"{format_bytes(space)} free on its disk", "free disk space"
    if budget is not None and (rest := max(0, budget - _count_run_bytes(_get_root(), folder))) < space:
        problem = f"{format_bytes(rest)} free in the budget of {format_binary_bytes(budget)} for all runs in {_get_root()}"
        space, remedy = rest, f"increase {BUDGET_VARIABLE}"
    if n_bytes > space:
        remedies = f"{remedy}, remove folders of finished runs, or set {ROOT_VARIABLE} to another folder"
        raise OutputError(f"{folder}: no room for client state: {format_bytes(n_bytes)} needed, {problem}; {remedies}")


def _read_budget() -> int | None:
    if not (text := os.environ.get(BUDGET_VARIABLE)):
        return None
    try:
        return parse_memory_size(text)
    except ScenarioError as error:
        raise ScenarioError(f"{BUDGET_VARIABLE}: {error}") from None


def _count_run_bytes(root: Path, folder: Path) -> int:
    """Return the bytes of all runs' files, and of a folder that is not below the root.

    A stored sum would be wrong after a process is killed or a user removes a folder.
    """
    other_folders = [] if folder.is_relative_to(root) else [folder]
    return sum(map(_count_folder_bytes, [*root.glob(f"{_RUN_PREFIX}*"), *other_folders]))


def _count_folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another node has replaced the file
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextmanager
def _lock_root(root: Path, is_needed: bool) -> Iterator[None]:
    """Lock the root folder, if needed and on POSIX systems only. The system releases the lock if the process dies."""
    if not is_needed or os.name != "posix":
        yield
        return
    import fcntl  # only on POSIX systems

    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
