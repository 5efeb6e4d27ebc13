"""Search for data files and for optional dependencies."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from fedsgd.errors import DataError
from fedsgd.system.user_files import expand_user_path


def require_extra(module: str, extra: str) -> ModuleType:
    """Import a module of an optional dependency. DataError, with the command that installs it, if the module is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        command = f'in the checkout of fedsgd, python -m pip install ".[{extra}]"'
        raise DataError(f"{library} is not installed: {command} ({error})") from error


def search_paths(folder: Path | None, path: str) -> list[Path]:
    """Return the paths at which to look for a user's file: in the data folder, if any, then in the current folder."""
    return [parent / expand_user_path(path) for parent in (folder, Path()) if parent is not None]


def find_data_files(folder: Path | None, dataset_name: str, names: Sequence[str], hint: str) -> list[Path]:
    """Return the files of the first pattern that matches any file, in ascending order; DataError if no pattern matches.

    `names` are file names or glob patterns, in the order of preference. The subfolder `dataset_name` is searched before the
    data folder itself. `hint` tells users the source of the files.
    """
    if folder is None:
        raise DataError(f"{dataset_name}: no data folder is set: {hint}")
    candidates = [parent / name for parent in (folder / dataset_name, folder) for name in names]
    for path in candidates:
        try:
            matches = sorted(match for match in path.parent.glob(path.name) if match.is_file())
        except OSError as error:
            raise DataError(f"{dataset_name}: {folder}: cannot be read ({error.strerror})") from None
        if matches:
            return matches
    raise DataError(f"{dataset_name}: {names[0]} not found (looked for {', '.join(map(str, candidates))}): {hint}")
