"""Checks of arguments of Python functions: flags, numbers and groups of options."""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral
from typing import Any, TypeVar

from fedsgd.config.component import describe_value
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


def is_whole_number(value: object) -> bool:
    """Return True for an integer, also one of numpy, and False for True and False.

    Args:
        value: value that a user passed.
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


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
