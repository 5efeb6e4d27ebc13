"""Random rotations in blocks: signs drawn from a shared key, then a Hadamard transform.

A block x becomes H·D·x / √d with the signs D, the Hadamard matrix H and the size d. The map is orthogonal; its inverse is
D·H·y / √d. A rotated block is close to Gaussian unless few values dominate it, so one scale and fixed centroids suit it. Ailon
and Chazelle 2009; Suresh et al. 2017.

The vector is cut into blocks of 4096, the remainder into smaller powers of two down to 64. Zeros fill up the last block.
Padding the whole vector to a power of two could double the bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsgd.numerics.arrays import F32, I64
from fedsgd.numerics.kernels import jit_helper
from fedsgd.numerics.rng import counter_hash, counter_hash_scalar

BLOCK_SIZE = 4096
MIN_BLOCK_SIZE = 64


def compute_block_ends(size: int) -> I64:
    """Return the end of each block in the padded vector of P = `size` numbers; the last end is the padded size."""
    sizes = [BLOCK_SIZE] * (size // BLOCK_SIZE)
    remainder = size % BLOCK_SIZE
    while remainder > 0:
        sizes.append(max(MIN_BLOCK_SIZE, 1 << (remainder.bit_length() - 1)))
        remainder -= sizes[-1]
    return np.cumsum(sizes, dtype=np.int64)


def rotate(x: F32, ends: I64, key: int) -> F32:
    """Rotate all blocks of x [P], with `ends` = `compute_block_ends(P)`, to [padded size]: reference form of `rotate_block`."""
    padded = np.zeros(int(ends[-1]), dtype=np.float32)
    padded[: len(x)] = x
    return _apply_hadamard_reference(_flip_signs_reference(padded, key), ends)


def unrotate(y: F32, ends: I64, key: int, size: int) -> F32:
    """Invert `rotate` up to rounding and return the first `size` coordinates: reference form of `unrotate_block`."""
    return _flip_signs_reference(_apply_hadamard_reference(y, ends), key)[:size]


def _flip_signs_reference(x: F32, key: int) -> F32:
    words = counter_hash(key, np.arange(len(x) // 64, dtype=np.uint64))
    is_negative = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
    return np.where(is_negative == 1, -x, x)


def _apply_hadamard_reference(x: F32, ends: I64) -> F32:
    out = np.empty_like(x)
    start = 0
    for end in ends:
        block = x[start:end]
        half = len(block) // 2
        while half:
            pairs = block.reshape(-1, 2, half)
            block = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
            half //= 2
        out[start:end] = block * np.float32(1 / np.sqrt(end - start))
        start = end
    return out


# --------------------------------------------------------------------------------------------------- called inside kernels


@jit_helper
def rotate_block(block: F32, key: np.uint64, start: int) -> None:
    """Flip signs and transform one block [d] in place; `start` is its position in the padded vector."""
    _flip_signs(block, key, start)
    _apply_hadamard(block)


@jit_helper
def unrotate_block(block: F32, key: np.uint64, start: int) -> None:
    """Transform one block and flip signs in place: inverse of `rotate_block`."""
    _apply_hadamard(block)
    _flip_signs(block, key, start)


@jit_helper
def _flip_signs(block: F32, key: np.uint64, start: int) -> None:
    """Flip random signs in place: bit i mod 64 of the shared word i // 64 belongs to coordinate i of the padded vector."""
    bits = block.view(np.uint32)
    for group in range(block.size // 64):
        word = counter_hash_scalar(key, np.uint64(start // 64 + group))
        part = bits[64 * group : 64 * group + 64]
        for j in range(64):
            part[j] ^= np.uint32(((word >> np.uint64(j)) & np.uint64(1)) << np.uint64(31))


@jit_helper
def _apply_hadamard(block: F32) -> None:
    """Apply the Hadamard transform divided by √d in place, by butterflies from distant pairs to adjacent pairs.

    The last six steps run in groups of three with distances that the compiler knows, so eight numbers stay in registers.
    """
    half = block.size // 2
    while half >= 64:
        for base in range(0, block.size, 2 * half):
            left, right = block[base : base + half], block[base + half : base + 2 * half]
            for j in range(half):
                a, b = left[j], right[j]
                left[j] = a + b
                right[j] = a - b
        half //= 2
    for group in range(block.size // 64):
        part = block[64 * group : 64 * group + 64]
        for j in range(8):
            low = _butterfly8(
                part[j], part[j + 8], part[j + 16], part[j + 24], part[j + 32], part[j + 40], part[j + 48], part[j + 56]
            )
            part[j], part[j + 8], part[j + 16], part[j + 24] = low[0], low[1], low[2], low[3]
            part[j + 32], part[j + 40], part[j + 48], part[j + 56] = low[4], low[5], low[6], low[7]
    factor = np.float32(1 / np.sqrt(block.size))
    for group in range(block.size // 8):
        part = block[8 * group : 8 * group + 8]
        last = _butterfly8(part[0], part[1], part[2], part[3], part[4], part[5], part[6], part[7])
        for j in range(8):
            part[j] = last[j] * factor


@jit_helper
def _butterfly8(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> tuple[Any, ...]:
    """Apply three steps of butterflies to eight numbers: at distances four, two and one."""
    a, e = a + e, a - e
    b, f = b + f, b - f
    c, g = c + g, c - g
    d, h = d + h, d - h
    a, c = a + c, a - c
    b, d = b + d, b - d
    e, g = e + g, e - g
    f, h = f + h, f - h
    return a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h
