"""Tables and components: nested mappings, as TOML gives them, to checked dataclasses and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

from fedsgd.compression import COMPRESSORS, CompressionOperator, Compressor
from fedsgd.config.component import (
    Component,
    FieldError,
    Registry,
    ValidatedConfig,
    add_article,
    component_type,
    describe_value,
    field_defaults,
    field_types,
    item_type,
)
from fedsgd.config.python_objects import (
    COMPONENT_DIGEST_PREFIX,
    PYTHON_OBJECT_NAME,
    describe_missing_objects,
    find_import_path,
    find_markers,
    fingerprint,
    format_one_line,
)
from fedsgd.data import DATASETS, PARTITIONERS, DatasetSource, Partitioner
from fedsgd.errors import FedsgdError, ScenarioError, suggest_name
from fedsgd.models import MODELS, Model
from fedsgd.optim import OPTIMIZERS, SCHEDULES, Optimizer, Schedule
from fedsgd.sampling import DURATIONS, SAMPLERS, DurationModel, Sampler

REGISTRIES: Mapping[type, Registry[Any]] = {
    DatasetSource: DATASETS,
    Partitioner: PARTITIONERS,
    Model: MODELS,
    Optimizer: OPTIMIZERS,
    Schedule: SCHEDULES,
    Sampler: SAMPLERS,
    DurationModel: DURATIONS,
    Compressor: COMPRESSORS,
    CompressionOperator: COMPRESSORS,
}
"""The component families that a scenario names members of."""


@dataclass(frozen=True)
class SettingsSection(ValidatedConfig):
    """A section of a scenario. alternatives: keys that exclude each other, so that setting one unsets the others."""

    mutually_exclusive: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f"{key} = {getattr(self, key)}" for key in self.mutually_exclusive if getattr(self, key) is not None]
        if len(given) > 1:
            raise FieldError(
                type(self).__name__, self.mutually_exclusive[0], f"got {' and '.join(given)}, expected only one of them"
            )


@contextmanager
def errors_in_section(section: str) -> Iterator[None]:
    """A field that turns out to be wrong while something is built is named with its table, "" being the scenario itself."""
    try:
        yield
    except FieldError as error:
        raise ScenarioError(f"{_join_key(section, error.field)}: {error.problem}") from error


T = TypeVar("T", bound=ValidatedConfig)


_REGISTERED_ONLY: ContextVar[bool] = ContextVar("registered_only", default=False)


def parse_table(cls: type[T], toml_table: Mapping[str, Any], registered_only: bool = False) -> T:
    """A table or component class from nested mappings; ScenarioError that starts with the dotted key of what is wrong.

    registered_only: refuse a class of the user's own, "package.module:Class", before it is imported.
    """
    token = _REGISTERED_ONLY.set(registered_only)
    try:
        made: T = _build_section(cls, toml_table, "", {})
    finally:
        _REGISTERED_ONLY.reset(token)
    return made


def dump_table(component: ValidatedConfig, use_import_paths: bool = True) -> dict[str, Any]:
    """Return nested tables that `parse_table` turns into an equal object; None is left out.

    Args:
        component: a table or component.
        by_path: whether a component of a class that is not registered has its import path as `name`, or becomes a marker where
            it has none; otherwise every component has the name that its class gives itself.
    """
    out: dict[str, Any] = {}
    if isinstance(component, Component):
        registry = next((REGISTRIES[base] for base in REGISTRIES if isinstance(component, base)), None)
        out["name"] = component.name
        if use_import_paths and registry is not None and not registry.is_registered(type(component)):
            out["name"] = find_import_path(type(component))
            if out["name"] is None:
                return _build_marker(component, registry)
    for f in fields(component):
        value = getattr(component, f.name)
        if isinstance(value, ValidatedConfig):
            part = dump_table(value, use_import_paths)
            out.update(part if f.metadata.get("inline") else {f.name: part})
        elif value is not None and value != {}:
            out[f.name] = _to_plain(value, use_import_paths)
    return out


def _build_marker(component: Component, registry: Registry[Any]) -> dict[str, Any]:
    """Return the table that stands for a component whose class no other process can import."""
    common = {f.name: getattr(component, f.name) for f in fields(registry.base)}
    kept = {key: _to_plain(value) for key, value in common.items() if value is not None and value != {}}
    marked = {
        "name": PYTHON_OBJECT_NAME,
        "description": format_one_line(repr(component)),
        "sha256": f"{COMPONENT_DIGEST_PREFIX}{fingerprint(component)}",
    }
    return {**marked, **kept}


def flatten_settings(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested tables; lists are values."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten_settings(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def describe_registry(registry: Registry[Any]) -> list[dict[str, Any]]:
    """Each member of a family: its name and other names, the first line of its docstring, its keys with their defaults
    (None: unset; "required" where there is none), and by key the options of those that take one of a few values."""
    members = []
    for name in registry:
        cls: Any = registry[name]
        keys = {key: _to_plain(field_defaults(cls).get(key, "required")) for key in field_types(cls)}
        also = [alias for alias, member in registry.aliases.items() if member == name]
        options = {key: _list_options(annotation, keys[key]) for key, annotation in field_types(cls).items()}
        options = {key: values for key, values in options.items() if values}
        members.append({"name": name, "also": also, "summary": cls.get_summary(), "keys": keys, "options": options})
    return members


def _list_options(annotation: Any, default: Any) -> list[Any]:
    """Return the values that a key takes if it takes only a few, its default first; nothing for other keys."""
    if get_origin(annotation) is Literal:
        return sorted(get_args(annotation), key=lambda value: value != default)
    return [value for part in get_args(annotation) for value in _list_options(part, default)]


def _to_plain(value: Any, use_import_paths: bool = True) -> Any:
    if isinstance(value, ValidatedConfig):
        return dump_table(value, use_import_paths)
    return [_to_plain(one, use_import_paths) for one in value] if isinstance(value, tuple) else value


# ------------------------------------------------------------------------------------------------------- tables to components


def list_direct_keys(cls: type) -> list[str]:
    """Return the names of the fields whose keys stand in the class's own table."""
    return [f.name for f in fields(cls) if not f.metadata.get("inline")]


