"""Classes and functions outside fedsgd that settings use: their import paths, and the identity that both ends compare.

A frame names a user's codec by a number only. So server and node compare these identities before round 1.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from fedsgd.config.component import Component, ValidatedConfig
from fedsgd.config.registry import import_by_path
from fedsgd.errors import WireError
from fedsgd.flower.source_files import find_root, is_own_module, list_source_files

_DIGEST_LENGTH = 16


class ClassIdentity(NamedTuple):
    """Identity of a class or function outside fedsgd.

    Attributes:
        path: "my_package.my_module:MyClass".
        sha256: first 16 digits of the SHA-256 of the source. For a component, the source has the modules of the class and of
            its base classes, and the modules that these import (see `list_source_files`). For a function or a torch module, the
            source is its own module.
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


def identify_classes(paths: Sequence[str]) -> list[ClassIdentity]:
    """Return the identity of each class or function. ScenarioError if one of them cannot be imported.

    Args:
        paths: import paths.
    """
    return [_identify_class(path) for path in paths]


def _identify_class(path: str) -> ClassIdentity:
    value = import_by_path(path)
    bases = value.__mro__ if isinstance(value, type) else ()
    modules = {path.partition(":")[0], *(base.__module__ for base in bases)}
    user_modules = sorted(module for module in modules if not is_own_module(module))
    digest = hashlib.sha256()
    is_component = isinstance(value, type) and issubclass(value, Component)
    for name, file in sorted({item for module in user_modules for item in _list_files(module, is_component)}):
        content = file.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    releases = {release for module in user_modules if (release := _find_release(module.partition(".")[0]))}
    return ClassIdentity(path, digest.hexdigest()[:_DIGEST_LENGTH], ", ".join(sorted(releases)))


def _list_files(module: str, follow_imports: bool) -> list[tuple[str, Path]]:
    """Return (name, path) of the files that define a module."""
    root = find_root(module)
    if root is not None and follow_imports and (files := list_source_files(module, root)):
        return list(files.items())
    spec = importlib.util.find_spec(module)
    return [(module, Path(spec.origin))] if spec is not None and spec.has_location and spec.origin else []


def _find_release(top: str) -> str:
    """Return the name and version of the distribution that has a top-level module, "" for a module that is not installed."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in sorted(set(_map_distributions().get(top, ()))))


@cache
def _map_distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def find_mismatch(expected: Sequence[ClassIdentity], actual: Sequence[ClassIdentity]) -> str | None:
    """Return the first difference between the classes of server and node in words; None if all are equal.

    Releases are compared where both are known, because a module that travels in an app is not installed at the node.

    Args:
        expected: the server's classes.
        actual: the node's classes.
    """
    actual_by_path = {identity.path: identity for identity in actual}
    for server in expected:
        node = actual_by_path.get(server.path)
        if node is None:
            return f"{server.path} is not among the node's classes {sorted(actual_by_path)}"
        has_other_release = server.release != node.release and server.release and node.release
        if has_other_release or server.sha256 != node.sha256:
            return f"{server.path} is not the server's: the node has {node}; the server has {server}"
    return None


def encode_identities(identities: Sequence[ClassIdentity]) -> str:
    """Return identities as JSON.

    Args:
        identities: identities of classes.
    """
    return json.dumps(identities)


def decode_identities(text: object) -> list[ClassIdentity]:
    """Return the identities that `encode_identities` encoded. WireError for any other text.

    Args:
        text: received value.
    """
    try:
        identities = [ClassIdentity(*entry) for entry in json.loads(text if isinstance(text, str) else "")]
    except (ValueError, TypeError, RecursionError):
        raise WireError(0, "the identities of the user's classes cannot be read") from None
    if not all(isinstance(value, str) for identity in identities for value in identity):
        raise WireError(0, "the identities of the user's classes cannot be read")
    return identities
