"""What a sweep is asked for: grids of settings, and files of methods."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsgd.config.component import Component, component_type, describe_value, field_types
from fedsgd.errors import ScenarioError, suggest_name
from fedsgd.scenario.overrides import check_settings, parse_setting
from fedsgd.scenario.parsing import REGISTRIES, SettingsSection
from fedsgd.scenario.scenario import Scenario
from fedsgd.system.user_files import read_text

DottedSettings = Mapping[str, Any]
"""Dotted key → value."""
Grid = Mapping[str, Sequence[Any]]
"""Dotted key → the values that it takes in turn."""


# ------------------------------------------------------------------------------------------------------------------------ grids


def parse_grids(texts: Iterable[str], option: str) -> dict[str, list[Any]]:
    """`KEY=V1,V2,...` → values as `--set` takes them; `KEY=[V1, V2]` → the items of a TOML array, which may hold commas.
    option: what they were given with, for messages."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not key or not all(key.split(".")):
            raise ScenarioError(f"{option} {text}: expected KEY=V1,V2,..., for example uplink.compressor.density=0.001,0.01")
        if key in grid:
            raise ScenarioError(f"{option} {key}: given twice, expected all its values in one {option}")
        grid[key] = _parse_array(values, f"{option} {key}") if values.startswith("[") else _parse_list(key, values, option)
    return grid


def _parse_array(text: str, message_prefix: str) -> list[Any]:
    try:
        values = tomllib.loads(f"values = {text}")["values"]
    except ValueError as error:
        raise ScenarioError(f"{message_prefix}: not a TOML array: {error}; where values are arrays: [[64], [32, 32]]") from None
    return list(values)


def _parse_list(key: str, text: str, option: str) -> list[Any]:
    values = []
    for piece in (piece.strip() for piece in text.split(",")):
        value = parse_setting(f"{key}={piece}")[1]
        if isinstance(value, str) and value == piece and piece[:1] in ("{", "[", '"', "'"):
            raise ScenarioError(f"{option} {key}: got {piece!r}, expected {key}=[...], a TOML array, where values hold commas")
        values.append(value)
    return values


def check_grids(grid: Grid, tune: Grid) -> None:
    """ScenarioError for a key that is in both, that has no values or the same one twice, or that is not for grids."""
    for option, given in (("grid", grid), ("tune", tune)):
        if not isinstance(given, Mapping):
            raise ScenarioError(
                f"{option}: got {describe_value(given)}, expected a dictionary of lists of values by dotted key"
            )
        for key, values in given.items():
            if not isinstance(key, str):
                raise ScenarioError(f'{option}: got the key {describe_value(key)}, expected a dotted key: "server.cohort"')
            if key == "seed":
                raise ScenarioError(f"{option} seed: a sweep goes over seeds by itself, as many as `seeds` says")
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise ScenarioError(f"{option} {key}: got {values!r}, expected a list of values")
            if not values:
                raise ScenarioError(f"{option} {key}: no values, expected one or more")
            for i, value in enumerate(values):
                if value == "":
                    raise ScenarioError(f"{option} {key}: value {i + 1} is empty")
                if any(_is_same_value(value, earlier) for earlier in values[:i]):
                    raise ScenarioError(f"{option} {key}: got {value!r} twice")
    for key in grid:
        if key in tune:
            raise ScenarioError(f"{key}: is in the grid and tuned too, expected one of them")


def _is_same_value(one: Any, other: Any) -> bool:
    """Whether two values set the same: 1 and 1.0 do, 1 and true do not."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


# ---------------------------------------------------------------------------------------------------------------------- methods


def read_methods(path: Path) -> dict[str, Any]:
    """Label → settings as nested tables, from a TOML file in which each table is a method."""
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        near = sorted(p.name for p in path.parent.glob("*.toml") if p.name != path.name)
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}){suggest_name(path.name, near)}") from None
    except (ValueError, RecursionError) as error:
        hint = '; a label with spaces is quoted: ["top-k 1 %"]' if isinstance(error, tomllib.TOMLDecodeError) else ""
        raise ScenarioError(f"{path}: not valid TOML: {error}{hint}") from None


def normalize_methods(methods: Mapping[str, Any], message_prefix: str) -> dict[str, DottedSettings]:
    """Label → dotted settings. where: what to put in front of messages."""
    if not isinstance(methods, Mapping):
        raise ScenarioError(
            f"methods: got {describe_value(methods)}, expected a dictionary of settings by label, or the path of a TOML file"
        )
    if not methods:
        raise ScenarioError(f"{message_prefix}holds no methods, expected a table for each")
    out: dict[str, DottedSettings] = {}
    for label, table in methods.items():
        if not isinstance(label, str):
            raise ScenarioError(f"{message_prefix}[{label!r}]: expected a label, a text")
        if not isinstance(table, Mapping):
            raise ScenarioError(f"{message_prefix}{label}: expected a table of settings, one for each method, got {table!r}")
        if not label.strip() or not label.isprintable():
            raise ScenarioError(f"{message_prefix}[{label!r}]: expected a name that can be printed")
        check_settings(table, f"{message_prefix}[{label}]")
        out[label] = flatten_table(table)
        if "seed" in out[label]:
            raise ScenarioError(f"{message_prefix}[{label}]: seed: a sweep goes over seeds by itself, as many as `seeds` says")
    return out


def flatten_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables as dotted settings: sections are gone into. A component's table is a value, which replaces all of what is
    there, if it names the component; else its keys are set in what is there."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        cls = _find_class(key)
        if isinstance(value, Mapping) and cls is not None and not _names_component(cls, value):
            out.update(flatten_table({f"{key}.{inner}": item for inner, item in value.items()}))
        else:
            out[key] = value
    return out


def _find_class(dotted: str) -> type | None:
    """The section or component family that a scenario has there; None for plain values and where there is nothing."""
    cls: type | None = Scenario
    for part in dotted.split("."):
        cls = None if cls is None else component_type(field_types(cls).get(part))
    return cls


def _names_component(cls: type, table: Mapping[str, Any]) -> bool:
    """Whether the table says which component it is. A section is none, even if it has a `name`."""
    if issubclass(cls, SettingsSection) or not issubclass(cls, Component):
        return False
    return "name" in table or any(key in REGISTRIES[cls].implied_names for key in table)
