"""States of the global generators, and records of their calls."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import random as draw_by_name
from typing import Any

import numpy as np
import pytest
import torch
from numpy import random as numpy_random
from numpy.random import get_state, mtrand

from fedsgd.system.global_generators import isolate_generators, read_generator_states, record_generator_calls

CALLS: dict[str, Callable[[], Any]] = {
    "random.random": lambda: draw_by_name(),
    "random.gauss": lambda: random.gauss(0, 1),
    "random.seed": lambda: random.seed(3),
    "numpy.random.get_state": lambda: get_state(),
    "numpy.random.standard_normal": lambda: numpy_random.standard_normal(2),
    "numpy.random.seed": lambda: mtrand.seed(3),
    "numpy.random.sample": lambda: numpy_random.sample(),
    "torch.manual_seed": lambda: torch.manual_seed(3),
    "torch.seed": lambda: torch.random.seed(),
    "torch.get_rng_state": lambda: torch.random.get_rng_state(),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", CALLS)
def test_call_of_a_global_generator_is_recorded(name: str) -> None:
    with isolate_generators(0), record_generator_calls() as calls:
        CALLS[name]()
    assert name in calls


def test_call_of_a_wrapper_of_torch_is_recorded() -> None:
    importlib.import_module("torch._dynamo")
    assert torch.manual_seed is not torch.random.manual_seed
    test_call_of_a_global_generator_is_recorded("torch.manual_seed")


def test_call_of_an_own_generator_is_not_recorded() -> None:
    with record_generator_calls() as calls:
        random.Random(3).random()
        numpy_random.RandomState(3).rand()
        np.random.default_rng(3).random()
        torch.rand(2, generator=torch.Generator())
    assert not calls


def test_call_from_another_thread_is_not_recorded() -> None:
    with record_generator_calls() as calls, ThreadPoolExecutor(1) as pool:
        assert 0 <= pool.submit(draw_by_name).result() < 1
    assert not calls


def test_functions_after_a_record_are_restored() -> None:
    modules = [random, numpy_random, mtrand, torch.random, torch, sys.modules[__name__]]
    namespaces = [dict(vars(module)) for module in modules]
    with record_generator_calls() as calls:
        assert draw_by_name is not namespaces[-1]["draw_by_name"]
        recorded = random.random
    assert [dict(vars(module)) for module in modules] == namespaces
    recorded()
    assert not calls


@pytest.mark.parametrize(
    ("module", "draw"),
    [("random", random.random), ("numpy.random", numpy_random.standard_normal), ("torch", lambda: torch.rand(1))],
    ids=["random", "numpy", "torch"],
)
def test_state_after_a_draw_in_a_scope_is_restored(module: str, draw: Callable[[], Any]) -> None:
    initial_states = read_generator_states()
    with isolate_generators(5):
        before = read_generator_states()
        draw()
        assert [name for name, state in read_generator_states().items() if state != before[name]] == [module]
    assert read_generator_states() == initial_states
