"""Components: frozen dataclasses of hyper-parameters, validated when they are created.

A component's annotations are its schema, for values from TOML and from Python alike. This is the only module that imports
msgspec, which converts and checks the values.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np

from fedsgd.errors import ScenarioError, suggest_name

MAX_FLOAT32 = 2.0**128 - 2.0**104
"""Largest finite float32. Models compute in float32, where a larger setting is infinite."""
PositiveFloat = Annotated[float, msgspec.Meta(gt=0, le=MAX_FLOAT32)]
FloatAtLeastOne = Annotated[float, msgspec.Meta(ge=1, le=MAX_FLOAT32)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0, le=MAX_FLOAT32)]
FractionAboveZero = Annotated[float, msgspec.Meta(gt=0, le=1)]
FractionBelowOne = Annotated[float, msgspec.Meta(ge=0, lt=1)]
FractionBelowHalf = Annotated[float, msgspec.Meta(ge=0, lt=0.5)]
ClosedFraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
BucketSize = Annotated[int, msgspec.Meta(ge=16, le=2**31 - 1)]
"""Number of coordinates that share a scale; with fewer than 16, a float32 scale would take over 2 bits per coordinate."""
ChunkLength = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
"""Number of coordinates of a chunk, for which `fedsgd.wire.chunk_codec` has exact probabilities."""
QuantizationLevel = Annotated[int, msgspec.Meta(ge=1, le=127)]
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Seed of a run, an integer below 2⁶³ as in TOML. The other integers are below 2³¹."""


def bounded_int(least: int, most: int) -> Any:
    """Return the annotation of a whole number from `least` to `most`."""
    return Annotated[int, msgspec.Meta(ge=least, le=most)]


class FieldError(ScenarioError):
    """Value that a field does not accept; callers that know the path of `field` put the path in front."""

    def __init__(self, owner: str, field: str, problem: str) -> None:
        super().__init__(f"{owner}.{field}: {problem}")
        self.owner = owner
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[FieldError], tuple[str, str, str]]:
        return type(self), (self.owner, self.field, self.problem)


