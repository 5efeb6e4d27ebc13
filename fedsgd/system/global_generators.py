"""Global random generators of Python's `random`, numpy and torch: seed them, compare their states, record their calls.

Results must not depend on the states of these generators outside `isolate_generators`. This module does not import torch;
torch's generator is included if other code has imported torch.
"""

from __future__ import annotations

import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

from numpy import random as numpy_random
from numpy.random import mtrand

PYTHON_GENERATOR: Any = vars(random)["random"].__self__
"""Generator of the functions of `random`."""
NUMPY_GENERATOR: Any = vars(mtrand)["uniform"].__self__
"""Generator of the functions of `numpy.random`."""
_OTHER_NUMPY_FUNCTIONS = ("seed", "sample", "ranf", "get_bit_generator", "set_bit_generator")
"""Functions of `numpy.random` that use NUMPY_GENERATOR without being its methods."""
_TORCH_FUNCTIONS = ("manual_seed", "seed", "initial_seed", "get_rng_state", "set_rng_state", "fork_rng")


def _get_torch_generators() -> list[Any]:
    """Return torch's global generators: that of the CPU, and those of GPUs that are in use; none if torch is not imported."""
    torch: Any = sys.modules.get("torch")
    generator = getattr(torch, "default_generator", None)
    if generator is None:
        return []
    return [generator, *(torch.cuda.default_generators if torch.cuda.is_initialized() else ())]


class _SeedScopes(threading.local):
    """Nested scopes of `isolate_generators` in this thread; their bit generators are reused, which is faster than new ones."""

    def __init__(self) -> None:
        self.depth = 0
        self.bit_generators: list[numpy_random.BitGenerator] = []


_SEED_SCOPES = _SeedScopes()


@contextmanager
def isolate_generators(seed: int) -> Iterator[None]:
    """Seed the global generators for the body with a seed in [0, 2^63), and restore their states afterwards.

    A user's module, loss, metric, factory or compressor may draw from any of the global generators.
    """
    torch_states = [(generator, generator.get_state()) for generator in _get_torch_generators()]
    bit_generator, python_state = mtrand.get_bit_generator(), PYTHON_GENERATOR.getstate()
    numpy_state = NUMPY_GENERATOR.get_state(legacy=False)  # may have a normal number in addition to the bit generator
    if _SEED_SCOPES.depth == len(_SEED_SCOPES.bit_generators):
        _SEED_SCOPES.bit_generators.append(numpy_random.MT19937(0))
    mtrand.set_bit_generator(_SEED_SCOPES.bit_generators[_SEED_SCOPES.depth])
    _SEED_SCOPES.depth += 1
    try:
        reseed_generators(seed)
        yield
    finally:
        _SEED_SCOPES.depth -= 1
        for generator, state in torch_states:
            generator.set_state(state)
        mtrand.set_bit_generator(bit_generator)
        if numpy_state.get("has_gauss"):
            NUMPY_GENERATOR.set_state(numpy_state)
        PYTHON_GENERATOR.setstate(python_state)


def reseed_generators(seed: int) -> None:
    """Seed the global generators again, inside a scope of `isolate_generators`."""
    for generator in _get_torch_generators():
        generator.manual_seed(seed)
    NUMPY_GENERATOR.seed([seed & 0xFFFFFFFF, seed >> 32])
    PYTHON_GENERATOR.seed(seed)


def read_generator_states() -> dict[str, object]:
    """Return the states of the global generators by module name; states compare with ==."""
    bit_generator: Any = mtrand.get_bit_generator()
    numpy_state = NUMPY_GENERATOR.get_state(legacy=False)
    gauss = numpy_state.get("has_gauss"), numpy_state.get("gauss")
    states: dict[str, object] = {
        "random": PYTHON_GENERATOR.getstate(),
        "numpy.random": (pickle.dumps(bit_generator.state), gauss),
    }
    torch_states = [generator.get_state().numpy().tobytes() for generator in _get_torch_generators()]
    if torch_states:
        states["torch"] = b"".join(torch_states)
    return states


# ------------------------------------------------------------------------------------------------------------------- recording


class _RecordedFunction:
    """Wrapper of a generator's function that records each call from the thread that created the wrapper."""

    def __init__(self, name: str, function: Callable[..., Any], calls: list[str]) -> None:
        update_wrapper(self, function)
        self.__self__ = getattr(function, "__self__", None)
        self.thread: int | None = threading.get_ident()
        self._name, self._function, self._calls = name, function, calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == self.thread:
            self._calls.append(self._name)
        return self._function(*args, **kwargs)


@contextmanager
def record_generator_calls() -> Iterator[list[str]]:
    """Record calls of functions that use a global generator; yield a growing list of their names.

    Of torch, only functions that read or set its generator's state are recorded, not draws. Functions are replaced in every
    imported module, also where `from random import random` bound the name. Calls from other threads, and calls through a
    closure, a default argument or an instance, are not recorded.
    """
    calls: list[str] = []
    pairs = [(function, _RecordedFunction(name, function, calls)) for name, function in _list_functions()]
    _replace_objects({id(function): recorder for function, recorder in pairs})
    try:
        yield calls
    finally:
        _replace_objects({id(recorder): function for function, recorder in pairs})
        for _, recorder in pairs:
            recorder.thread = None


def _list_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield names and functions of `random` and `numpy.random` that use a global generator, and of torch's for its state."""
    for prefix, module, owner, function_names in (
        ("random", random, PYTHON_GENERATOR, ()),
        ("numpy.random", numpy_random, NUMPY_GENERATOR, _OTHER_NUMPY_FUNCTIONS),
        ("numpy.random", mtrand, NUMPY_GENERATOR, _OTHER_NUMPY_FUNCTIONS),
        ("torch", sys.modules.get("torch.random"), object(), _TORCH_FUNCTIONS),
        ("torch", sys.modules.get("torch"), object(), _TORCH_FUNCTIONS),  # may have its own wrappers
    ):
        for name, value in list(vars(module).items()) if module is not None else ():
            if getattr(value, "__self__", None) is owner or name in function_names:
                yield f"{prefix}.{name}", value


def _replace_objects(replacements: Mapping[int, Any]) -> None:
    """Replace objects in the namespaces of all modules; `replacements` maps the id of an object to its replacement."""
    for module in list(sys.modules.values()):
        namespace = getattr(module, "__dict__", None)
        if not isinstance(namespace, dict) or replacements.keys().isdisjoint(map(id, list(namespace.values()))):
            continue
        for name, value in list(namespace.items()):
            if id(value) in replacements:
                namespace[name] = replacements[id(value)]
