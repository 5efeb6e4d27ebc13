"""Classes and functions outside fedsgd that settings use: their import paths, and the digests of their sources."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from fedsgd.config.component import Component, ValidatedConfig
from fedsgd.config.registry import import_by_path
from fedsgd.config.source_files import find_root, is_installed, is_on_every_path, is_own_module, list_source_files
from fedsgd.errors import ScenarioError

_DIGEST_LENGTH = 16
_UNRECORDED_MODULES = ("numpy", "torch", "__main__", "__mp_main__")
"""Libraries whose versions are in summary.json, and main scripts, whose classes have a marker with a fingerprint."""
IMPORTS_SUFFIX = ", imports"
"""End of the key of a digest of imported modules."""
_loaded_digests: dict[tuple[str, int], tuple[object, dict[str, str]]] = {}
"""(object, digests) by import path and id of each class or function that a run of this process has used."""


class ClassIdentity(NamedTuple):
    """Identity of a class or function outside fedsgd.

    Attributes:
        path: "my_package.my_module:MyClass".
        sha256: first 16 digits of the SHA-256 of the source: the modules of the class and of its base classes, and the modules
            that these import (see `list_source_files`). The source of a function or a torch module of an installed package is
            its own module.
        release: name and version of the installed distribution, "" for a module that is not installed.
    """

    path: str
    sha256: str
    release: str

    def __str__(self) -> str:
        return f"{self.release or 'no installed release'}, source {self.sha256}"


def find_import_paths(settings: ValidatedConfig) -> list[str]:
    """Return the import paths of all classes and functions outside fedsgd that settings use, sorted.

    Args:
        settings: scenario, section or component.
    """
    paths: set[str] = set()
    stack: list[object] = [settings]
    while stack:
        value = stack.pop()
        if isinstance(value, tuple):
            stack += value
        elif is_dataclass(value) and not isinstance(value, type):
            paths.add(f"{type(value).__module__}:{type(value).__qualname__}")
            stack += [getattr(value, f.name) for f in fields(value)]
        if isinstance(value, Component):
            paths |= {path for path in value.list_import_paths().values() if ":" in path}
    return sorted(path for path in paths if not is_own_module(path.partition(":")[0]))


def list_module_folders(settings: ValidatedConfig) -> list[str]:
    """Return the folders of the modules outside fedsgd that settings use and that are not installed, sorted.

    Args:
        settings: scenario, section or component.
    """
    roots = {find_root(path.partition(":")[0]) for path in find_import_paths(settings)}
    return sorted(str(root) for root in roots if root is not None and not is_on_every_path(root))


def identify_classes(paths: Sequence[str]) -> list[ClassIdentity]:
    """Return the identity of each class or function. ScenarioError if one of them cannot be imported.

    Args:
        paths: import paths.
    """
    return [_identify_class(path) for path in paths]


def digest_user_code(settings: ValidatedConfig, as_loaded: bool = False) -> dict[str, str]:
    """Return the digest of the source of each class or function outside fedsgd that settings use, by import path.

    The modules that a function or a torch module imports from its folder have a digest of their own, by the import path and
    `IMPORTS_SUFFIX`, which runs of earlier releases lack. Those that a component imports are part of its digest.

    Functions of numpy and torch are left out, because summary.json has the versions of these libraries. Classes without a
    source file and classes of a notebook or main script are left out, because their markers have a fingerprint of the code.

    Args:
        settings: scenario, section or component.
        as_loaded: True for the source at the first call for the loaded class, which later edits of the file do not change;
            False for the present source.
    """
    digests: dict[str, str] = {}
    for path in find_import_paths(settings):
        if _is_recorded(path.partition(":")[0]):
            with suppress(ScenarioError, OSError):  # a class inside a function or class cannot be imported by its path
                digests |= _digest_value(path, import_by_path(path), as_loaded)
    return digests


def name_source(key: str) -> str:
    """Return the words for the source of a key of `digest_user_code`.

    >>> name_source("nets:Net"), name_source("nets:Net, imports")
    ('nets:Net', 'the modules that nets:Net imports')
    """
    return f"the modules that {key.removesuffix(IMPORTS_SUFFIX)} imports" if key.endswith(IMPORTS_SUFFIX) else key


def _digest_value(path: str, value: object, as_loaded: bool) -> dict[str, str]:
    """Return the digests of the source of a class or function, as in `digest_user_code`; nothing without a source file."""
    key = path, id(value)
    if as_loaded and key in _loaded_digests:
        return _loaded_digests[key][1]
    modules = _list_recorded_modules(path, value)
    files = {path: _list_class_files(value, modules)}
    if not _is_component(value):
        own_files = sorted({item for module in modules for item in _find_module_file(module)})
        own_paths = {file.resolve() for _, file in own_files}
        imported_files = [(name, file) for name, file in files[path] if file.resolve() not in own_paths]
        files = {path: own_files, f"{path}{IMPORTS_SUFFIX}": imported_files}
    digests = {name: _digest_files(items) for name, items in files.items() if items}
    if as_loaded:
        _loaded_digests[key] = value, digests
    return digests


def _list_recorded_modules(path: str, value: object) -> list[str]:
    return [module for module in _list_user_modules(path, value) if _is_recorded(module)]


def _is_recorded(module: str) -> bool:
    return module.partition(".")[0] not in _UNRECORDED_MODULES


def _identify_class(path: str) -> ClassIdentity:
    value = import_by_path(path)
    modules = _list_user_modules(path, value)
    releases = {release for module in modules if (release := _find_release(module.partition(".")[0]))}
    return ClassIdentity(path, _digest_files(_list_class_files(value, modules)), ", ".join(sorted(releases)))


def _list_user_modules(path: str, value: object) -> list[str]:
    """Return the modules outside fedsgd of a class or function and of its base classes."""
    bases = value.__mro__ if isinstance(value, type) else ()
    modules = {path.partition(":")[0], *(base.__module__ for base in bases)}
    return sorted(module for module in modules if not is_own_module(module))


def _list_class_files(value: object, modules: Sequence[str]) -> list[tuple[str, Path]]:
    """Return (name, path) of the source files of a class or function, sorted."""
    return sorted({item for module in modules for item in _list_files(module, _is_component(value))})


def _is_component(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Component)


def _digest_files(files: Sequence[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, file in files:
        content = file.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:_DIGEST_LENGTH]


def _list_files(module: str, follow_imports: bool) -> list[tuple[str, Path]]:
    """Return (name, path) of the files that define a module."""
    root = find_root(module)
    if root is not None and (follow_imports or not is_installed(root)) and (files := list_source_files(module, root)):
        return list(files.items())
    return _find_module_file(module)


def _find_module_file(module: str) -> list[tuple[str, Path]]:
    """Return (module, path) of the file of a module; nothing for a module without a file."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a main script, and a module that was created in memory
        return []
    return [(module, Path(spec.origin))] if spec is not None and spec.has_location and spec.origin else []


def _find_release(top: str) -> str:
    """Return the name and version of the distribution that has a top-level module, "" for a module that is not installed."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in sorted(set(_map_distributions().get(top, ()))))


@cache
def _map_distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())