@cache
def field_types(cls: Any) -> Mapping[str, Any]:
    """Return the annotation of each field of a dataclass by name, with `Annotated` bounds, in the order of declaration."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls)}


def field_defaults(cls: type) -> Mapping[str, Any]:
    """Return the default of each field that has one, by name."""
    defaults: dict[str, Any] = {}
    for f in fields(cls):
        if f.default is not MISSING:
            defaults[f.name] = f.default
        elif f.default_factory is not MISSING:
            defaults[f.name] = f.default_factory()
    return defaults


def item_type(annotation: Any) -> type | None:
    """Return the component or section class X of `tuple[X, ...]`, None for any other annotation."""
    return component_type(typing.get_args(annotation)[0]) if typing.get_origin(annotation) is tuple else None


def component_type(annotation: Any) -> type | None:
    """Return the component or section class of an annotation `X` or `X | None`, None for plain values."""
    if typing.get_origin(annotation) is tuple:
        return None
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, ValidatedConfig):
            return candidate
    return None


def validate_value(value: Any, annotation: Any) -> Any:
    """Convert a value to the type of an annotation (a list to a tuple, 1 to 1.0), or raise a ValueError with that type."""
    value = value.item() if isinstance(value, np.generic) else value
    item = item_type(annotation)
    if item is not None:
        if not isinstance(value, tuple | list):
            raise ValueError(f"expected a list, got {describe_value(value)}")
        return tuple(validate_value(entry, item) for entry in value)
    expected = component_type(annotation)
    if expected is not None:
        if isinstance(value, expected) or (value is None and type(None) in typing.get_args(annotation)):
            return value
        hint = getattr(expected, "instance_hint", "") if not isinstance(value, str | int | float | Mapping) else ""
        raise ValueError(f"{_describe_mismatch(value, annotation)}{hint}")
    try:
        result = msgspec.convert(value, annotation, strict=True)
    except (msgspec.ValidationError, OverflowError):  # an integer that no float can hold overflows
        raise ValueError(_describe_mismatch(value, annotation)) from None
    if isinstance(result, float) and not math.isfinite(result):
        raise ValueError(f"expected a finite number, got {result!r}")
    return result


# ------------------------------------------------------------------------------------------------- annotations in plain words

_MAX_VALUE_CHARACTERS, _NULL_SPELLINGS = 80, ("null", "none", "nil")
_UNSET_CLAUSE = ", or the key left out"
_MAX_UNMENTIONED_BOUND = 10**6  # messages name a larger upper bound only where the value exceeds it


def describe_value(value: Any) -> str:
    """Return a value as in TOML or as its `repr`, in one line of at most 80 characters, for a message."""
    return _cut(" ".join(map(str.strip, _format_toml(value).splitlines())))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[: _MAX_VALUE_CHARACTERS - 3]}..."


def format_changed_fields(instance: Any) -> str:
    """Return the constructor call of a dataclass, with the fields that differ from their defaults; long values are cut."""
    arguments = []
    for field in fields(instance):
        value = getattr(instance, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if default is MISSING or repr(value) != repr(default):  # equality of arrays is an array
            text = format_changed_fields(value) if is_dataclass(value) else _cut(" ".join(repr(value).split()))
            arguments.append(f"{field.name}={text}")
    return f"{type(instance).__name__}({', '.join(arguments)})"


def _format_toml(value: Any) -> str:
    if isinstance(value, str) and value.isprintable():
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return f"{{ {', '.join(f'{key} = {_format_toml(entry)}' for key, entry in value.items())} }}" if value else "{}"
    return f"[{', '.join(map(_format_toml, value))}]" if type(value) is list else repr(value)


def describe_type(annotation: Any) -> str:
    """Return the values that an annotation accepts, None left out, in words.

    >>> describe_type(FractionAboveZero | None)
    'a number above 0 and at most 1'
    """
    return _describe_expected(annotation, None).removesuffix(_UNSET_CLAUSE)


def find_bounds(annotation: Any) -> dict[str, float]:
    """Return the bounds of the number that an annotation accepts, by their names in JSON Schema; empty without bounds."""
    if typing.get_origin(annotation) is Annotated:
        _, bounds = typing.get_args(annotation)
        named = {"minimum": bounds.ge, "exclusiveMinimum": bounds.gt, "maximum": bounds.le, "exclusiveMaximum": bounds.lt}
        return {name: bound for name, bound in named.items() if bound is not None}
    return next((bounds for argument in typing.get_args(annotation) if (bounds := find_bounds(argument))), {})


def add_article(noun: str) -> str:
    """Return a noun with its indefinite article."""
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def _describe_mismatch(value: Any, annotation: Any) -> str:
    """Return the message for a value that an annotation does not accept, with the place of a wrong entry in a list or table."""
    options = [option for option in _literal_options(annotation) if isinstance(option, str)]
    if options and isinstance(value, str):
        hint = suggest_name(value, options)
        if "did you mean" in hint or typing.get_origin(annotation) is Literal:
            return f"got {describe_value(value)}{hint}"
    entries: Iterable[tuple[str, Any]] = ()
    container = next((part for part in typing.get_args(annotation) if typing.get_origin(part) in (tuple, dict)), annotation)
    if typing.get_origin(container) is tuple and isinstance(value, tuple | list):
        entries = ((f"[{i}]", entry) for i, entry in enumerate(value))
    elif typing.get_origin(container) is dict and isinstance(value, Mapping):
        entries = ((str(key), entry) for key, entry in value.items())
    for place, entry in entries:
        item = typing.get_args(container)[typing.get_origin(container) is dict]
        try:
            validate_value(entry, item)
        except ValueError:
            if typing.get_origin(item) is Literal and isinstance(entry, str):
                return f"got {describe_value(entry)} at {place}{suggest_name(entry, options)}"
            return f"expected {_describe_expected(item, entry)} at {place}, got {describe_value(value)}"
    hint = "; to leave a key out, delete its line" if isinstance(value, str) and value.lower() in _NULL_SPELLINGS else ""
    return f"expected {_describe_expected(annotation, value)}, got {describe_value(value)}{hint}"


def _literal_options(annotation: Any) -> list[Any]:
    """Return the options of the `Literal` types in an annotation."""
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    return [option for argument in typing.get_args(annotation) for option in _literal_options(argument)]


def _describe_expected(annotation: Any, value: Any) -> str:
    """Return the values that an annotation accepts, in words; `value` decides if a very large upper bound is named."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    component = component_type(annotation)
    if component is not None:
        return add_article(component.__name__) + " or None" * (type(None) in arguments)
    if origin is Annotated:
        return _describe_number(arguments[0], arguments[1], value)
    if origin is Literal:
        options = [describe_value(option) for option in arguments]
        return f"{', '.join(options[:-1])} or {options[-1]}" if len(options) > 1 else options[0]
    if origin is tuple:
        return f"a list, each entry {_describe_expected(arguments[0], value)}"
    if origin is dict:
        return "a table" if arguments[1] is Any else f"a table, each value {_describe_expected(arguments[1], value)}"
    if arguments:  # a union
        words = [_describe_expected(argument, value) for argument in arguments if argument is not type(None)]
        unset = _UNSET_CLAUSE if type(None) in arguments else ""
        return " or ".join(words) + unset
    description_by_type = {bool: "true or false", str: "a text in quotes", int: "a whole number", float: "a number"}
    return description_by_type.get(annotation, f"a {getattr(annotation, '__name__', annotation)}")


