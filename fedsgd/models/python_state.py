"""Python state of modules, losses and metrics: the objects that are reachable from their plain attributes.

Clients of a federation share no Python objects, so each client starts its round with the initial state. The contents are
restored in place: objects keep their identity, so that references to a shared object stay valid. Imports torch.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedsgd.models.equality import ATOMIC_TYPES, GENERATOR_STATE_READERS, is_python_instance, is_same, read_slots
from fedsgd.system.torch_determinism import deep_copy

LARGE_ARRAY_BYTES = 2**20
"""Minimum bytes of an array that is compared only once for each client or evaluation, not for each slice."""
_MAX_OBJECTS = 100_000
_TORCH_ATTRIBUTES = frozenset((*vars(nn.Module()), "_flat_weights", "_flat_weight_refs"))
"""Names of torch in `vars(module)`; the last two belong to recurrent layers and follow the parameters."""
_HOOK_ATTRIBUTES = tuple(name for name in sorted(_TORCH_ATTRIBUTES) if name.endswith("_hooks"))
_ABSENT = object()


@dataclass(frozen=True)
class _ContentAccess:
    """Functions that read and overwrite the direct content of an object."""

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object]


def _read_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _TORCH_ATTRIBUTES}


def _write_attributes(module: nn.Module, original: dict[str, Any]) -> None:
    for name in _read_attributes(module).keys() - original.keys():
        del vars(module)[name]
    vars(module).update(original)


def _refill(container: Any, original: Any) -> None:
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(original)


def _write_slots(obj: Any, original: dict[str, Any]) -> None:
    for name, value in original.items():
        setattr(obj, name, value)


def _write_cell(cell: CellType, original: Any) -> None:
    cell.cell_contents = original[0]


_MODULE_ACCESS, _SLOT_ACCESS = _ContentAccess(_read_attributes, _write_attributes), _ContentAccess(read_slots, _write_slots)
_ACCESS_BY_TYPE: dict[type, _ContentAccess] = {
    dict: _ContentAccess(dict, _refill),
    list: _ContentAccess(list, _refill),
    deque: _ContentAccess(list, _refill),
    set: _ContentAccess(set, _refill),
    np.ndarray: _ContentAccess(np.copy, lambda array, original: np.copyto(array, original)),
    Tensor: _ContentAccess(lambda tensor: tensor.detach().clone(), lambda tensor, original: tensor.detach().copy_(original)),
    CellType: _ContentAccess(lambda cell: [cell.cell_contents], _write_cell),
    np.random.Generator: _ContentAccess(
        GENERATOR_STATE_READERS[np.random.Generator], lambda g, state: setattr(g.bit_generator, "state", state)
    ),
    RandomState: _ContentAccess(GENERATOR_STATE_READERS[RandomState], lambda g, state: g.set_state(state)),
    random.Random: _ContentAccess(GENERATOR_STATE_READERS[random.Random], lambda g, state: g.setstate(state)),
    torch.Generator: _ContentAccess(GENERATOR_STATE_READERS[torch.Generator], lambda g, state: g.set_state(state)),
}


@dataclass(frozen=True, eq=False)
class _ObjectSnapshot:
    """Snapshot of the original content of one mutable object; `label` names the class and the attribute that refer to it."""

    label: str
    obj: Any
    access: _ContentAccess
    original: Any

    @property
    def size(self) -> int:
        """Size in bytes of an array or a tensor; 0 for any other object."""
        return self.original.nbytes if isinstance(self.original, np.ndarray | Tensor) else 0

    def restore(self) -> str | None:
        """Restore the content; return the label of the first change, or None without a change."""
        if isinstance(self.obj, np.ndarray | Tensor):
            current = self.obj.detach() if isinstance(self.obj, Tensor) else self.obj  # compared in place, without a copy
        else:
            current = self.access.read(self.obj)
        if _is_identical(current, self.original):
            return None
        change = self._find_change(current)
        self.access.write(self.obj, self.original)
        return change

    def _find_change(self, current: Any) -> str | None:
        if self.access is not _MODULE_ACCESS:
            return None if is_same(current, self.original) else self.label
        for name in sorted(current.keys() | self.original.keys()):
            if not _is_alike(current.get(name, _ABSENT), self.original.get(name, _ABSENT)):
                return f"{self.label}.{name}"
        return None


class PythonState:
    """Python state of modules, and of a loss and metrics that are objects.

    Parameters and buffers of the modules are excluded, and so are iterators, C objects without attributes, and objects beyond
    the first `_MAX_OBJECTS`.

    Attributes:
        first_change: label of the first object that `restore` found changed; None: no object changed.
    """

    def __init__(self, modules: Sequence[nn.Module], objects: Iterable[object] = ()) -> None:
        self.first_change: str | None = None
        tensors = [t for module in modules for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
        self._visited_objects: dict[int, Any] = {id(obj): obj for obj in (*modules, *tensors)}
        self._storage_pointers = {tensor.untyped_storage().data_ptr() for tensor in tensors if not is_lazy(tensor)}
        self._snapshots: list[_ObjectSnapshot] = []
        for module in modules:
            self._add_module(module)
        for obj in objects:
            if not isinstance(obj, FunctionType | nn.Module):
                self._record_reachable(obj, type(obj).__name__)

    def list_contents(self) -> list[tuple[str, Any]]:
        """Return (label, content or state) of all arrays, tensors and generators, in an order given by the structure."""
        generators = [_ACCESS_BY_TYPE[cls] for cls in GENERATOR_STATE_READERS]
        return [(item.label, item.original) for item in self._snapshots if item.size or item.access in generators]

    def restore(self, include_large: bool = True) -> None:
        """Restore all contents, those of large arrays only if `include_large`, and set `first_change`."""
        for snapshot in self._snapshots:
            if include_large or snapshot.size < LARGE_ARRAY_BYTES:
                change = snapshot.restore()
                self.first_change = change if self.first_change is None else self.first_change

    def _add_module(self, module: nn.Module) -> None:
        for name, value in _read_attributes(module).items():
            self._record_reachable(value, f"{type(module).__name__}.{name}")
        for hooks in _HOOK_ATTRIBUTES:
            for hook in (vars(module).get(hooks) or {}).values():
                self._record_reachable(hook, f"a hook of {type(module).__name__}")
        self._snapshots.append(_ObjectSnapshot(type(module).__name__, module, _MODULE_ACCESS, _read_attributes(module)))

    def _is_alias(self, obj: Any) -> bool:
        """Return True for a tensor that shares memory with a parameter or buffer, such as spectral norm's view of a weight."""
        is_strided = isinstance(obj, Tensor) and obj.layout == torch.strided
        return is_strided and obj.untyped_storage().data_ptr() in self._storage_pointers

    def _record_reachable(self, obj: Any, label: str) -> None:
        """Record an object and all that is reachable from it, iteratively: structures may be deep."""
        stack = [obj]
        while stack and len(self._visited_objects) < _MAX_OBJECTS:
            obj = stack.pop()
            if isinstance(obj, ATOMIC_TYPES) or id(obj) in self._visited_objects:
                continue
            self._visited_objects[id(obj)] = obj
            access = None if self._is_alias(obj) else _select_access(obj)
            if access is not None:
                self._snapshots.append(_ObjectSnapshot(label, obj, access, access.read(obj)))
            stack.extend(_list_references(obj))


