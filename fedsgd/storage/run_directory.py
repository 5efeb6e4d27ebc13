"""Run directory: names, columns and safe writing of its files.

| file | content |
|---|---|
| scenario.toml | scenario with all defaults |
| rounds.parquet | one row for each round |
| ledger.parquet | one row for each frame |
| params.safetensors | complete state dict of the server's model |
| summary.json | figures of the run |
| clients.parquet | numbers of examples and accuracy by client, with `[evaluation] clients` |
| transport.parquet | traffic of a deployment by round, node and direction |
| failures.parquet | one row for each client that failed, if there are any |
| evaluated.safetensors | model as clients decode it, if it differs from the server's |
| clients.safetensors | tensors that stay at the clients, of each client with test examples, if there are any |
| loss.safetensors | state of a loss that training changes |
| checkpoints | folder of checkpoints, with `[checkpoint] every`, or after Ctrl-C |

"reported_model" in summary.json names the file of the model that was evaluated. The compression ratios uplink_ratio,
downlink_ratio and bidirectional_ratio divide the bytes of dense float32 frames by the bytes of the frames that were sent; a
downlink frame counts for each client that it is sent to.

Columns of rounds.parquet that differ from the attributes of `RoundRecord`, which describe all other columns:

| column | type | meaning |
|---|---|---|
| clients | int | number of clients that were sent a message |
| accepted | int | number of clients whose update was aggregated |
| failures | int | number of clients that failed |

Columns of clients.parquet, one row for each client:

| column | type | meaning |
|---|---|---|
| client | int | number of the client, from 0 |
| train_examples | int | training examples of the client |
| test_examples | int | test examples of the client, which `data.held_out` keeps |
| accuracy | float | accuracy of the final model on these test examples; null without any, and where it is not finite |
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsgd.errors import OutputError, ReportError, make_write_error
from fedsgd.numerics.arrays import F64
from fedsgd.storage.durable import replace_file, write_fully

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

PARAMETERS_FILE, EVALUATED_FILE, LOSS_FILE, CLIENTS_FILE = (
    f"{name}.safetensors" for name in ("params", "evaluated", "loss", "clients")
)
LEDGER_FILE, ROUNDS_FILE, FAILURES_FILE = (f"{name}.parquet" for name in ("ledger", "rounds", "failures"))
RUN_FILES = ("scenario.toml", ROUNDS_FILE, LEDGER_FILE, PARAMETERS_FILE, "summary.json")
OPTIONAL_FILES = ("clients.parquet", "transport.parquet", FAILURES_FILE, EVALUATED_FILE, LOSS_FILE, CLIENTS_FILE)
CHECKPOINT_FOLDER = "checkpoints"
"""Folder of checkpoints in a run directory; `fedsgd.experiment.checkpoints` describes its files."""
NODE_FOLDER = "nodes"
"""Folder in `CHECKPOINT_FOLDER` with a folder of client states, node-I, for each node I of a deployment."""
LOCK_POLL_SECONDS = 0.1
_CHECKPOINT_FILE = re.compile(r"\.?(checkpoint|server|clients|model)-\d{6,}\.(json|safetensors)(\.partial)?")
_NODE_FILE = re.compile(r"\.?((client|model)-\d+|generation)(\.\d+)?")
ROUND_COLUMNS: Mapping[str, type] = {
    "round": int,
    "lr": float,
    "clients": int,
    "accepted": int,
    "failures": int,
    "uplink_bytes": int,
    "uplink_received_bytes": int,
    "downlink_bytes": int,
    "downlink_broadcast_bytes": int,
    "dense_uplink_bytes": int,
    "dense_downlink_bytes": int,
    "residual_norm": float,
    "rounds_missed": float,
    "seconds": float,
}
"""Columns of rounds.parquet.

lr is null with a schedule over steps. A float column for each metric follows, "loss" first, null without an evaluation.
"""

OVERWRITE_HINT = "pass --overwrite (in Python: overwrite=True)"
"""Option that replaces an earlier run, for messages."""

CLIENT_COLUMNS: Mapping[str, type] = {"client": int, "train_examples": int, "test_examples": int, "accuracy": float}
"""Columns of clients.parquet; the docstring of the module describes them."""


def build_round_frame(columns: Mapping[str, F64 | Sequence[Any]]) -> pd.DataFrame:
    """Return the columns of rounds.parquet, with None or NaN for null, as a pandas table that is indexed by round.

    Counts and bytes are int64, all other columns float64. ReportError if pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError:
        raise ReportError('pandas is not installed: in the checkout of fedsgd, python -m pip install ".[pandas]"') from None
    types = {name: np.int64 if ROUND_COLUMNS.get(name) is int else np.float64 for name in columns}
    arrays = {name: np.asarray(values, dtype=types[name]) for name, values in columns.items()}
    frame: pd.DataFrame = pandas.DataFrame(arrays).set_index("round")
    return frame


def clear_run_directory(folder: Path, overwrite: bool) -> Path:
    """Create a run directory, or with `overwrite` remove the files of an earlier run from it.

    An OutputError is raised for a file that no run wrote, and without `overwrite` for any file.
    """
    for path in find_files_to_remove(folder, overwrite):
        try:
            path.rmdir() if _is_folder(path) else path.unlink()
        except OSError as error:
            raise make_write_error(path, error) from None
    return folder