def _describe_number(kind: type, bounds: msgspec.Meta, value: Any) -> str:
    """Return a number's kind and bounds in words: "a whole number from 1 to 127", "a number above 0 and at most 1"."""
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    noun = "a whole number" if kind is int else "a number"
    is_exceeded = isinstance(value, int | float) and bounds.le is not None and value > bounds.le
    bound = None if (bounds.le or 0) > _MAX_UNMENTIONED_BOUND and not is_exceeded else bounds.le
    maximum = "3.4e38, the largest number of float32" if bound == MAX_FLOAT32 else bound
    if bounds.ge is not None and maximum is not None:
        return f"{noun} from {bounds.ge} to {maximum}"
    limits = (("above", bounds.gt), ("of at least", bounds.ge), ("below", bounds.lt), ("at most", maximum))
    return " ".join([noun, " and ".join(f"{word} {limit}" for word, limit in limits if limit is not None)]).rstrip()


@dataclass(frozen=True)
class ValidatedConfig:
    """Frozen dataclass whose fields are validated by their annotations when it is created.

    Attributes:
        has_short_form: True if a file may have a number or text in place of the table; the owner of the field converts it.
    """

    has_short_form: ClassVar[bool] = False

    def __post_init__(self) -> None:
        owner = getattr(self, "name", type(self).__name__)
        cls: Any = type(self)
        values = cls.resolve_defaults({field: getattr(self, field) for field in field_types(cls)})
        for field, annotation in field_types(cls).items():
            try:
                object.__setattr__(self, field, validate_value(values[field], annotation))
            except ValueError as problem:
                raise FieldError(owner, field, str(problem)) from None

    @classmethod
    def resolve_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values of all fields, with the defaults that depend on other fields, and with names in place of aliases.

        The object is created with the returned values, which are validated afterwards.

        Args:
            values: value of each field, before validation.
        """
        return values


@dataclass(frozen=True)
class Component(ValidatedConfig):
    """Base class of the objects that a scenario names: hyper-parameters without state, compared by value."""

    name: ClassVar[str]
    instance_hint: ClassVar[str] = ""
    """Clause of the message for another object in place of a member, such as "; pass a module to ..."."""

    @classmethod
    def get_summary(cls) -> str:
        """Return the first line of the docstring, which listings show."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    def list_import_paths(self) -> dict[str, str]:
        """Return the "my_package.my_module:name" of each function or module that a field names, by the field's key."""
        return {}
