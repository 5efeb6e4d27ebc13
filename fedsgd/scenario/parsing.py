"""Parsing of settings: nested TOML tables to validated sections and components, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any, ClassVar, TypeVar

from fedsgd.aggregation import AGGREGATORS, Aggregator
from fedsgd.compression import COMPRESSORS, CompressionOperator, Compressor
from fedsgd.config.component import (
    Component,
    FieldError,
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
from fedsgd.config.registry import Registry, check_path_allowed, is_builtin
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
    Aggregator: AGGREGATORS,
    Compressor: COMPRESSORS,
    CompressionOperator: COMPRESSORS,
}
"""Registries of the component families by their base class."""


@dataclass(frozen=True)
class SettingsSection(ValidatedConfig):
    """Section of a scenario.

    Attributes:
        mutually_exclusive: keys of which at most one may be set; an override of one key unsets the other keys.
    """

    mutually_exclusive: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in (f.name for f in fields(self)):
            self._check_plugins(getattr(self, key), key)
        settings = [f"{key} = {getattr(self, key)}" for key in self.mutually_exclusive if getattr(self, key) is not None]
        if len(settings) > 1:
            problem = f"got {' and '.join(settings)}, expected only one of them"
            raise FieldError(type(self).__name__, self.mutually_exclusive[0], problem)

    def _check_plugins(self, value: Any, key: str) -> None:
        """Raise a FieldError for a component of a user's class that no family can have, and for code that is refused.

        The import paths of functions are checked here, because other processes call the functions without `refuse_plugins`.
        """
        for part in value if isinstance(value, tuple) else (value,):
            if not isinstance(part, ValidatedConfig) or isinstance(part, SettingsSection):
                continue
            if isinstance(part, Component):
                self._check_component(part, key)
            for f in fields(part):
                self._check_plugins(getattr(part, f.name), f"{key}.{f.name}")

    def _check_component(self, component: Component, key: str) -> None:
        registry = next((REGISTRIES[base] for base in REGISTRIES if isinstance(component, base)), None)
        if registry is not None:
            with self._errors_in_field(key):
                registry.check_plugin(type(component))
        for path_key, path in component.list_import_paths().items():
            with self._errors_in_field(f"{key}.{path_key}"):
                check_path_allowed(path)

    @contextmanager
    def _errors_in_field(self, key: str) -> Iterator[None]:
        """Turn a ScenarioError of the body into a FieldError of a key of this section."""
        try:
            yield
        except ScenarioError as error:
            raise FieldError(type(self).__name__, key, str(error)) from error


@contextmanager
def errors_in_section(section: str) -> Iterator[None]:
    """Turn a FieldError of the body into a ScenarioError with the dotted key; "" is the scenario itself."""
    try:
        yield
    except FieldError as error:
        raise ScenarioError(f"{_join_key(section, error.field)}: {error.problem}") from error


T = TypeVar("T", bound=ValidatedConfig)


_ALLOWED_PATHS: ContextVar[Collection[str] | None] = ContextVar("allowed_paths", default=None)


def parse_table(cls: type[T], toml_table: Mapping[str, Any], allowed_paths: Collection[str] | None = None) -> T:
    """Create a section or component from nested tables; the message of a ScenarioError begins with the dotted key.

    Of the classes outside fedsgd, only those whose "package.module:Class" is in `allowed_paths` are imported; None: all.
    """
    token = _ALLOWED_PATHS.set(allowed_paths)
    try:
        section: T = _build_section(cls, toml_table, "", {})
    finally:
        _ALLOWED_PATHS.reset(token)
    return section


def dump_table(component: ValidatedConfig, use_import_paths: bool = True) -> dict[str, Any]:
    """Return nested tables that `parse_table` turns into an equal object. Keys whose value is None are absent.

    With `use_import_paths`, a component whose class is not registered has its import path as `name`, or is a marker if the
    class has no path. Otherwise every component has the `name` of its class.
    """
    out: dict[str, Any] = {}
    if isinstance(component, Component):
        registry = next((REGISTRIES[base] for base in REGISTRIES if isinstance(component, base)), None)
        out["name"] = component.name
        if use_import_paths and registry is not None and not registry.is_installed(type(component)):
            out["name"] = find_import_path(type(component))
            if out["name"] is None:
                return _build_marker(component, registry)
    for f in fields(component):
        value = getattr(component, f.name)
        if isinstance(value, ValidatedConfig):
            part = dump_table(value, use_import_paths)
            out.update(part if f.metadata.get("inline") else {f.name: part})
        elif value is not None and value != {}:
            out[f.name] = dump_value(value, use_import_paths)
    return out


def _build_marker(component: Component, registry: Registry[Any]) -> dict[str, Any]:
    """Return the marker of a component whose class other processes cannot import."""
    base_values = {f.name: getattr(component, f.name) for f in fields(registry.base)}
    entries = {key: dump_value(value) for key, value in base_values.items() if value is not None and value != {}}
    marker = {
        "name": PYTHON_OBJECT_NAME,
        "description": format_one_line(repr(component)),
        "sha256": f"{COMPONENT_DIGEST_PREFIX}{fingerprint(component)}",
    }
    return {**marker, **entries}


def flatten_settings(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested tables; a list is one value."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten_settings(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def dump_value(value: Any, use_import_paths: bool = True) -> Any:
    """Return the value of a field as in a file; `use_import_paths` as for `dump_table`."""
    if isinstance(value, ValidatedConfig):
        return dump_table(value, use_import_paths)
    return [dump_value(entry, use_import_paths) for entry in value] if isinstance(value, tuple) else value


# ------------------------------------------------------------------------------------------------------- tables to components


def list_direct_keys(cls: type) -> list[str]:
    """Return the names of the fields that are keys of the class's own table, not of an inlined member."""
    return [f.name for f in fields(cls) if not f.metadata.get("inline")]


