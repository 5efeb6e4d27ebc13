"""Decoded updates that stay in few bits until they are added up: levels with scales, and signs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32, F64, U8
from fedsgd.compress.update import Dense, Update
from fedsgd.kernel import kernel
from fedsgd.wire.levels import dequantise


@dataclass(frozen=True, eq=False)
class Deferred(Update):
    """An update [P] that is worked out only if somebody asks: a client without a memory never does."""

    kept_coordinates: int
    make: Callable[[], Update]

    @property
    def kept(self) -> int:
        return self.kept_coordinates

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        self.make().add_to(out, weight)

    def to_dense(self) -> F32:
        return self.make().to_dense()


@dataclass(frozen=True, eq=False)
class Levels(Update):
    """Every coordinate as one of 2L + 1 levels. levels: [P], plus L; scales: [ceil(P / bucket)]; level: L."""

    levels: U8
    scales: F32
    level: int
    bucket: int

    @property
    def kept(self) -> int:
        return len(self.levels)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        if out.dtype == np.float64:
            _add_levels(out, self.levels, self.scales, self.level, self.bucket, float(weight))
        else:
            Dense(self.to_dense()).add_to(out, weight)

    def to_dense(self) -> F32:
        return dequantise(self.levels, self.scales, self.level, self.bucket)


@dataclass(frozen=True, eq=False)
class Signs(Update):
    """Every coordinate as ± scale. packed: a bit each, 1 for minus, the first being the lowest; size: P."""

    packed: U8
    scale: np.float32
    size: int

    @property
    def kept(self) -> int:
        return self.size

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        if out.dtype == np.float64:
            _add_signs(out, self.packed, float(self.scale) * float(weight))
        else:
            Dense(self.to_dense()).add_to(out, weight)

    def to_dense(self) -> F32:
        negative = np.unpackbits(self.packed, count=self.size, bitorder="little")
        return np.array([self.scale, -self.scale], dtype=np.float32)[negative]


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _add_levels_reference(out: F64, levels: U8, scales: F32, level: int, bucket: int, weight: float) -> None:
    out += dequantise(levels, scales, level, bucket).astype(np.float64) * weight


@kernel(_add_levels_reference)
def _add_levels(out: F64, levels: U8, scales: F32, level: int, bucket: int, weight: float) -> None:
    """out += weight · what the levels decode to, in place."""
    for b in range(scales.size):
        step = np.float64(scales[b]) / level
        part = levels[bucket * b : min(bucket * b + bucket, levels.size)]
        target = out[bucket * b : min(bucket * b + bucket, levels.size)]
        for i in range(part.size):
            target[i] += np.float64(np.float32((np.int64(part[i]) - level) * step)) * weight


def _add_signs_reference(out: F64, packed: U8, amount: float) -> None:
    negative = np.unpackbits(packed, count=len(out), bitorder="little")
    out += np.array([amount, -amount])[negative]


@kernel(_add_signs_reference)
def _add_signs(out: F64, packed: U8, amount: float) -> None:
    """out[i] += amount, or −amount where the bit is 1, in place: the bit is the sign bit of what is added."""
    plus = np.array([amount]).view(np.uint64)[0]
    words = np.empty(64, dtype=np.uint64)
    added = words.view(np.float64)
    for block in range(out.size // 64):
        part, target = packed[8 * block : 8 * block + 8], out[64 * block : 64 * block + 64]
        signs = np.uint64(0)
        for byte in range(8):
            signs |= np.uint64(part[byte]) << np.uint64(8 * byte)
        for j in range(64):
            words[j] = plus ^ ((signs >> np.uint64(j) & np.uint64(1)) << np.uint64(63))
        for j in range(64):
            target[j] += added[j]
    for i in range(out.size - out.size % 64, out.size):
        out[i] += -amount if packed[i >> 3] & np.uint8(1 << (i & 7)) else amount


def _pack_signs_reference(x: F32) -> U8:
    return np.packbits(np.signbit(x), bitorder="little")


@kernel(_pack_signs_reference)
def pack_signs(x: F32) -> U8:
    """A bit for each coordinate [ceil(P / 8)], 1 for minus (and for -0.0), the first being the lowest."""
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
