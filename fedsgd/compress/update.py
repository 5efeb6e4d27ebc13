"""Updates in the form that is cheapest to add, what is remembered between them, and how to take back what was done with one.

P parameters, k kept coordinates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32, I64
from fedsgd.vectors import scatter_add

State = Mapping[str, NDArray[Any]]
"""What a scheme remembers, by name. An absent entry is zero; arrays in it are never written to."""


class Update(ABC):
    """A decoded vector [P], in the form that is cheapest to add."""

    @property
    @abstractmethod
    def kept(self) -> int:
        """The number of coordinates that were sent."""

    @abstractmethod
    def add_to(self, out: NDArray[Any], weight: float) -> None:
        """out += weight · update, in place; the product is taken in out's dtype. out: [P]."""

    @abstractmethod
    def to_dense(self) -> F32:
        """The update as a new float32 [P]."""


@dataclass(frozen=True, eq=False)
class Dense(Update):
    """Every coordinate. values: [P]."""

    values: F32

    @property
    def kept(self) -> int:
        return len(self.values)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        out += self.values.astype(out.dtype, copy=False) * out.dtype.type(weight)

    def to_dense(self) -> F32:
        return self.values.copy()


@dataclass(frozen=True, eq=False)
class Sparse(Update):
    """k coordinates of `size` = P. indices: [k], strictly ascending; values: [k]; all others are zero."""

    indices: I64
    values: F32
    size: int

    @property
    def kept(self) -> int:
        return len(self.indices)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        if out.dtype == np.float64:
            scatter_add(out, self.indices, self.values, float(weight))
        else:
            out[self.indices] += self.values.astype(out.dtype, copy=False) * out.dtype.type(weight)

    def to_dense(self) -> F32:
        out = np.zeros(self.size, dtype=np.float32)
        out[self.indices] = self.values
        return out


@dataclass(frozen=True, eq=False)
class Patch:
    """Entries of a vector to write back. indices: [k], or None for all of them; values: [k] or [P]."""

    indices: I64 | None
    values: NDArray[Any]

    def written_to(self, vector: NDArray[Any]) -> NDArray[Any]:
        """A copy of `vector` with the entries in place."""
        if self.indices is None:
            return self.values
        out = vector.copy()
        out[self.indices] = self.values
        return out


def patch(before: NDArray[Any], update: Update) -> Patch:
    """What undoes, in a vector that was `before`, whatever was done to it where `update` has coordinates."""
    if isinstance(update, Sparse):
        return Patch(update.indices, before[update.indices])
    return Patch(None, before)


def undone(state: State, undo: Mapping[str, Patch | None]) -> State:
    """`state` with the patches of `undo`, as new arrays where they differ."""
    out = dict(state)
    for name, patch in undo.items():
        if patch is None:
            out.pop(name, None)
        else:
            out[name] = patch.written_to(out[name]) if name in out else patch.values
    return out
