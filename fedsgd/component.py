"""Components: frozen dataclasses of hyper-parameters, checked when they are built, found by name in a registry.

A component's annotations are its schema. They are checked here, whether the values come from TOML or from Python, so a bad
hyper-parameter cannot exist. msgspec does the type work; this module is its only door.
"""

from __future__ import annotations

import importlib
import inspect
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import msgspec

from fedsgd.errors import ScenarioError, did_you_mean

LARGEST_FLOAT = 2.0**128 - 2.0**104
"""Largest finite float32. Models compute in float32, where a larger setting is infinite."""
Positive = Annotated[float, msgspec.Meta(gt=0, le=LARGEST_FLOAT)]
AtLeastOne = Annotated[float, msgspec.Meta(ge=1, le=LARGEST_FLOAT)]
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=LARGEST_FLOAT)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Coefficient = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Bucket = Annotated[int, msgspec.Meta(ge=16, le=2**31 - 1)]
"""Coordinates that share a scale: with fewer the scales weigh more than what they are for."""
Level = Annotated[int, msgspec.Meta(ge=1, le=127)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A 64-bit number, as TOML's integers are. All other integers are 32-bit numbers, as in frames."""


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


def check_value(value: Any, annotation: Any) -> Any:
    """`value` as `annotation` wants it (a list becomes a tuple, 1 becomes 1.0), or ValueError that says what was expected."""
    item = item_type(annotation)
    if item is not None:
        if not isinstance(value, tuple | list):
            raise ValueError(f"expected a list, got {value_text(value)}")
        return tuple(check_value(one, item) for one in value)
    expected = component_type(annotation)
    if expected is not None:
        if isinstance(value, expected) or (value is None and type(None) in typing.get_args(annotation)):
            return value
        raise ValueError(_problem(value, annotation))
    try:
        good = msgspec.convert(value, annotation, strict=True)
    except (msgspec.ValidationError, OverflowError):  # an integer that no float can hold overflows
        raise ValueError(_problem(value, annotation)) from None
    if isinstance(good, float) and not math.isfinite(good):
        raise ValueError(f"expected a finite number, got {good!r}")
    return good


# ------------------------------------------------------------------------------------------------- annotations in plain words

_SHOWN_CHARACTERS, _NULLS = 80, ("null", "none", "nil")
_NOTABLE_BOUND = 10**6  # a larger upper bound is named only where the value exceeds it


def value_text(value: Any) -> str:
    """Return a value as a message shows it, in one line of at most 80 characters: as in TOML, else its `repr`."""
    text = " ".join(map(str.strip, _toml_text(value).splitlines()))
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _toml_text(value: Any) -> str:
    if isinstance(value, str) and value.isprintable():
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return f"{{ {', '.join(f'{key} = {_toml_text(one)}' for key, one in value.items())} }}" if value else "{}"
    return f"[{', '.join(map(_toml_text, value))}]" if type(value) is list else repr(value)


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article."""
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def _problem(value: Any, annotation: Any) -> str:
    """Return the message for a value that `annotation` does not take, with the position in a list or the key in a table."""
    options = [option for option in _literals(annotation) if isinstance(option, str)]
    if options and isinstance(value, str):
        hint = did_you_mean(value, options)
        if "did you mean" in hint or typing.get_origin(annotation) is Literal:
            return f"got {value_text(value)}{hint}"
    entries: Iterable[tuple[str, Any]] = ()
    if typing.get_origin(annotation) is tuple and isinstance(value, tuple | list):
        entries = ((f"[{i}]", one) for i, one in enumerate(value))
    elif typing.get_origin(annotation) is dict and isinstance(value, Mapping):
        entries = ((str(key), one) for key, one in value.items())
    for where, entry in entries:
        item = typing.get_args(annotation)[typing.get_origin(annotation) is dict]
        try:
            check_value(entry, item)
        except ValueError:
            return f"expected {_expected(item, entry)} at {where}, got {value_text(value)}"
    hint = "; a key is left out by not giving it" if isinstance(value, str) and value.lower() in _NULLS else ""
    return f"expected {_expected(annotation, value)}, got {value_text(value)}{hint}"


def _literals(annotation: Any) -> list[Any]:
    """Return the options of the `Literal` types in an annotation."""
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    return [option for argument in typing.get_args(annotation) for option in _literals(argument)]


def _expected(annotation: Any, value: Any) -> str:
    """Return what an annotation takes, in words; `value` decides whether a very large upper bound is named."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    component = component_type(annotation)
    if component is not None:
        return with_article(component.__name__) + " or None" * (type(None) in arguments)
    if origin is Annotated:
        return _number(arguments[0], arguments[1], value)
    if origin is Literal:
        named = [value_text(option) for option in arguments]
        return f"{', '.join(named[:-1])} or {named[-1]}" if len(named) > 1 else named[0]
    if origin is tuple:
        return f"a list, each entry {_expected(arguments[0], value)}"
    if origin is dict:
        return "a table" if arguments[1] is Any else f"a table, each value {_expected(arguments[1], value)}"
    if arguments:  # a union
        words = [_expected(argument, value) for argument in arguments if argument is not type(None)]
        unset = ", or the key left out" if type(None) in arguments else ""
        return " or ".join(words) + unset
    plain = {bool: "true or false", str: "a text in quotes", int: "a whole number", float: "a number"}
    return plain.get(annotation, f"a {getattr(annotation, '__name__', annotation)}")


def _number(kind: type, bounds: msgspec.Meta, value: Any) -> str:
    """Return a number's kind and bounds in words: "a whole number from 1 to 127", "a number above 0 and at most 1"."""
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    noun = "a whole number" if kind is int else "a number"
    exceeded = isinstance(value, int | float) and bounds.le is not None and value > bounds.le
    bound = None if (bounds.le or 0) > _NOTABLE_BOUND and not exceeded else bounds.le
    most = "3.4e38, the largest number of float32" if bound == LARGEST_FLOAT else bound
    if bounds.ge is not None and most is not None:
        return f"{noun} from {bounds.ge} to {most}"
    named = (("above", bounds.gt), ("of at least", bounds.ge), ("below", bounds.lt), ("at most", most))
    return " ".join([noun, " and ".join(f"{word} {bound}" for word, bound in named if bound is not None)]).rstrip()


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
        absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{error.name}."
        )  # not what it imports
        looked = f"looked for in the current folder {Path.cwd()} and on Python's path"
        where = f" ({looked}; run from its folder, or put the folder in PYTHONPATH)" if absent else ""
        raise ScenarioError(f'cannot import "{module_name}": {type(error).__name__}: {error}{where}') from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        names = [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name, None))]
        raise ScenarioError(f'"{module_name}" has no "{attribute}"{did_you_mean(attribute, names)}') from None


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
