"""Components: frozen dataclasses of hyper-parameters, checked when they are built, found by name in a registry.

A component's annotations are its schema. They are checked here, whether the values come from TOML or from Python, so a bad
hyper-parameter cannot exist. msgspec does the type work; this module is its only door.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import msgspec

from fedsgd.errors import ScenarioError, did_you_mean

Positive = Annotated[float, msgspec.Meta(gt=0)]
AtLeastOne = Annotated[float, msgspec.Meta(ge=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Coefficient = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Bucket = Annotated[int, msgspec.Meta(ge=16)]
"""Coordinates that share a scale: with fewer the scales weigh more than what they are for."""
Level = Annotated[int, msgspec.Meta(ge=1, le=127)]
Natural = Annotated[int, msgspec.Meta(ge=0)]


class FieldError(ScenarioError):
    """A value that a field does not take; `field` lets whoever knows the path put it in front."""

    def __init__(self, owner: str, field: str, problem: str) -> None:
        super().__init__(f"{owner}.{field}: {problem}")
        self.owner = owner
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[FieldError], tuple[str, str, str]]:
        return type(self), (self.owner, self.field, self.problem)


@cache
def field_types(cls: Any) -> Mapping[str, Any]:
    """Name → annotation of each field of a dataclass, `Annotated` bounds kept, in the order of declaration."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls)}


def defaults(cls: type) -> Mapping[str, Any]:
    """Name → default of each field that has one."""
    found: dict[str, Any] = {}
    for f in fields(cls):
        if f.default is not MISSING:
            found[f.name] = f.default
        elif f.default_factory is not MISSING:
            found[f.name] = f.default_factory()
    return found


def item_type(annotation: Any) -> type | None:
    """The component or table class X of `tuple[X, ...]`; None for anything else."""
    return component_type(typing.get_args(annotation)[0]) if typing.get_origin(annotation) is tuple else None


def component_type(annotation: Any) -> type | None:
    """The component or table class that an annotation asks for, `X` of `X | None` too; None for plain values."""
    if typing.get_origin(annotation) is tuple:
        return None
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Checked):
            return candidate
    return None


def _literals(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is Literal:
        return [a for a in typing.get_args(annotation) if isinstance(a, str)]
    return [w for a in typing.get_args(annotation) for w in _literals(a)]


def check_value(value: Any, annotation: Any) -> Any:
    """`value` as `annotation` wants it (a list becomes a tuple, 1 becomes 1.0), or ValueError that says what was expected."""
    item = item_type(annotation)
    if item is not None:
        if not isinstance(value, tuple | list):
            raise ValueError(f"expected a list, got {value!r}")
        return tuple(check_value(one, item) for one in value)
    expected = component_type(annotation)
    if expected is not None:
        if isinstance(value, expected) or (value is None and type(None) in typing.get_args(annotation)):
            return value
        raise ValueError(f"expected a {expected.__name__}, got {value!r}")
    options = _literals(annotation)
    if options and isinstance(value, str) and value not in options:
        raise ValueError(f'got "{value}"{did_you_mean(value, options)}')
    try:
        good = msgspec.convert(value, annotation, strict=True)
    except msgspec.ValidationError as error:
        text, _, where = str(error).replace("`", "").partition(" - at $")
        at = f" at {where}" if where else ""
        raise ValueError(f"{re.sub(', got .*', '', text).replace('Expected', 'expected')}{at}, got {value!r}") from None
    if isinstance(good, float) and not math.isfinite(good):
        raise ValueError(f"expected a finite number, got {good!r}")
    return good


@dataclass(frozen=True)
class Checked:
    """A frozen dataclass whose fields are held to their annotations when it is built."""

    def __post_init__(self) -> None:
        owner = getattr(self, "name", type(self).__name__)
        cls: Any = type(self)
        for field, annotation in field_types(cls).items():
            try:
                object.__setattr__(self, field, check_value(getattr(self, field), annotation))
            except ValueError as problem:
                raise FieldError(owner, field, str(problem)) from None


@dataclass(frozen=True)
class Component(Checked):
    """Base of everything that a scenario names: hyper-parameters only, no state, compared and printed by value."""

    name: ClassVar[str]

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring: what listings show."""
        return (cls.__doc__ or "").strip().partition("\n")[0]


C = TypeVar("C", bound=Component)


def import_object(path: str) -> Any:
    """What `my_package.my_module:attribute` names; ScenarioError says which half was not found."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise ScenarioError(f'got "{path}", expected "my_package.my_module:name"')
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own module may fail in any way while it is imported
        raise ScenarioError(f'cannot import "{module_name}": {type(error).__name__}: {error}') from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ScenarioError(f'"{module_name}" has no "{attribute}"{did_you_mean(attribute, dir(module))}') from None


class Registry(Generic[C]):
    """Name → component class. Members are given as `module:Class` and imported when first asked for.

    To add one: write its file, add its line where the registry is made. implied: key → the name that a table without `name`
    has if it holds this key. aliases: other names → the member's own. plural: of `family`, for listings. unlisted: members that
    only resolved scenarios name, so that no listing and no suggestion has them. A name "package.module:Class" is a class of the
    user's own.
    """

    def __init__(
        self,
        family: str,
        base: type,
        members: Mapping[str, str],
        implied: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        plural: str | None = None,
        unlisted: Mapping[str, str] | None = None,
    ) -> None:
        self.family = family
        self.plural = f"{family}s" if plural is None else plural
        self.base: Any = base
        self.implied = dict(implied or {})
        self.aliases = dict(aliases or {})
        self._members = dict(members)
        self._unlisted = dict(unlisted or {})

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def knows(self, name: object) -> bool:
        """Return whether a name is that of a member, listed or not, an alias, or of the form "package.module:Class"."""
        return isinstance(name, str) and (":" in name or name in self._all or name in self.aliases)

    def holds(self, cls: type) -> bool:
        """Return whether a class is the one that its `name` stands for."""
        name = getattr(cls, "name", None)
        return name in self._all and self[str(name)] is cls

    @property
    def _all(self) -> Mapping[str, str]:
        return {**self._members, **self._unlisted}

    def __getitem__(self, name: str) -> type[C]:
        if ":" in name:
            return self._own(name)
        name = self.aliases.get(name, name)
        if name not in self._all:
            raise ScenarioError(f'got "{name}"{did_you_mean(name, [*self._members, *self.aliases])}')
        cls = import_object(self._all[name])
        if not (isinstance(cls, type) and issubclass(cls, self.base) and getattr(cls, "name", None) == name):
            raise TypeError(f'{self._all[name]} is registered as {self.family} "{name}" but is {cls!r}')
        member: type[C] = cls
        return member

    def _own(self, path: str) -> type[C]:
        """Import a user's own class; ScenarioError unless it can be a member of this family."""
        cls = import_object(path)
        base = f"{self.base.__module__}.{self.base.__qualname__}"
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise ScenarioError(f'got "{path}", which is {cls!r}, expected a subclass of {base}')
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
            raise ScenarioError(f'got "{path}", which does not define {missing}, expected a subclass of {base} that does')
        if not isinstance(getattr(cls, "name", None), str):
            raise ScenarioError(f'got "{path}", which has no name, expected name: ClassVar[str] = "..." in the class')
        member: type[C] = cls
        return member
