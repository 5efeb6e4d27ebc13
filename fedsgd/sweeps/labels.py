"""Labels of the cells of a sweep, and names of their folders."""

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
"""Keys of the table that replaces a Python object, in addition to `name`."""
MAX_SLUG_LENGTH = 80
"""Maximum number of characters of a folder's name, without the suffix that makes it unique."""


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each dotted key; the whole key if two last parts are equal or the last part is "seed".

    >>> shorten_keys(["client.optimizer.lr", "server.optimizer.lr", "uplink.compressor.density", "data.seed"])["data.seed"]
    'data.seed'
    >>> shorten_keys(["client.optimizer.lr", "uplink.compressor.density"])
    {'client.optimizer.lr': 'lr', 'uplink.compressor.density': 'density'}
    """
    last_parts = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(last_parts.values())
    return {key: key if counts[name] > 1 or name == "seed" else name for key, name in last_parts.items()}


def format_value(value: Any) -> str:
    """Return a setting's value as text for a label: for a component, the name, then the keys.

    >>> [format_value(value) for value in (0.001, True, "persist", [64, 32], {"name": "top-k", "density": 0.01})]
    ['0.001', 'true', 'persist', '64 32', 'top-k density 0.01']
    """
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
    """Return the settings of runs, JSON texts by dotted key, with short names in place of the markers of Python objects.

    A short name is the name of a class or a function. If objects of one name differ between runs, the first digits of the
    object's fingerprint follow the name.
    """
    objects_of_runs = [_find_objects(settings) for settings in settings_of_runs]
    digests: dict[tuple[str, str], set[str]] = {}
    initial_digests: dict[tuple[str, str] | None, set[str]] = {}
    for settings, objects in zip(settings_of_runs, objects_of_runs, strict=True):
        initial_digests.setdefault(objects.get("model.name"), set()).add(_get_initial_fingerprint(settings))
        for key, (name, digest) in objects.items():
            digests.setdefault((key, name), set()).add(digest)
    short_settings = []
    for settings, objects in zip(settings_of_runs, objects_of_runs, strict=True):
        marker_keys = {f"{key.removesuffix('name')}{part}" for key in objects if key.endswith(".name") for part in MARKER_KEYS}
        marker_keys |= {"model.parameters"} if "model.name" in objects else set()
        texts = {key: value for key, value in settings.items() if key not in marker_keys}
        for key, (name, digest) in objects.items():
            texts[key] = json.dumps(f"{name} {digest[:FINGERPRINT_DIGITS]}".strip() if len(digests[key, name]) > 1 else name)
        if len(initial_digests[objects.get("model.name")]) > 1:
            texts["model.initial"] = json.dumps(_get_initial_fingerprint(settings)[:FINGERPRINT_DIGITS])
        short_settings.append(texts)
    return short_settings


def _get_initial_fingerprint(settings: Mapping[str, str]) -> str:
    """Return the fingerprint of the initial parameters of a user's module, "" for other models."""
    return str(json.loads(settings.get("model.initial_sha256", '""')))


def _find_objects(settings: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return (name, fingerprint) of each Python object in the settings, by dotted key."""
    objects = {}
    for key, text in settings.items():
        value = json.loads(text)
        table = key.removesuffix("name")
        if value == PYTHON_OBJECT_NAME and table.endswith("."):
            description, digest = (json.loads(settings.get(f"{table}{part}", '""')) for part in MARKER_KEYS[:2])
            name = "given" if table == "data." and "(" not in description else re.split(r" of |\(", description)[0]
            objects[key] = name or "given", digest.removeprefix(COMPONENT_DIGEST_PREFIX)
        elif is_marker(value):
            objects[key] = re.split(r": | of ", value)[1], value.rpartition(" ")[2]
    return objects


def format_settings(settings: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return settings as text for a label, with the names of `shorten_keys`.

    >>> format_settings({"uplink.density": 0.001, "client.lr": 0.2}, {"uplink.density": "density", "client.lr": "lr"})
    'density 0.001, lr 0.2'
    """
    return ", ".join(f"{names[key]} {format_value(value)}" for key, value in settings.items())


def slugify(text: str) -> str:
    """Return a text as a folder name of lower-case letters, digits, dots and hyphens.

    >>> slugify("Top-k 1 %, density 0.01")
    'top-k-1-density-0.01'
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", ascii_text).strip("-.")[:MAX_SLUG_LENGTH].strip("-.") or "cell"


def assign_unique_slugs(texts: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """Return a unique folder name for each distinct text: equal or `reserved` names get the suffixes -2, -3, ... in order."""
    used_names, name_by_text = set(reserved), {}
    for text in texts:
        slug = name = slugify(text)
        n = 1
        while name in used_names:
            n += 1
            name = f"{slug}-{n}"
        used_names.add(name)
        name_by_text[text] = name
    return name_by_text
