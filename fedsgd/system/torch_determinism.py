"""Scopes for global settings of Python, numpy and torch, since results must not depend on settings of other code.

Each scope sets values for its body and restores the previous values.
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
from fedsgd.system.global_generators import NUMPY_GENERATOR, PYTHON_GENERATOR

# ---------------------------------------------------------------------------------------------------------- global generators


def deep_copy(value: Any, shared_objects: Iterable[object] = ()) -> Any:
    """Copy as `copy.deepcopy`, but share `shared_objects` and the global generators, which methods in a value may refer to."""
    return copy.deepcopy(value, {id(shared): shared for shared in (PYTHON_GENERATOR, NUMPY_GENERATOR, *shared_objects)})


class _ThreadDispatchedFunction:
    """Replacement of a function of a global generator, which draws from another generator in other threads.

    Pickle stores a replacement as the original function.
    """

    def __init__(self, module: ModuleType, owner_function: Callable[..., Any]) -> None:
        update_wrapper(self, owner_function)
        self.__self__ = getattr(owner_function, "__self__", None)
        self._module, self._owner_function, self._background_function = module.__name__, owner_function, owner_function
        self._owner_thread: int | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        is_owner = self._owner_thread is None or threading.get_ident() == self._owner_thread
        return (self._owner_function if is_owner else self._background_function)(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return _load_function, (self._module, self._owner_function.__name__)

    @property
    def owner_function(self) -> Callable[..., Any]:
        """Function of the global generator."""
        return self._owner_function

    def acquire(self, background_function: Callable[..., Any]) -> None:
        """Use the global generator in this thread alone from now on, and `background_function` in other threads."""
        self._background_function = background_function
        self._owner_thread = threading.get_ident()

    def release(self) -> None:
        """Use the global generator in every thread from now on, since modules may have imported this function."""
        self._owner_thread = None


def _load_function(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


class _GeneratorDispatch:
    """Dispatch of the functions of `random` and `numpy.random` by thread.

    While the dispatch is active, other threads draw from generators that start with the global generators' states. So a
    background thread, such as Flower's heartbeat, does not change the draws of a client's training. Torch's generator is not
    covered, nor are functions that another thread imported by name (`from random import random`).

    Replacements are made once, because a run enters and leaves for each of its callbacks. Background generators are new at each
    entry: another thread may be drawing from an earlier one.
    """

    def __init__(self) -> None:
        self._replacements: dict[tuple[str, str], _ThreadDispatchedFunction] = {}
        self._active: list[tuple[ModuleType, str, _ThreadDispatchedFunction]] = []

    def open(self) -> None:
        """Replace the functions; the calling thread keeps the global generators."""
        python, numpy = random.Random(), numpy_random.RandomState()
        python.setstate(PYTHON_GENERATOR.getstate())
        if type(mtrand.get_bit_generator()) is numpy_random.MT19937:
            numpy.set_state(NUMPY_GENERATOR.get_state(legacy=False))
        numpy_functions: Mapping[str, Callable[..., Any]] = {
            "seed": numpy.seed,
            "sample": numpy.random_sample,
            "ranf": numpy.random_sample,
        }
        self._replace(random, PYTHON_GENERATOR, python, {})
        for module in (numpy_random, mtrand):
            self._replace(module, NUMPY_GENERATOR, numpy, numpy_functions)

    def _replace(
        self,
        module: ModuleType,
        global_generator: object,
        background_generator: object,
        background_functions: Mapping[str, Callable[..., Any]],
    ) -> None:
        methods = {
            name: f
            for name, f in vars(module).items()
            if getattr(f, "__self__", None) is global_generator or name in background_functions
        }
        for name, method in methods.items():
            key = (module.__name__, name)
            replacement = self._replacements.get(key)
            if replacement is None or replacement.owner_function is not method:  # other code may have replaced the function
                replacement = self._replacements[key] = _ThreadDispatchedFunction(module, method)
            replacement.acquire(background_functions.get(name) or getattr(background_generator, method.__name__))
            self._active.append((module, name, replacement))
            setattr(module, name, replacement)

    def close(self) -> None:
        """Restore the functions."""
        for module, name, replacement in self._active:
            replacement.release()
            setattr(module, name, replacement.owner_function)
        self._active.clear()


# ------------------------------------------------------------------------------------------------------------- whole process


class _IsolationState(threading.local):
    """Scopes that `isolate_global_state` has entered in this thread; None outside."""

    scopes: ExitStack | None = None


_LOCK = threading.Lock()
_DISPATCH = _GeneratorDispatch()
_ISOLATION = _IsolationState()


@contextmanager
def isolate_global_state() -> Iterator[None]:
    """Run the body with the settings of a new process, which `_enter_defaults` lists.

    One thread at a time runs a body, because torch's settings and generator belong to the process; other threads wait. A nested
    call in the same thread changes nothing. A caller inside `with torch.device(...)` gets a ScenarioError.
    """
    if _ISOLATION.scopes is not None:
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


@contextmanager
def use_caller_state() -> Iterator[None]:
    """Run the body, such as a callback, with the caller's settings, and let other threads enter meanwhile."""
    if _ISOLATION.scopes is None:
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
        scopes.callback(_DISPATCH.close)
        _DISPATCH.open()
    except BaseException:
        scopes.close()
        raise
    _ISOLATION.scopes = scopes


def _leave() -> None:
    scopes, _ISOLATION.scopes = _ISOLATION.scopes, None
    if scopes is not None:
        scopes.close()


def _enter_defaults(scopes: ExitStack) -> None:
    """Set torch and numpy to the settings of a new process until `scopes` closes.

    On: float32, CPU, gradients, full precision of matrix products, MKL-DNN, the fast path of attention. Off: autocast,
    inference mode, deterministic mode, anomaly mode. Numpy's treatment of floating-point errors is its default.
    """
    scopes.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
    scopes.enter_context(torch.inference_mode(False))
    scopes.enter_context(torch.enable_grad())
    scopes.enter_context(torch.autocast("cpu", enabled=False))
    for get, set_to, value in _GLOBAL_SETTINGS:
        previous_value = get()
        if previous_value != value:
            scopes.callback(set_to, previous_value)
            set_to(value)
    if torch.get_default_device() != torch.device("cpu"):
        raise ScenarioError(
            f"torch.device: got a run inside `with torch.device(...)` of {torch.get_default_device()}, expected none; leave "
            "the block before the run"
        )


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _make_attribute_setting(owner: Any, name: str, value: Any) -> tuple[Callable[[], Any], Callable[[Any], Any], Any]:
    return partial(getattr, owner, name), partial(setattr, owner, name), value


_PRECISION_OWNERS = (torch.backends, *(getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")))
_GLOBAL_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any], Any], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (torch.get_default_device, _set_device, torch.device("cpu")),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, True),
    _make_attribute_setting(torch.backends.mkldnn, "enabled", True),
    *(
        _make_attribute_setting(owner, "fp32_precision", "none")
        for owner in _PRECISION_OWNERS
        if hasattr(owner, "fp32_precision")
    ),
)
"""Getter, setter and value in a new process, for each of torch's settings of the process."""
