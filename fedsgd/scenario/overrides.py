"""Settings over a file: `key=value` texts and dotted keys on top of nested tables."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from fedsgd.config.component import Component, component_type, describe_value, field_defaults, field_types
from fedsgd.errors import ScenarioError
from fedsgd.scenario.parsing import REGISTRIES, SettingsSection, dump_table, list_direct_keys


def parse_setting(text: str) -> tuple[str, Any]:
    """`a.b=VALUE` → ("a.b", value): VALUE as TOML, or as a plain word or number where it is not valid TOML."""
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
    """Check that settings are values by dotted key; None is none. ScenarioError for anything else; where: to put in front."""
    example = 'expected a dictionary of values by dotted key: {"server.cohort": 5}'
    if settings is not None and not isinstance(settings, Mapping):
        raise ScenarioError(f"{label}: got {describe_value(settings)}, {example}")
    for key in settings or ():
        if not isinstance(key, str) or not all(key.split(".")):
            raise ScenarioError(f"{label}: got the key {describe_value(key)}, {example}")


def apply_settings(root: type, toml_table: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables with dotted keys set. Setting a `name`, or a key that implies another one, drops the other keys of that
    component, so that they take the new member's defaults. Whatever the order given, outer keys are set before inner ones, and
    names before their neighbours. ScenarioError for settings that exclude each other."""
    out = _copy_tables(toml_table)
    excluded: dict[tuple[str, ...], str] = {}
    naming = {"name", *(key for registry in REGISTRIES.values() for key in registry.implied_names)}
    for dotted in sorted(settings, key=lambda key: (key.count("."), key.split(".")[-1] not in naming)):
        *parents, leaf = dotted.split(".")
        table, cls = _resolve_section(root, out, parents, dotted)
        implied = REGISTRIES[cls].implied_names.get(leaf) if cls is not None and cls in REGISTRIES else None
        if implied is not None and table.get("name", implied) != implied:
            table.clear()
        if leaf == "name" and parents and cls is not None:
            kept = list_direct_keys(cls) if issubclass(cls, SettingsSection) else ()
            for key in [k for k in table if k not in kept]:
                del table[key]
        given = settings[dotted] is not None
        if given and cls is not None and issubclass(cls, SettingsSection) and leaf in cls.mutually_exclusive:
            other_key = excluded.setdefault(tuple(parents), dotted)
            if other_key != dotted:
                raise ScenarioError(f"{dotted}: is set together with {other_key}, expected only one of them")
            for other in cls.mutually_exclusive:
                table.pop(other, None)
        value = settings[dotted]
        table[leaf] = _copy_tables(value) if isinstance(value, Mapping) else value
    return out


def _resolve_section(
    root: type, table: dict[str, Any], parents: list[str], dotted_key: str
) -> tuple[dict[str, Any], type | None]:
    """(the table that the parents lead to, the class it is to become or None if it is plain data). Tables on the way are made;
    a component that is not there yet starts as its default."""
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
    """Of a family the member that the table names, if there is one: it may have keys that not all of the family have."""
    name = table.get("name")
    if cls is None or cls not in REGISTRIES or not REGISTRIES[cls].is_valid_name(name):
        return cls
    try:
        member: type = REGISTRIES[cls][str(name)]
    except ScenarioError:  # a class of the user's own that cannot be imported, which is said where it is built
        return cls
    return member


def _copy_tables(toml_table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy_tables(v) if isinstance(v, Mapping) else v for k, v in toml_table.items()}
