"""Paths from users, and text files that users write."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsgd.errors import ScenarioError

_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def expand_user_path(path: str | Path, name: str = "path") -> Path:
    """Return the path with a leading `~` or `~name` expanded as in a shell, so that no folder is ever called "~".

    A ScenarioError for a value that is not a path begins with `name`, the argument or key with the path.
    """
    if not isinstance(path, str | Path):
        raise ScenarioError(f"{name}: got {repr(path)[:80]}, expected the path of a file or folder, a text or a pathlib.Path")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise ScenarioError(f"{path}: home folder {home} does not exist; write ./{path} for a folder of that name") from None


def check_paths(**paths: str | Path | None) -> None:
    """Raise ScenarioError, with the argument's name, for an argument that is neither a path nor None."""
    for name, path in paths.items():
        if path is not None:
            expand_user_path(path, name)


def find_temporary_folder() -> Path | None:
    """Return the folder for temporary files, None if there is none, as in some containers."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return None


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark, with line feeds as line ends.

    For another encoding, ValueError names the encoding if it is recognized, else the line of the first wrong byte.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = _BYTE_ORDER_MARKS.get(data[:2])
        line = data[: error.start].count(b"\n") + 1
        problem = f"is {encoding}" if encoding else f"line {line}: byte 0x{data[error.start]:02x} is not UTF-8"
        raise ValueError(f"{problem}, expected UTF-8 text: save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def search_scenario_folder(scenario: object) -> Iterator[None]:
    """Import modules also from the folder of a scenario file, after all other folders.

    Args:
        scenario: path of the file; no folder is added for any other object.
    """
    with search_folders([expand_user_path(scenario).absolute().parent] if isinstance(scenario, str | Path) else []):
        yield


@contextmanager
def search_folders(folders: Iterable[str | Path]) -> Iterator[None]:
    """Import modules also from some folders in the context, after all other folders.

    Args:
        folders: absolute paths.
    """
    new_folders = [str(folder) for folder in folders if str(folder) not in sys.path]
    sys.path += new_folders
    try:
        yield
    finally:
        for folder in new_folders:
            if folder in sys.path:
                sys.path.remove(folder)
