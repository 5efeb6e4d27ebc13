"""Compressors by registered name or by a user's `module:Class`, with settings as in a scenario file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from fedsgd.certification.certificate import CompressorLike
from fedsgd.compression import COMPRESSORS, CompressionOperator, CompressionScheme
from fedsgd.compression.run_config import FeedbackPolicy
from fedsgd.config.component import FieldError, import_by_path
from fedsgd.errors import FedsgdError, ScenarioError
from fedsgd.scenario.overrides import apply_settings
from fedsgd.scenario.parsing import parse_table
from fedsgd.scenario.sections import UplinkConfig

EXPECTED_CLASS = (
    "a frozen dataclass with a `name` that subclasses fedsgd.compression.CompressionOperator or "
    "fedsgd.compression.CompressionScheme"
)


def resolve_compressor(
    compressor: str | CompressorLike, settings: Mapping[str, Any], error_feedback: FeedbackPolicy
) -> CompressorLike:
    """Return the compressor, with error feedback unless the policy is "none". The arguments are those of `certify`.

    Raises:
        ScenarioError: a name, setting or class is not valid; the message starts with the dotted key of a setting.

    >>> resolve_compressor("top-k", {"density": 0.1}, "none")
    TopK(density=0.1, values='float32')
    """
    if isinstance(compressor, str):
        component = _build_from_name(compressor, settings)
    elif settings:
        raise ScenarioError(f"{next(iter(settings))}: settings are for a compressor that is given by name, got {compressor!r}")
    else:
        check_compressor_class(type(compressor), repr(compressor))
        component = compressor
    if error_feedback == "none":
        return component
    try:
        return UplinkConfig(component, error_feedback).build_scheme()
    except FieldError as error:
        raise ScenarioError(f"{error.field}: {error.problem}") from None


def _build_from_name(compressor: str, settings: Mapping[str, Any]) -> CompressorLike:
    cls: Any = import_by_path(compressor) if ":" in compressor else _find_registered(compressor)
    check_compressor_class(cls, f'"{compressor}"')
    try:
        component: CompressorLike = parse_table(cls, apply_settings(cls, {}, settings))
    except FedsgdError:
        raise
    except Exception as error:  # the user's own checks and annotations may raise any error
        raise ScenarioError(f"{compressor}: cannot be built: {type(error).__name__}: {error}") from error
    return component


def _find_registered(name: str) -> type:
    try:
        return COMPRESSORS[name]
    except ScenarioError as error:
        hint = "; a class of your own is named my_package.my_module:MyCompressor" if "." in name else ""
        raise ScenarioError(f"compressor: {error}{hint}") from None


def check_compressor_class(cls: object, description: str) -> None:
    """Raise ScenarioError unless a value is the class of a compressor; the error describes the value by `description`."""
    if not isinstance(cls, type):
        raise ScenarioError(f"{description} is {cls!r}, expected {EXPECTED_CLASS}")
    if not issubclass(cls, CompressionOperator | CompressionScheme):
        raise ScenarioError(f"{description} is a class of {_format_bases(cls)}, expected {EXPECTED_CLASS}")
    if inspect.isabstract(cls):
        missing_names = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise ScenarioError(f"{description} does not define {missing_names}, expected {EXPECTED_CLASS}")
    if not is_dataclass(cls) or "__dataclass_params__" not in vars(cls):
        raise ScenarioError(f"{description} is not decorated with @dataclass(frozen=True), expected {EXPECTED_CLASS}")
    if not isinstance(getattr(cls, "name", None), str):
        raise ScenarioError(f'{description} has no name, expected {EXPECTED_CLASS}: name: ClassVar[str] = "..."')


def _format_bases(cls: type) -> str:
    return ", ".join(f"{base.__module__}.{base.__qualname__}" for base in cls.__bases__)
