"""Values for examples of keys, and the components that a key accepts."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

from fedsgd.config.component import (
    Component,
    FieldError,
    component_type,
    field_defaults,
    field_types,
    item_type,
    validate_value,
)
from fedsgd.scenario.family_listing import list_options
from fedsgd.scenario.parsing import REGISTRIES


def make_example(cls: type, f: Field[Any], default: Any = None) -> Any:
    """Return a value of a field for an example: the field's `metadata`, or an accepted value other than the default.

    Args:
        cls: dataclass.
        f: its field.
        default: default of the field; None: no default.
    """
    annotation = field_types(cls)[f.name]
    base, item = component_type(annotation), item_type(annotation)
    if "example" in f.metadata:
        return tomllib.loads(f"value = {f.metadata['example']}")["value"]
    if item is not None:
        return [_make_table(item)]
    if base in REGISTRIES:
        members = [name for name, member in list_members(base, f) if not any(map(is_required, fields(member)))]
        return next((name for name in members if name != getattr(default, "name", None)), members[0])
    if base is not None:
        return _make_table(base)
    return next((value for value in _list_candidates(annotation, default) if _is_accepted(value, annotation)), default)


def _make_table(cls: type) -> dict[str, Any]:
    """Return a table with the required keys of a class, and with a key that the class requires in addition to them."""
    table = {f.name: make_example(cls, f) for f in fields(cls) if is_required(f)}
    try:
        cls(**table)
    except FieldError as error:
        table.update({f.name: make_example(cls, f) for f in fields(cls) if f.name == error.field})
    return table


def _list_candidates(annotation: Any, default: Any) -> Iterator[Any]:
    """Yield values that a field may accept, other than its default."""
    candidates: list[Any] = [not default] if isinstance(default, bool) else []
    if isinstance(default, int) and not isinstance(default, bool):
        candidates += [2 * default, default + 1]
    if isinstance(default, float):
        candidates += [default / 2, 0.1, 2 * default]
    candidates += list_options(annotation, default)
    if default is None:
        candidates += [0.5, 10, 1.0, "name", {}, [], True]
    yield from (value for value in candidates if value != default)


def _is_accepted(value: Any, annotation: Any) -> bool:
    try:
        validate_value(value, annotation)
    except ValueError:
        return False
    return True


def is_required(f: Field[Any]) -> bool:
    """Return True for a field without a default.

    Args:
        f: field of a dataclass.
    """
    return f.default is MISSING and f.default_factory is MISSING


def list_members(base: Any, f: Field[Any]) -> Iterator[tuple[str, type[Component]]]:
    """Yield name and class of the components that a field accepts, without plugins that cannot be used.

    Args:
        base: base class of the family.
        f: field.
    """
    registry = REGISTRIES[base]
    for name in registry.list_names():
        try:
            cls = registry[name]
            is_accepted = issubclass(cls, base) and f.metadata.get("accepts", lambda _: True)(cls)
            field_types(cls), field_defaults(cls)
        except Exception:  # a plugin's class and annotations may be wrong in any way
            if name in [*registry]:
                raise
            continue
        if is_accepted:
            yield name, cls
