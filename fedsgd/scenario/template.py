"""New scenarios: TOML text with the keys that a beginner changes, and all other keys as comments."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from fedsgd.compression import CompressionOperator
from fedsgd.config.component import Component, PositiveInt, component_type, field_defaults, field_types, validate_value
from fedsgd.config.registry import Registry
from fedsgd.data import DATASETS, PARTITIONERS, ClientGenerator
from fedsgd.data.partitioners.natural import NaturalPartition
from fedsgd.errors import ScenarioError
from fedsgd.scenario.companions import COMPANION_KEYS, find_companions
from fedsgd.scenario.key_reference import TOP_LEVEL, KeyReference, KeyTable, describe_section, shorten_value
from fedsgd.scenario.overrides import apply_settings, find_setting
from fedsgd.scenario.parsing import dump_value
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.scenario.sections import DataConfig
from fedsgd.scenario.toml_text import format_toml_value

DEFAULT_COHORT = 10
DEFAULT_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "seed": 0,
        "rounds": 20,
        "data.partition.name": "dirichlet",
        "data.partition.clients": 20,
        "model.name": "mlp",
        "client.optimizer.name": "sgd",
        "client.epochs": 5,
        "client.batch_size": 10,
        "uplink.compressor.name": "top-k",
        "downlink.policy": "difference",
        "report.target_accuracy": 0.9,
    }
)
"""Settings of a new scenario by dotted key."""
DATASET_SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "mnist": {"model.name": "2nn", "data.partition.clients": 100, "client.epochs": 1},
        "cifar10": {"model.name": "lenet", "data.partition.clients": 100, "client.epochs": 1, "report.target_accuracy": 0.5},
        "shakespeare": {
            "model.name": "char-lstm",
            "data.partition.name": "natural",
            "client.optimizer.lr": 1.0,
            "client.optimizer.clip_norm": 5.0,
            "client.epochs": 1,
            "report.target_accuracy": 0.4,
        },
        "text": {
            "model.name": "char-gpt",
            "data.partition.name": "iid",
            "data.partition.clients": 10,
            "client.optimizer.name": "adamw",
            "client.optimizer.lr": 1e-3,
            "client.optimizer.clip_norm": 1.0,
            "client.epochs": 1,
            "client.batch_size": 12,
            "report.target_accuracy": 0.4,
        },
        "synthetic": {"model.name": "softmax", "data.clients": 100, "client.epochs": 1},
    }
)
"""Settings for a dataset that replace those of `DEFAULT_SETTINGS`."""
SECTIONS = (
    *(TOP_LEVEL, "data", "model", "client", "server", "uplink", "downlink", "report"),
    *("stop", "evaluation", "participation", "faults", "engine", "state"),
)
MAX_LINE = 100
BEGINNER_KEYS = {
    *("name", "seed", "rounds", "data.name", "data.path", "data.clients", "data.partition", "model.name", "model.hidden"),
    *("client.optimizer", "client.epochs", "client.batch_size", "server.cohort", "uplink.compressor"),
    *("uplink.error_feedback", "downlink.policy", "report.target_accuracy"),
}
"""Keys that are no comments in a template if they have a value."""
HEADER = """\
# {name}: a scenario of fedsgd. `fedsgd explain KEY` explains a key, `fedsgd list` shows components.
# A line such as "# held_out = 0.0" shows a default, or an example for an (unset) key. Remove "# "
# in front of a key to set it.
"""


def find_defaults(dataset: str) -> dict[str, Any]:
    """Return the settings of a new scenario for a dataset, by dotted key.

    Args:
        dataset: name of the dataset.

    Raises:
        ScenarioError: no dataset has the name.
    """
    defaults = {**DEFAULT_SETTINGS, **DATASET_SETTINGS.get(dataset, {}), "data.name": dataset}
    if issubclass(_find_member(DATASETS, dataset, "data.name"), ClientGenerator):
        return {key: value for key, value in defaults.items() if not key.startswith("data.partition")}
    return defaults


def build_scenario(name: str, settings: Mapping[str, Any]) -> Scenario:
    """Return a scenario with some settings, and defaults that go with them.

    >>> build_scenario("digits", {"uplink.compressor.name": "qsgd"}).uplink.error_feedback
    'none'

    Args:
        name: name of the scenario.
        settings: values by dotted key. "clients" is the number of clients, for any dataset; a key of the
            dataset or partition replaces it.

    Raises:
        ScenarioError: a setting is wrong; the message begins with the dotted key.
    """
    dataset = str(find_setting(settings, "data.name", "digits"))
    chosen, defaults = dict(settings), find_defaults(dataset)
    clients_key = "data.clients" if issubclass(DATASETS[dataset], ClientGenerator) else "data.partition.clients"
    if clients_key == "data.partition.clients":
        partition = str(find_setting(chosen, "data.partition.name", defaults["data.partition.name"]))
        if field_defaults(_find_member(PARTITIONERS, partition, "data.partition.name")).get("clients") is None:
            defaults.pop(clients_key, None)
    clients = chosen.pop("clients", None)
    if clients is not None and find_setting(chosen, clients_key) is None:
        chosen[clients_key] = clients
    if clients_key in defaults:
        defaults[clients_key] = max(defaults[clients_key], _find_count(chosen, "server.cohort", 1))
    defaults["server.cohort"] = min(DEFAULT_COHORT, _find_count(chosen, clients_key, DEFAULT_COHORT))
    scenario = _complete(name, _drop_replaced(defaults, chosen), chosen)
    _check_owners(scenario.data)
    return scenario


def _find_count(settings: Mapping[str, Any], dotted_key: str, default: int) -> int:
    """Return the number that settings have for a key; the default for no number or a wrong one, which parsing reports."""
    try:
        count: int = validate_value(find_setting(settings, dotted_key), PositiveInt)
    except ValueError:
        return default
    return count


def _check_owners(data: DataConfig) -> None:
    """Raise a ScenarioError for a partition by owner of a dataset that is known to have no owners."""
    if isinstance(data.partition, NaturalPartition) and not data.source.may_have_owners:
        expected = 'expected another partition, or data with owners: "shakespeare", or "hugging-face" with data.owner'
        raise ScenarioError(f'data.partition: got "natural", but {data.source.name} has no owners; {expected}')


def _find_member(registry: Registry[Any], name: str, key: str) -> Any:
    """Return a member of a family; the message of a ScenarioError begins with the dotted key."""
    try:
        return registry[name]
    except ScenarioError as error:
        raise ScenarioError(f"{key}: {error}") from None


def _drop_replaced(defaults: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults without those that a chosen key replaces or excludes."""
    replaced = [f"{key}." for key in chosen] + ["client.optimizer."] * ("client.optimizer.name" in chosen)
    excluded = {other for key in chosen for other in _list_exclusive_keys(key)}
    return {key: value for key, value in defaults.items() if key not in excluded and not key.startswith(tuple(replaced))}


