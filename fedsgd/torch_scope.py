"""Scopes for settings that Python, numpy and torch keep globally: results must not depend on what other code has set.

Each scope sets values for its body and restores the previous ones.
"""

from __future__ import annotations

import copy
import importlib
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, update_wrapper
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy import random as numpy_random
from numpy.random import mtrand

from fedsgd.errors import ScenarioError
from fedsgd.generators import NUMPY, PYTHON


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


def deep_copy(value: Any, kept: Iterable[object] = ()) -> Any:
    """Copy a value as `copy.deepcopy` does, but for `kept` and for the global generators, whose methods it may hold."""
    return copy.deepcopy(value, {id(thing): thing for thing in (PYTHON, NUMPY, *kept)})


class _ByThread:
    """A function of `random` or `numpy.random` that draws from another generator in other threads.

    It pickles as the function that it stands for.
    """

    def __init__(self, module: ModuleType, own: Callable[..., Any], other: Callable[..., Any]) -> None:
        update_wrapper(self, own)
        self.__self__ = getattr(own, "__self__", None)
        self._module, self._own, self._other = module.__name__, own, other
        self._owner: int | None = threading.get_ident()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mine = self._owner is None or threading.get_ident() == self._owner
        return (self._own if mine else self._other)(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return _function_of, (self._module, self._own.__name__)

    def release(self) -> None:
        """Draw from the global generator in every thread, for those that imported this function meanwhile."""
        self._owner = None


def _function_of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


class _OwnGenerators:
    """Dispatch of the functions of `random` and `numpy.random` by thread.

    While it is active, calls from other threads draw from generators that start in the global generators' state, so that a
    thread in the background (Flower's heartbeat draws from `random`) neither changes nor sees what a client's training draws.
    Not reached: functions that another thread imported by name before (`from random import random`), and torch's generator.
    """

    def __init__(self) -> None:
        python, numpy = random.Random(), numpy_random.RandomState()
        python.setstate(PYTHON.getstate())
        if type(mtrand.get_bit_generator()) is numpy_random.MT19937:
            numpy.set_state(NUMPY.get_state(legacy=False))
        of_numpy: Mapping[str, Callable[..., Any]] = {
            "seed": numpy.seed,
            "sample": numpy.random_sample,
            "ranf": numpy.random_sample,
        }
        self._replaced: list[tuple[ModuleType, str, Any]] = []
        self._replace(random, PYTHON, python, {})
        for module in (numpy_random, mtrand):
            self._replace(module, NUMPY, numpy, of_numpy)

    def _replace(self, module: ModuleType, own: object, other: object, functions: Mapping[str, Callable[..., Any]]) -> None:
        methods = {name: f for name, f in vars(module).items() if getattr(f, "__self__", None) is own or name in functions}
        for name, method in methods.items():
            self._replaced.append((module, name, method))
            setattr(module, name, _ByThread(module, method, functions.get(name) or getattr(other, method.__name__)))

    def close(self) -> None:
        """Put the functions back."""
        for module, name, method in self._replaced:
            vars(module)[name].release()
            setattr(module, name, method)


# ------------------------------------------------------------------------------------------------------------- whole process


class _Run(threading.local):
    """Scopes that `isolated` has entered in this thread; None outside of it."""

    scopes: ExitStack | None = None


_LOCK = threading.Lock()
_RUN = _Run()


@contextmanager
def isolated() -> Iterator[None]:
    """Run the body with the settings that a fresh process has: `_enter_defaults` has the list.

    Only one thread of a process is inside at a time; others wait, because torch's number of threads, default dtype and
    generator belong to the whole process. Entering again in the same thread changes nothing.

    Raises:
        ScenarioError: the caller is inside `with torch.device(...)`, which cannot be undone here.
    """
    if _RUN.scopes is not None:
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


@contextmanager
def outside() -> Iterator[None]:
    """Run the body, code of the caller such as a callback, with the caller's settings, and let other threads run meanwhile."""
    if _RUN.scopes is None:
        yield
        return
    _leave()
    try:
        yield
    finally:
        _enter()


def _enter() -> None:
    _LOCK.acquire()
    scopes = ExitStack()
    scopes.callback(_LOCK.release)
    try:
        _enter_defaults(scopes)
        scopes.callback(_OwnGenerators().close)
    except BaseException:
        scopes.close()
        raise
    _RUN.scopes = scopes


def _leave() -> None:
    scopes, _RUN.scopes = _RUN.scopes, None
    if scopes is not None:
        scopes.close()


def _enter_defaults(scopes: ExitStack) -> None:
    """Set torch's and numpy's settings to those of a fresh process until `scopes` closes.

    float32 on the CPU, gradients, no autocast, no inference mode, no deterministic mode, no anomaly mode, full precision of
    matrix products, MKL-DNN and the fast path of attention; numpy's treatment of floating-point errors.
    """
    scopes.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
    scopes.enter_context(torch.inference_mode(False))
    scopes.enter_context(torch.enable_grad())
    scopes.enter_context(torch.autocast("cpu", enabled=False))
    for get, set_to, value in _GLOBALS:
        before = get()
        if before != value:
            scopes.callback(set_to, before)
            set_to(value)
    if torch.get_default_device() != torch.device("cpu"):
        raise ScenarioError(
            f"torch.device: a run is inside `with torch.device(...)` of {torch.get_default_device()}; end it before"
        )


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _attribute(owner: Any, name: str, value: Any) -> tuple[Callable[[], Any], Callable[[Any], Any], Any]:
    return partial(getattr, owner, name), partial(setattr, owner, name), value


_PRECISIONS = (torch.backends, *(getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")))
_GLOBALS: tuple[tuple[Callable[[], Any], Callable[[Any], Any], Any], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (torch.get_default_device, _set_device, torch.device("cpu")),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, True),
    _attribute(torch.backends.mkldnn, "enabled", True),
    *(_attribute(owner, "fp32_precision", "none") for owner in _PRECISIONS if hasattr(owner, "fp32_precision")),
)
"""(get, set, value in a fresh process) of torch's settings for the whole process."""
