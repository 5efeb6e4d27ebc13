"""Tables and components: nested mappings, as TOML gives them, to checked dataclasses and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

from fedsgd.component import (
    Checked,
    Component,
    FieldError,
    Registry,
    component_type,
    defaults,
    field_types,
    item_type,
    value_text,
    with_article,
)
from fedsgd.compress import COMPRESSORS, Compressor, Operator
from fedsgd.data import DATASETS, PARTITIONERS, Partitioner, Source
from fedsgd.errors import FedsgdError, ScenarioError, did_you_mean
from fedsgd.models import MODELS, Model
from fedsgd.optim import OPTIMIZERS, SCHEDULES, Optimizer, Schedule
from fedsgd.participation import DURATIONS, SAMPLERS, Durations, Sampler
from fedsgd.python_objects import OF_COMPONENT, PYTHON_OBJECT, ask_for, find_markers, fingerprint, import_path, one_line

FAMILIES: Mapping[type, Registry[Any]] = {
    Source: DATASETS,
    Partitioner: PARTITIONERS,
    Model: MODELS,
    Optimizer: OPTIMIZERS,
    Schedule: SCHEDULES,
    Sampler: SAMPLERS,
    Durations: DURATIONS,
    Compressor: COMPRESSORS,
    Operator: COMPRESSORS,
}
"""The component families that a scenario names members of."""


@dataclass(frozen=True)
class Table(Checked):
    """A section of a scenario. alternatives: keys that exclude each other, so that setting one unsets the others."""

    alternatives: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f"{key} = {getattr(self, key)}" for key in self.alternatives if getattr(self, key) is not None]
        if len(given) > 1:
            raise FieldError(type(self).__name__, self.alternatives[0], f"got {' and '.join(given)}, expected only one of them")


@contextmanager
def placed(table: str) -> Iterator[None]:
    """A field that turns out to be wrong while something is built is named with its table, "" being the scenario itself."""
    try:
        yield
    except FieldError as error:
        raise ScenarioError(f"{_join(table, error.field)}: {error.problem}") from error


T = TypeVar("T", bound=Checked)


_REGISTERED_ONLY: ContextVar[bool] = ContextVar("registered_only", default=False)


def from_table(cls: type[T], raw: Mapping[str, Any], registered_only: bool = False) -> T:
    """A table or component class from nested mappings; ScenarioError that starts with the dotted key of what is wrong.

    registered_only: refuse a class of the user's own, "package.module:Class", before it is imported.
    """
    token = _REGISTERED_ONLY.set(registered_only)
    try:
        made: T = _table(cls, raw, "", {})
    finally:
        _REGISTERED_ONLY.reset(token)
    return made


def to_table(component: Checked, by_path: bool = True) -> dict[str, Any]:
    """Return nested tables that `from_table` turns into an equal object; None is left out.

    Args:
        component: a table or component.
        by_path: whether a component of a class that is not registered has its import path as `name`, or becomes a marker where
            it has none; otherwise every component has the name that its class gives itself.
    """
    out: dict[str, Any] = {}
    if isinstance(component, Component):
        registry = next((FAMILIES[base] for base in FAMILIES if isinstance(component, base)), None)
        out["name"] = component.name
        if by_path and registry is not None and not registry.holds(type(component)):
            out["name"] = import_path(type(component))
            if out["name"] is None:
                return _marker(component, registry)
    for f in fields(component):
        value = getattr(component, f.name)
        if isinstance(value, Checked):
            part = to_table(value, by_path)
            out.update(part if f.metadata.get("inline") else {f.name: part})
        elif value is not None and value != {}:
            out[f.name] = _plain(value, by_path)
    return out


def _marker(component: Component, registry: Registry[Any]) -> dict[str, Any]:
    """Return the table that stands for a component whose class no other process can import."""
    common = {f.name: getattr(component, f.name) for f in fields(registry.base)}
    kept = {key: _plain(value) for key, value in common.items() if value is not None and value != {}}
    marked = {
        "name": PYTHON_OBJECT,
        "description": one_line(repr(component)),
        "sha256": f"{OF_COMPONENT}{fingerprint(component)}",
    }
    return {**marked, **kept}


def flat(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested tables; lists are values."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def describe(registry: Registry[Any]) -> list[dict[str, Any]]:
    """Each member of a family: its name and other names, the first line of its docstring, its keys with their defaults
    (None: unset; "required" where there is none), and by key the options of those that take one of a few values."""
    members = []
    for name in registry:
        cls: Any = registry[name]
        keys = {key: _plain(defaults(cls).get(key, "required")) for key in field_types(cls)}
        also = [alias for alias, member in registry.aliases.items() if member == name]
        options = {key: _options(annotation, keys[key]) for key, annotation in field_types(cls).items()}
        options = {key: values for key, values in options.items() if values}
        members.append({"name": name, "also": also, "summary": cls.summary(), "keys": keys, "options": options})
    return members


def _options(annotation: Any, default: Any) -> list[Any]:
    """Return the values that a key takes if it takes only a few, its default first; nothing for other keys."""
    if get_origin(annotation) is Literal:
        return sorted(get_args(annotation), key=lambda value: value != default)
    return [value for part in get_args(annotation) for value in _options(part, default)]


def _plain(value: Any, by_path: bool = True) -> Any:
    if isinstance(value, Checked):
        return to_table(value, by_path)
    return [_plain(one, by_path) for one in value] if isinstance(value, tuple) else value


# ------------------------------------------------------------------------------------------------------- tables to components


def own_fields(cls: type) -> list[str]:
    """Return the names of the fields whose keys stand in the class's own table."""
    return [f.name for f in fields(cls) if not f.metadata.get("inline")]


