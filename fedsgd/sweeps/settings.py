"""Settings of a sweep: grids of values, and files of methods."""

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
"""Values by dotted key."""
Grid = Mapping[str, Sequence[Any]]
"""Lists of values by dotted key."""
_SEED_HINT = "a sweep sets the seeds itself; use `seeds` for their number"


# ------------------------------------------------------------------------------------------------------------------------ grids


def parse_grids(texts: Iterable[str], option: str) -> dict[str, list[Any]]:
    """Parse the grid of a command line.

    >>> parse_grids(["uplink.compressor.density=0.1,0.01", "model.hidden=[[64], [32, 32]]"], "--grid")
    {'uplink.compressor.density': [0.1, 0.01], 'model.hidden': [[64], [32, 32]]}

    Args:
        texts: `KEY=V1,V2,...` with values as for `--set`; or `KEY=[V1, V2]`, a TOML array whose items may contain commas.
        option: name of the command-line option, for messages.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not key or not all(key.split(".")):
            raise ScenarioError(f"{option} {text}: expected KEY=V1,V2,..., for example uplink.compressor.density=0.001,0.01")
        if key in grid:
            raise ScenarioError(f"{option} {key}: got it twice, expected all values in one {option}")
        grid[key] = _parse_array(values, f"{option} {key}") if values.startswith("[") else _parse_list(key, values, option)
    return grid


def _parse_array(text: str, message_prefix: str) -> list[Any]:
    try:
        values = tomllib.loads(f"values = {text}")["values"]
    except ValueError as error:
        raise ScenarioError(f"{message_prefix}: not a TOML array: {error}; example with arrays: [[64], [32, 32]]") from None
    return list(values)


def _parse_list(key: str, text: str, option: str) -> list[Any]:
    values = []
    for piece in (piece.strip() for piece in text.split(",")):
        value = parse_setting(f"{key}={piece}")[1]
        if isinstance(value, str) and value == piece and piece[:1] in ("{", "[", '"', "'"):
            raise ScenarioError(f"{option} {key}: got {piece!r}, expected a TOML array, {key}=[...], for values with commas")
        values.append(value)
    return values


def check_grids(grid: Grid, tune: Grid) -> None:
    """Raise a ScenarioError if a key is in both `grid` and `tune`, is `seed`, or has no values or equal values."""
    for option, option_grid in (("grid", grid), ("tune", tune)):
        if not isinstance(option_grid, Mapping):
            raise ScenarioError(
                f"{option}: got {describe_value(option_grid)}, expected a dictionary of lists of values by dotted key"
            )
        for key, values in option_grid.items():
            if not isinstance(key, str):
                raise ScenarioError(f'{option}: got the key {describe_value(key)}, expected a dotted key: "server.cohort"')
            if key == "seed":
                raise ScenarioError(f"{option} seed: {_SEED_HINT}")
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise ScenarioError(f"{option} {key}: got {values!r}, expected a list of values")
            if not values:
                raise ScenarioError(f"{option} {key}: no values, expected one or more")
            for i, value in enumerate(values):
                if value == "":
                    raise ScenarioError(f"{option} {key}: value {i + 1} is empty")
                if any(_is_same_value(value, previous) for previous in values[:i]):
                    raise ScenarioError(f"{option} {key}: got {value!r} twice")
    for key in grid:
        if key in tune:
            raise ScenarioError(f"{key}: got it in grid and in tune, expected it in one of them")


def _is_same_value(value: Any, other: Any) -> bool:
    """Return True if two values are the same setting: 1 equals 1.0, but not true."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


# ---------------------------------------------------------------------------------------------------------------------- methods


def read_methods(path: Path) -> dict[str, Any]:
    """Read a TOML file of methods: a table of settings for each label."""
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        other_names = sorted(p.name for p in path.parent.glob("*.toml") if p.name != path.name)
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}){suggest_name(path.name, other_names)}") from None
    except (ValueError, RecursionError) as error:
        hint = '; a label with spaces is quoted: ["top-k 1 %"]' if isinstance(error, tomllib.TOMLDecodeError) else ""
        raise ScenarioError(f"{path}: not valid TOML: {error}{hint}") from None


def normalize_methods(methods: Mapping[str, Any], message_prefix: str) -> dict[str, DottedSettings]:
    """Check methods, whose settings are nested or dotted, and return dotted settings by label.

    `message_prefix` precedes messages, such as the methods' file. A wrong label or setting, or no method, raises a
    ScenarioError.
    """
    if not isinstance(methods, Mapping):
        raise ScenarioError(
            f"methods: got {describe_value(methods)}, expected a dictionary of settings by label, or the path of a TOML file"
        )
    if not methods:
        raise ScenarioError(f"{message_prefix}got no methods, expected a table for each method")
    settings_by_label: dict[str, DottedSettings] = {}
    for label, table in methods.items():
        if not isinstance(label, str):
            raise ScenarioError(f"{message_prefix}[{label!r}]: expected a text as the label")
        if not isinstance(table, Mapping):
            raise ScenarioError(f"{message_prefix}{label}: expected a table of settings, one for each method, got {table!r}")
        if not label.strip() or not label.isprintable():
            raise ScenarioError(f"{message_prefix}[{label!r}]: expected a label of printable characters")
        check_settings(table, f"{message_prefix}[{label}]")
        settings_by_label[label] = flatten_table(table)
        if "seed" in settings_by_label[label]:
            raise ScenarioError(f"{message_prefix}[{label}]: seed: {_SEED_HINT}")
    return settings_by_label


def flatten_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables as dotted settings.

    A component's table with the component's name is one value, which replaces the whole component. The keys of a table without
    a name are set in the present component.

    >>> flatten_table({"uplink": {"compressor": {"name": "top-k", "density": 0.01}}, "client": {"optimizer": {"lr": 0.1}}})
    {'uplink.compressor': {'name': 'top-k', 'density': 0.01}, 'client.optimizer.lr': 0.1}
    """
    settings: dict[str, Any] = {}
    for key, value in table.items():
        cls = _find_class(key)
        if isinstance(value, Mapping) and cls is not None and not _names_component(cls, value):
            settings.update(flatten_table({f"{key}.{inner_key}": item for inner_key, item in value.items()}))
        else:
            settings[key] = value
    return settings


def _find_class(dotted_key: str) -> type | None:
    """Return the section or component family of a scenario at a dotted key; None for plain values and unknown keys."""
    cls: type | None = Scenario
    for part in dotted_key.split("."):
        cls = None if cls is None else component_type(field_types(cls).get(part))
    return cls


def _names_component(cls: type, table: Mapping[str, Any]) -> bool:
    """Return True if a table names its component. A section is not a component, even if it has a key `name`."""
    if issubclass(cls, SettingsSection) or not issubclass(cls, Component):
        return False
    return "name" in table or any(key in REGISTRIES[cls].implied_names for key in table)
