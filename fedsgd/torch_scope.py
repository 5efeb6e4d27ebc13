"""Scopes for settings that Python, numpy and torch keep globally: results must not depend on what other code has set.

Each scope sets values for its body and restores the previous ones.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy import random as numpy_random
from numpy.random import mtrand

_PYTHON: Any = vars(random)["random"].__self__
"""The generator behind the functions of `random`."""
_NUMPY: Any = vars(mtrand)["uniform"].__self__
"""The generator behind the functions of `numpy.random`."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Pin torch to one thread (results differ between 1, 2 and 4), and restore the user's setting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def only_one_thread() -> None:
    """Pin torch to one thread for good, in a process that is one of several."""
    torch.set_num_threads(1)


# ---------------------------------------------------------------------------------------------------------- global generators


class _Depth(threading.local):
    """Nested scopes of `seeded_generators` in this thread, with a bit generator for each: it is slower to make than to seed."""

    def __init__(self) -> None:
        self.value = 0
        self.bits: list[numpy_random.BitGenerator] = []


_DEPTH = _Depth()


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python's `random`, and restore the state that they had.

    A user's module, loss, metric or factory may draw from any of them.

    Args:
        seed: in [0, 2^63), as `rng.torch_seed` gives it.
    """
    before = torch.default_generator.get_state(), mtrand.get_bit_generator(), _PYTHON.getstate()
    numpy_state = _NUMPY.get_state(legacy=False)  # a normal number may be stored beside the bit generator
    if _DEPTH.value == len(_DEPTH.bits):
        _DEPTH.bits.append(numpy_random.MT19937(0))
    mtrand.set_bit_generator(_DEPTH.bits[_DEPTH.value])
    _DEPTH.value += 1
    try:
        seed_generators(seed)
        yield
    finally:
        _DEPTH.value -= 1
        torch.default_generator.set_state(before[0])
        mtrand.set_bit_generator(before[1])
        if numpy_state.get("has_gauss"):
            _NUMPY.set_state(numpy_state)
        _PYTHON.setstate(before[2])


def seed_generators(seed: int) -> None:
    """Seed the global generators again, inside a scope of `seeded_generators`."""
    torch.default_generator.manual_seed(seed)
    _NUMPY.seed([seed & 0xFFFFFFFF, seed >> 32])
    _PYTHON.seed(seed)


def global_states() -> tuple[object, ...]:
    """Return the states of the global generators of torch, numpy and Python's `random`, comparable by ==."""
    numpy_state = _NUMPY.get_state(legacy=False)
    return torch.default_generator.get_state().numpy().tobytes(), repr(numpy_state), _PYTHON.getstate()


class _OwnGenerators:
    """Dispatch of the functions of `random` and `numpy.random` by thread.

    While it is active, calls from other threads draw from generators that start in the global generators' state, so that a
    thread in the background (Flower's heartbeat draws from `random`) neither changes nor sees what a client's training draws.
    A function that another thread imported by name before (`from random import random`) is not reached.
    """

    def __init__(self) -> None:
        self.active = True
        self.owner = threading.get_ident()
        python, numpy = random.Random(), numpy_random.RandomState()
        python.setstate(_PYTHON.getstate())
        if type(mtrand.get_bit_generator()) is numpy_random.MT19937:
            numpy.set_state(_NUMPY.get_state(legacy=False))
        self._replaced = [*self._replace(random, _PYTHON, python), *self._replace(numpy_random, _NUMPY, numpy)]

    def _replace(self, module: ModuleType, own: object, other: object) -> list[tuple[ModuleType, str, Any]]:
        methods = [(module, name, f) for name, f in vars(module).items() if getattr(f, "__self__", None) is own]
        for _, name, method in methods:
            setattr(module, name, self._by_thread(method, getattr(other, method.__name__)))
        return methods

    def _by_thread(self, own: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(own)
        def call(*args: Any, **kwargs: Any) -> Any:
            mine = not self.active or threading.get_ident() == self.owner
            return (own if mine else other)(*args, **kwargs)

        return call

    def close(self) -> None:
        """Put the functions back; a copy that was imported meanwhile draws from the global generator as ever."""
        self.active = False
        for module, name, method in self._replaced:
            setattr(module, name, method)


# ------------------------------------------------------------------------------------------------------------- whole process


class _Run(threading.local):
    """Whether this thread is inside `isolated`."""

    inside = False


_LOCK = threading.RLock()
_RUN = _Run()


@contextmanager
def isolated() -> Iterator[None]:
    """Run the body as in a fresh process, whatever the caller has set: float32 on the CPU, no autocast, no inference mode.

    Only one thread of a process is inside at a time; others wait, because torch's number of threads, default dtype and
    generator belong to the whole process. Entering again in the same thread changes nothing.
    """
    with _LOCK:
        if _RUN.inside:
            yield
            return
        _RUN.inside = True
        try:
            with ExitStack() as scopes:
                _enter_defaults(scopes)
                scopes.callback(_OwnGenerators().close)
                yield
        finally:
            _RUN.inside = False


def _enter_defaults(scopes: ExitStack) -> None:
    """Set torch's and numpy's settings to those of a fresh process until `scopes` closes."""
    scopes.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
    scopes.enter_context(torch.inference_mode(False))
    scopes.enter_context(torch.enable_grad())
    scopes.enter_context(torch.autocast("cpu", enabled=False))
    if torch.get_default_device() != torch.device("cpu"):
        scopes.enter_context(torch.device("cpu"))
    for get, set_back, value in _GLOBALS:
        before = get()
        if before != value:
            scopes.callback(set_back, before)
            set_back(value)


def _set_deterministic(mode: int) -> None:
    torch.set_deterministic_debug_mode(mode)


_GLOBALS: tuple[tuple[Callable[[], Any], Callable[[Any], Any], Any], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (torch.get_deterministic_debug_mode, _set_deterministic, 0),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False),
)
"""(get, set, value in a fresh process) of torch's settings for the whole process."""
