"""Exact selection of the k largest magnitudes of a vector, in about the time that one read of the vector takes.

Without its sign, the bits of a float order as its magnitude does. So all comparisons are of integers, and −0.0 is a zero. A
sample gives a bound that slightly more than k coordinates reach. One pass collects these candidates, and only they are
partitioned. The sample decides the duration and never the result: if fewer than k coordinates reach the bound, or far more,
all coordinates other than zero are partitioned. The functions also take torch tensors, see `tensor_forms`.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from fedsgd.compression.kernels import tensor_forms
from fedsgd.numerics.arrays import F32, I64, U32
from fedsgd.numerics.kernels import jit_helper, kernel
from fedsgd.numerics.vectors import is_tensor
from fedsgd.wire.bits import count_trailing_zeros

SAMPLE_SIZE = 4096
"""Approximate number of coordinates in the sample; P / 8 of a vector with less than 8 times this number."""
MIN_SAMPLE_STRIDE = 8
"""Smallest distance between two coordinates of the sample."""
MAX_SORTED = 1024
"""Maximum length of a chunk that is sorted. Longer chunks are counted by magnitude, in a table of 2048 counts."""


def top_k(x: F32, k: int) -> tuple[I64, F32]:
    """Return the positions, ascending, and the values of the k largest |x| of a finite x [P].

    Of equal magnitudes the lowest positions are selected first. Zeros are never selected, so there may be fewer than k.
    """
    if is_tensor(x):
        return tensor_forms.top_k(cast("Any", x), k)
    positions, words = _top_k(x.view(np.uint32), k)
    return positions, words.view(np.float32)


def chunk_top_k(x: F32, length: int, limits: I64) -> tuple[I64, F32, I64]:
    """Return the positions, ascending, and the values of the largest |x| of each chunk of a finite x [P], and the counts [C].

    Args:
        x: [P] float32, finite.
        length: coordinates of a chunk; the last one may be shorter.
        limits: [C] int64, k of each chunk, from 1 to the chunk's length. Zeros are never selected, so there may be fewer.
    """
    if is_tensor(x):
        return tensor_forms.chunk_top_k(cast("Any", x), length, limits)
    positions, words, counts = _chunk_top_k(x.view(np.uint32), length, limits)
    return positions, words.view(np.float32), counts


def select_above(x: F32, threshold: float) -> tuple[I64, F32]:
    """Return the positions, ascending, and the values of all |x| ≥ threshold > 0 of a finite x [P]."""
    with np.errstate(over="ignore", under="ignore"):
        bound = max(1, int(np.float32(threshold).view(np.uint32)))
    if is_tensor(x):
        return tensor_forms.select_above(cast("Any", x), bound)
    positions, words = _collect_candidates(x.view(np.uint32), bound, len(x))
    return positions, words.view(np.float32)


def sample_threshold(words: U32, k: int) -> tuple[int, int]:
    """Return a magnitude that slightly more than k of the words [P] reach, and the count above which the sample was unusable.

    The words are bits of floats. The estimate aims four standard deviations above k. The magnitude is 1, which every non-zero
    reaches, if nearly all words have to reach it.
    """
    stride = max(MIN_SAMPLE_STRIDE, len(words) // SAMPLE_SIZE)
    sample = words[::stride]
    expected_count = k / len(words) * len(sample)
    aim = int(expected_count + 4 * math.sqrt(expected_count) + 4)
    if aim >= len(sample):
        return 1, len(words)
    return max(1, _kth_largest(sample, aim)), min(len(words), max(4 * k + SAMPLE_SIZE, 4 * aim * stride))


def _collect_candidates(words: U32, bound: int, capacity: int) -> tuple[I64, U32]:
    positions, candidates, count = _collect(words, np.uint32(bound), capacity)
    return positions[:count], candidates[:count]


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _collect_reference(words: U32, bound: np.uint32, capacity: int) -> tuple[I64, U32, int]:
    positions = np.flatnonzero((words & np.uint32(0x7FFFFFFF)) >= bound)
    if len(positions) > capacity:
        return positions[:0], words[:0], 0
    return positions, words[positions], len(positions)


@kernel(_collect_reference)
def _collect(words: U32, bound: np.uint32, capacity: int) -> tuple[I64, U32, int]:
    """Collect positions and words whose magnitude reaches `bound`, and their number; none if there are more than `capacity`.

    64 comparisons set the bits of one word without a branch. A word without a set bit, usual at low densities, is skipped.
    """
    positions = np.empty(capacity + 64, dtype=np.int64)
    candidates = np.empty(capacity + 64, dtype=np.uint32)
    count = 0
    for block in range(words.size // 64):
        part = words[64 * block : 64 * block + 64]
        hits = np.uint64(0)
        for j in range(64):
            hits |= np.uint64((part[j] & np.uint32(0x7FFFFFFF)) >= bound) << np.uint64(j)
        while hits != np.uint64(0):
            j = count_trailing_zeros(hits)
            positions[count] = 64 * block + j
            candidates[count] = part[j]
            count += 1
            hits &= hits - np.uint64(1)
        if count > capacity:
            return positions, candidates, 0
    for i in range(words.size - words.size % 64, words.size):
        positions[count] = i
        candidates[count] = words[i]
        count += int((words[i] & np.uint32(0x7FFFFFFF)) >= bound)
    return positions, candidates, count if count <= capacity else 0


def _kth_largest_reference(words: U32, k: int) -> int:
    cut = len(words) - k
    return int(np.partition(words & np.uint32(0x7FFFFFFF), cut)[cut])


@kernel(_kth_largest_reference)
def _kth_largest(words: U32, k: int) -> int:
    """Return the k-th largest magnitude, 1 ≤ k ≤ n. Counts of 11 bits at a time leave few magnitudes after the first pass."""
    magnitudes = np.empty(words.size, dtype=np.uint32)
    minimum, maximum = np.uint32(0xFFFFFFFF), np.uint32(0)
    for i in range(words.size):
        magnitudes[i] = words[i] & np.uint32(0x7FFFFFFF)
        minimum, maximum = min(minimum, magnitudes[i]), max(maximum, magnitudes[i])
    counts = np.empty(2048, dtype=np.int64)
    n = words.size
    while minimum < maximum:
        shift = np.uint32(0)
        while (maximum - minimum) >> shift >= np.uint32(2048):
            shift += np.uint32(1)
        for b in range(2048):
            counts[b] = 0
        for i in range(n):
            counts[(magnitudes[i] - minimum) >> shift] += 1
        bin_index = 2047
        while counts[bin_index] < k:
            k -= counts[bin_index]
            bin_index -= 1
        n_remaining, offset = 0, minimum
        minimum, maximum = np.uint32(0xFFFFFFFF), np.uint32(0)
        for i in range(n):
            if (magnitudes[i] - offset) >> shift == np.uint32(bin_index):
                magnitudes[n_remaining] = magnitudes[i]
                minimum, maximum = min(minimum, magnitudes[n_remaining]), max(maximum, magnitudes[n_remaining])
                n_remaining += 1
        n = n_remaining
    return int(maximum)


def _keep_with_ties_reference(positions: I64, words: U32, threshold: int, k: int) -> tuple[I64, U32]:
    magnitudes = words & np.uint32(0x7FFFFFFF)
    above = np.flatnonzero(magnitudes > threshold)
    ties = np.flatnonzero(magnitudes == threshold)[: k - len(above)]
    order = np.sort(np.concatenate([above, ties]))
    return positions[order], words[order]


@kernel(_keep_with_ties_reference)
def _keep_with_ties(positions: I64, words: U32, threshold: int, k: int) -> tuple[I64, U32]:
    """Return the candidates above the k-th largest magnitude, and the first ones equal to it, k candidates in total."""
    limit = np.uint32(threshold)
    ties = k
    for i in range(positions.size):
        ties -= int((words[i] & np.uint32(0x7FFFFFFF)) > limit)
    selection = np.empty(k + 1, dtype=np.int64)
    selection_words = np.empty(k + 1, dtype=np.uint32)
    count = 0
    for i in range(positions.size):
        magnitude = words[i] & np.uint32(0x7FFFFFFF)
        tie = int(magnitude == limit) & int(ties > 0)
        selection[count] = positions[i]
        selection_words[count] = words[i]
        count += tie | int(magnitude > limit)
        ties -= tie
    return selection[:k], selection_words[:k]


# All steps in one call, because a call from Python takes longer than a step of a short vector.

_collect_loop = jit_helper(_collect.loop)
_kth_largest_loop = jit_helper(_kth_largest.loop)
_keep_with_ties_loop = jit_helper(_keep_with_ties.loop)


def _top_k_reference(words: U32, k: int) -> tuple[I64, U32]:
    bound, capacity = sample_threshold(words, k)
    positions, candidates = _collect_candidates(words, bound, capacity) if bound > 1 else (np.zeros(0, np.int64), words[:0])
    if len(positions) < k:
        positions, candidates = _collect_candidates(words, 1, len(words))
    if len(positions) <= k:
        return positions, candidates
    return _keep_with_ties(positions, candidates, _kth_largest(candidates, k), k)


@kernel(_top_k_reference, element_ns=0)
def _top_k(words: U32, k: int) -> tuple[I64, U32]:
    """Return the positions, ascending, and the words of the k largest magnitudes; of equal magnitudes the first."""
    stride = max(8, words.size // 4096)
    sample = words[::stride]
    expected_count = k / words.size * sample.size
    aim = int(expected_count + 4 * math.sqrt(expected_count) + 4)
    bound, capacity, count = 1, words.size, -1
    if aim < sample.size:
        bound = max(1, _kth_largest_loop(sample, aim))
        capacity = min(words.size, max(4 * k + 4096, 4 * aim * stride))
    if bound > 1:
        positions, candidates, count = _collect_loop(words, np.uint32(bound), capacity)
    if count < k:
        positions, candidates, count = _collect_loop(words, np.uint32(1), words.size)
    positions, candidates = positions[:count], candidates[:count]
    if count <= k:
        return positions, candidates
    return _keep_with_ties_loop(positions, candidates, _kth_largest_loop(candidates, k), k)


def _chunk_top_k_reference(words: U32, length: int, limits: I64) -> tuple[I64, U32, I64]:
    magnitudes = words & np.uint32(0x7FFFFFFF)
    selections = []
    for chunk, k in enumerate(limits.tolist()):
        part = magnitudes[chunk * length : (chunk + 1) * length]
        largest = np.sort(np.argsort(-part.astype(np.int64), kind="stable")[:k])
        selections.append(chunk * length + largest[part[largest] > 0])
    positions = np.concatenate(selections)
    return positions, words[positions], np.array([len(selection) for selection in selections], dtype=np.int64)


@kernel(_chunk_top_k_reference, element_ns=150)
def _chunk_top_k(words: U32, length: int, limits: I64) -> tuple[I64, U32, I64]:
    """Return the positions, ascending, and the words of the largest magnitudes of each chunk, and their numbers [C]."""
    capacity = limits.sum()
    positions = np.empty(capacity, dtype=np.int64)
    selection = np.empty(capacity, dtype=np.uint32)
    counts = np.empty(limits.size, dtype=np.int64)
    count = 0
    for chunk in range(limits.size):
        part = words[chunk * length : min(chunk * length + length, words.size)]
        k = limits[chunk]
        if part.size <= MAX_SORTED:
            limit = np.sort(part & np.uint32(0x7FFFFFFF))[part.size - k]
        else:
            limit = np.uint32(_kth_largest_loop(part, k))
        ties = k if limit > np.uint32(0) else np.int64(0)
        for i in range(part.size if limit > np.uint32(0) else 0):
            ties -= np.int64((part[i] & np.uint32(0x7FFFFFFF)) > limit)
        first = count
        for i in range(part.size):
            magnitude = part[i] & np.uint32(0x7FFFFFFF)
            tie = np.int64(magnitude == limit) & np.int64(ties > 0)
            ties -= tie
            if magnitude > limit or tie > 0:
                positions[count] = chunk * length + i
                selection[count] = part[i]
                count += 1
        counts[chunk] = count - first
    return positions[:count], selection[:count], counts
