"""Errors of component classes from outside the package, in one line with the key and the class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from fedsgd.errors import FedsgdError, RunError, ScenarioError, describe_error


def find_user_class(component: Any) -> str | None:
    """Return `package.module:Class` of the first class in a component that is not from fedsgd, None without one."""
    cls = type(component)
    if not is_dataclass(component):
        return None
    if not cls.__module__.startswith("fedsgd."):
        return f"{cls.__module__}:{cls.__qualname__}"
    return next((name for f in fields(component) if (name := find_user_class(getattr(component, f.name, None)))), None)


def make_component_error(key: str, component: Any, problem: str, round: int | None = None) -> FedsgdError:
    """Return the error of a component that breaks its contract: a ScenarioError, or in a round a RunError of the server."""
    text = f"{key} ({find_user_class(component) or getattr(component, 'name', type(component).__name__)}): {problem}"
    return ScenarioError(text) if round is None else RunError(round, None, text)


@contextmanager
def wrap_user_errors(key: str, component: Any, round: int | None = None) -> Iterator[None]:
    """Turn an exception of a user's class into the error of `make_component_error`.

    A FedsgdError, a MemoryError and exceptions of the package's own classes pass unchanged.
    """
    try:
        yield
    except (FedsgdError, MemoryError):
        raise
    except Exception as error:
        if find_user_class(component) is None:
            raise
        raise make_component_error(key, component, describe_error(error), round) from error