def _build_section(cls: type, toml_table: Any, path: str, preset: Mapping[str, Any], sibling_keys: Sequence[str] = ()) -> Any:
    """Create a section or component from a table; `preset` has values of fields that the table does not set.

    In messages, `path` is the dotted key of the table, and `sibling_keys` are further valid keys.
    """
    if not isinstance(toml_table, Mapping):
        raise ScenarioError(f"{path or 'scenario'}: expected a table, got {describe_value(toml_table)}")
    for key in toml_table:
        if not isinstance(key, str):
            raise ScenarioError(f"{path or 'scenario'}: got the key {describe_value(key)}, expected a text")
    inline = [f for f in fields(cls) if f.metadata.get("inline")]
    direct_keys = list_direct_keys(cls)
    rest = {key: value for key, value in toml_table.items() if key not in direct_keys}
    if not inline:
        for key in rest:
            raise ScenarioError(f"{_join_key(path, key)}: unknown key{suggest_name(key, [*direct_keys, *sibling_keys])}")
    values = dict(preset)
    for f in fields(cls):
        annotation = component_type(field_types(cls)[f.name])
        if f in inline:
            if rest and annotation is not None:
                values[f.name] = _build_member(annotation, rest, path, f.metadata, direct_keys)
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
        entry if isinstance(entry, item) else _build_value(item, entry, f"{path}[{i}]", {})
        for i, entry in enumerate(toml_value)
    )


def _build_value(annotation: type | None, toml_value: Any, path: str, metadata: Mapping[str, Any]) -> Any:
    if annotation is None:
        return toml_value
    if issubclass(annotation, ValidatedConfig) and annotation.has_short_form and not isinstance(toml_value, Mapping):
        return toml_value
    if annotation in REGISTRIES:
        return _build_member(annotation, toml_value, path, metadata)
    return _build_section(annotation, toml_value, path, metadata.get("preset", {}))