def copy_pair(module: Any, loss: Any) -> tuple[Any, Any]:
    """Return copies of a module and a loss; shared objects stay shared, and sentinels, `object()`, keep their identity."""
    modules = [part for root in (module, loss) if isinstance(root, nn.Module) for part in root.modules()]
    sentinels = [value for part in modules for value in _read_attributes(part).values() if type(value) is object]
    pair: tuple[Any, Any] = deep_copy((module, loss), sentinels)
    return pair


def _select_access(obj: Any) -> _ContentAccess | None:
    """Return the functions for an object; None if it cannot change or be read, or if its content is in its `__dict__`."""
    if isinstance(obj, np.ndarray) and not obj.flags.writeable:
        return None
    if isinstance(obj, Tensor) and (not obj.is_leaf or obj.layout != torch.strided):
        return None
    if isinstance(obj, CellType) and not _read_cell(obj):
        return None
    access = next((access for cls, access in _ACCESS_BY_TYPE.items() if isinstance(obj, cls)), None)
    if access is not None:
        return access
    return _SLOT_ACCESS if is_python_instance(obj) and read_slots(obj) else None


def _read_cell(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a name that is not bound yet
        return []


def _list_references(obj: Any) -> list[Any]:
    """Return the objects that an object refers to: items, attributes, and the closure and defaults of a function."""
    if isinstance(obj, dict):
        return list(obj.values())
    if isinstance(obj, list | tuple | deque | set | frozenset):
        return list(obj)
    if isinstance(obj, CellType):
        return _read_cell(obj)
    if isinstance(obj, FunctionType):
        return [*(obj.__closure__ or ()), obj.__defaults__, vars(obj)]
    if isinstance(obj, MethodType):
        return [obj.__self__, obj.__func__]
    if isinstance(obj, partial):
        return [obj.func, obj.args, obj.keywords]
    if isinstance(obj, np.ndarray):
        return obj.ravel().tolist() if obj.dtype == object else []
    if isinstance(obj, ModuleType | Tensor):
        return []
    slots = list(read_slots(obj).values()) if is_python_instance(obj) else []
    return [vars(obj), *slots] if isinstance(getattr(obj, "__dict__", None), dict) else slots


def _is_identical(current: Any, original: Any) -> bool:
    """Return True if contents have identical objects, without a comparison inside them; arrays are compared bit by bit."""
    if isinstance(current, np.ndarray | Tensor):
        return is_same(current, original)
    if isinstance(current, dict) and isinstance(original, dict):
        return len(current) == len(original) and all(
            k is m and (v is w or _is_equal_atom(v, w))
            for (k, v), (m, w) in zip(current.items(), original.items(), strict=True)
        )
    if isinstance(current, list):
        return len(current) == len(original) and all(
            v is w or _is_equal_atom(v, w) for v, w in zip(current, original, strict=True)
        )
    return is_same(current, original)


def _is_equal_atom(a: Any, b: Any) -> bool:
    return type(a) is type(b) and isinstance(a, ATOMIC_TYPES) and is_same(a, b)


def _is_alike(current: Any, original: Any) -> bool:
    """Return True for an equal value, or a tensor with a gradient history, which depends on parameters and is no state."""
    return (isinstance(current, Tensor) and not current.is_leaf) or is_same(current, original)
