"""Paths from users, and text files that users write."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

from fedsgd.errors import ScenarioError

_SEARCHED_FOLDERS: ContextVar[tuple[str, ...]] = ContextVar("searched_folders", default=())
_FOLDERS_OF_MODULES: set[str] = set()
"""Folders from which a module was imported in a context of `search_folders`, in any thread."""
_PATH_LOCK = threading.Lock()
"""Held while entries of `sys.path` are added or removed. The list is replaced and not changed, because an import in another
thread that goes through it would miss an entry that moves."""
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

    A folder from which a module was imported stays on the path: its functions may import other modules later, and worker
    processes import it again.

    Args:
        folders: absolute paths.
    """
    names, modules = [str(folder) for folder in folders], set(sys.modules)
    with _PATH_LOCK:
        sys.path = sys.path + names  # also if an entry is there: it may belong to another thread, which removes it
    token = _SEARCHED_FOLDERS.set((*_SEARCHED_FOLDERS.get(), *names))
    try:
        yield
    finally:
        _SEARCHED_FOLDERS.reset(token)
        new_modules = set(sys.modules) - modules
        with _PATH_LOCK:
            _FOLDERS_OF_MODULES.update(name for name in names if _has_module(name, new_modules))
            for name in names:
                if sys.path.count(name) > 1 or (name in sys.path and name not in _FOLDERS_OF_MODULES):
                    last = len(sys.path) - 1 - sys.path[::-1].index(name)
                    sys.path = sys.path[:last] + sys.path[last + 1 :]


def append_to_path(folder: str) -> None:
    """Import modules also from a folder, after all other folders; nothing changes if it is on the path."""
    with _PATH_LOCK:
        if folder not in sys.path:
            sys.path = [*sys.path, folder]


def list_searched_folders() -> tuple[str, ...]:
    """Return the folders of the contexts of `search_folders` around the caller, the outermost first."""
    return _SEARCHED_FOLDERS.get()


def _has_module(folder: str, names: Iterable[str]) -> bool:
    """Return True if one of the imported modules with these names is in a folder."""
    modules = [sys.modules.get(name) for name in names]
    files = [vars(module).get("__file__") for module in modules if isinstance(module, ModuleType)]
    return any(isinstance(file, str) and file.startswith(folder + os.sep) for file in files)
