"""Which compressor is meant: a registered name, or `module:Class` of somebody's own, with settings as a scenario has them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal

from fedsgd.certification.certificate import CompressorLike
from fedsgd.compression import COMPRESSORS, CompressionOperator, CompressionScheme
from fedsgd.config.component import FieldError, import_by_path
from fedsgd.errors import FedsgdError, ScenarioError
from fedsgd.scenario.overrides import apply_settings
from fedsgd.scenario.parsing import parse_table
from fedsgd.scenario.sections import UplinkConfig

FeedbackPolicy = Literal["none", "persist", "decay", "reset"]
EXPECTED_CLASS = "a frozen dataclass, with a `name`, that subclasses fedsgd.compression.Operator or fedsgd.compression.Scheme"


def resolve_compressor(
    compressor: str | CompressorLike, settings: Mapping[str, Any], error_feedback: FeedbackPolicy
) -> CompressorLike:
    """The compressor, under error feedback if that is asked for. settings: dotted keys of its fields.

    ScenarioError, that starts with the dotted key where there is one, for whatever is wrong.
    """
    if isinstance(compressor, str):
        found = _build_from_name(compressor, settings)
    elif settings:
        raise ScenarioError(f"{next(iter(settings))}: settings are for a compressor that is given by name, got {compressor!r}")
    else:
        check_compressor_class(type(compressor), repr(compressor))
        found = compressor
    if error_feedback == "none":
        return found
    try:
        return UplinkConfig(found, error_feedback).build_scheme()
    except FieldError as error:
        raise ScenarioError(f"{error.field}: {error.problem}") from None


def _build_from_name(compressor: str, settings: Mapping[str, Any]) -> CompressorLike:
    cls: Any = import_by_path(compressor) if ":" in compressor else _find_registered(compressor)
    check_compressor_class(cls, f'"{compressor}"')
    try:
        made: CompressorLike = parse_table(cls, apply_settings(cls, {}, settings))
    except FedsgdError:
        raise
    except Exception as error:  # the user's own checks and annotations may fail in any way
        raise ScenarioError(f"{compressor}: cannot be built: {type(error).__name__}: {error}") from error
    return made


def _find_registered(name: str) -> type:
    try:
        return COMPRESSORS[name]
    except ScenarioError as error:
        hint = "; a class of your own is named my_package.my_module:MyCompressor" if "." in name else ""
        raise ScenarioError(f"compressor: {error}{hint}") from None


def check_compressor_class(cls: object, description: str) -> None:
    """ScenarioError unless this is the class of a compressor. what: how it was named."""
    if not isinstance(cls, type):
        raise ScenarioError(f"{description} is {cls!r}, expected {EXPECTED_CLASS}")
    if not issubclass(cls, CompressionOperator | CompressionScheme):
        raise ScenarioError(f"{description} is a class of {_format_bases(cls)}, expected {EXPECTED_CLASS}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise ScenarioError(f"{description} does not define {missing}, expected {EXPECTED_CLASS}")
    if not is_dataclass(cls) or "__dataclass_params__" not in vars(cls):
        raise ScenarioError(f"{description} is not decorated with @dataclass(frozen=True), expected {EXPECTED_CLASS}")
    if not isinstance(getattr(cls, "name", None), str):
        raise ScenarioError(f'{description} has no name, expected {EXPECTED_CLASS}: name: ClassVar[str] = "..."')


def _format_bases(cls: type) -> str:
    return ", ".join(f"{base.__module__}.{base.__qualname__}" for base in cls.__bases__)
