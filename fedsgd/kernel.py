"""Kernels: functions of arrays in two forms that give the same bytes, an obvious one in numpy and one that numba compiles.

The obvious form is what the fast one is tested against, and what runs where numba cannot be had or FEDSGD_KERNELS=numpy is set.
This module is numba's only door. It compiles at the first call, so that importing fedsgd stays quick, and keeps the result on
disk. Never with fastmath: bytes must not depend on how wide the processor's registers are.

In a loop numba's rules hold: integers of 32 bits are promoted to 64 by arithmetic, int64 and uint64 together become float64,
and nothing is checked: whoever calls a kernel has checked every length and index that it relies on. Negative indices are
allowed for at each access, which keeps the compiler from using wide registers unless it can see that there are none: so the
inner loops run over slices, from 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

_HELPERS: list[Callable[..., Any]] = []
KERNELS: dict[str, Kernel[..., Any]] = {}
"""Every kernel by `module.name`: the tests hold each to its reference."""


def helper(function: Callable[P, R]) -> Callable[P, R]:
    """A small function that loops may call; it is compiled with them."""
    _HELPERS.append(function)
    return function


class Kernel(Generic[P, R]):
    """reference: the obvious form; loop: the one to compile. Both take and return the same."""

    def __init__(self, reference: Callable[P, R], loop: Callable[P, R]) -> None:
        self.reference = reference
        self.loop = loop
        self.__doc__ = loop.__doc__
        self._chosen: Callable[P, R] | None = None
        KERNELS[f"{loop.__module__}.{loop.__name__}"] = self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._chosen is None:
            self._chosen = self.compiled() or self.reference
        try:
            return self._chosen(*args, **kwargs)
        except OSError:  # what was compiled could not be stored, before the loop ran: its disk is full, or its folder is gone
            import numba

            self._chosen = cast("Callable[P, R]", numba.njit(nogil=True)(self.loop))
            return self._chosen(*args, **kwargs)

    def compiled(self) -> Callable[P, R] | None:
        """The fast form; None without numba."""
        if os.environ.get("FEDSGD_KERNELS", "numba") == "numpy":
            return None
        try:
            import numba
            from numba.extending import register_jitable
        except ModuleNotFoundError as error:
            if error.name != "numba":  # it is there and broken: not a reason to be slow without a word
                raise
            return None
        while _HELPERS:
            register_jitable(_HELPERS.pop())
        try:
            return numba.njit(cache=True, nogil=True)(self.loop)
        except RuntimeError:  # no folder to keep it in
            return numba.njit(nogil=True)(self.loop)


def kernel(reference: Callable[P, R]) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Decorates a loop with the obvious function that it must agree with."""
    return lambda loop: Kernel(reference, loop)
