"""Checks of a module, a loss and metrics that a user passes in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedsgd.config.component import Component, add_article, describe_value
from fedsgd.errors import ModelError
from fedsgd.models.base import StreamingMetric

if TYPE_CHECKING:
    from torch import Tensor


def check_python_arguments(module: object, loss: object, metrics: object) -> None:
    """Raise ModelError for arguments of `run` that are no module, loss or dictionary of metrics; None: absent argument."""
    if module is not None:
        check_module(module)
    if loss is not None:
        _check_callable(loss, "loss", "loss")
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        raise ModelError(
            f"metrics: got {_describe_kind(metrics)}, expected a dictionary of functions by name: {{'accuracy': accuracy}}"
        )
    for name, metric in metrics.items():
        if not isinstance(name, str):
            raise ModelError(f"metrics: got the name {describe_value(name)}, expected a text")
        check_metric_name(name)
        if isinstance(metric, type) or not isinstance(metric, StreamingMetric):
            _check_callable(metric, f'metric "{name}"', f"metrics.{name}")


def check_metric_name(name: str) -> None:
    """Raise ModelError for the name of a metric that is blank or not printable, which no table can show."""
    if not name.strip() or not name.isprintable():
        raise ModelError(f"metrics: got the name {describe_value(name)}, expected printable text, such as accuracy")


def check_module(module: object, argument: str = "model") -> None:
    """Raise ModelError, with the name of the argument, for a value that is no module, or a lazy one that was never run."""
    import torch

    if isinstance(module, torch.nn.Module):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            check_initialized(f"{argument}: {name}", tensor)
        return
    hint = ""
    if isinstance(module, Component):
        hint = "; a component goes into the scenario: fedsgd.Scenario(..., model=...)"
    elif isinstance(module, str):
        hint = '; a name goes into the scenario: [model] module = "package.module:function"'
    elif callable(module):
        hint = f": call it, {_factory_name(module)}()"
    raise ModelError(f"{argument}: got {_describe_kind(module)}, expected an instance of torch.nn.Module{hint}")


def check_initialized(name: str, tensor: Tensor) -> None:
    """Raise ModelError for a parameter or buffer of a lazy module that was never run."""
    from torch.nn.parameter import is_lazy

    if is_lazy(tensor):
        raise ModelError(f"{name} is not initialised yet; run the lazy module once before passing it")


def _check_callable(value: object, subject: str, key: str) -> None:
    """Check a loss or a metric; `key` is its key in [model]."""
    expected = f"{subject}: got {_describe_kind(value)}, expected a function of (output, target), or an instance"
    if isinstance(value, str):
        raise ModelError(f'{expected}; a name goes into the scenario: [model] {key} = "package.module:function"')
    if isinstance(value, type):
        raise ModelError(f"{expected}: {value.__name__}()")
    if not callable(value):
        raise ModelError(expected)


def _describe_kind(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str):
        return f"the text {describe_value(value)}"
    return add_article(type(value).__name__)


def _factory_name(value: object) -> str:
    return getattr(value, "__name__", "module")
