"""Kernels: functions of arrays in two forms with equal bytes, a reference in numpy and a loop that numba compiles.

Tests compare the loop with the reference. The reference runs where numba is not installed or FEDSGD_KERNELS=numpy is set. No
other module imports numba. A loop is compiled at its first call, so that importing fedsgd stays fast. Compiled loops are stored
on disk, in numba's own cache or in the folder of `FALLBACK_CACHE_VARIABLE`. There is no fastmath: bytes must not depend on the
width of the processor's registers.

Numba's rules apply in a loop:

- Arithmetic promotes integers of 32 bits to 64 bits; int64 and uint64 together become float64.
- A loop does not check lengths and indices; the caller of a kernel has checked them.
- Each access allows for a negative index, which prevents wide registers unless the compiler can exclude negative indices.
  Therefore inner loops run over slices, from 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, cast

from fedsgd.system.folder_permissions import is_private

P = ParamSpec("P")
R = TypeVar("R")

FALLBACK_CACHE_VARIABLE = "FEDSGD_KERNEL_CACHE"
"""Environment variable with a folder for compiled loops, which is used where numba's own folders cannot be written."""
_JIT_HELPERS: list[Callable[..., Any]] = []
KERNELS: dict[str, Kernel[..., Any]] = {}
"""All kernels by `module.name`. A test compares each loop with its reference."""


def jit_helper(function: Callable[P, R]) -> Callable[P, R]:
    """Register a small function that loops may call; it is compiled with them."""
    _JIT_HELPERS.append(function)
    return function


class Kernel(Generic[P, R]):
    """Function in two forms with equal parameters and results: a reference in numpy, and a loop that numba compiles."""

    def __init__(self, reference: Callable[P, R], compiled_source: Callable[P, R]) -> None:
        self.reference = reference
        self.compiled_source = compiled_source
        self.__doc__ = compiled_source.__doc__
        self._implementation: Callable[P, R] | None = None
        KERNELS[f"{compiled_source.__module__}.{compiled_source.__name__}"] = self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._implementation is None:
            self._implementation = self.compile() or self.reference
        try:
            return self._implementation(*args, **kwargs)
        except OSError:  # raised before the loop ran: numba could not store the compiled loop (full disk, deleted folder)
            import numba

            self._implementation = cast("Callable[P, R]", numba.njit(nogil=True)(self.compiled_source))
            return self._implementation(*args, **kwargs)

    def compile(self) -> Callable[P, R] | None:
        """Return the loop as numba compiles it, or None without numba."""
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
            return numba.njit(cache=True, nogil=True)(self.compiled_source)
        folder, config = _create_fallback_cache(), cast("Any", numba.config)
        if folder is None:
            return numba.njit(nogil=True)(self.compiled_source)
        previous_folder = config.CACHE_DIR
        try:
            config.CACHE_DIR = str(folder)  # numba reads the variable in `njit` only
            return numba.njit(cache=True, nogil=True)(self.compiled_source)
        except RuntimeError:
            return numba.njit(nogil=True)(self.compiled_source)
        finally:
            config.CACHE_DIR = previous_folder


def set_fallback_cache(folder: Path) -> None:
    """Set the folder of compiled loops for this process and its children, where numba's own folders cannot be written.

    A folder that the environment already names, for example from the launcher of a deployment, stays in force. The folder, an
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


def kernel(reference: Callable[P, R]) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Return a decorator that makes a kernel of a loop and its reference."""
    return lambda loop: Kernel(reference, loop)
