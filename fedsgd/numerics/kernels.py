"""Kernels: functions of arrays in two forms that give the same bytes, an obvious one in numpy and one that numba compiles.

The obvious form is what the fast one is tested against, and what runs where numba cannot be had or FEDSGD_KERNELS=numpy is set.
No other module imports numba. Loops are compiled at the first call, so that importing fedsgd stays quick, and stored on disk:
where numba stores them, or in the folder of `FALLBACK_CACHE_VARIABLE`. They are compiled without fastmath: bytes must not
depend on the
width of the processor's registers.

In a loop numba's rules hold: integers of 32 bits are promoted to 64 by arithmetic, int64 and uint64 together become float64,
and nothing is checked: whoever calls a kernel has checked every length and index that it relies on. Negative indices are
allowed for at each access, which keeps the compiler from using wide registers unless it can see that there are none: so the
inner loops run over slices, from 0.
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
"""Environment variable that names a folder for compiled loops, used where numba's own folders cannot be written."""
_JIT_HELPERS: list[Callable[..., Any]] = []
KERNELS: dict[str, Kernel[..., Any]] = {}
"""Every kernel by `module.name`: the tests hold each to its reference."""


def jit_helper(function: Callable[P, R]) -> Callable[P, R]:
    """A small function that loops may call; it is compiled with them."""
    _JIT_HELPERS.append(function)
    return function


class Kernel(Generic[P, R]):
    """reference: the obvious form; loop: the one to compile. Both take and return the same."""

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
        except OSError:  # what was compiled could not be stored, before the loop ran: its disk is full, or its folder is gone
            import numba

            self._implementation = cast("Callable[P, R]", numba.njit(nogil=True)(self.compiled_source))
            return self._implementation(*args, **kwargs)

    def compile(self) -> Callable[P, R] | None:
        """Return the fast form, None without numba."""
        if os.environ.get("FEDSGD_KERNELS", "numba") == "numpy":
            return None
        try:
            import numba
            from numba.extending import register_jitable
        except ModuleNotFoundError as error:
            if error.name != "numba":  # it is there and broken: not a reason to be slow without a word
                raise
            return None
        while _JIT_HELPERS:
            register_jitable(_JIT_HELPERS.pop())
        with suppress(RuntimeError):  # numba found no folder that it can write
            return numba.njit(cache=True, nogil=True)(self.compiled_source)
        folder, config = _create_fallback_cache(), cast("Any", numba.config)
        if folder is None:
            return numba.njit(nogil=True)(self.compiled_source)
        before = config.CACHE_DIR
        try:
            config.CACHE_DIR = str(folder)  # numba reads it here alone
            return numba.njit(cache=True, nogil=True)(self.compiled_source)
        except RuntimeError:
            return numba.njit(nogil=True)(self.compiled_source)
        finally:
            config.CACHE_DIR = before


def set_fallback_cache(folder: Path) -> None:
    """Name the folder of compiled loops for this process and its children, where numba's own folders cannot be written.

    A folder that was named before, as by the launcher of a deployment, stays. The folder is made at the first use, and is used
    only if no other user can write to it or replace it: numba unpickles its contents.

    Args:
        folder: folder, made with mode 0700 if it does not exist.
    """
    os.environ.setdefault(FALLBACK_CACHE_VARIABLE, str(folder))


def _create_fallback_cache() -> Path | None:
    """Return the folder of `FALLBACK_CACHE_VARIABLE` if it can be made, and belongs to this user alone; None otherwise."""
    named = os.environ.get(FALLBACK_CACHE_VARIABLE)
    if not named or not hasattr(os, "geteuid"):
        return None
    with suppress(OSError, RuntimeError):
        Path(named).mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(named).resolve(strict=True)
        return folder if is_private(folder) else None
    return None


def kernel(reference: Callable[P, R]) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Decorates a loop with the obvious function that it must agree with."""
    return lambda loop: Kernel(reference, loop)
