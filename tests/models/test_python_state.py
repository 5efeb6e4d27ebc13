"""Python state of modules: comparison by value, and restoring."""

from __future__ import annotations

import copy
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsgd.models.equality import is_same
from fedsgd.models.python_state import PythonState


@dataclass
class Settings:
    scale: float
    names: list[str]


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "list": (lambda: [1, 2], lambda v: v.append(3)),
    "nested": (lambda: {"a": [np.zeros(2)]}, lambda v: v["a"][0].__setitem__(1, 1.0)),
    "set": (lambda: {1, 2}, lambda v: v.add(3)),
    "counter": (lambda: Counter("ab"), lambda v: v.update("a")),
    "order of keys": (lambda: OrderedDict(a=1, b=2), lambda v: v.move_to_end("a")),
    "queue": (lambda: deque([1], 2), lambda v: v.append(2)),
    "array": (lambda: np.zeros(3), lambda v: v.__setitem__(0, -0.0)),
    "array of objects": (lambda: np.array([1, "a"], dtype=object), lambda v: v.__setitem__(0, 2)),
    "tensor": (lambda: torch.zeros(3), lambda v: v.add_(1)),
    "numpy generator": (lambda: np.random.default_rng(0), lambda v: v.random()),
    "Python generator": (lambda: random.Random(0), lambda v: v.random()),
    "torch generator": (lambda: torch.Generator().manual_seed(0), lambda v: torch.rand(1, generator=v)),
    "dataclass": (lambda: Settings(1.0, ["a"]), lambda v: v.names.append("b")),
    "slots": (lambda: Slotted(1), lambda v: setattr(v, "value", 2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_attribute_is_detected_and_restored(name: str) -> None:
    build, change = CHANGES[name]
    module = nn.Linear(2, 2)
    module.attribute = build()
    state = PythonState([module])
    assert is_same(module.attribute, copy.deepcopy(module.attribute))
    state.restore()
    assert state.first_change is None
    change(module.attribute)
    assert not is_same(module.attribute, build())
    state.restore()
    assert state.first_change == "Linear.attribute"
    assert is_same(module.attribute, build())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (0, 1),
        (1, True),
        (1, 1.0),
        ("a", "b"),
        ((1, 2), (1, 3)),
        ([1], (1,)),
        (None, 0),
        (float("nan"), 0.0),
        (slice(1), slice(2)),
    ],
)
def test_is_same_rejects_other_types_and_contents(a: object, b: object) -> None:
    assert not is_same(a, b)
    assert is_same(a, copy.deepcopy(a))


def test_is_same_accepts_nan_and_cycles() -> None:
    assert is_same(float("nan"), float("nan"))
    assert is_same(np.array([np.nan]), np.array([np.nan]))
    assert is_same([torch.tensor([float("nan")])], [torch.tensor([float("nan")])])
    a, b = [1], [1]
    a.append(a)
    b.append(b)
    assert is_same(a, b)
    b[0] = 2
    assert not is_same(a, b)


def test_restore_keeps_identity_of_modules_and_parameters() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2))
    module.list = [module[0], module[0].weight]
    state = PythonState(list(module.modules()))
    module.list.append(1)
    module.new = 5
    del module[1].hidden_size
    state.restore()
    assert module.list[0] is module[0]
    assert module.list[1] is module[0].weight
    assert len(module.list) == 2
    assert not hasattr(module, "new")
    assert module[1].hidden_size == 2