def _table(cls: type, raw: Any, path: str, preset: Mapping[str, Any], beside: Sequence[str] = ()) -> Any:
    """An instance of a component or table class from its keys; path: where it stands, for messages; beside: keys that may stand
    in the same table and have been taken out of it, for messages too."""
    if not isinstance(raw, Mapping):
        raise ScenarioError(f"{path or 'scenario'}: expected a table, got {value_text(raw)}")
    for key in raw:
        if not isinstance(key, str):
            raise ScenarioError(f"{path or 'scenario'}: got the key {value_text(key)}, expected a text")
    inline = [f for f in fields(cls) if f.metadata.get("inline")]
    own = own_fields(cls)
    rest = {key: value for key, value in raw.items() if key not in own}
    if not inline:
        for key in rest:
            raise ScenarioError(f"{_join(path, key)}: unknown key{did_you_mean(key, [*own, *beside])}")
    values = dict(preset)
    for f in fields(cls):
        annotation = component_type(field_types(cls)[f.name])
        if f in inline:
            if rest and annotation is not None:
                values[f.name] = _member(annotation, rest, path, f.metadata, own)
        elif f.name in raw:
            item = item_type(field_types(cls)[f.name])
            values[f.name] = (
                _value(annotation, raw[f.name], _join(path, f.name), f.metadata)
                if item is None
                else _items(item, raw[f.name], _join(path, f.name))
            )
        elif f.default is MISSING and f.default_factory is MISSING and f.name not in values:
            example = f", expected for example {f.name} = {f.metadata['example']}" if "example" in f.metadata else ""
            raise ScenarioError(f"{_join(path, f.name)}: missing{example}")
    try:
        return cls(**values)
    except FieldError as error:
        raise ScenarioError(f"{_join(path, error.field)}: {error.problem}") from None


def _items(item: type, raw: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise ScenarioError(f"{path}: expected a list of tables, got {value_text(raw)}")
    return tuple(one if isinstance(one, item) else _value(item, one, f"{path}[{i}]", {}) for i, one in enumerate(raw))


def _value(annotation: type | None, raw: Any, path: str, metadata: Mapping[str, Any]) -> Any:
    if annotation is None:
        return raw
    if annotation in FAMILIES:
        return _member(annotation, raw, path, metadata)
    return _table(annotation, raw, path, metadata.get("preset", {}))


def _member(base: type, raw: Any, path: str, metadata: Mapping[str, Any], beside: Sequence[str] = ()) -> Any:
    """Return the member of a family that `name` names and that is a `base`; a string stands for a table with only a name.

    Args:
        base: the class that the field takes.
        raw: the table, or the name.
        path: dotted key of the table, for messages.
        metadata: of the field. preset: defaults of the place. accepts: a function from a member's class to whether the
            field takes that member, for suggestions; the owner of the field refuses the others itself.
        beside: further keys that may stand in the same table, for messages.
    """
    registry, preset = FAMILIES[base], metadata.get("preset", {})
    fitting = partial(_fitting, registry, base, metadata.get("accepts", lambda _: True))
    table = {"name": raw} if isinstance(raw, str) else raw
    if not isinstance(table, Mapping):
        raise ScenarioError(
            f'{path}: expected a table with a name, like {{ name = "{next(iter(registry))}" }}, got {value_text(raw)}'
        )
    implied = next((registry.implied[key] for key in table if key in registry.implied), None)
    name = table.get("name", implied)
    if name is None:
        for key in table:
            hint = did_you_mean(str(key), registry.implied)
            if "did you mean" in hint:
                raise ScenarioError(f"{_join(path, key)}: unknown key{hint}")
        raise ScenarioError(f"{path}.name: missing{did_you_mean('', fitting())}")
    if not isinstance(name, str):
        raise ScenarioError(f"{path}.name: expected the name of {with_article(registry.family)}, got {value_text(name)}")
    is_path = ":" in name and not _REGISTERED_ONLY.get()
    if not is_path and (":" in name or not registry.knows(name)):
        if name == PYTHON_OBJECT:
            raise ScenarioError(f"{path}.name: {ask_for(dict(find_markers(table, path)))}")
        members = fitting()
        known = [*members, *(alias for alias, member in registry.aliases.items() if member in members)]
        raise ScenarioError(f'{path}.name: got "{name}"{did_you_mean(name, known)}')
    try:
        cls = registry[name]
    except ScenarioError as error:
        raise ScenarioError(f"{path}.name: {error}") from error
    if not issubclass(cls, base):
        raise ScenarioError(f'{path}.name: got "{name}", which does not go here{did_you_mean("", fitting())}')
    common, own = defaults(registry.base), defaults(cls)
    preset = {key: value for key, value in preset.items() if own[key] == common[key]}  # a default of its own comes first
    try:
        return _table(cls, {k: v for k, v in table.items() if k != "name"}, path, preset, [*beside, "name"])
    except FedsgdError:
        raise
    except Exception as error:  # the checks and annotations of a class of the user's own may fail in any way
        if not is_path:
            raise
        raise ScenarioError(one_line(f"{path}: {name} cannot be built: {type(error).__name__}: {error}")) from error


def _fitting(registry: Registry[Any], base: type, accepts: Callable[[type], bool]) -> list[str]:
    """Return the names of the members that are a `base` and that the field accepts."""
    return [name for name in registry if issubclass(registry[name], base) and accepts(registry[name])]


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
