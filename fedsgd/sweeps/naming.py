"""What the cells of a sweep are called, for people and for the file system."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LONGEST = 80
"""Characters of a folder's name, before what makes it unique."""


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key its last part, or all of it where another one ends alike, and of what is not the run's own seed."""
    last = {key: key.rpartition(".")[2] for key in keys}
    shared = Counter(last.values())
    return {key: key if shared[name] > 1 or name == "seed" else name for key, name in last.items()}


def shown(value: Any) -> str:
    """A setting's value in a label: 0.001, true, persist, 64 32; of a component its name and then its keys."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return (f"{value:g}" if float(f"{value:g}") == value else repr(value)).replace("e+", "e")
    if isinstance(value, Mapping):
        keys = [f"{key} {shown(item)}" for key, item in value.items() if key != "name"]
        return " ".join([shown(value["name"]), *keys] if "name" in value else keys)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(shown(item) for item in value) or "none"
    return str(value)


def settings_text(settings: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """ "density 0.001, lr 0.2"; names: see `short_names`."""
    return ", ".join(f"{names[key]} {shown(value)}" for key, value in settings.items())


def slug(text: str) -> str:
    """A name for a folder: lower-case letters, digits, dots and hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.")[:LONGEST].strip("-.") or "cell"


def unique_slugs(texts: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """A folder's name for each of different texts: those that would have the same, or one that is taken, get -2, -3, ..., in
    the order given."""
    used, out = set(taken), {}
    for text in texts:
        first = name = slug(text)
        n = 1
        while name in used:
            n += 1
            name = f"{first}-{n}"
        used.add(name)
        out[text] = name
    return out
