"""Checks of arguments that group options."""

from __future__ import annotations

from dataclasses import fields
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


def resolve_config(argument: str, value: object, cls: type[Config]) -> Config:
    """Return an argument that groups options, or the defaults for None.

    Args:
        argument: name of the argument, for the message.
        value: value that a user passed.
        cls: frozen dataclass of the options, which fedsgd exports, with a default for each field.

    Raises:
        ScenarioError: the value is not an instance of the class.
    """
    if value is None:
        return cls()
    if isinstance(value, cls):
        return value
    members: Any = cls
    first = fields(members)[0]
    example = describe_value(value) if type(value) is type(first.default) else "..."
    raise ScenarioError(f"{argument}: got {describe_value(value)}, expected fedsgd.{cls.__name__}({first.name}={example})")
