"""Modules of the user that travel in the app of a deployment.

A module travels if only the launching process can import it: from the scenario's folder, the current folder or the folder of a
script. A package travels with its whole folder. A single file travels with the modules that it imports from its folder.
Installed packages, fedsgd and modules from folders in PYTHONPATH do not travel. Flower's app takes .py, .toml, .yaml and .json.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import ParamSpec, TypeVar

from fedsgd.config.source_files import find_root, is_on_every_path, list_source_files
from fedsgd.config.user_classes import find_import_paths
from fedsgd.errors import ScenarioError
from fedsgd.scenario.scenario import Scenario
from fedsgd.system.user_files import search_scenario_folder

MAX_FILE_BYTES = 2**20
MAX_TOTAL_BYTES = 8 * 2**20
"""Maximum size of all files; Flower's app has at most 10 MB."""
SUFFIXES = (".py", ".toml", ".yaml", ".yml", ".json", ".jsonl")
"""Suffixes of sources and package data that Flower's app takes."""
_OMITTED_PATTERNS = ("test_*.py", "*_test.py")
"""Patterns of sources that Flower's app omits."""
_REMEDY = "install the package for all nodes, or put its folder into PYTHONPATH"


P = ParamSpec("P")
T = TypeVar("T")


def import_from_scenario_folder(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that modules are also imported from the folder of its first argument, `scenario`.

    Args:
        function: function of a scenario, or of the path of a scenario file.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with search_scenario_folder(args[0] if args else kwargs.get("scenario")):
            return function(*args, **kwargs)

    return wrapper


def read_user_modules(scenario: Scenario) -> dict[str, bytes]:
    """Return the contents of the files that travel in the app, by their path relative to the module folder.

    Args:
        scenario: scenario whose classes and functions are imported.

    Raises:
        ScenarioError: a file is too large, is a link to another folder, or has a name that Flower's app omits.
    """
    files: dict[str, Path] = {}
    for module in sorted({path.partition(":")[0] for path in find_import_paths(scenario)}):
        root = find_root(module)
        if root is not None and not is_on_every_path(root):
            for name, path in _list_module_files(module, root):
                files.setdefault(name, path)
    contents = {name: _read_file(path) for name, path in sorted(files.items())}
    total = sum(map(len, contents.values()))
    if total > MAX_TOTAL_BYTES:
        problem = f"got {total:,} bytes, expected at most {MAX_TOTAL_BYTES:,}"
        raise ScenarioError(f"modules that travel in the app: {problem}; {_REMEDY}")
    return contents


def _list_module_files(module: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (relative path, path) of the files of a module, of its package, and of the modules that it imports."""
    sources = list_source_files(module, root)
    if not sources:
        raise ScenarioError(f"{module}: its source is not in {root}, so it cannot travel in the app; {_REMEDY}")
    for name, path in sources.items():
        if any(fnmatch(path.name, pattern) for pattern in _OMITTED_PATTERNS):
            raise ScenarioError(f"{path}: Flower's app omits files with such a name; rename the module, or {_REMEDY}")
        _check_link(path, root)
        yield name, path
    for package in sorted({name.partition("/")[0] for name in sources if "/" in name}):
        yield from _list_package_files(root / package, root)


def _list_package_files(folder: Path, root: Path) -> Iterator[tuple[str, Path]]:
    _check_link(folder, root)
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in folders:
            _check_link(Path(parent, name), root, is_folder=True)
        for name in names:
            path = Path(parent, name)
            is_omitted = name.startswith(".") or any(fnmatch(name, pattern) for pattern in _OMITTED_PATTERNS)
            if path.suffix in SUFFIXES and not is_omitted:
                _check_link(path, root)
                yield path.relative_to(root).as_posix(), path


def _check_link(path: Path, root: Path, is_folder: bool = False) -> None:
    """Raise a ScenarioError for a link to a file outside the root, and for a link to any folder in a package."""
    if path.is_symlink() and (is_folder or not path.resolve().is_relative_to(root.resolve())):
        raise ScenarioError(f"{path}: this link to {path.resolve()} cannot travel in the app; copy its target, or {_REMEDY}")


def _read_file(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        problem = f"got {size:,} bytes, expected at most {MAX_FILE_BYTES:,} for a file that travels in the app"
        raise ScenarioError(f"{path}: {problem}; {_REMEDY}")
    return path.read_bytes()
