"""Search for sections, components and keys of a scenario by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsgd.config.component import Component
from fedsgd.config.python_objects import format_one_line
from fedsgd.config.registry import Registry, refuse_plugins
from fedsgd.errors import ScenarioError
from fedsgd.scenario.key_reference import (
    TOP_LEVEL,
    ComponentReference,
    KeyReference,
    KeyTable,
    SectionReference,
    describe_component,
    describe_section,
    list_sections,
)
from fedsgd.scenario.parsing import REGISTRIES

MAX_SUGGESTIONS = 3


@dataclass(frozen=True)
class Explanation:
    """Descriptions of everything that a name stands for.

    Attributes:
        sections: sections of this name.
        components: components of this name, from all families.
        keys: keys of this name; keys with equal descriptions are joined.
    """

    sections: Sequence[SectionReference]
    components: Sequence[ComponentReference]
    keys: Sequence[KeyReference]

    def to_json(self) -> dict[str, Any]:
        """Return the descriptions as plain data."""
        return {name: [part.to_json() for part in parts] for name, parts in vars(self).items()}


def explain(name: str) -> Explanation:
    """Describe what a name stands for.

    >>> [key.key for key in explain("error_feedback").keys]
    ['uplink.error_feedback']

    Args:
        name: section, component, dotted key, last part of a dotted key, or "component.key".

    Raises:
        ScenarioError: the name is unknown; the message has the nearest names.
    """
    section = find_section(name)
    plain_name = _strip_brackets(name)
    sections = [] if section is None else [describe_section(section)]
    components = _find_components(plain_name)
    explanation = Explanation(sections, components, [] if sections else find_keys(plain_name, bool(components)))
    if not (explanation.sections or explanation.components or explanation.keys):
        raise ScenarioError(f'got "{name}", expected a section, a component or a key{_suggest(plain_name)}')
    return explanation


def find_section(name: str) -> str | None:
    """Return the section that "participation" or "[participation]" names, None if there is none.

    Args:
        name: name of the section.
    """
    plain_name = _strip_brackets(name)
    return plain_name if plain_name in list_sections() else None


def _strip_brackets(name: str) -> str:
    return name.strip().removeprefix("[").removesuffix("]")


def find_keys(name: str, only_last_part: bool = False) -> list[KeyReference]:
    """Describe all keys that a name stands for; keys with equal descriptions are joined.

    Args:
        name: dotted key, "component.key", or the last part of a dotted key.
        only_last_part: True for a name that is no dotted key from the top level, because a component has it.
    """
    *parents, leaf = name.split(".")
    tables = [] if only_last_part else _walk([KeyTable()], parents)
    descriptions = [description for table in tables for description in table.describe(leaf)]
    if not descriptions:
        members = KeyTable().find_members()
        first, *others = parents or [leaf]
        named = [table for table in members if getattr(table.cls, "name", None) == first]
        tables = _walk(named, others) if parents else [table for table in members if leaf in table.list_keys()]
        descriptions = [description for table in tables for description in table.describe(leaf)]
    if not descriptions and parents:
        return _find_open_table(name)
    return _join_equal(descriptions)


def list_next_keys(prefix: str) -> list[tuple[KeyReference, bool]]:
    """Return (description, True if the key can have keys of its own) of each key that a prefix leads to.

    Plugins are not imported.

    Args:
        prefix: dotted key without its last characters, such as "uplink.comp".
    """
    *parents, start = prefix.split(".")
    with refuse_plugins():
        tables = _walk([KeyTable()], parents)
        keys = dict.fromkeys(key for table in tables for key in table.list_all_keys() if key.startswith(start))
        return [(_describe_any(tables, key), any(table.find_children(key) for table in tables)) for key in keys]


def _describe_any(tables: Sequence[KeyTable], key: str) -> KeyReference:
    return next(description for table in tables for description in table.describe(key))


def _walk(tables: Sequence[KeyTable], keys: Sequence[str]) -> list[KeyTable]:
    """Return the tables that a path of keys leads to."""
    for key in keys:
        tables = [child for table in tables for child in table.find_children(key)]
    return list(tables)


def _find_open_table(name: str) -> list[KeyReference]:
    """Describe the key that leads to a table with free keys, such as model.metrics for "model.metrics.f1"."""
    parents = name.rpartition(".")[0]
    while parents:
        keys = [key for key in find_keys(parents) if key.type == "a table" or key.type.startswith("a table, each")]
        if keys:
            return keys
        parents = parents.rpartition(".")[0]
    return []


def _join_equal(descriptions: Iterable[KeyReference]) -> list[KeyReference]:
    """Join the descriptions that differ only in their components and examples; the first example is kept."""
    joined: dict[str, KeyReference] = {}
    for description in descriptions:
        identity = repr(replace(description, components={}, example={}, settings=()))
        first = joined.setdefault(identity, description)
        joined[identity] = replace(first, components={**first.components, **description.components})
    return list(joined.values())


def _find_components(name: str) -> list[ComponentReference]:
    """Describe the components of a name in all families; ScenarioError if it names a class that cannot be used."""
    registries: list[Registry[Any]] = list(dict.fromkeys(REGISTRIES.values()))
    if ":" not in name:
        named = [registry for registry in registries if name in [*registry.list_names(), *registry.aliases]]
        return [_describe_plugin(registry, name) for registry in named]
    problems = []
    for registry in registries:
        try:
            return [_describe_plugin(registry, name)]
        except ScenarioError as error:
            problems.append(error)
    raise problems[0]


def _describe_plugin(registry: Registry[Any], name: str) -> ComponentReference:
    """Describe a component; ScenarioError for a user's class whose defaults or annotations cannot be read."""
    try:
        return describe_component(registry, name)
    except ScenarioError:
        raise
    except Exception as error:  # annotations and defaults of the user's class may be wrong in any way
        if name in [*registry]:
            raise
        raise ScenarioError(format_one_line(f"{name} cannot be described: {type(error).__name__}: {error}")) from error


def list_names() -> list[str]:
    """Return all names that `explain` accepts: sections, components, dotted keys and their last parts."""
    tables = [KeyTable(), *KeyTable().find_members()]
    dotted_keys = [f"{table.place}.{key}".lstrip(".") for table in tables for key in table.list_keys()]
    components = [str(table.cls.name) for table in tables if issubclass(table.cls, Component)]
    return list(dict.fromkeys([*list_sections(), *components, *dotted_keys, *(key.split(".")[-1] for key in dotted_keys)]))


def _suggest(name: str) -> str:
    """Return the nearest names as the end of a message."""
    names = list_names()
    parents = name.rpartition(".")[0]
    while parents and parents not in names:
        parents = parents.rpartition(".")[0]
    names += [key.key for key, _ in list_next_keys(f"{parents}.")] if parents else []
    near = difflib.get_close_matches(name, dict.fromkeys(names), MAX_SUGGESTIONS)
    listing = f"nearest: {', '.join(f'{word!r}' for word in near)}".replace("'", '"')
    return f"; {listing}" if near else f"; `fedsgd list` shows sections and components, and `fedsgd list {TOP_LEVEL}` its keys"
