"""Looking for data files, and saying where one looked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsgd.errors import DataError


def find(folder: Path | None, owner: str, names: Sequence[str], help: str) -> Path:
    """The first of `names` that is a file in FOLDER/owner or in FOLDER; DataError that says where it was looked for.

    A name may be a pattern; of several matches the first by name is taken. help: where to get the files.
    """
    if folder is None:
        raise DataError(f"{owner}: no folder given: {help}")
    looked = [place / name for place in (folder / owner, folder) for name in names]
    for path in looked:
        try:
            found = sorted(match for match in path.parent.glob(path.name) if match.is_file())
        except OSError as error:
            raise DataError(f"{owner}: {folder}: cannot be looked into ({error.strerror})") from None
        if found:
            return found[0]
    raise DataError(f"{owner}: {names[0]} not found (looked for {', '.join(map(str, looked))}): {help}")
