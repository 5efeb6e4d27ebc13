"""The one flat float32 vector that holds all trainable parameters, and which tensor each stretch of it is."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsgd.errors import ModelError

MAX_PARAMETERS = 2**31 - 1
"""The wire's index arithmetic is exact in 64 bits up to here."""


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of the trainable tensors, in the order in which they stand in the flat vector [P].

    Frozen parameters are not in it, tied ones are in it once: it is what trains, and so what is sent.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.shapes):
            raise ModelError(f"layout: {len(self.names)} names for {len(self.shapes)} shapes")
        if len(set(self.names)) != len(self.names):
            raise ModelError("layout: two tensors have the same name")
        if not 0 < self.size <= MAX_PARAMETERS:
            raise ModelError(f"layout: {self.size} trainable parameters, expected 1 to {MAX_PARAMETERS}")

    @staticmethod
    def from_size(size: int) -> ParameterLayout:
        """A layout of one vector of `size` entries: for tests and for vectors that are not a model."""
        return ParameterLayout(("vector",), ((size,),))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins; one longer than `names`, its last entry is P."""
        ends = [0]
        for shape in self.shapes:
            ends.append(ends[-1] + math.prod(shape))
        return tuple(ends)

    @property
    def size(self) -> int:
        """P, the number of trainable parameters."""
        return self.offsets[-1]

    def list_slices(self) -> Sequence[tuple[str, slice, tuple[int, ...]]]:
        """(name, stretch of the flat vector, shape) of each tensor."""
        bounds = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return [(n, slice(a, b), s) for n, (a, b), s in zip(self.names, bounds, self.shapes, strict=True)]

    def describe_position(self, position: int) -> str:
        """`fc1.weight[3, 5]` for a position in the flat vector."""
        tensor = bisect_right(self.offsets, position) - 1
        within = np.unravel_index(position - self.offsets[tensor], self.shapes[tensor] or (1,))
        return f"{self.names[tensor]}[{', '.join(str(int(i)) for i in within)}]"
