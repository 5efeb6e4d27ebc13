"""Kernels: array functions in two forms with bit-equal results, a reference in numpy and a loop that numba compiles.

Tests compare the loop with the reference. The reference runs where numba is not installed or FEDSGD_KERNELS=numpy is set, and
in the first second of a process whose arrays are short: a short run of a small model then needs no compiler, whose import takes
0.6 s and 100 MB. From the first long array on, or when the references have done a second's work, all kernels of the process use
their loops. The work is predicted from lengths, not timed. No other module imports numba.

Compiled loops are stored on disk if possible: in numba's own cache, else in the folder of `FALLBACK_CACHE_VARIABLE`. The loops
do not use numba's `fastmath`: results must not depend on the width of the processor's registers.

Numba's rules apply in a loop:

- Arithmetic promotes integers of 32 bits to 64 bits; int64 and uint64 together become float64.
- A loop does not check lengths and indices; the caller of a kernel has checked them.
- The test for a negative index at each access prevents vectorization, unless the compiler can exclude negative indices.
  Therefore inner loops run over slices, from 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, cast
from uuid import uuid4

import numpy as np

from fedsgd.system.folder_permissions import is_private

P = ParamSpec("P")
R = TypeVar("R")

FALLBACK_CACHE_VARIABLE = "FEDSGD_KERNEL_CACHE"
"""Environment variable with a folder for compiled loops. It is used if numba's own folders cannot be written."""
_JIT_HELPERS: list[Callable[..., Any]] = []
SHORT_CALL_ELEMENTS = 2**15
"""Largest number of elements, of all arrays together, of a call that the reference may process."""
REFERENCE_BUDGET_NS = 1_000_000_000
"""Predicted nanoseconds of references after which a process compiles loops: about what the compiler's start takes."""
REFERENCE_CALL_NS = 15_000
"""Predicted nanoseconds of a reference for an empty array."""
KERNELS: dict[str, Kernel[..., Any]] = {}
"""All kernels by `module.name`. A test compares each loop with its reference."""


def jit_helper(function: Callable[P, R]) -> Callable[P, R]:
    """Register a small function that compiled loops may call."""
    _JIT_HELPERS.append(function)
    return function


class _Process:
    """Choice of this process between references and loops."""

    def __init__(self) -> None:
        self._remaining_ns = REFERENCE_BUDGET_NS

    def may_use_reference(self, n_elements: int, element_ns: int) -> bool:
        """Return True for a short call within the budget, and charge it; after one False, always False."""
        self._remaining_ns -= REFERENCE_CALL_NS + element_ns * n_elements
        if n_elements > SHORT_CALL_ELEMENTS:
            self._remaining_ns = -1
        return self._remaining_ns >= 0

    def use_loops(self) -> None:
        """Use the loops from now on."""
        self._remaining_ns = -1

    @property
    def remaining_share(self) -> float:
        """Share of the budget that is left; 0 for a process that uses loops."""
        return max(self._remaining_ns, 0) / REFERENCE_BUDGET_NS


_PROCESS = _Process()


def use_loops() -> None:
    """Let all kernels of this process use their loops from now on, also for short arrays."""
    _PROCESS.use_loops()


def remaining_reference_share() -> float:
    """Return the share of this process's budget for references that is left; 0 if its kernels use their loops."""
    return _PROCESS.remaining_share


