"""Looking for data files, and saying where they were looked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsgd.errors import DataError
from fedsgd.user_files import user_path


def places(folder: Path | None, path: str) -> list[Path]:
    """Where a user's own path is looked for: in FOLDER if there is one, then where they stand."""
    return [place / user_path(path) for place in (folder, Path()) if place is not None]


def find(folder: Path | None, owner: str, names: Sequence[str], help: str) -> list[Path]:
    """The files that the first of `names` to match any stands for, in FOLDER/owner or in FOLDER, ascending; a name may be a
    pattern. DataError that says where they were looked for. help: where to get them."""
    if folder is None:
        raise DataError(f"{owner}: no folder given: {help}")
    looked = [place / name for place in (folder / owner, folder) for name in names]
    for path in looked:
        try:
            found = sorted(match for match in path.parent.glob(path.name) if match.is_file())
        except OSError as error:
            raise DataError(f"{owner}: {folder}: cannot be looked into ({error.strerror})") from None
        if found:
            return found
    raise DataError(f"{owner}: {names[0]} not found (looked for {', '.join(map(str, looked))}): {help}")
