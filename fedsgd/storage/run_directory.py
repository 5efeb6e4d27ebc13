"""The folder that a run writes: scenario.toml (resolved), rounds.parquet, ledger.parquet, params.safetensors, summary.json; and
clients.parquet where accuracy by client was asked for, transport.parquet where it was a deployment.

params.safetensors is the complete state dict of the server's model; summary.json says as "reported_model" whether the reported
figures are of another one: evaluated.safetensors, the model as clients decode it, or clients.safetensors, what each client has
for itself. loss.safetensors is the state of a loss that training changes.

summary.json has three compression ratios of dense float32 frames to the frames that were sent: uplink_ratio, downlink_ratio and
bidirectional_ratio of both directions together, the downlink being sent to each client by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedsgd.errors import OutputError, make_write_error

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS_FILE, EVALUATED_FILE, LOSS_FILE, CLIENTS_FILE = (
    f"{name}.safetensors" for name in ("params", "evaluated", "loss", "clients")
)
RUN_FILES = ("scenario.toml", "rounds.parquet", "ledger.parquet", PARAMETERS_FILE, "summary.json")
OPTIONAL_FILES = ("clients.parquet", "transport.parquet", EVALUATED_FILE, LOSS_FILE, CLIENTS_FILE)
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
"""rounds.parquet: one row a round, with what `Round` says (clients, accepted and failures: how many); lr is null with a
schedule over steps; and a float column for each metric, "loss" first, null where not evaluated."""

OVERWRITE_HINT = "pass --overwrite (in Python: overwrite=True)"
"""The option that replaces an earlier run, as messages name it."""

CLIENT_COLUMNS: Mapping[str, type] = {"client": int, "train_examples": int, "test_examples": int, "accuracy": float}
"""clients.parquet: one row a client, after the last round; accuracy is null where there are no test
examples, or where it is not finite."""


def clear_run_directory(folder: Path, overwrite: bool) -> Path:
    """The run folder, empty of an earlier run's files; OutputError if it holds anything and `overwrite` was not asked for."""
    for path in find_files_to_remove(folder, overwrite):
        try:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            raise make_write_error(path, error) from None
    return folder


def find_files_to_remove(folder: Path, overwrite: bool) -> list[Path]:
    """Return the paths that `clear_run_directory` would remove; the folder is made, and nothing is removed.

    Args:
        folder: the run folder.
        overwrite: whether an earlier run there may be replaced.

    Raises:
        OutputError: the folder cannot be read, or holds an earlier run without `overwrite`, or files that no run wrote.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = sorted(p.name for p in folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made or read ({error.strerror})") from None
    try:
        owned, remedy = [path for name in present for path in _run_owned_paths(folder / name)], f", or {OVERWRITE_HINT}"
    except (OutputError, OSError) as error:
        if overwrite:
            raise OutputError(str(error)) from None
        remedy = ""  # of files that no run wrote, nothing is ever replaced
    if present and not overwrite:
        raise OutputError(f"{folder}: is not empty (it holds {', '.join(present[:3])}); choose another folder{remedy}")
    return owned


def _run_owned_paths(path: Path) -> list[Path]:
    """The path, after the segments below it, if a run wrote it, finished or killed; OutputError if it is anything else."""
    name = path.name
    known = (*RUN_FILES, *OPTIONAL_FILES)
    temporary = [f".{file}.{end}" for file in known for end in ("partial", "merged", "segments")]
    is_folder = path.is_dir() and not path.is_symlink()
    below = sorted(path.iterdir()) if is_folder else []
    foreign = [p for p in below if not p.name.strip(".").startswith("segment-") or p.is_dir()]
    if name not in (*known, *temporary) or foreign or (is_folder and "parquet" not in name):
        raise OutputError(f"{foreign[0] if foreign else path}: no run wrote this; choose another folder")
    return [*below, path]


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors, no two of which share memory, in safetensors."""
    from safetensors.torch import save

    write_atomically(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file, or nothing: after an error or an interrupt no partial file is left.

    Raises:
        OutputError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise make_write_error(path, error) from None
        raise


def write_all(folder: Path, writers: Mapping[str, Callable[[], object]]) -> None:
    """Write the files of a finished run, each even if an earlier one could not be written.

    Args:
        folder: the run folder.
        steps: name of each file, and the call that writes it, in order of importance.

    Raises:
        OutputError: a file could not be written. The message names the files that are safe, and each that is not.
    """
    safe, errors = [], []
    for name, write_file in writers.items():
        try:
            write_file()
        except OutputError as error:
            errors.append(str(error))
        else:
            safe.append(name)
    if errors:
        raise OutputError(f"{'; '.join(errors)}; safe in {folder}: {', '.join(safe) or 'nothing'}")