def _build_member(base: type, toml_value: Any, path: str, metadata: Mapping[str, Any], sibling_keys: Sequence[str] = ()) -> Any:
    """Create the member of the family with base class `base` that a table or a single string names.

    The field's `metadata` may have "preset", defaults of this field, and "accepts", a predicate of a member's class for
    suggestions; the owner of the field rejects the other members. `sibling_keys` are further valid keys, for messages.
    """
    registry, preset = REGISTRIES[base], metadata.get("preset", {})
    list_members = partial(_members_of_type, registry, base, metadata.get("accepts", lambda _: True))
    table = {"name": toml_value} if isinstance(toml_value, str) else toml_value
    if not isinstance(table, Mapping):
        example = f'{{ name = "{next(iter(registry))}" }}'
        raise ScenarioError(f"{path}: expected a table with a name, like {example}, got {describe_value(toml_value)}")
    name = _find_member_name(registry, table, path, list_members)
    _check_member_name(registry, name, table, path, list_members)
    try:
        cls = registry[name]
    except ScenarioError as error:
        raise ScenarioError(f"{path}.name: {error}") from error
    if not issubclass(cls, base):
        raise ScenarioError(f'{path}.name: got "{name}", which this key does not accept{suggest_name("", list_members())}')
    settings = {key: value for key, value in table.items() if key != "name"}
    try:
        return _build_section(cls, settings, path, select_preset(registry, cls, preset), [*sibling_keys, "name"])
    except FedsgdError:
        raise
    except Exception as error:  # the checks and annotations of the user's class may fail in any way
        if is_builtin(cls):
            raise
        raise ScenarioError(format_one_line(f"{path}: {name} cannot be built: {type(error).__name__}: {error}")) from error


def select_preset(registry: Registry[Any], cls: type, preset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preset without the keys for which the member has a default of its own, or none."""
    base_defaults, defaults = field_defaults(registry.base), field_defaults(cls)
    return {key: value for key, value in preset.items() if key in defaults and defaults[key] == base_defaults[key]}


def _find_member_name(
    registry: Registry[Any], table: Mapping[str, Any], path: str, list_members: Callable[[], list[str]]
) -> str:
    """Return the name that a table has, or that one of its keys implies."""
    implied_name = next((registry.implied_names[key] for key in table if key in registry.implied_names), None)
    name = table.get("name", implied_name)
    if name is None:
        for key in table:
            hint = suggest_name(str(key), registry.implied_names)
            if "did you mean" in hint:
                raise ScenarioError(f"{_join_key(path, key)}: unknown key{hint}")
        raise ScenarioError(f"{path}.name: missing{suggest_name('', list_members())}")
    if not isinstance(name, str):
        raise ScenarioError(f"{path}.name: expected the name of {add_article(registry.family)}, got {describe_value(name)}")
    return name


def _check_member_name(
    registry: Registry[Any], name: str, table: Mapping[str, Any], path: str, list_members: Callable[[], list[str]]
) -> None:
    """Raise a ScenarioError for an unknown name, and for a class that `parse_table` does not allow."""
    allowed_paths = _ALLOWED_PATHS.get()
    class_path = name if ":" in name else registry.find_plugin_path(name)
    is_refused = allowed_paths is not None and class_path is not None and class_path not in allowed_paths
    if not is_refused and registry.is_valid_name(name):
        return
    if name == PYTHON_OBJECT_NAME:
        raise ScenarioError(f"{path}.name: {describe_missing_objects(dict(find_markers(table, path)))}")
    names = list_members()
    names += [alias for alias, member in registry.aliases.items() if member in names]
    if is_refused:
        raise ScenarioError(f'{path}.name: got "{name}"{suggest_name(name, names)}')
    hint = suggest_name(name, [*names, *registry.list_plugin_names()])
    module, _, attribute = name.rpartition(".")
    if module:
        hint = f'; a class of your own is named "{module}:{attribute}"'
    elif "did you mean" not in hint:
        hint = f"{hint}; the name of a plugin needs its package to be installed"
    raise ScenarioError(f'{path}.name: got "{name}"{hint}')


def _members_of_type(registry: Registry[Any], base: type, accepts: Callable[[type], bool]) -> list[str]:
    """Return the names of the members of class `base` that the field accepts."""
    return [name for name in registry if issubclass(registry[name], base) and accepts(registry[name])]


def _join_key(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
