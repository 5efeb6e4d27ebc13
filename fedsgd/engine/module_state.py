"""State of a task's module and loss beside their parameters: buffers, and plain Python attributes.

Clients of a federation share neither. Each begins its round with both as they were made, except for the buffers that its policy
carries from round to round (`Task.buffers`).
"""

from __future__ import annotations

import copy
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor, nn

from fedsgd.arrays import F32
from fedsgd.errors import ModelError
from fedsgd.models import Task
from fedsgd.models.buffers import as_float32, unused_counters

_INTERNAL = frozenset(vars(nn.Module()))
_ATOMS = (int, float, complex, str, bytes, bool, type(None), type, torch.dtype, torch.device)


class ModuleState:
    """Buffers and attributes of a task's module and loss as they were made; S is the size of `Task.buffers`."""

    def __init__(self, task: Task) -> None:
        self._parts = task.parts
        self._layout = task.buffers
        self._made = {name: buffer.clone() for name, buffer in self._buffers().items()}
        carried = () if task.buffers is None else task.buffers.names
        self._checked = self._made.keys() - {
            *carried,
            *(n for prefix, part in self._parts for n in unused_counters(part, prefix)),
        }
        self.attributes = Attributes([module for _, part in self._parts for module in part.modules()])

    def _buffers(self) -> dict[str, Tensor]:
        return {f"{prefix}{name}": buffer for prefix, part in self._parts for name, buffer in part.named_buffers()}

    def put_back(self) -> None:
        """Make buffers and attributes what they were. ModelError for a buffer that appeared or changed its shape."""
        for name, buffer in self._buffers().items():
            before = self._made.get(name)
            if before is None or before.shape != buffer.shape:
                raise ModelError(f"buffer {name} appeared or changed its shape while the module ran; register it beforehand")
            with torch.no_grad():
                buffer.copy_(before)
        self.attributes.put_back()

    def load(self, values: F32) -> None:
        """Overwrite the buffers that clients carry with values [S]."""
        if self._layout is None or values.shape != (self._layout.size,):
            expected = "none" if self._layout is None else f"[{self._layout.size}]"
            raise ValueError(f"buffers of shape {list(values.shape)}, this model has {expected}")
        buffers = self._buffers()
        for name, where, shape in self._layout.slices():
            value = torch.from_numpy(np.array(values[where])).view(shape)
            if not buffers[name].is_floating_point():
                value = value.round()
            with torch.no_grad():
                buffers[name].copy_(value)

    def read(self) -> F32 | None:
        """Return the buffers that clients carry [S], None if there are none."""
        if self._layout is None:
            return None
        buffers = self._buffers()
        return np.concatenate([as_float32(name, buffers[name]) for name in self._layout.names])

    def check(self) -> None:
        """Raise ModelError if training changed a buffer that no policy carries: putting it back would lose the change."""
        for name in self._checked:
            self._check(name, self._buffers()[name])

    def check_copies(self, buffers: Mapping[str, Tensor]) -> None:
        """Raise ModelError as `check` does, for an engine that works on buffers of its own, by name."""
        for name in self._checked & buffers.keys():
            self._check(name, buffers[name])

    def _check(self, name: str, buffer: Tensor) -> None:
        if not same(buffer, self._made[name]):
            raise ModelError(
                f"buffer {name} changed while a client trained, though it did not in the trial before round 1; set "
                'model.buffers to "mean" (sent as float32 and averaged) or "local" (kept by each client)'
            )


