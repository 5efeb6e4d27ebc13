"""Overrides of a scenario: dotted keys and `key=value` texts, applied to nested tables."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from fedsgd.config.component import Component, component_type, describe_value, field_defaults, field_types
from fedsgd.errors import ScenarioError
from fedsgd.scenario.parsing import REGISTRIES, SettingsSection, dump_table, list_direct_keys


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse `a.b=VALUE` to ("a.b", value), with VALUE as TOML, or else as a plain word or number.

    >>> parse_setting("uplink.compressor.density=0.1")
    ('uplink.compressor.density', 0.1)
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise ScenarioError(f"--set {text}: expected KEY=VALUE, for example uplink.compressor.density=0.1")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except ValueError:  # not TOML, or a number with too many digits
        try:
            return key, float(value)
        except ValueError:
            return key, value.strip()


def check_settings(settings: object, label: str = "settings") -> None:
    """Raise a ScenarioError, with `label` as its subject, unless settings are a mapping of values by dotted key, or None."""
    example = 'expected a dictionary of values by dotted key: {"server.cohort": 5}'
    if settings is not None and not isinstance(settings, Mapping):
        raise ScenarioError(f"{label}: got {describe_value(settings)}, {example}")
    for key in settings or ():
        if not isinstance(key, str) or not all(key.split(".")):
            raise ScenarioError(f"{label}: got the key {describe_value(key)}, {example}")


def find_setting(settings: Mapping[str, Any], dotted_key: str, default: Any = None) -> Any:
    """Return the value of a key that settings have under the key itself or within the table of an outer key.

    A text in place of a component's table is its name.

    >>> find_setting({"data.partition": {"name": "iid", "clients": 7}}, "data.partition.clients")
    7

    Args:
        settings: values by dotted key.
        dotted_key: key.
        default: value for a key that no setting has.
    """
    parts = dotted_key.split(".")
    for depth in range(len(parts), 0, -1):
        value = settings.get(".".join(parts[:depth]))
        for part in parts[depth:]:
            inner = value.get(part) if isinstance(value, Mapping) else None
            value = value if part == "name" and isinstance(value, str) else inner
        if value is not None:
            return value
    return default


def apply_settings(root: type, toml_table: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables of the class `root` with dotted keys set, to values or components; `toml_table` stays unchanged.

    Setting a `name`, or a key that implies another name, removes the other keys of the component, which then take the new
    member's defaults. Outer keys are set before inner keys, and names before neighbouring keys, whatever the order of
    `settings`.
    """
    result = _copy_tables(toml_table)
    key_by_section: dict[tuple[str, ...], str] = {}
    name_keys = {"name", *(key for registry in REGISTRIES.values() for key in registry.implied_names)}
    for dotted_key in sorted(settings, key=lambda key: (key.count("."), key.split(".")[-1] not in name_keys)):
        *parents, leaf = dotted_key.split(".")
        table, cls = _resolve_section(root, result, parents, dotted_key)
        implied_name = REGISTRIES[cls].implied_names.get(leaf) if cls is not None and cls in REGISTRIES else None
        if implied_name is not None and table.get("name", implied_name) != implied_name:
            table.clear()
        if leaf == "name" and parents and cls is not None:
            direct_keys = list_direct_keys(cls) if issubclass(cls, SettingsSection) else ()
            for key in [k for k in table if k not in direct_keys]:
                del table[key]
        is_set = settings[dotted_key] is not None
        if is_set and cls is not None and issubclass(cls, SettingsSection) and leaf in cls.mutually_exclusive:
            other_key = key_by_section.setdefault(tuple(parents), dotted_key)
            if other_key != dotted_key:
                raise ScenarioError(f"{dotted_key}: is set together with {other_key}, expected only one of them")
            for other in cls.mutually_exclusive:
                table.pop(other, None)
        value = settings[dotted_key]
        value = dump_table(value) if isinstance(value, Component) else value
        table[leaf] = _copy_tables(value) if isinstance(value, Mapping) else value
    return result


def _resolve_section(
    root: type, table: dict[str, Any], parents: list[str], dotted_key: str
) -> tuple[dict[str, Any], type | None]:
    """Return (table at a path, class of its section or component, None for plain data).

    Missing tables on the path are created, missing components with their defaults.
    """
    cls: type | None = root
    for depth, part in enumerate(parents):
        cls = _member_class(cls, table)
        default = None if cls is None else field_defaults(cls).get(part)
        if part not in table:
            table[part] = dump_table(default) if isinstance(default, Component) else {}
        if isinstance(table[part], str):
            table[part] = {"name": table[part]}
        if not isinstance(table[part], dict):
            raise ScenarioError(f"{dotted_key}: {'.'.join(parents[: depth + 1])} is {table[part]!r}, which has no keys")
        table, cls = table[part], None if cls is None else component_type(field_types(cls).get(part))
    return table, cls


def _member_class(cls: type | None, table: Mapping[str, Any]) -> type | None:
    """Return the family member that a table names, which may have keys of its own, or `cls` if the table names no member."""
    name = table.get("name")
    if cls is None or cls not in REGISTRIES or not REGISTRIES[cls].is_valid_name(name):
        return cls
    try:
        member: type = REGISTRIES[cls][str(name)]
    except ScenarioError:  # a user's class that cannot be imported; creating it raises the error
        return cls
    return member


def _copy_tables(toml_table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy_tables(v) if isinstance(v, Mapping) else v for k, v in toml_table.items()}
