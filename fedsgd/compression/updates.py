"""Decoded updates, each in the form that is cheapest to add, and patches that restore earlier entries of a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.numerics.arrays import F32, F64, I64, U8
from fedsgd.numerics.kernels import kernel
from fedsgd.numerics.reductions import scatter_add
from fedsgd.numerics.vectors import add_to_tensor, copy_vector, is_tensor, set_at
from fedsgd.wire.levels import dequantise

StateArrays = Mapping[str, NDArray[Any]]
"""State of a scheme: arrays by name of the entry. A missing entry counts as zero; arrays are never written to."""
ADDITION_BLOCK = 2**15
"""Coordinates of a dense update that are added at once."""


class Update(ABC):
    """Decoded vector [P], in the form that is cheapest to add."""

    @property
    @abstractmethod
    def n_coordinates(self) -> int:
        """Number of coordinates that were sent."""

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        """Add weight · update to a vector in place.

        Args:
            out: [P] float32 or float64. The product is computed in its dtype.
            weight: factor of the update.
        """
        if is_tensor(out):
            add_to_tensor(out, self.to_dense(), weight)
        else:
            out += self.to_dense().astype(out.dtype, copy=False) * out.dtype.type(weight)

    @abstractmethod
    def to_dense(self) -> F32:
        """Return the update as a new vector [P] float32."""

    def add_support_to(self, out: F64, weight: float) -> None:
        """Add weight to a vector in place at each coordinate that was sent; by default at all.

        Args:
            out: [P] float64.
            weight: summand.
        """
        out += weight


@dataclass(frozen=True, eq=False)
class DenseUpdate(Update):
    """Update with every coordinate: `values` [P]."""

    values: F32

    @property
    def n_coordinates(self) -> int:
        return len(self.values)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        if is_tensor(out):
            super().add_to(out, weight)
            return
        factor = out.dtype.type(weight)
        for start in range(0, len(self.values), ADDITION_BLOCK):  # so that the product does not need memory for P numbers
            block = slice(start, start + ADDITION_BLOCK)
            out[block] += self.values[block].astype(out.dtype, copy=False) * factor

    def to_dense(self) -> F32:
        return self.values.copy()


@dataclass(frozen=True, eq=False)
class SparseUpdate(Update):
    """Update with k coordinates, and zeros at all others: strictly ascending positions `indices` [k] and their `values` [k].

    Other positions raise a ValueError, because compiled loops would write outside of their vectors.
    """

    indices: I64
    values: F32
    size: int

    def __post_init__(self) -> None:
        positions, k = self.indices, len(self.indices)
        if positions.shape != (k,) or positions.dtype.kind != "i" or self.values.shape != (k,):
            got = f"{positions.dtype} of shape {[*positions.shape]} and values of shape {[*self.values.shape]}"
            raise ValueError(f"a sparse update needs positions [k] int64 and values [k], got positions {got}")
        if not _is_ascending(positions, self.size):
            raise ValueError(f"a sparse update needs strictly ascending positions from 0 to {self.size - 1}")

    @property
    def n_coordinates(self) -> int:
        return len(self.indices)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        if out.dtype == np.float64:
            scatter_add(out, self.indices, self.values, float(weight))
        elif is_tensor(out):
            add_to_tensor(out, self.values, weight, self.indices)
        elif out.dtype == self.values.dtype == np.float32:
            _scatter_add_float32(out, self.indices, self.values, np.float32(weight))
        else:
            out[self.indices] += self.values.astype(out.dtype, copy=False) * out.dtype.type(weight)

    def to_dense(self) -> F32:
        out = np.zeros(self.size, dtype=np.float32)
        out[self.indices] = self.values
        return out

    def add_support_to(self, out: F64, weight: float) -> None:
        out[self.indices] += weight


@dataclass(frozen=True, eq=False)
class EntryPatch:
    """Entries to write back into a vector.

    Attributes:
        indices: [k] int64, positions; None for all.
        values: [k], or [P] for all positions.
    """

    indices: I64 | None
    values: NDArray[Any]

    def apply_to_copy(self, vector: NDArray[Any]) -> NDArray[Any]:
        """Return a copy of a vector with the entries written back.

        Args:
            vector: [P], vector before the patch.
        """
        if self.indices is None:
            return self.values
        out: NDArray[Any] = copy_vector(vector)
        set_at(out, self.indices, self.values)
        return out


def record_patch(original: NDArray[Any], update: Update) -> EntryPatch:
    """Return the patch that restores `original` after changes at the coordinates of `update`."""
    if isinstance(update, SparseUpdate):
        return EntryPatch(update.indices, original[update.indices])
    return EntryPatch(None, original)


def apply_rollback(state: StateArrays, rollback: Mapping[str, EntryPatch | None]) -> StateArrays:
    """Return a state with the patches of a rollback applied, in new arrays where it differs. None removes an entry."""
    out = dict(state)
    for name, patch in rollback.items():
        if patch is None:
            out.pop(name, None)
        else:
            out[name] = patch.apply_to_copy(out[name]) if name in out else patch.values
    return out


@dataclass(frozen=True, eq=False)
class LazyUpdate(Update):
    """Update that `factory` computes when it is used; a client without memory never uses it."""

    coordinate_count: int
    factory: Callable[[], Update]

    @property
    def n_coordinates(self) -> int:
        return self.coordinate_count

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        self.factory().add_to(out, weight)

    def to_dense(self) -> F32:
        return self.factory().to_dense()

    def add_support_to(self, out: F64, weight: float) -> None:
        self.factory().add_support_to(out, weight)


@dataclass(frozen=True, eq=False)
class LevelUpdate(Update):
    """Update with every coordinate as one of 2L + 1 levels, L = `level`.

    `levels` [P] has each level plus L. `scales` [⌈P / bucket⌉] has the magnitude of level L in each bucket of coordinates.
    """

    levels: U8
    scales: F32
    level: int
    bucket: int

    @property
    def n_coordinates(self) -> int:
        return len(self.levels)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        if out.dtype == np.float64:
            _add_levels(out, self.levels, self.scales, self.level, self.bucket, float(weight))
        else:
            super().add_to(out, weight)

    def to_dense(self) -> F32:
        return dequantise(self.levels, self.scales, self.level, self.bucket)


@dataclass(frozen=True, eq=False)
class SignUpdate(Update):
    """Update with every coordinate as plus or minus `scale`.

    `sign_bits` [⌈P / 8⌉] has one bit for each of P = `size` coordinates, 1 for minus; the lowest bit comes first.
    """

    sign_bits: U8
    scale: np.float32
    size: int

    @property
    def n_coordinates(self) -> int:
        return self.size

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        if out.dtype == np.float64:
            _add_signs(out, self.sign_bits, float(self.scale) * float(weight))
        else:
            super().add_to(out, weight)

    def to_dense(self) -> F32:
        is_negative = np.unpackbits(self.sign_bits, count=self.size, bitorder="little")
        return np.array([self.scale, -self.scale], dtype=np.float32)[is_negative]


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _is_ascending_reference(positions: I64, size: int) -> bool:
    in_range = not len(positions) or bool(positions[0] >= 0 and positions[-1] < size)
    return in_range and bool(np.all(positions[1:] > positions[:-1]))


@kernel(_is_ascending_reference)
def _is_ascending(positions: I64, size: int) -> bool:
    """Return whether positions are strictly ascending, from 0 to `size` - 1."""
    previous, n_faults = -1, 0
    for i in range(positions.size):
        n_faults += int(positions[i] <= previous)
        previous = positions[i]
    return n_faults == 0 and previous < size


def _scatter_add_float32_reference(out: F32, indices: I64, values: F32, weight: np.float32) -> None:
    out[indices] += values * weight


@kernel(_scatter_add_float32_reference, element_ns=10)
def _scatter_add_float32(out: F32, indices: I64, values: F32, weight: np.float32) -> None:
    """Add weight · values to out[indices], in place and in float32. indices: [k], distinct, within `out`."""
    for i in range(indices.size):
        out[indices[i]] += values[i] * weight


def _add_levels_reference(out: F64, levels: U8, scales: F32, level: int, bucket: int, weight: float) -> None:
    out += dequantise(levels, scales, level, bucket).astype(np.float64) * weight


@kernel(_add_levels_reference)
def _add_levels(out: F64, levels: U8, scales: F32, level: int, bucket: int, weight: float) -> None:
    """Add weight · the vector that the levels decode to, in place."""
    for b in range(scales.size):
        step = np.float64(scales[b]) / level
        part = levels[bucket * b : min(bucket * b + bucket, levels.size)]
        target = out[bucket * b : min(bucket * b + bucket, levels.size)]
        for i in range(part.size):
            target[i] += np.float64(np.float32((np.int64(part[i]) - level) * step)) * weight


def _add_signs_reference(out: F64, sign_bits: U8, amount: float) -> None:
    is_negative = np.unpackbits(sign_bits, count=len(out), bitorder="little")
    out += np.array([amount, -amount])[is_negative]


@kernel(_add_signs_reference)
def _add_signs(out: F64, sign_bits: U8, amount: float) -> None:
    """Add `amount`, or −`amount` where the bit is 1, in place: the bit becomes the sign bit of the summand."""
    plus = np.array([amount]).view(np.uint64)[0]
    words = np.empty(64, dtype=np.uint64)
    summands = words.view(np.float64)
    for block in range(out.size // 64):
        part, target = sign_bits[8 * block : 8 * block + 8], out[64 * block : 64 * block + 64]
        signs = np.uint64(0)
        for byte in range(8):
            signs |= np.uint64(part[byte]) << np.uint64(8 * byte)
        for j in range(64):
            words[j] = plus ^ ((signs >> np.uint64(j) & np.uint64(1)) << np.uint64(63))
        for j in range(64):
            target[j] += summands[j]
    for i in range(out.size - out.size % 64, out.size):
        out[i] += -amount if sign_bits[i >> 3] & np.uint8(1 << (i & 7)) else amount


def _pack_signs_reference(x: F32) -> U8:
    return np.packbits(np.signbit(x), bitorder="little")


@kernel(_pack_signs_reference)
def pack_signs(x: F32) -> U8:
    """Return the sign bit of each coordinate [⌈P / 8⌉], 1 for minus and for −0.0; the lowest bit comes first."""
    words = x.view(np.uint32)
    out = np.zeros((x.size + 63) // 64, dtype=np.uint64)
    for block in range(x.size // 64):
        part = words[64 * block : 64 * block + 64]
        signs = np.uint64(0)
        for j in range(64):
            signs |= np.uint64(part[j] >> np.uint32(31)) << np.uint64(j)
        out[block] = signs
    for i in range(x.size - x.size % 64, x.size):
        out[i >> 6] |= np.uint64(words[i] >> np.uint32(31)) << np.uint64(i & 63)
    return out.view(np.uint8)[: (x.size + 7) // 8]