def create_folder(folder: Path) -> None:
    """Create a folder and the folders above it, if necessary. OutputError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created or read ({error.strerror})") from None


@contextmanager
def lock_run_directory(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Create a run directory if necessary, and lock it against other runs in the context, if the system supports locks.

    The system releases the lock if the process ends. An OutputError is raised if another process has locked the directory, and
    does not release it within `wait_seconds`.
    """
    create_folder(folder)
    problem = f"{folder}: another run is writing to it; choose another folder, or wait for its end"
    with lock_folder(folder, problem, wait_seconds):
        yield


@contextmanager
def lock_folder(folder: Path, problem: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Lock a folder against other processes in the context, if the system supports locks.

    OutputError(problem) is raised if another process does not release its lock within `wait_seconds`.
    """
    if os.name != "posix":  # the system has no such locks
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created or read ({error.strerror})") from None
    try:
        if not _wait_for_lock(descriptor, wait_seconds):
            raise OutputError(problem)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, wait_seconds: float) -> bool:
    """Return whether this process has the lock of an open folder, which the system releases when the process ends."""
    import fcntl  # only on POSIX systems

    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOCK_POLL_SECONDS)
        except OSError:  # a file system without locks
            return True
        else:
            return True


def is_complete(folder: Path) -> bool:
    """Return whether a run directory has all files of a finished run, with tables that are not folders of segments."""
    return all((folder / name).is_file() for name in RUN_FILES)


def remove_results(folder: Path) -> None:
    """Remove the files that only a finished run has, before the run continues, so that it does not count as finished."""
    for name in ("summary.json", PARAMETERS_FILE, EVALUATED_FILE, LOSS_FILE, CLIENTS_FILE, "clients.parquet"):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise make_write_error(folder / name, error) from None


def find_files_to_remove(folder: Path, overwrite: bool) -> list[Path]:
    """Return the paths that `clear_run_directory` removes, or raise its OutputError; create the folder, but remove nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(p.name for p in folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created or read ({error.strerror})") from None
    try:
        run_paths, remedy = [path for name in names for path in _run_owned_paths(folder / name)], f", or {OVERWRITE_HINT}"
    except (OutputError, OSError) as error:
        if overwrite:
            raise OutputError(str(error)) from None
        remedy = ""  # files that no run wrote are never replaced
    if names and not overwrite:
        if any((folder / CHECKPOINT_FOLDER).glob("checkpoint-*.json")):
            remedy += f"; or continue the run: fedsgd resume {folder}"
        raise OutputError(f"{folder}: is not empty (it has {', '.join(names[:3])}); choose another folder{remedy}")
    return run_paths


def _run_owned_paths(path: Path) -> list[Path]:
    """Return the files in a path, then the path, or raise an OutputError if no finished or killed run wrote them."""
    name = path.name
    if name == CHECKPOINT_FOLDER and _is_folder(path):
        return _list_checkpoint_paths(path)
    files = (*RUN_FILES, *OPTIONAL_FILES)
    temporary_names = [f".{file}.{end}" for file in files for end in ("partial", "merged", "segments", "resumed")]
    is_folder = _is_folder(path)
    entries = sorted(path.iterdir()) if is_folder else []
    foreign_paths = [entry for entry in entries if not _is_segment(entry.name) or entry.is_dir()]
    if name not in (*files, *temporary_names) or foreign_paths or (is_folder and "parquet" not in name):
        raise _make_foreign_error(foreign_paths[0] if foreign_paths else path)
    return [*entries, path]


def _list_checkpoint_paths(folder: Path) -> list[Path]:
    """Return the files of checkpoints and of nodes, each before its folder, or raise an OutputError for any other path."""
    paths = list[Path]()
    for entry in sorted(folder.iterdir()):
        if entry.name == NODE_FOLDER and _is_folder(entry):
            for node in sorted(entry.iterdir()):
                files = sorted(node.iterdir()) if _is_folder(node) and node.name.startswith("node-") else [node]
                foreign_path = next((file for file in files if file.is_dir() or not _NODE_FILE.fullmatch(file.name)), None)
                if foreign_path is not None:
                    raise _make_foreign_error(foreign_path)
                paths += [*files, node]
        elif entry.is_dir() or not is_checkpoint_file(entry.name):
            raise _make_foreign_error(entry)
        paths.append(entry)
    return [*paths, folder]


def _make_foreign_error(path: Path) -> OutputError:
    return OutputError(f"{path}: no run wrote this; choose another folder")


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_segment(name: str) -> bool:
    return name.strip(".").startswith("segment-")


def is_checkpoint_file(name: str) -> bool:
    """Return whether a file of this name can be part of a checkpoint, or be left by a killed process that wrote one."""
    return _CHECKPOINT_FILE.fullmatch(name) is not None


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors in the format of safetensors; no two tensors may share memory."""
    from safetensors.torch import save

    write_atomically(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a file in the format of safetensors; ReportError for a file that cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ReportError(f"{path}: cannot be read ({error})") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all: an error or an interrupt leaves no partial file."""
    replace_file(path, lambda file: write_fully(file, data))


def write_all(folder: Path, writers: Mapping[str, Callable[[], object]]) -> None:
    """Write the files of a finished run, in order of importance, each file even if another cannot be written.

    The message of an OutputError names the files that are safe, and the errors of the other files.
    """
    saved_names, errors = [], []
    for name, write_file in writers.items():
        try:
            write_file()
        except OutputError as error:
            errors.append(str(error))
        else:
            saved_names.append(name)
    if errors:
        raise OutputError(f"{'; '.join(errors)}; safe in {folder}: {', '.join(saved_names) or 'nothing'}")
