"""Comparison of Python values by type and content. This module imports torch."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor, nn

ATOMIC_TYPES = (int, float, complex, str, bytes, bool, type(None), type, torch.dtype, torch.device, torch.Size, slice, range)
GENERATOR_STATE_READERS: Mapping[type, Callable[[Any], Any]] = {
    np.random.Generator: lambda generator: generator.bit_generator.state,
    RandomState: lambda generator: generator.get_state(legacy=False),
    random.Random: lambda generator: generator.getstate(),
    torch.Generator: lambda generator: generator.get_state(),
}
"""Function that reads the state of a generator, by its type."""


def is_same(a: Any, b: Any, visited_pairs: frozenset[tuple[int, int]] = frozenset()) -> bool:
    """Return True if two values are equal in type and content: NaN equals NaN, generators by state, modules by identity."""
    if a is b or (id(a), id(b)) in visited_pairs:
        return True
    if type(a) is not type(b) or isinstance(a, nn.Module):
        return False
    if isinstance(a, Tensor):
        return _is_same_tensor(a, b)
    if isinstance(a, float):
        return bool(a == b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, np.ndarray) and a.dtype != object:
        return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(_view_bytes(a), _view_bytes(b))
    if not isinstance(a, dict) and _is_equal(a, b):
        return True
    contents, visited_pairs = _pair_contents(a, b), visited_pairs | {(id(a), id(b))}
    return contents is not None and all(is_same(x, y, visited_pairs) for x, y in contents)


def _view_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _is_same_tensor(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != torch.strided:
        return False
    equal: bool = torch.equal(a, b) or a.detach().cpu().numpy().tobytes() == b.detach().cpu().numpy().tobytes()
    return equal


def _is_equal(a: Any, b: Any) -> bool:
    """Return True if `a == b` is True, a quick test for containers of plain values."""
    try:
        return (a == b) is True
    except Exception:  # arrays inside a container, or a comparison of the user, may raise
        return False


def _pair_contents(a: Any, b: Any) -> list[tuple[Any, Any]] | None:
    """Return the pairs of contents that must be equal for two values of one type to be equal; None if the values differ."""
    if isinstance(a, dict):
        return [(a[key], b[key]) for key in a] if list(a) == list(b) else None
    if isinstance(a, list | tuple | deque):
        return list(zip(a, b, strict=True)) if len(a) == len(b) else None
    read = next((read for cls, read in GENERATOR_STATE_READERS.items() if isinstance(a, cls)), None)
    if read is not None:
        return [(read(a), read(b))]
    if isinstance(a, np.ndarray):
        return [(a.tolist(), b.tolist())]
    if isinstance(a, (*ATOMIC_TYPES, FunctionType, nn.Module)):
        return None
    slots = [(read_slots(a), read_slots(b))] if is_python_instance(a) and read_slots(a) else []
    return [(vars(a), vars(b)), *slots] if getattr(a, "__dict__", None) else slots or None


def read_slots(obj: Any) -> dict[str, Any]:
    """Return the attributes of an object that its classes declare in `__slots__`."""
    names = [name for cls in type(obj).__mro__ for name in getattr(cls, "__slots__", ()) if not name.startswith("__")]
    return {name: getattr(obj, name) for name in names if hasattr(obj, name)}


def is_python_instance(obj: Any) -> bool:
    """Return True for an instance of a user's class that is written in Python."""
    return type(type(obj)) is type and type(obj).__module__.partition(".")[0] not in ("builtins", "torch", "numpy", "re")
