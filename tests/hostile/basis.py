"""Sizes, round, client and vectors of all targets, and the error for a violation."""

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
    """A decoder accepts a malformed frame, or raises another error than WireError."""


def require(condition: bool, message: str) -> None:
    """Raise ViolationError unless the condition is True."""
    if not condition:
        raise ViolationError(message)


@dataclass(frozen=True, eq=False)
class Target:
    """Decoder at one size.

    Attributes:
        name: name of the decoder.
        size: P.
        frames: valid frames.
        decode: function that decodes a frame, or raises WireError.
    """

    name: str
    size: int
    frames: tuple[bytes, ...]
    decode: Callable[[bytes], NDArray[Any]]


def vectors(size: int) -> Iterator[F32]:
    """Yield noise, noise with a few large coordinates, zeros, and equal coordinates."""
    rng = np.random.default_rng(size)
    x = rng.standard_normal(size).astype(np.float32)
    yield x
    yield (x * (1 + 50 * (rng.random(size) < 0.02))).astype(np.float32)
    yield np.zeros(size, dtype=np.float32)
    yield np.full(size, np.float32(0.5))


def context(size: int) -> CodecContext:
    """Return the context at client and server."""
    return CodecContext(0, ROUND, CLIENT, example_layout(size))
