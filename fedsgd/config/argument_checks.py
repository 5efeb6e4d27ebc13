"""Checks of arguments of Python functions: flags, numbers and groups of options."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from fedsgd.config.component import bounded_int, describe_value, validate_value
from fedsgd.errors import ScenarioError

Config = TypeVar("Config")


def check_flag(argument: str, value: object) -> None:
    """Raise a ScenarioError for an argument that is neither True nor False.

    Args:
        argument: name of the argument, for the message.
        value: value that a user passed.
    """
    if not isinstance(value, bool):
        raise ScenarioError(f"{argument}: got {describe_value(value)}, expected True or False")


def resolve_whole_number(argument: str, value: object, least: int, most: int, reason: str = "") -> int:
    """Return an argument as an integer, also one of numpy.

    Args:
        argument: name of the argument, for the message.
        value: value that a user passed.
        least: smallest valid number.
        most: largest valid number.
        reason: clause of the message that explains a bound.

    Raises:
        ScenarioError: the value is no whole number between the bounds.
    """
    try:
        number: int = validate_value(value, bounded_int(least, most))
    except ValueError as problem:
        raise ScenarioError(f"{argument}: {problem}{reason and f'; {reason}'}") from None
    return number


def resolve_config(argument: str, value: object, cls: type[Config]) -> Config:
    """Return an argument that groups options, or the defaults for None.

    Args:
        argument: name of the argument, for the message.
        value: value that a user passed.
        cls: frozen dataclass of the options, which fedsgd exports, with a default for each field.

    Raises:
        ScenarioError: the value is not an instance of the class, or a flag among the options is neither True nor False.
    """
    if value is None:
        return cls()
    members: Any = cls
    if isinstance(value, cls):
        for f in fields(members):
            if isinstance(f.default, bool):
                check_flag(f"{argument}.{f.name}", getattr(value, f.name))
        return value
    first = fields(members)[0]
    example = describe_value(value) if type(value) is type(first.default) else "..."
    raise ScenarioError(f"{argument}: got {describe_value(value)}, expected fedsgd.{cls.__name__}({first.name}={example})")
