"""Errors of component classes from outside the package, in one line with the key and the class."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fedsgd.errors import FedsgdError, RunError, ScenarioError, describe_error

_LIBRARY_FILES = (
    str(Path(__file__).parent.parent) + os.sep,
    *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<frozen",
    "<string>",
)
"""Beginnings of the names of files that are not the user's: fedsgd, Python, installed packages and generated functions."""
_MAX_LISTED_TYPES = 4
"""Maximum length of a tuple whose types are listed in a message."""


def find_user_class(component: Any) -> str | None:
    """Return `package.module:Class` of the first class in a component that is not from fedsgd, None without one.

    Components in the fields of a component, also in tuples, are part of it.
    """
    cls = type(component)
    if cls is tuple:
        return next((name for value in component if (name := find_user_class(value))), None)
    if not is_dataclass(component):
        return None
    if not cls.__module__.startswith("fedsgd."):
        return f"{cls.__module__}:{cls.__qualname__}"
    return next((name for f in fields(component) if (name := find_user_class(getattr(component, f.name, None)))), None)


def describe_result(value: Any) -> str:
    """Return the type of a value that a user's method returned; of an array or tensor the dtype and the shape.

    >>> describe_result((None, [])), describe_result(1.5)
    ('(None, list)', 'float 1.5')
    """
    if type(value) is tuple and len(value) <= _MAX_LISTED_TYPES:
        return f"({', '.join('None' if element is None else type(element).__name__ for element in value)})"
    if isinstance(value, bool | int | float | str):
        return f"{type(value).__name__} {value!r:.40}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{type(value).__name__} of {value.dtype} and shape {list(value.shape)}"
    return "None" if value is None else type(value).__name__


def describe_user_error(error: Exception) -> str:
    """Return an exception in one line, with file, line and function of the user's last frame in its traceback."""
    user_frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_LIBRARY_FILES)
    ]
    if not user_frames:
        return describe_error(error)
    frame = user_frames[-1]
    return f"{describe_error(error)} ({Path(frame.filename).name}:{frame.lineno}, in {frame.name})"


def make_component_error(key: str, component: Any, problem: str, round: int | None = None) -> FedsgdError:
    """Return the error of a component that breaks its contract: a ScenarioError, or in a round a RunError of the server."""
    text = f"{key} ({find_user_class(component) or getattr(component, 'name', type(component).__name__)}): {problem}"
    return ScenarioError(text) if round is None else RunError(round, None, text)


@contextmanager
def wrap_user_errors(key: str, component: Any, round: int | None = None) -> Iterator[None]:
    """Turn an exception of a user's class into the error of `make_component_error`, with the place in the user's file.

    A FedsgdError, a MemoryError and exceptions of the package's own classes pass unchanged.
    """
    try:
        yield
    except (FedsgdError, MemoryError):
        raise
    except Exception as error:
        if find_user_class(component) is None:
            raise
        raise make_component_error(key, component, describe_user_error(error), round) from error
