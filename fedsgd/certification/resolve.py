"""Compressors by registered name or by a user's `module:Class`, with settings as in a scenario file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsgd.certification.certificate import CompressorLike
from fedsgd.compression import COMPRESSORS, CompressionOperator, CompressionScheme, Compressor
from fedsgd.compression.run_config import FeedbackPolicy
from fedsgd.config.component import FieldError
from fedsgd.config.registry import check_component_class
from fedsgd.errors import FedsgdError, ScenarioError
from fedsgd.scenario.overrides import apply_settings
from fedsgd.scenario.parsing import parse_table
from fedsgd.scenario.resolution import build_scheme
from fedsgd.scenario.sections import UplinkConfig


def resolve_compressor(
    compressor: str | CompressorLike, settings: Mapping[str, Any], error_feedback: FeedbackPolicy
) -> CompressorLike:
    """Return the compressor, with error feedback unless the policy is "none". The arguments are those of `certify`.

    Raises:
        ScenarioError: a name, setting or class is not valid; the message starts with the dotted key of a setting.

    >>> resolve_compressor("top-k", {"density": 0.1}, "none")
    TopK(density=0.1, values='float32', chunk=None, scales=None)
    """
    if isinstance(compressor, str):
        component = _build_from_name(compressor, settings)
    elif settings:
        raise ScenarioError(f"{next(iter(settings))}: settings are for a compressor that is given by name, got {compressor!r}")
    else:
        _check_class(type(compressor), repr(compressor))
        component = compressor
    if error_feedback == "none":
        return component
    try:
        return build_scheme(UplinkConfig(component, error_feedback))
    except FieldError as error:
        raise ScenarioError(f"{error.field}: {error.problem}") from None


def _build_from_name(compressor: str, settings: Mapping[str, Any]) -> CompressorLike:
    cls = _find_class(compressor)
    try:
        component: CompressorLike = parse_table(cls, apply_settings(cls, {}, settings))
    except FedsgdError:
        raise
    except Exception as error:  # the user's own checks and annotations may raise any error
        raise ScenarioError(f"{compressor}: cannot be built: {type(error).__name__}: {error}") from error
    return component


def _find_class(name: str) -> type[CompressorLike]:
    try:
        cls: Any = COMPRESSORS[name]
        _check_class(cls, f'"{name}"')
    except ScenarioError as error:
        hint = "; a class of your own is named my_package.my_module:MyCompressor" if "." in name and ":" not in name else ""
        raise ScenarioError(f"compressor: {error}{hint}") from error.__cause__
    checked_class: type[CompressorLike] = cls
    return checked_class


def _check_class(cls: type, description: str) -> None:
    """Raise a ScenarioError unless a class is that of an operator or a scheme, built in or of a user."""
    check_component_class(cls, Compressor, description)
    COMPRESSORS.check_plugin(cls)
    if not issubclass(cls, CompressionOperator | CompressionScheme):
        raise ScenarioError(f"{description} is neither a CompressionOperator nor a CompressionScheme of fedsgd.compression")
