"""Random rotations in blocks: signs drawn from a shared key, then a Hadamard transform.

A rotated block looks Gaussian whatever it was, which is what makes one scale and fixed centroids good for it. The vector is cut
into blocks of 4096, what is left into smaller powers of two down to 64, and the last piece is filled up with zeros: padding the
whole vector to a power of two could double the bits. Ailon and Chazelle 2009; Suresh et al. 2017.

D decodes to H·D·x / √d with d the block's size: orthogonal, and its own inverse but for the order of H and D.
"""

from __future__ import annotations

import numpy as np

from fedsgd.arrays import F32, I64
from fedsgd.kernel import kernel
from fedsgd.rng import shared_hash, shared_word

BLOCK = 4096
SMALLEST = 64


def block_ends(size: int) -> I64:
    """Where each block ends in the padded vector; the last is the padded size. size: P."""
    sizes = [BLOCK] * (size // BLOCK)
    rest = size % BLOCK
    while rest > 0:
        sizes.append(max(SMALLEST, 1 << (rest.bit_length() - 1)))
        rest -= sizes[-1]
    return np.cumsum(sizes, dtype=np.int64)


def rotate(x: F32, ends: I64, key: int) -> F32:
    """The rotated blocks, one behind the other [padded size]. x: [P]; ends: `block_ends(P)`."""
    padded = np.zeros(int(ends[-1]), dtype=np.float32)
    padded[: len(x)] = x
    return _transform(_signed(padded, np.uint64(key)), ends)


def unrotate(y: F32, ends: I64, key: int, size: int) -> F32:
    """Inverse of `rotate`, up to rounding: the first `size` coordinates."""
    return _signed(_transform(y, ends), np.uint64(key))[:size].copy()


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _signed_reference(x: F32, key: np.uint64) -> F32:
    words = shared_hash(int(key), np.arange((len(x) + 63) // 64, dtype=np.uint64))
    negative = np.unpackbits(words.astype("<u8").view(np.uint8), count=len(x), bitorder="little")
    return np.where(negative == 1, -x, x)


@kernel(_signed_reference)
def _signed(x: F32, key: np.uint64) -> F32:
    """x with random signs: bit i mod 64 of the shared word i // 64 flips coordinate i. x: [multiple of 64]."""
    out = np.empty(x.size, dtype=np.float32)
    bits, flipped = x.view(np.uint32), out.view(np.uint32)
    for block in range(x.size // 64):
        word = shared_word(key, np.uint64(block))
        part, target = bits[64 * block : 64 * block + 64], flipped[64 * block : 64 * block + 64]
        for j in range(64):
            target[j] = part[j] ^ np.uint32(((word >> np.uint64(j)) & np.uint64(1)) << np.uint64(31))
    return out


def _transform_reference(x: F32, ends: I64) -> F32:
    out = x.copy()
    start = 0
    for end in ends:
        block = out[start:end]
        half = len(block) // 2
        while half:
            pairs = block.reshape(-1, 2, half)
            block = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
            half //= 2
        out[start:end] = block * np.float32(1 / np.sqrt(end - start))
        start = end
    return out


@kernel(_transform_reference)
def _transform(x: F32, ends: I64) -> F32:
    """The Hadamard transform of each block over the root of its size, by butterflies from far pairs to near ones.

    The last six steps stay within 64 neighbours; 64 of these at a time are transposed, so that they too run over long rows.
    """
    out = np.empty(x.size, dtype=np.float32)
    tile = np.empty((64, 64), dtype=np.float32)
    start = 0
    for b in range(ends.size):
        size = ends[b] - start
        block = out[start : start + size]
        source = x[start : start + size]
        for i in range(size):
            block[i] = source[i]
        half = size // 2
        while half >= 64:
            for base in range(0, size, 2 * half):
                left, right = block[base : base + half], block[base + half : base + 2 * half]
                for j in range(half):
                    a, c = left[j], right[j]
                    left[j] = a + c
                    right[j] = a - c
            half //= 2
        factor = np.float32(1 / np.sqrt(size))
        rows = size // 64
        for r in range(rows):
            row = block[64 * r : 64 * r + 64]
            for j in range(64):
                tile[j, r] = row[j]
        half = 32
        while half > 0:
            for base in range(0, 64, 2 * half):
                for i in range(base, base + half):
                    left, right = tile[i], tile[i + half]
                    for j in range(rows):
                        a, c = left[j], right[j]
                        left[j] = a + c
                        right[j] = a - c
            half //= 2
        for r in range(rows):
            row = block[64 * r : 64 * r + 64]
            for j in range(64):
                row[j] = tile[j, r] * factor
        start = ends[b]
    return out