def _list_exclusive_keys(dotted_key: str) -> list[str]:
    """Return the dotted keys of the group of which a scenario has only one, for a key in such a group or below it."""
    section, *keys = dotted_key.split(".")
    group = getattr(component_type(field_types(Scenario).get(section)), "mutually_exclusive", ())
    return [f"{section}.{key}" for key in group] if keys and keys[0] in group else []


def _complete(name: str, defaults: Mapping[str, Any], chosen: Mapping[str, Any]) -> Scenario:
    """Return the scenario of all settings, with error feedback where it helps, and the settings that others require."""
    table = apply_settings(Scenario, {"name": name}, {**defaults, **chosen})
    fixed_keys = [key for key in COMPANION_KEYS if find_setting(chosen, f"{key}.name", find_setting(chosen, key)) is not None]
    companions = find_companions(table, fixed_keys) or {}
    settings = {**_drop_replaced(defaults, companions), **companions, **chosen}
    scenario = parse_scenario(apply_settings(Scenario, {"name": name}, settings))
    compressor = scenario.uplink.compressor
    is_biased = isinstance(compressor, CompressionOperator) and compressor.kind == "contractive" and not compressor.lossless
    needs_feedback = is_biased and find_setting(chosen, "uplink.error_feedback") is None
    return scenario.with_settings({"uplink.error_feedback": "persist"}) if needs_feedback else scenario