def _build_section(cls: type, toml_table: Any, path: str, preset: Mapping[str, Any], sibling_keys: Sequence[str] = ()) -> Any:
    """An instance of a component or table class from its keys; path: where it stands, for messages; beside: keys that may stand
    in the same table and have been taken out of it, for messages too."""
    if not isinstance(toml_table, Mapping):
        raise ScenarioError(f"{path or 'scenario'}: expected a table, got {describe_value(toml_table)}")
    for key in toml_table:
        if not isinstance(key, str):
            raise ScenarioError(f"{path or 'scenario'}: got the key {describe_value(key)}, expected a text")
    inline = [f for f in fields(cls) if f.metadata.get("inline")]
    own = list_direct_keys(cls)
    rest = {key: value for key, value in toml_table.items() if key not in own}
    if not inline:
        for key in rest:
            raise ScenarioError(f"{_join_key(path, key)}: unknown key{suggest_name(key, [*own, *sibling_keys])}")
    values = dict(preset)
    for f in fields(cls):
        annotation = component_type(field_types(cls)[f.name])
        if f in inline:
            if rest and annotation is not None:
                values[f.name] = _build_member(annotation, rest, path, f.metadata, own)
        elif f.name in toml_table:
            item = item_type(field_types(cls)[f.name])
            values[f.name] = (
                _build_value(annotation, toml_table[f.name], _join_key(path, f.name), f.metadata)
                if item is None
                else _build_items(item, toml_table[f.name], _join_key(path, f.name))
            )
        elif f.default is MISSING and f.default_factory is MISSING and f.name not in values:
            example = f", expected for example {f.name} = {f.metadata['example']}" if "example" in f.metadata else ""
            raise ScenarioError(f"{_join_key(path, f.name)}: missing{example}")
    try:
        return cls(**values)
    except FieldError as error:
        raise ScenarioError(f"{_join_key(path, error.field)}: {error.problem}") from None


