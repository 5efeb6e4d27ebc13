"""Python state of modules, losses and metrics: what is reachable from their plain attributes, as it was made.

Clients of a federation share no Python objects, so each begins its round with that state as it was made. It is put back in
place: objects stay the same objects, so that those that share them go on sharing them. Imports torch.
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

from fedsgd.models.equality import ATOMS, GENERATORS, is_of_python, read_slots, same
from fedsgd.torch_scope import deep_copy

LARGE = 2**20
"""Bytes from which on an array is compared once a client or evaluation, not in each slice."""
_MOST_OBJECTS = 100_000
_INTERNAL = frozenset((*vars(nn.Module()), "_flat_weights", "_flat_weight_refs"))
"""Names that torch keeps in `vars(module)`; the last two, of recurrent layers, follow the parameters."""
_HOOKS = tuple(name for name in sorted(_INTERNAL) if name.endswith("_hooks"))
_ABSENT = object()


@dataclass(frozen=True)
class _Kind:
    """Functions that read and overwrite the content of an object, not deeper."""

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object]


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _INTERNAL}


def _write_plain(module: nn.Module, made: dict[str, Any]) -> None:
    for name in _plain(module).keys() - made.keys():
        del vars(module)[name]
    vars(module).update(made)


def _refill(container: Any, made: Any) -> None:
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(made)


def _write_slots(thing: Any, made: dict[str, Any]) -> None:
    for name, value in made.items():
        setattr(thing, name, value)


def _write_cell(cell: CellType, made: Any) -> None:
    cell.cell_contents = made[0]


_MODULE, _SLOTTED = _Kind(_plain, _write_plain), _Kind(read_slots, _write_slots)
_KINDS: dict[type, _Kind] = {
    dict: _Kind(dict, _refill),
    list: _Kind(list, _refill),
    deque: _Kind(list, _refill),
    set: _Kind(set, _refill),
    np.ndarray: _Kind(np.copy, lambda array, made: np.copyto(array, made)),
    Tensor: _Kind(lambda tensor: tensor.detach().clone(), lambda tensor, made: tensor.detach().copy_(made)),
    CellType: _Kind(lambda cell: [cell.cell_contents], _write_cell),
    np.random.Generator: _Kind(GENERATORS[np.random.Generator], lambda g, state: setattr(g.bit_generator, "state", state)),
    RandomState: _Kind(GENERATORS[RandomState], lambda g, state: g.set_state(state)),
    random.Random: _Kind(GENERATORS[random.Random], lambda g, state: g.setstate(state)),
    torch.Generator: _Kind(GENERATORS[torch.Generator], lambda g, state: g.set_state(state)),
}


@dataclass(frozen=True, eq=False)
class _Record:
    """One mutable object, with its content as it was made; label: class and attribute from which it was reached."""

    label: str
    thing: Any
    kind: _Kind
    made: Any

    @property
    def size(self) -> int:
        """Bytes of an array or a tensor, 0 for anything else."""
        return self.made.nbytes if isinstance(self.made, np.ndarray | Tensor) else 0

    def put_back(self) -> str | None:
        """Make the content what it was; return what was another one, None if nothing was."""
        if isinstance(self.thing, np.ndarray | Tensor):
            now = self.thing.detach() if isinstance(self.thing, Tensor) else self.thing  # compared where it is
        else:
            now = self.kind.read(self.thing)
        if _is_identical(now, self.made):
            return None
        changed = self._changed(now)
        self.kind.write(self.thing, self.made)
        return changed

    def _changed(self, now: Any) -> str | None:
        if self.kind is not _MODULE:
            return None if same(now, self.made) else self.label
        for name in sorted(now.keys() | self.made.keys()):
            if not _is_alike(now.get(name, _ABSENT), self.made.get(name, _ABSENT)):
                return f"{self.label}.{name}"
        return None


class Attributes:
    """Python state of modules, and of a loss and metrics that are objects.

    Parameters and buffers of the modules are not among it. Iterators and objects of C without attributes are left alone.

    Attributes:
        changed: label of the first object that was found changed; None if there was none.
    """

    def __init__(self, modules: Sequence[nn.Module], others: Iterable[object] = ()) -> None:
        self.changed: str | None = None
        tensors = [t for module in modules for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
        self._kept: dict[int, Any] = {id(thing): thing for thing in (*modules, *tensors)}
        self._memory = {tensor.untyped_storage().data_ptr() for tensor in tensors if not is_lazy(tensor)}
        self._records: list[_Record] = []
        for module in modules:
            self._add_module(module)
        for other in others:
            if not isinstance(other, FunctionType | nn.Module):
                self._visit(other, type(other).__name__)

    def contents(self) -> list[tuple[str, Any]]:
        """Return (label, value) of all arrays, tensors and generators, in an order that depends on the structure alone."""
        generators = [_KINDS[kind] for kind in GENERATORS]
        return [(record.label, record.made) for record in self._records if record.size or record.kind in generators]

    def put_back(self, large: bool = True) -> None:
        """Make everything what it was, and note in `changed` the first object that was not.

        Args:
            large: whether arrays of `LARGE` bytes and more are looked at too.
        """
        for record in self._records:
            if large or record.size < LARGE:
                changed = record.put_back()
                self.changed = changed if self.changed is None else self.changed

    def _add_module(self, module: nn.Module) -> None:
        for name, value in _plain(module).items():
            self._visit(value, f"{type(module).__name__}.{name}")
        for hooks in _HOOKS:
            for hook in (vars(module).get(hooks) or {}).values():
                self._visit(hook, f"a hook of {type(module).__name__}")
        self._records.append(_Record(type(module).__name__, module, _MODULE, _plain(module)))

    def _is_alias(self, thing: Any) -> bool:
        """Return whether a tensor shares memory with a parameter or buffer, as what spectral norm makes of a weight does."""
        strided = isinstance(thing, Tensor) and thing.layout == torch.strided
        return strided and thing.untyped_storage().data_ptr() in self._memory

    def _visit(self, thing: Any, label: str) -> None:
        """Record an object and all that is reachable from it, iteratively: structures may be deep."""
        waiting = [thing]
        while waiting and len(self._kept) < _MOST_OBJECTS:
            thing = waiting.pop()
            if isinstance(thing, ATOMS) or id(thing) in self._kept:
                continue
            self._kept[id(thing)] = thing
            kind = None if self._is_alias(thing) else _kind_of(thing)
            if kind is not None:
                self._records.append(_Record(label, thing, kind, kind.read(thing)))
            waiting.extend(_parts(thing))


def copy_pair(module: Any, loss: Any) -> tuple[Any, Any]:
    """Return copies of a module and a loss that share what these share. Sentinels, `object()`, stay the same objects.

    Raises:
        Exception: whatever an attribute that cannot be copied raises.
    """
    modules = [part for whole in (module, loss) if isinstance(whole, nn.Module) for part in whole.modules()]
    sentinels = [value for part in modules for value in _plain(part).values() if type(value) is object]
    pair: tuple[Any, Any] = deep_copy((module, loss), sentinels)
    return pair


def _kind_of(thing: Any) -> _Kind | None:
    """Return how an object is read, None for what does not change or cannot be read."""
    if isinstance(thing, np.ndarray) and not thing.flags.writeable:
        return None
    if isinstance(thing, Tensor) and (not thing.is_leaf or thing.layout != torch.strided):
        return None
    if isinstance(thing, CellType) and not _contents_of(thing):
        return None
    known = next((kind for kind in _KINDS if isinstance(thing, kind)), None)
    if known is not None:
        return _KINDS[known]
    return _SLOTTED if is_of_python(thing) and read_slots(thing) else None


def _contents_of(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a name that is not bound yet
        return []


def _parts(thing: Any) -> list[Any]:
    """Return what is directly reachable from an object: items, attributes, what a function closes over."""
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, list | tuple | deque | set | frozenset):
        return list(thing)
    if isinstance(thing, CellType):
        return _contents_of(thing)
    if isinstance(thing, FunctionType):
        return [*(thing.__closure__ or ()), thing.__defaults__, vars(thing)]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, np.ndarray):
        return thing.ravel().tolist() if thing.dtype == object else []
    if isinstance(thing, ModuleType | Tensor):
        return []
    slots = list(read_slots(thing).values()) if is_of_python(thing) else []
    return [vars(thing), *slots] if isinstance(getattr(thing, "__dict__", None), dict) else slots


def _is_identical(now: Any, made: Any) -> bool:
    """Return whether contents have the same objects, without looking into them; arrays are compared bit by bit."""
    if isinstance(now, np.ndarray | Tensor):
        return same(now, made)
    if isinstance(now, dict) and isinstance(made, dict):
        return len(now) == len(made) and all(
            k is m and (v is w or _is_equal_atom(v, w)) for (k, v), (m, w) in zip(now.items(), made.items(), strict=True)
        )
    if isinstance(now, list):
        return len(now) == len(made) and all(v is w or _is_equal_atom(v, w) for v, w in zip(now, made, strict=True))
    return same(now, made)


def _is_equal_atom(a: Any, b: Any) -> bool:
    return type(a) is type(b) and isinstance(a, ATOMS) and same(a, b)


def _is_alike(now: Any, made: Any) -> bool:
    """Return whether a value is the same, or a result of parameters: a tensor with a history is no state."""
    return (isinstance(now, Tensor) and not now.is_leaf) or same(now, made)