def render_template(scenario: Scenario) -> str:
    """Return a scenario as commented TOML. All keys are present: those that are not in use are comments.

    Args:
        scenario: scenario, for example of `build_scenario`; all its components can be imported.

    Raises:
        ScenarioError: the scenario has settings that its own text does not have, because a component is not registered.
    """
    blocks = [HEADER.format(name=scenario.name)]
    for section in SECTIONS:
        lines = [] if section == TOP_LEVEL else [f"[{section}]"]
        for key in _list_section_keys(section, scenario):
            lines += _render_key(key, _find_value(scenario, key.key))
        blocks.append("".join(f"{line}\n" for line in lines))
    text = "\n".join(blocks)
    if parse_scenario(tomllib.loads(text)) != scenario:
        raise ScenarioError(f"{scenario.name}: cannot be written as a template, expected only registered components")
    return text


def _list_section_keys(section: str, scenario: Scenario) -> list[KeyReference]:
    """Return the keys of a section, and those of the component whose keys stand in the section."""
    keys = list(describe_section(section).keys)
    member = {"data": scenario.data.source, "model": scenario.model}.get(section)
    if member is None:
        return keys
    tables = [table for table in KeyTable().find_members() if table.cls is type(member) and len(table.path) == 1]
    names = [key.key for key in keys]
    own_keys = [key for table in tables for f in fields(table.cls) for key in table.describe(f.name) if key.key not in names]
    position = 1 + next((i for i, key in enumerate(keys) if key.key == f"{section}.name"), len(keys))
    return [*keys[:position], *own_keys, *keys[position:]]


def _find_value(scenario: Scenario, dotted_key: str) -> Any:
    """Return the value of a key of a section, or of a component whose keys stand in the section."""
    section, _, key = dotted_key.rpartition(".")
    holder: Any = getattr(scenario, section) if section else scenario
    inline = [getattr(holder, f.name) for f in fields(holder) if f.metadata.get("inline")]
    return next(getattr(part, key) for part in (holder, *inline) if hasattr(part, key))


def _render_key(key: KeyReference, value: Any) -> list[str]:
    """Return the lines of a key: the key and its meaning, as a comment if the key has its default and is not for beginners."""
    name = key.key.rpartition(".")[2]
    is_active = value is not None and (key.key in BEGINNER_KEYS or shorten_value(value) != key.default)
    shown = _show_component(value) if isinstance(value, Component) else dump_value(value)
    if not is_active:
        shown = key.default if key.default not in (None, {}, []) else _find_example(key)
    line = f"{'' if is_active else '# '}{name} = {format_toml_value(shown)}"
    meaning = key.summary if is_active or key.default not in (None, {}, []) else f"(unset) {key.summary}"
    if len(line) + len(meaning) + 4 <= MAX_LINE:
        return [f"{line}  # {meaning}"]
    return [*textwrap.wrap(meaning, MAX_LINE, initial_indent="# ", subsequent_indent="# "), line]


def _find_example(key: KeyReference) -> Any:
    value: Any = key.example
    for part in key.key.split("."):
        value = value[part]
    return value


def _show_component(component: Component) -> dict[str, Any]:
    """Return a component as a table with its name, its numbers other than 0, and all keys that differ from the default."""
    changed = shorten_value(component)
    keys = {f.name: getattr(component, f.name) for f in fields(component)}
    numbers = {key: value for key, value in keys.items() if isinstance(value, int | float) and value and value is not True}
    return {"name": component.name, **numbers, **(changed if isinstance(changed, Mapping) else {})}