class Attributes:
    """Plain attributes of modules as they were made: everything in `vars(module)` that torch does not keep there itself.

    Modules, parameters and buffers that an attribute refers to are not copied. What cannot be copied is kept by reference.

    Attributes:
        changed: name of the first attribute that was found changed; None if there was none.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.changed: str | None = None
        self._modules = modules
        tensors = [t for module in modules for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
        self._kept: dict[int, Any] = {id(thing): thing for thing in (*modules, *tensors)}
        self._made = [{name: self._copy(value) for name, value in _plain(module)} for module in modules]

    def _copy(self, value: Any) -> Any:
        if _is_atom(value):
            return value
        try:
            return copy.deepcopy(value, dict(self._kept))
        except Exception:  # an open file, a lock, a tensor with a history: there is no copy
            return value

    def put_back(self) -> None:
        """Make all attributes what they were, and note in `changed` the first one that was not.

        A tensor with a history (a weight that a hook computes anew in each call) is a result, not a state.
        """
        for module, made in zip(self._modules, self._made, strict=True):
            attributes = vars(module)
            for name in [name for name, _ in _plain(module) if name not in made]:
                self._note(module, name, attributes.pop(name))
            for name, value in made.items():
                now = attributes.get(name, _ABSENT)
                if not same(now, value):
                    self._note(module, name, now)
                    attributes[name] = self._copy(value)

    def _note(self, module: nn.Module, name: str, value: object) -> None:
        derived = isinstance(value, Tensor) and not value.is_leaf
        if self.changed is None and not derived and name not in _OF_TORCH:
            self.changed = f"{type(module).__name__}.{name}"


_ABSENT = object()
_OF_TORCH = frozenset(("_flat_weights", "_flat_weight_refs"))
"""Attributes of torch's recurrent layers that follow their parameters."""
_STATES: dict[type, Callable[[Any], Any]] = {
    np.random.Generator: lambda generator: generator.bit_generator.state,
    RandomState: lambda generator: generator.get_state(legacy=False),
    random.Random: lambda generator: generator.getstate(),
    torch.Generator: lambda generator: generator.get_state(),
}


def _plain(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(module).items() if name not in _INTERNAL]


def _is_atom(value: Any) -> bool:
    return isinstance(value, _ATOMS) or (type(value) in (tuple, torch.Size) and all(map(_is_atom, value)))


def same(a: Any, b: Any, seen: frozenset[tuple[int, int]] = frozenset()) -> bool:
    """Return whether two values are equal in type and content; NaN equals NaN, arrays and generators compare by their state."""
    if a is b or (id(a), id(b)) in seen:
        return True
    if type(a) is not type(b) or isinstance(a, nn.Module):
        return False
    if isinstance(a, Tensor):
        return _same_tensors(a, b)
    if isinstance(a, float):
        return bool(a == b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, np.ndarray) and a.dtype != object:
        return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())
    if _equal(a, b):
        return True
    contents, seen = _contents(a, b), seen | {(id(a), id(b))}
    return contents is not None and all(same(x, y, seen) for x, y in contents)


def _same_tensors(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != torch.strided:
        return False
    equal: bool = torch.equal(a, b) or a.detach().numpy().tobytes() == b.detach().numpy().tobytes()
    return equal


def _equal(a: Any, b: Any) -> bool:
    """Return whether `a == b` says so: for containers of plain values the quick answer."""
    try:
        return (a == b) is True
    except Exception:  # arrays inside, or the user's own comparison
        return False


def _contents(a: Any, b: Any) -> list[tuple[Any, Any]] | None:
    """Return pairs that all have to be the same for two values of one type that == does not call equal; None if they differ."""
    if isinstance(a, dict):
        return [(a[key], b[key]) for key in a] if list(a) == list(b) else None
    if isinstance(a, list | tuple | deque):
        return list(zip(a, b, strict=True)) if len(a) == len(b) else None
    for kind, state in _STATES.items():
        if isinstance(a, kind):
            return [(state(a), state(b))]
    if isinstance(a, np.ndarray):
        return [(a.tolist(), b.tolist())]
    if isinstance(a, (*_ATOMS, FunctionType)):
        return None
    if hasattr(a, "__dict__"):
        return [(vars(a), vars(b))]
    try:
        return [(a.__reduce_ex__(4), b.__reduce_ex__(4))]  # iterators of C, objects with slots
    except TypeError:
        return None
