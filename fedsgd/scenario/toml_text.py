"""Values and settings as TOML text."""

from __future__ import annotations

import json
import math
import re
import shlex
import tomllib
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def format_toml_value(value: Any) -> str:
    """Return a value as TOML in one line, tables inline.

    >>> format_toml_value({"name": "top-k", "density": 0.01})
    '{ name = "top-k", density = 0.01 }'
    """
    if isinstance(value, Mapping):
        entries = ", ".join(_format_line(key, entry) for key, entry in value.items())
        return f"{{ {entries} }}" if entries else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def format_toml_key(key: str) -> str:
    """Return a key of a TOML table, in quotes if it is not a bare key."""
    return key if _BARE_KEY.fullmatch(key) else format_toml_value(key)


def format_tables(table: Mapping[str, Any], width: float = math.inf) -> str:
    """Return settings as the lines of a scenario file: top-level keys first, then a section for each table.

    A table in a section is inline, unless its line would be longer than `width`: then its keys are dotted.
    """
    lines = [_format_line(key, value) for key, value in table.items() if not isinstance(value, Mapping)]
    for section, keys in table.items():
        if isinstance(keys, Mapping):
            lines.append(f"[{format_toml_key(section)}]")
            for key, value in keys.items():
                lines += _format_entry(key, value, width)
    return "\n".join(lines)


def _format_entry(key: str, value: Any, width: float) -> list[str]:
    """Return the lines of a key; dotted keys for a table that is too long for one line."""
    line = _format_line(key, value)
    if len(line) <= width or not isinstance(value, Mapping) or not value:
        return [line]
    return [f"{format_toml_key(key)}.{line}" for part, entry in value.items() for line in _format_entry(part, entry, width)]


def _format_line(key: str, value: Any) -> str:
    return f"{format_toml_key(key)} = {format_toml_value(value)}"


def format_setting(key: str, value: Any) -> str:
    """Return KEY=VALUE for `--set`, quoted for a shell where necessary.

    >>> format_setting("uplink.error_feedback", "persist")
    'uplink.error_feedback=persist'
    """
    text = format_toml_value(value)
    if isinstance(value, str) and not _is_toml(value):
        text = value
    return shlex.quote(f"{key}={text}")


def _is_toml(text: str) -> bool:
    """Return True for a text that `parse_setting` would not read as a plain word."""
    if text != text.strip():
        return True
    try:
        tomllib.loads(f"value = {text}")
    except ValueError:
        try:
            float(text)
        except ValueError:
            return False
    return True
