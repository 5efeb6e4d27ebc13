"""Reference of all keys of a scenario, generated from the dataclasses of its sections and components.

Types, bounds and defaults come from the fields. Meanings come from the `Attributes:` lists of the docstrings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from fedsgd.config.component import (
    Component,
    add_article,
    component_type,
    describe_type,
    field_defaults,
    field_types,
    find_bounds,
    item_type,
)
from fedsgd.config.registry import Registry
from fedsgd.scenario.companions import find_companions
from fedsgd.scenario.docstrings import find_description, find_meaning, find_summary
from fedsgd.scenario.examples import is_required, list_members, make_example
from fedsgd.scenario.family_listing import list_options
from fedsgd.scenario.overrides import apply_settings
from fedsgd.scenario.parsing import REGISTRIES, dump_value, list_direct_keys, select_preset
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.toml_text import format_setting, format_tables

TOP_LEVEL = "scenario"
"""Name of the section with the keys that stand above all tables of a scenario."""


@dataclass(frozen=True)
class KeyReference:
    """Description of a key.

    Attributes:
        key: dotted key in a scenario, such as "uplink.compressor.density".
        components: class of each component that has the key with this description, by the component's name; empty for a key
            of a section.
        type: accepted values, in words.
        required: True for a key without a default.
        default: default as in a file; None: the key is unset by default.
        options: values of a key that accepts one of a few, and names of the components that a key accepts.
        bounds: bounds of a number, by their names in JSON Schema.
        meaning: description of the key.
        example: tables of a scenario that set the key, and further keys that it requires.
        settings: the same as arguments of `--set`, one for each key.
    """

    key: str
    components: Mapping[str, str]
    type: str
    required: bool
    default: Any
    options: Sequence[Any]
    bounds: Mapping[str, float]
    meaning: str
    example: Mapping[str, Any]
    settings: Sequence[str]

    @property
    def summary(self) -> str:
        """First sentence of the meaning, without its full stop."""
        return re.split(r"\.(?= [^a-z0-9]|$)", self.meaning, maxsplit=1)[0]

    def to_json(self) -> dict[str, Any]:
        """Return the description as plain data, with the example as TOML."""
        return {**vars(self), "example": format_tables(self.example)}


@dataclass(frozen=True)
class SectionReference:
    """Description of a section of a scenario.

    Attributes:
        section: name of the section; `TOP_LEVEL` for the keys above all tables.
        summary: first line of the description.
        family: plural of the family whose members' own keys are also keys of the section; "" for none.
        keys: keys of the section.
    """

    section: str
    summary: str
    family: str
    keys: Sequence[KeyReference]

    def to_json(self) -> dict[str, Any]:
        """Return the description as plain data."""
        return {**vars(self), "keys": [key.to_json() for key in self.keys]}


@dataclass(frozen=True)
class ComponentReference:
    """Description of a component.

    Attributes:
        name: name of the component.
        family: noun for a member of its family.
        aliases: other names.
        class_name: name of the class.
        summary: first line of the docstring.
        description: blocks of the docstring after the first line, see `find_description`.
        places: keys of a scenario that accept the component; [data] and [model] are named by their section.
        keys: keys of the component, at the first place.
        example: tables of a scenario that use the component, with further keys that it requires.
        settings: the same as arguments of `--set`, one for each key.
    """

    name: str
    family: str
    aliases: Sequence[str]
    class_name: str
    summary: str
    description: Sequence[str]
    places: Sequence[str]
    keys: Sequence[KeyReference]
    example: Mapping[str, Any]
    settings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return the description as plain data, with the example as TOML."""
        return {**vars(self), "keys": [key.to_json() for key in self.keys], "example": format_tables(self.example)}


