"""Looking for data files, and saying where they were looked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from fedsgd.errors import DataError
from fedsgd.system.user_files import expand_user_path


def require_extra(module: str, extra: str) -> ModuleType:
    """An optional dependency's module; DataError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        raise DataError(f'{library} is not installed: python -m pip install "fedsgd[{extra}]" ({error})') from error


def search_paths(folder: Path | None, path: str) -> list[Path]:
    """Where a user's own path is looked for: in FOLDER if there is one, then where they stand."""
    return [place / expand_user_path(path) for place in (folder, Path()) if place is not None]


def find_data_files(folder: Path | None, dataset_name: str, names: Sequence[str], hint: str) -> list[Path]:
    """The files that the first of `names` to match any stands for, in FOLDER/owner or in FOLDER, ascending; a name may be a
    pattern. DataError that says where they were looked for. help: where to get them."""
    if folder is None:
        raise DataError(f"{dataset_name}: no folder given: {hint}")
    looked = [place / name for place in (folder / dataset_name, folder) for name in names]
    for path in looked:
        try:
            found = sorted(match for match in path.parent.glob(path.name) if match.is_file())
        except OSError as error:
            raise DataError(f"{dataset_name}: {folder}: cannot be looked into ({error.strerror})") from None
        if found:
            return found
    raise DataError(f"{dataset_name}: {names[0]} not found (looked for {', '.join(map(str, looked))}): {hint}")