class Kernel(Generic[P, R]):
    """Function in two forms with equal parameters and results: `reference` in numpy, and `loop`, which numba compiles."""

    def __init__(
        self, reference: Callable[P, R], loop: Callable[P, R], n_elements: Callable[P, int] | None = None, element_ns: int = 5
    ) -> None:
        self.reference = reference
        self.loop = loop
        self.__doc__ = loop.__doc__
        self._n_elements = n_elements or _count_elements
        self._element_ns = element_ns
        self._implementation: Callable[P, R] | None = None
        KERNELS[f"{loop.__module__}.{loop.__name__}"] = self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        implementation = self._implementation
        if implementation is None:
            if _PROCESS.may_use_reference(self._n_elements(*args, **kwargs), self._element_ns):
                return self.reference(*args, **kwargs)
            implementation = self._implementation = self.compile() or self.reference
        try:
            return implementation(*args, **kwargs)
        except OSError:  # numba could not store the compiled loop (full disk, deleted folder), and the loop has not run
            import numba

            self._implementation = cast("Callable[P, R]", numba.njit(nogil=True)(self.loop))
            return self._implementation(*args, **kwargs)

    def compile(self) -> Callable[P, R] | None:
        """Return the loop as a numba function; None if numba is not installed or FEDSGD_KERNELS=numpy is set."""
        if os.environ.get("FEDSGD_KERNELS", "numba") == "numpy":
            return None
        try:
            import numba
            from numba.extending import register_jitable
        except ModuleNotFoundError as error:
            if error.name != "numba":  # numba is installed and broken: raise the error instead of running slowly
                raise
            return None
        while _JIT_HELPERS:
            register_jitable(_JIT_HELPERS.pop())
        with suppress(RuntimeError):  # numba has no folder that it can write
            return _use_unique_names(numba.njit(cache=True, nogil=True)(self.loop))
        folder, config = _create_fallback_cache(), cast("Any", numba.config)
        if folder is None:
            return numba.njit(nogil=True)(self.loop)
        previous_folder = config.CACHE_DIR
        try:
            config.CACHE_DIR = str(folder)  # numba reads the variable in `njit` only
            return _use_unique_names(numba.njit(cache=True, nogil=True)(self.loop))
        except RuntimeError:
            return numba.njit(nogil=True)(self.loop)
        finally:
            config.CACHE_DIR = previous_folder


class _UniqueNames:
    """Pattern of the names of a function's compiled files, in the place of numba's.

    numba numbers these files, one for each signature. If two processes compile two signatures at the same time, both take the
    same number, and each later process loads one loop in the place of the other.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def format(self, number: int) -> str:
        """Return a name that no other process has, for the file that numba would give this number."""
        return self._pattern.format(number=number).removesuffix(".nbc") + f"-{uuid4().hex[:12]}.nbc"


def _use_unique_names(function: Callable[P, R]) -> Callable[P, R]:
    """Give the compiled files of a numba function unique names, and return the function."""
    file = getattr(getattr(function, "_cache", None), "_cache_file", None)
    pattern = getattr(file, "_data_name_pattern", None)
    if isinstance(pattern, str):  # else another release of numba
        cast("Any", file)._data_name_pattern = _UniqueNames(pattern)
    return function


def set_fallback_cache(folder: Path) -> None:
    """Set the folder for compiled loops of this process and its children, for use if numba's own folders cannot be written.

    If the environment variable has a value, for example from the launcher of a deployment, the value is kept. The folder, an
    absolute path, is created at the first use with mode 0700. The folder is used only if no other user can write to it or
    replace it: numba unpickles the folder's contents.
    """
    os.environ.setdefault(FALLBACK_CACHE_VARIABLE, str(folder))


def _create_fallback_cache() -> Path | None:
    """Return the folder of `FALLBACK_CACHE_VARIABLE` if it can be created and only this user can write to it; else None."""
    path = os.environ.get(FALLBACK_CACHE_VARIABLE)
    if not path or not hasattr(os, "geteuid"):
        return None
    with suppress(OSError, RuntimeError):
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(path).resolve(strict=True)
        return folder if is_private(folder) else None
    return None


def _count_elements(*args: Any, **kwargs: Any) -> int:
    """Return the number of elements of all arrays."""
    return sum(value.size for value in (*args, *kwargs.values()) if isinstance(value, np.ndarray))


def kernel(
    reference: Callable[P, R], n_elements: Callable[P, int] | None = None, element_ns: int = 5
) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Return a decorator that makes a kernel of a loop and its reference.

    Args:
        reference: the form in numpy.
        n_elements: function of the kernel's arguments that returns the number of elements of a call; without it, that of all
            arrays among the arguments. A kernel whose result is longer than its arrays needs it.
        element_ns: nanoseconds of the reference for each element, roughly; 0 if the reference calls other kernels, which count.
    """
    return lambda loop: Kernel(reference, loop, n_elements, element_ns)