@dataclass(frozen=True)
class KeyTable:
    """Table of a scenario, for a section or a component, whose keys are described.

    Attributes:
        cls: class of the section or component; the base class of a family for the keys that all its members have.
        path: keys that lead to the table; a position in a list is a number.
        example: tables of a scenario that contain this table, with its required keys.
        preset: defaults of this place that replace the defaults of the class.
        names: components that this place accepts; empty for a section.
        default_name: component that stands here by default.
    """

    cls: type = Scenario
    path: tuple[str | int, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    default_name: str | None = None

    @property
    def place(self) -> str:
        """Dotted key of the table."""
        return ".".join(part for part in self.path if isinstance(part, str))

    def list_keys(self) -> list[str]:
        """Return the keys of this table, `name` first, without the keys of components in this table."""
        return [*["name"] * bool(self.names or self._list_inline_tables()), *list_direct_keys(self.cls)]

    def list_all_keys(self) -> list[str]:
        """Return the keys of this table and of all components whose keys stand in this table, as in [data]."""
        tables = [self, *self._list_inline_tables()]
        return list(dict.fromkeys(key for table in tables for key in table.list_keys()))

    def find_children(self, key: str) -> list[KeyTable]:
        """Return the tables that a key can hold, one for each accepted component; none for a plain value.

        Args:
            key: key of this table.
        """
        return [child for table in (self, *self._list_inline_tables()) for child in table._open_key(key)]

    def find_members(self) -> list[KeyTable]:
        """Return all tables below this table, for each component that a key accepts, down to three keys below the top level.

        Components within components are those of the default component.
        """
        children = [child for f in fields(self.cls) for child in self._open_key(f.name)]
        defaults = [child for child in children if getattr(child.cls, "name", None) == child.default_name]
        deeper = [table for child in defaults if len(child.path) < 3 for table in child.find_members()]
        return children + deeper

    def describe(self, key: str) -> list[KeyReference]:
        """Describe a key, once for each component that has it. The list is empty for an unknown key.

        Args:
            key: key of this table.
        """
        if key == "name" and self.names:
            return [self._describe_name()]
        own = [self._describe_field(f) for f in fields(self.cls) if f.name == key and not f.metadata.get("inline")]
        return own + [description for table in self._list_inline_tables() for description in table.describe(key)]

    def _list_inline_tables(self) -> list[KeyTable]:
        return [child for f in fields(self.cls) if f.metadata.get("inline") for child in self._open_key(f.name)]

    def _open_key(self, key: str) -> list[KeyTable]:
        """Return the tables that a field of the class can hold."""
        f = next((f for f in fields(self.cls) if f.name == key), None)
        if f is None:
            return []
        annotation, path = field_types(self.cls)[key], self.path if f.metadata.get("inline") else (*self.path, key)
        base, item = component_type(annotation), item_type(annotation)
        if item is not None:
            return [KeyTable(item, (*path, 0)).with_example(self.example)]
        if base is None or base not in REGISTRIES:
            return [KeyTable(base, path, _insert(self.example, path, make_example(self.cls, f)))] if base is not None else []
        members, default = dict(list_members(base, f)), getattr(self._find_default(f), "name", None)
        presets = {name: select_preset(REGISTRIES[base], cls, f.metadata.get("preset", {})) for name, cls in members.items()}
        tables = {name: KeyTable(cls, path, {}, presets[name], tuple(members), default) for name, cls in members.items()}
        return [table.with_example(self.example, name) for name, table in tables.items()]

    def with_example(self, example: Mapping[str, Any], name: str | None = None) -> KeyTable:
        """Return this table with an example that has its required keys.

        Args:
            example: tables of a scenario around this table.
            name: name of the component, None for a section.
        """
        required = {f.name: make_example(self.cls, f) for f in fields(self.cls) if is_required(f)} if self.path else {}
        return replace(self, example=_insert(example, self.path, required if name is None else {"name": name, **required}))

    def _find_default(self, f: Field[Any]) -> Any:
        return {**field_defaults(self.cls), **self.preset}.get(f.name)

    def _describe_field(self, f: Field[Any]) -> KeyReference:
        annotation, default = field_types(self.cls)[f.name], self._find_default(f)
        base = component_type(annotation)
        is_member = issubclass(self.cls, Component) and self.cls not in REGISTRIES
        return KeyReference(
            key=f"{self.place}.{f.name}".lstrip("."),
            components={self.cls.name: self.cls.__name__} if issubclass(self.cls, Component) and is_member else {},
            type=_describe_accepted(annotation),
            required=is_required(f) and f.name not in self.preset,
            default=shorten_value(default),
            options=[name for name, _ in list_members(base, f)] if base in REGISTRIES else list_options(annotation, default),
            bounds=find_bounds(annotation),
            meaning=find_meaning(self.cls, f.name),
            **self._make_examples(f.name, make_example(self.cls, f, default)),
        )

    def _describe_name(self) -> KeyReference:
        family = find_registry(self.cls).family
        return KeyReference(
            key=f"{self.place}.name",
            components={},
            type=f"the name of {add_article(family)}",
            required=self.default_name is None,
            default=self.default_name,
            options=self.names,
            bounds={},
            meaning=f'{family}, whose keys stand in the same table; or a class of your own, "my_package.my_module:MyClass".',
            **self._make_examples("name", next((name for name in self.names if name != self.default_name), self.names[0])),
        )

    def _make_examples(self, key: str, value: Any) -> dict[str, Any]:
        """Return the tables that set a key, and the argument of `--set`, which replaces a whole list."""
        keys = (*self.path, key)
        is_component_name = key == "name" and bool(self.names)
        example = _insert(self.example, self.path, {key: value})
        if is_component_name:  # the other keys belong to the component of the earlier name
            example = _insert(self.example, self.path[:-1], {str(self.path[-1]): {key: value}})
        companions = find_companions(example)
        if companions is None and not is_component_name:  # the key excludes a key of the example
            shorter_examples = ((table, find_companions(table)) for table in self._list_shorter_examples(key, value))
            valid_examples = (pair for pair in shorter_examples if pair[1] is not None)
            example, companions = next(valid_examples, (example, None))
        depth = next((i for i, part in enumerate(keys) if isinstance(part, int)), len(keys))
        setting: Any = example
        for part in keys[:depth]:
            setting = setting[part]
        return _complete_examples(example, companions, {".".join(map(str, keys[:depth])): setting})

    def _list_shorter_examples(self, key: str, value: Any) -> Iterator[dict[str, Any]]:
        """Yield the example with a key, and without one of the other keys of this table."""
        table: Any = self.example
        for part in self.path:
            table = table[part]
        for other in table:
            keys = {name: entry for name, entry in {**table, key: value}.items() if name != other}
            yield _insert(self.example, self.path[:-1], {str(self.path[-1]): keys})


def list_sections() -> list[str]:
    """Return the names of the sections of a scenario, the top level first."""
    return [TOP_LEVEL, *(name for name, annotation in field_types(Scenario).items() if component_type(annotation))]


def describe_section(name: str) -> SectionReference:
    """Describe a section.

    Args:
        name: one of `list_sections`.
    """
    if name == TOP_LEVEL:
        keys = [key for key in list_direct_keys(Scenario) if key not in list_sections()]
        summary = f"Keys above all tables: {', '.join(f'`{key}`' for key in keys)}."
        return SectionReference(name, summary, "", [d for key in keys for d in KeyTable().describe(key)])
    base: Any = component_type(field_types(Scenario)[name])
    table = next(t for t in KeyTable().find_children(name) if getattr(t.cls, "name", None) == t.default_name or t.cls is base)
    if base in REGISTRIES:
        table = replace(table, cls=base)
    members = [child.cls for child in table.find_members() if child.path == table.path] or [base]
    family = next((registry.plural for cls, registry in REGISTRIES.items() if issubclass(members[0], cls)), "")
    return SectionReference(name, find_summary(table.cls), family, [table.describe(key)[0] for key in table.list_keys()])


def describe_component(registry: Registry[Any], name: str) -> ComponentReference:
    """Describe a component.

    Args:
        registry: registry of its family.
        name: name of the component, an alias, a plugin's name, or "my_package.my_module:MyClass".

    Raises:
        ScenarioError: no component of the family has the name, or the plugin cannot be used.
    """
    cls, member_name = registry[name], registry.aliases.get(name, name)
    members = [table for table in KeyTable().find_members() if issubclass(table.cls, registry.base)]
    tables = [table for table in members if table.cls is cls]
    if not tables:  # a class that only its import path names
        tables = [replace(table, cls=cls).with_example({}, member_name) for table in members[:1]]
    keys = {"name": member_name, **{f.name: make_example(cls, f) for f in fields(cls) if is_required(f)}}
    settings = {f"{tables[0].place}.{key}": value for key, value in keys.items()}
    return ComponentReference(
        name=member_name,
        family=registry.family,
        aliases=[alias for alias, member in registry.aliases.items() if member == member_name],
        class_name=cls.__name__,
        summary=find_summary(cls),
        description=find_description(cls),
        places=list(dict.fromkeys(table.place for table in tables)),
        keys=[description for f in fields(cls) for description in tables[0].describe(f.name)],
        **_complete_examples(tables[0].example, find_companions(tables[0].example), settings),
    )


def _complete_examples(
    example: Mapping[str, Any], companions: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the examples of a description, with the further settings that they require."""
    arguments = [format_setting(key, value) for key, value in {**(companions or {}), **settings}.items()]
    return {"example": apply_settings(Scenario, example, companions or {}), "settings": arguments}


def find_registry(cls: type) -> Registry[Any]:
    """Return the registry of a component's family.

    Args:
        cls: class of the component, or the base class of the family.
    """
    return next(registry for base, registry in REGISTRIES.items() if issubclass(cls, base))


def _describe_accepted(annotation: Any) -> str:
    """Return the values that a key accepts, in words."""
    base, item = component_type(annotation), item_type(annotation)
    if base is not None and base in REGISTRIES:
        return f"{add_article(REGISTRIES[base].family)}: its name, or a table with `name` and its keys"
    if base is not None or item is not None:
        cls = base or item or Component
        keys = ", ".join(f.name for f in fields(cls))
        short_form = ", or a number or text in its place" if getattr(cls, "has_short_form", False) else ""
        return f"{'a list of tables' if item else 'a table'} with the keys {keys}{short_form}"
    return describe_type(annotation)


def shorten_value(value: Any) -> Any:
    """Return a value as in a file; of a component, only the name and the keys that differ from the defaults of its class.

    Args:
        value: value of a field.
    """
    if not isinstance(value, Component):
        return dump_value(value)
    defaults = field_defaults(type(value))
    keys = {f.name: shorten_value(getattr(value, f.name)) for f in fields(value)}
    keys = {key: entry for key, entry in keys.items() if key not in defaults or entry != shorten_value(defaults[key])}
    return {"name": value.name, **keys} if keys else value.name


def _insert(example: Mapping[str, Any], path: Sequence[str | int], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested tables with a table's keys added at a path."""
    if not path:
        return {**example, **table}
    key, *rest = path
    if rest and rest[0] == 0:
        return {**example, str(key): [_insert(example.get(str(key), [{}])[0], rest[1:], table)]}
    return {**example, str(key): _insert(example.get(str(key), {}), rest, table)}
