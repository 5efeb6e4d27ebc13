"""Layout of the flat float32 vector [P] of all trainable parameters: the tensor of each slice."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsgd.errors import ModelError

MAX_PARAMETERS = 2**31 - 1
"""Maximum of P. Up to this size, the wire's index arithmetic is exact in 64 bits."""


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of the trainable tensors, in the order of the flat vector [P].

    A model's layout includes the L parameters that stay at each client. Frozen parameters are excluded, and tied parameters
    occur once.

    >>> layout = ParameterLayout(("weight", "bias"), ((2, 3), (2,)))
    >>> layout.size, layout.offsets, layout.describe_position(5)
    (8, (0, 6, 8), 'weight[1, 2]')
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.shapes):
            raise ModelError(f"layout: {len(self.names)} names for {len(self.shapes)} shapes")
        if len(set(self.names)) != len(self.names):
            name = next(name for name in self.names if self.names.count(name) > 1)
            raise ModelError(f'layout: two tensors have the name "{name}"')
        if not 0 < self.size <= MAX_PARAMETERS:
            raise ModelError(f"layout: {self.size} trainable parameters, expected 1 to {MAX_PARAMETERS}")

    @staticmethod
    def from_size(size: int) -> ParameterLayout:
        """Return the layout of one tensor with `size` entries, for tests and for vectors that are not a model."""
        return ParameterLayout(("vector",), ((size,),))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Offset of each tensor in the vector, and P as the last entry."""
        ends = [0]
        for shape in self.shapes:
            ends.append(ends[-1] + math.prod(shape))
        return tuple(ends)

    @property
    def size(self) -> int:
        """P, the number of trainable parameters."""
        return self.offsets[-1]

    def list_slices(self) -> Sequence[tuple[str, slice, tuple[int, ...]]]:
        """Return the name, the slice of the flat vector and the shape of each tensor."""
        bounds = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return [(n, slice(a, b), s) for n, (a, b), s in zip(self.names, bounds, self.shapes, strict=True)]

    def describe_position(self, position: int) -> str:
        """Return the text for the tensor entry at a position of the flat vector: "fc1.weight[3, 5]"."""
        tensor = bisect_right(self.offsets, position) - 1
        indices = np.unravel_index(position - self.offsets[tensor], self.shapes[tensor] or (1,))
        return f"{self.names[tensor]}[{', '.join(str(int(i)) for i in indices)}]"
