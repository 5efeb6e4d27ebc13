"""The k largest magnitudes of a vector, exactly, in about the time it takes to read it.

The bits of a float without its sign order as its magnitude does, so all comparisons are of integers, and -0.0 is a zero. A
sample gives a bound that a little more than k coordinates reach; one pass collects them; only they are partitioned. The sample
decides how long it takes and never what comes out: if fewer than k reach the bound, or far more, all are partitioned.
"""

from __future__ import annotations

import numpy as np

from fedsgd.numerics.arrays import F32, I64, U32
from fedsgd.numerics.kernels import kernel
from fedsgd.wire.bits import count_trailing_zeros

SAMPLE_SIZE = 4096
MIN_SAMPLE_STRIDE = 8
"""At least every how-many-th coordinate is left out of it."""


def top_k(x: F32, k: int) -> tuple[I64, F32]:
    """(positions, ascending, and values) of the k largest |x|; of equal magnitudes the lowest index wins; zeros are never
    chosen.

    x: [P], finite; returns [min(k, number of non-zeros)] twice.
    """
    words = x.view(np.uint32)
    bound, room = sample_threshold(words, k)
    if bound > 1:
        found, kept = _collect_candidates(words, bound, room)
        if len(found) >= k:
            return _exact_top_k(found, kept, k)
    return _exact_top_k(*_collect_candidates(words, 1, len(words)), k)


def select_above(x: F32, threshold: float) -> tuple[I64, F32]:
    """(positions, ascending, and values) of all |x| ≥ threshold, which is positive. x: [P], finite."""
    with np.errstate(over="ignore", under="ignore"):
        bound = max(1, int(np.float32(threshold).view(np.uint32)))
    found, words = _collect_candidates(x.view(np.uint32), bound, len(x))
    return found, words.view(np.float32)


def sample_threshold(words: U32, k: int) -> tuple[int, int]:
    """(a magnitude that about k coordinates reach, rather more than fewer; how many more than that would show that the sample
    was no good). 1, which every non-zero reaches, if most have to.

    words: [P], bits of floats. The count that it aims at lies four standard deviations above its mean.
    """
    stride = max(MIN_SAMPLE_STRIDE, len(words) // SAMPLE_SIZE)
    sample = words[::stride] & np.uint32(0x7FFFFFFF)
    expected = k / len(words) * len(sample)
    aim = int(expected + 4 * np.sqrt(expected) + 4)
    if aim >= len(sample):
        return 1, len(words)
    return max(1, _kth_largest(sample, aim)), min(len(words), max(4 * k + SAMPLE_SIZE, 4 * aim * stride))


def _collect_candidates(words: U32, bound: int, capacity: int) -> tuple[I64, U32]:
    found, kept, count = _collect(words, np.uint32(bound), capacity)
    return found[:count], kept[:count]


def _exact_top_k(positions: I64, words: U32, k: int) -> tuple[I64, F32]:
    """The k of the candidates with the largest magnitudes, in their order; of equal ones the first."""
    if len(positions) > k:
        positions, words = _keep_with_ties(positions, words, _kth_largest(words, k), k)
    return positions, words.view(np.float32)


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _collect_reference(words: U32, bound: np.uint32, capacity: int) -> tuple[I64, U32, int]:
    found = np.flatnonzero((words & np.uint32(0x7FFFFFFF)) >= bound)
    if len(found) > capacity:
        return found[:0], words[:0], 0
    return found, words[found], len(found)


@kernel(_collect_reference)
def _collect(words: U32, bound: np.uint32, capacity: int) -> tuple[I64, U32, int]:
    """(positions, words, how many) of the words whose magnitude reaches `bind`; none if there are more than `capacity`.

    64 comparisons become a word without a branch, and words without a hit, most of them at low densities, are passed over.
    """
    found = np.empty(capacity + 64, dtype=np.int64)
    kept = np.empty(capacity + 64, dtype=np.uint32)
    count = 0
    for block in range(words.size // 64):
        part = words[64 * block : 64 * block + 64]
        hits = np.uint64(0)
        for j in range(64):
            hits |= np.uint64((part[j] & np.uint32(0x7FFFFFFF)) >= bound) << np.uint64(j)
        while hits != np.uint64(0):
            j = count_trailing_zeros(hits)
            found[count] = 64 * block + j
            kept[count] = part[j]
            count += 1
            hits &= hits - np.uint64(1)
        if count > capacity:
            return found, kept, 0
    for i in range(words.size - words.size % 64, words.size):
        found[count] = i
        kept[count] = words[i]
        count += int((words[i] & np.uint32(0x7FFFFFFF)) >= bound)
    return found, kept, count if count <= capacity else 0


def _kth_largest_reference(words: U32, k: int) -> int:
    cut = len(words) - k
    return int(np.partition(words & np.uint32(0x7FFFFFFF), cut)[cut])


@kernel(_kth_largest_reference)
def _kth_largest(words: U32, k: int) -> int:
    """The k-th largest magnitude, 1 ≤ k ≤ n: bit by bit would read them 31 times; counts of 11 bits at a time leave a few of
    them after the first time."""
    left = np.empty(words.size, dtype=np.uint32)
    least, most = np.uint32(0xFFFFFFFF), np.uint32(0)
    for i in range(words.size):
        left[i] = words[i] & np.uint32(0x7FFFFFFF)
        least, most = min(least, left[i]), max(most, left[i])
    counts = np.empty(2048, dtype=np.int64)
    n = words.size
    while least < most:
        shift = np.uint32(0)
        while (most - least) >> shift >= np.uint32(2048):
            shift += np.uint32(1)
        for b in range(2048):
            counts[b] = 0
        for i in range(n):
            counts[(left[i] - least) >> shift] += 1
        chosen = 2047
        while counts[chosen] < k:
            k -= counts[chosen]
            chosen -= 1
        kept, low = 0, least
        least, most = np.uint32(0xFFFFFFFF), np.uint32(0)
        for i in range(n):
            if (left[i] - low) >> shift == np.uint32(chosen):
                left[kept] = left[i]
                least, most = min(least, left[kept]), max(most, left[kept])
                kept += 1
        n = kept
    return int(most)


def _keep_with_ties_reference(positions: I64, words: U32, threshold: int, k: int) -> tuple[I64, U32]:
    magnitudes = words & np.uint32(0x7FFFFFFF)
    above = np.flatnonzero(magnitudes > threshold)
    ties = np.flatnonzero(magnitudes == threshold)[: k - len(above)]
    order = np.sort(np.concatenate([above, ties]))
    return positions[order], words[order]


@kernel(_keep_with_ties_reference)
def _keep_with_ties(positions: I64, words: U32, threshold: int, k: int) -> tuple[I64, U32]:
    """Those above the k-th largest magnitude, and as many of its equals, from the first, as are missing from k."""
    limit = np.uint32(threshold)
    ties = k
    for i in range(positions.size):
        ties -= int((words[i] & np.uint32(0x7FFFFFFF)) > limit)
    chosen = np.empty(k + 1, dtype=np.int64)
    kept = np.empty(k + 1, dtype=np.uint32)
    count = 0
    for i in range(positions.size):
        magnitude = words[i] & np.uint32(0x7FFFFFFF)
        tie = int(magnitude == limit) & int(ties > 0)
        chosen[count] = positions[i]
        kept[count] = words[i]
        count += tie | int(magnitude > limit)
        ties -= tie
    return chosen[:k], kept[:k]
