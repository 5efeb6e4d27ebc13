"""Descriptions of the members of component families, for listings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from fedsgd.config.component import field_defaults, field_types
from fedsgd.config.python_objects import format_one_line
from fedsgd.config.registry import Registry
from fedsgd.errors import ScenarioError
from fedsgd.scenario.parsing import dump_value


def describe_registry(registry: Registry[Any]) -> list[dict[str, Any]]:
    """Describe the members of a family, plugins included.

    A description has the member's name, its aliases ("also"), the first line of its docstring ("summary"), its keys with their
    defaults ("required" without a default), and the options of each key that accepts one of a few values. A plugin's has its
    "origin" too, and an "error" in place of all but the name if the plugin cannot be used.
    """
    members: list[dict[str, Any]] = [_describe_member(registry, name) for name in registry]
    for name in registry.list_plugin_names():
        origin = registry.describe_origin(name)
        try:
            member = _describe_member(registry, name)
            _check_defaults(member["keys"])
            members.append({**member, "origin": origin})
        except Exception as error:  # annotations and defaults of the user's class may be wrong in any way
            problem = str(error) if isinstance(error, ScenarioError) else f"{type(error).__name__}: {error}"
            members.append({"name": name, "origin": origin, "error": format_one_line(problem)})
    return members


def _describe_member(registry: Registry[Any], name: str) -> dict[str, Any]:
    cls: Any = registry[name]
    keys = {key: dump_value(field_defaults(cls).get(key, "required")) for key in field_types(cls)}
    aliases = [alias for alias, member in registry.aliases.items() if member == name]
    options = {key: list_options(annotation, keys[key]) for key, annotation in field_types(cls).items()}
    options = {key: values for key, values in options.items() if values}
    return {"name": name, "also": aliases, "summary": cls.get_summary(), "keys": keys, "options": options}


def _check_defaults(keys: Mapping[str, Any]) -> None:
    """Raise a ScenarioError for a default of a user's class that no file can hold, such as a NumPy number."""
    for key, default in keys.items():
        try:
            json.dumps(default, allow_nan=False)
        except (TypeError, ValueError):
            kind = type(default).__name__
            problem = f"got the default {default!s} ({kind}), expected a finite number, a text, a list or a table"
            raise ScenarioError(f"{key}: {problem}") from None


def list_options(annotation: Any, default: Any) -> list[Any]:
    """Return the few values that a key accepts, its default first; an empty list for a key that accepts other values."""
    if get_origin(annotation) is Literal:
        return sorted(get_args(annotation), key=lambda value: value != default)
    return [value for part in get_args(annotation) for value in list_options(part, default)]
