"""The k largest magnitudes of a vector, exactly, in about the time it takes to read it.

The bits of a float without its sign order as its magnitude does, so all comparisons are of integers, and -0.0 is a zero. A
sample gives a bound that a little more than k coordinates reach; one pass collects them; only they are partitioned. The sample
decides how long it takes and never what comes out: if fewer than k reach the bound, or far more, all are partitioned.
"""

from __future__ import annotations

import numpy as np

from fedsgd.arrays import F32, I64, U32
from fedsgd.kernel import kernel
from fedsgd.wire.bits import trailing_zeros

SAMPLE = 4096
SPARSEST_SAMPLE = 8
"""At least every how-many-th coordinate is left out of it."""


def top_k(x: F32, k: int) -> I64:
    """The positions of the k largest |x|, ascending; of equal magnitudes the lowest index wins; zeros are never chosen.

    x: [P], finite; returns [min(k, number of non-zeros)].
    """
    keys = x.view(np.uint32)
    bound = sampled_bound(keys, k)
    if bound > 1:
        found, magnitudes = collect(keys, bound, capacity(k, len(keys)))
        if len(found) >= k:
            return best_of(found, magnitudes, k)
    return best_of(*collect(keys, 1, len(keys)), k)


def capacity(k: int, size: int) -> int:
    """How many candidates there is room for: more than this and the sample was no good."""
    return min(size, 4 * k + SAMPLE)


def sampled_bound(keys: U32, k: int) -> int:
    """A key that about k coordinates reach, rather more than fewer; 1, which every non-zero reaches, if most have to.

    keys: [P], bits of floats. The count that it aims at lies four standard deviations above its mean.
    """
    stride = max(SPARSEST_SAMPLE, len(keys) // SAMPLE)
    sample = keys[::stride] & np.uint32(0x7FFFFFFF)
    expected = k / len(keys) * len(sample)
    aim = int(expected + 4 * np.sqrt(expected) + 4)
    if aim >= len(sample):
        return 1
    return max(1, int(np.partition(sample, len(sample) - aim)[len(sample) - aim]))


def collect(keys: U32, bound: int, room: int) -> tuple[I64, U32]:
    """(positions, ascending, and magnitudes) of the keys that reach `bound`; of too many only the first `room`, or none.

    keys: [P], bits of floats; magnitudes: without sign.
    """
    found, magnitudes, count = _collect(keys, np.uint32(bound), room)
    return found[:count], magnitudes[:count]


def best_of(found: I64, magnitudes: U32, k: int) -> I64:
    """The k of the candidates with the largest magnitudes, in their order; of equal ones the first."""
    if len(found) <= k:
        return found
    cut = len(found) - k
    threshold = np.partition(magnitudes, cut)[cut]
    return _choose(found, magnitudes, threshold, k)


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _collect_reference(keys: U32, bound: np.uint32, room: int) -> tuple[I64, U32, int]:
    magnitudes = keys & np.uint32(0x7FFFFFFF)
    found = np.flatnonzero(magnitudes >= bound)
    if len(found) > room:
        return found[:0], magnitudes[:0], 0
    return found, magnitudes[found], len(found)


@kernel(_collect_reference)
def _collect(keys: U32, bound: np.uint32, room: int) -> tuple[I64, U32, int]:
    """(positions, magnitudes, how many) of the keys that reach `bound`; none if there are more than `room`.

    64 comparisons become a word without a branch, and words without a hit, most of them at low densities, are passed over.
    """
    found = np.empty(room + 64, dtype=np.int64)
    magnitudes = np.empty(room + 64, dtype=np.uint32)
    count = 0
    for block in range(keys.size // 64):
        part = keys[64 * block : 64 * block + 64]
        hits = np.uint64(0)
        for j in range(64):
            hits |= np.uint64((part[j] & np.uint32(0x7FFFFFFF)) >= bound) << np.uint64(j)
        while hits != np.uint64(0):
            j = trailing_zeros(hits)
            found[count] = 64 * block + j
            magnitudes[count] = part[j] & np.uint32(0x7FFFFFFF)
            count += 1
            hits &= hits - np.uint64(1)
        if count > room:
            return found, magnitudes, 0
    for i in range(keys.size - keys.size % 64, keys.size):
        found[count] = i
        magnitudes[count] = keys[i] & np.uint32(0x7FFFFFFF)
        count += int((keys[i] & np.uint32(0x7FFFFFFF)) >= bound)
    return found, magnitudes, count if count <= room else 0


def _choose_reference(found: I64, magnitudes: U32, threshold: np.uint32, k: int) -> I64:
    above = np.flatnonzero(magnitudes > threshold)
    ties = np.flatnonzero(magnitudes == threshold)[: k - len(above)]
    chosen: I64 = found[np.sort(np.concatenate([above, ties]))]
    return chosen


@kernel(_choose_reference)
def _choose(found: I64, magnitudes: U32, threshold: np.uint32, k: int) -> I64:
    """Those above the k-th largest magnitude, and as many of its equals, from the first, as are missing from k."""
    ties = k
    for i in range(found.size):
        ties -= int(magnitudes[i] > threshold)
    chosen = np.empty(k + 1, dtype=np.int64)
    count = 0
    for i in range(found.size):
        tie = int(magnitudes[i] == threshold) & int(ties > 0)
        chosen[count] = found[i]
        count += tie | int(magnitudes[i] > threshold)
        ties -= tie
    return chosen[:k]
