"""What all targets share: the sizes, the place of a frame, and what makes a violation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.certification.operator_laws import example_layout
from fedsgd.compression import CodecContext
from fedsgd.numerics.arrays import F32

SIZES = (1, 2, 7, 64, 1003, 2000, 70_000)
ROUND, CLIENT = 3, 2


class ViolationError(AssertionError):
    """A decoder let something through, or refused it in the wrong way."""


def require(condition: bool, what: str) -> None:
    """A violation unless the condition holds."""
    if not condition:
        raise ViolationError(what)


@dataclass(frozen=True, eq=False)
class Target:
    """One decoder at one size. frames: valid ones; open: what the bytes decode to, WireError where they are refused."""

    name: str
    size: int
    frames: tuple[bytes, ...]
    open: Callable[[bytes], NDArray[Any]]


def vectors(size: int) -> Iterator[F32]:
    """Noise, noise with a few large coordinates, zeros, and all the same."""
    rng = np.random.default_rng(size)
    x = rng.standard_normal(size).astype(np.float32)
    yield x
    yield (x * (1 + 50 * (rng.random(size) < 0.02))).astype(np.float32)
    yield np.zeros(size, dtype=np.float32)
    yield np.full(size, np.float32(0.5))


def context(size: int) -> CodecContext:
    """What both ends know."""
    return CodecContext(0, ROUND, CLIENT, example_layout(size))