def _build_items(item: type, toml_value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(toml_value, Sequence) or isinstance(toml_value, str):
        raise ScenarioError(f"{path}: expected a list of tables, got {describe_value(toml_value)}")
    return tuple(
        one if isinstance(one, item) else _build_value(item, one, f"{path}[{i}]", {}) for i, one in enumerate(toml_value)
    )


def _build_value(annotation: type | None, toml_value: Any, path: str, metadata: Mapping[str, Any]) -> Any:
    if annotation is None:
        return toml_value
    if annotation in REGISTRIES:
        return _build_member(annotation, toml_value, path, metadata)
    return _build_section(annotation, toml_value, path, metadata.get("preset", {}))


def _build_member(base: type, toml_value: Any, path: str, metadata: Mapping[str, Any], sibling_keys: Sequence[str] = ()) -> Any:
    """Return the member of a family that `name` names and that is a `base_round`; a string stands for a table with only a name.

    Args:
        base: the class that the field takes.
        raw: the table, or the name.
        path: dotted key of the table, for messages.
        metadata: of the field. preset: defaults of the place. accepts: a function from a member's class to whether the
            field takes that member, for suggestions; the owner of the field refuses the others itself.
        beside: further keys that may stand in the same table, for messages.
    """
    registry, preset = REGISTRIES[base], metadata.get("preset", {})
    fitting = partial(_members_of_type, registry, base, metadata.get("accepts", lambda _: True))
    table = {"name": toml_value} if isinstance(toml_value, str) else toml_value
    if not isinstance(table, Mapping):
        example = f'{{ name = "{next(iter(registry))}" }}'
        raise ScenarioError(f"{path}: expected a table with a name, like {example}, got {describe_value(toml_value)}")
    implied = next((registry.implied_names[key] for key in table if key in registry.implied_names), None)
    name = table.get("name", implied)
    if name is None:
        for key in table:
            hint = suggest_name(str(key), registry.implied_names)
            if "did you mean" in hint:
                raise ScenarioError(f"{_join_key(path, key)}: unknown key{hint}")
        raise ScenarioError(f"{path}.name: missing{suggest_name('', fitting())}")
    if not isinstance(name, str):
        raise ScenarioError(f"{path}.name: expected the name of {add_article(registry.family)}, got {describe_value(name)}")
    is_path = ":" in name and not _REGISTERED_ONLY.get()
    if not is_path and (":" in name or not registry.is_valid_name(name)):
        if name == PYTHON_OBJECT_NAME:
            raise ScenarioError(f"{path}.name: {describe_missing_objects(dict(find_markers(table, path)))}")
        members = fitting()
        known = [*members, *(alias for alias, member in registry.aliases.items() if member in members)]
        raise ScenarioError(f'{path}.name: got "{name}"{suggest_name(name, known)}')
    try:
        cls = registry[name]
    except ScenarioError as error:
        raise ScenarioError(f"{path}.name: {error}") from error
    if not issubclass(cls, base):
        raise ScenarioError(f'{path}.name: got "{name}", which does not go here{suggest_name("", fitting())}')
    common, own = field_defaults(registry.base), field_defaults(cls)
    preset = {key: value for key, value in preset.items() if own[key] == common[key]}  # a default of its own comes first
    try:
        return _build_section(cls, {k: v for k, v in table.items() if k != "name"}, path, preset, [*sibling_keys, "name"])
    except FedsgdError:
        raise
    except Exception as error:  # the checks and annotations of a class of the user's own may fail in any way
        if not is_path:
            raise
        raise ScenarioError(format_one_line(f"{path}: {name} cannot be built: {type(error).__name__}: {error}")) from error


def _members_of_type(registry: Registry[Any], base: type, accepts: Callable[[type], bool]) -> list[str]:
    """Return the names of the members that are a `base_round` and that the field accepts."""
    return [name for name in registry if issubclass(registry[name], base) and accepts(registry[name])]


def _join_key(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
