"""What the cells of a sweep are called, for people and for the file system."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedsgd.config.python_objects import COMPONENT_DIGEST_PREFIX, PYTHON_OBJECT_NAME, is_marker

FINGERPRINT_DIGITS = 6
"""Hexadecimal digits of a fingerprint in a label."""
MARKER_KEYS = ("description", "sha256", "initial_sha256")
"""Keys of the table that stands for a Python object."""
MAX_SLUG_LENGTH = 80
"""Characters of a folder's name, before what makes it unique."""


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key its last part, or all of it where another one ends alike, and of what is not the run's own seed."""
    last = {key: key.rpartition(".")[2] for key in keys}
    shared = Counter(last.values())
    return {key: key if shared[name] > 1 or name == "seed" else name for key, name in last.items()}


def format_value(value: Any) -> str:
    """A setting's value in a label: 0.001, true, persist, 64 32; of a component its name and then its keys."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return (f"{value:g}" if float(f"{value:g}") == value else repr(value)).replace("e+", "e")
    if isinstance(value, Mapping):
        keys = [f"{key} {format_value(item)}" for key, item in value.items() if key != "name"]
        return " ".join([format_value(value["name"]), *keys] if "name" in value else keys)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(format_value(item) for item in value) or "none"
    return str(value)


def name_objects(settings_of_runs: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return settings, JSON texts by dotted key, with the markers of Python objects as short names.

    A name is that of a class or a function. Six digits of the fingerprint follow where objects of one name differ.
    """
    objects = [_find_objects(settings) for settings in settings_of_runs]
    digests: dict[tuple[str, str], set[str]] = {}
    initial: dict[tuple[str, str] | None, set[str]] = {}
    for settings, named in zip(settings_of_runs, objects, strict=True):
        initial.setdefault(named.get("model.name"), set()).add(_get_initial_fingerprint(settings))
        for key, (name, digest) in named.items():
            digests.setdefault((key, name), set()).add(digest)
    out = []
    for settings, named in zip(settings_of_runs, objects, strict=True):
        apart = {f"{key.removesuffix('name')}{part}" for key in named if key.endswith(".name") for part in MARKER_KEYS}
        apart |= {"model.parameters"} if "model.name" in named else set()
        short = {key: value for key, value in settings.items() if key not in apart}
        for key, (name, digest) in named.items():
            short[key] = json.dumps(f"{name} {digest[:FINGERPRINT_DIGITS]}".strip() if len(digests[key, name]) > 1 else name)
        if len(initial[named.get("model.name")]) > 1:
            short["model.initial"] = json.dumps(_get_initial_fingerprint(settings)[:FINGERPRINT_DIGITS])
        out.append(short)
    return out


def _get_initial_fingerprint(settings: Mapping[str, str]) -> str:
    """Return the fingerprint of the initial parameters of a module that was given, "" where there is none."""
    return str(json.loads(settings.get("model.initial_sha256", '""')))


def _find_objects(settings: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return dotted key → (name, fingerprint) of the markers among settings."""
    named = {}
    for key, text in settings.items():
        value = json.loads(text)
        table = key.removesuffix("name")
        if value == PYTHON_OBJECT_NAME and table.endswith("."):
            description, digest = (json.loads(settings.get(f"{table}{part}", '""')) for part in MARKER_KEYS[:2])
            name = "given" if table == "data." and "(" not in description else re.split(r" of |\(", description)[0]
            named[key] = name or "given", digest.removeprefix(COMPONENT_DIGEST_PREFIX)
        elif is_marker(value):
            named[key] = re.split(r": | of ", value)[1], value.rpartition(" ")[2]
    return named


def format_settings(settings: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """ "density 0.001, lr 0.2"; names: see `shorten_keys`."""
    return ", ".join(f"{names[key]} {format_value(value)}" for key, value in settings.items())


def slugify(text: str) -> str:
    """A name for a folder: lower-case letters, digits, dots and hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.")[:MAX_SLUG_LENGTH].strip("-.") or "cell"


def assign_unique_slugs(texts: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """A folder's name for each of different texts: those that would have the same, or one that is taken, get -2, -3, ..., in
    the order given."""
    used, out = set(reserved), {}
    for text in texts:
        first = name = slugify(text)
        n = 1
        while name in used:
            n += 1
            name = f"{first}-{n}"
        used.add(name)
        out[text] = name
    return out
