"""Which compressor is meant: a registered name, or `module:Class` of somebody's own, with settings as a scenario has them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal

from fedsgd.certificate.base import Subject
from fedsgd.component import FieldError, import_object
from fedsgd.compress import COMPRESSORS, Operator, Scheme
from fedsgd.errors import FedsgdError, ScenarioError
from fedsgd.overrides import apply_settings
from fedsgd.schema import from_table
from fedsgd.tables import Uplink

Feedback = Literal["none", "persist", "decay", "reset"]
EXPECTED = "a frozen dataclass, with a `name`, that subclasses fedsgd.compress.Operator or fedsgd.compress.Scheme"


def resolve(compressor: str | Subject, settings: Mapping[str, Any], error_feedback: Feedback) -> Subject:
    """The compressor, under error feedback if that is asked for. settings: dotted keys of its fields.

    ScenarioError, that starts with the dotted key where there is one, for whatever is wrong.
    """
    if isinstance(compressor, str):
        found = _named(compressor, settings)
    elif settings:
        raise ScenarioError(f"{next(iter(settings))}: settings are for a compressor that is given by name, got {compressor!r}")
    else:
        check_class(type(compressor), repr(compressor))
        found = compressor
    if error_feedback == "none":
        return found
    try:
        return Uplink(found, error_feedback).scheme()
    except FieldError as error:
        raise ScenarioError(f"{error.field}: {error.problem}") from None


def _named(compressor: str, settings: Mapping[str, Any]) -> Subject:
    cls: Any = import_object(compressor) if ":" in compressor else _registered(compressor)
    check_class(cls, f'"{compressor}"')
    try:
        made: Subject = from_table(cls, apply_settings(cls, {}, settings))
    except FedsgdError:
        raise
    except Exception as error:  # the user's own checks and annotations may fail in any way
        raise ScenarioError(f"{compressor}: cannot be built: {type(error).__name__}: {error}") from error
    return made


def _registered(name: str) -> type:
    try:
        return COMPRESSORS[name]
    except ScenarioError as error:
        hint = "; a class of your own is named my_package.my_module:MyCompressor" if "." in name else ""
        raise ScenarioError(f"compressor: {error}{hint}") from None


def check_class(cls: object, what: str) -> None:
    """ScenarioError unless this is the class of a compressor. what: how it was named."""
    if not isinstance(cls, type):
        raise ScenarioError(f"{what} is {cls!r}, expected {EXPECTED}")
    if not issubclass(cls, Operator | Scheme):
        raise ScenarioError(f"{what} is a class of {_bases(cls)}, expected {EXPECTED}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise ScenarioError(f"{what} does not define {missing}, expected {EXPECTED}")
    if not is_dataclass(cls) or "__dataclass_params__" not in vars(cls):
        raise ScenarioError(f"{what} is not decorated with @dataclass(frozen=True), expected {EXPECTED}")
    if not isinstance(getattr(cls, "name", None), str):
        raise ScenarioError(f'{what} has no name, expected {EXPECTED}: name: ClassVar[str] = "..."')


def _bases(cls: type) -> str:
    return ", ".join(f"{base.__module__}.{base.__qualname__}" for base in cls.__bases__)
