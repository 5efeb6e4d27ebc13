"""Sums over long vectors with equal bits on every machine, and a search for numbers that are not finite.

A sum in floating point depends on its order, and libraries choose the order by the width of the processor's registers. Here
the order is fixed. There are 64 running sums (lanes) in float64, and element i is added to lane i mod 64. Then the upper half
of the lanes is added to the lower half, until one lane remains.
"""

from __future__ import annotations

import numpy as np

from fedsgd.numerics.arrays import F32, F64, I64
from fedsgd.numerics.kernels import jit_helper, kernel

LANES = 64


def mean_magnitude(x: F32) -> float:
    """Return |x|₁ / P of x [P], or 0 for an empty vector."""
    return float(bucket_sums(x, len(x), 1)[0]) / len(x) if len(x) else 0.0


def squared_norm(x: F32) -> float:
    """Return |x|² of x [P]."""
    return float(bucket_sums(x, len(x), 2)[0]) if len(x) else 0.0


def standard_deviation(x: F32) -> float:
    """Return the population standard deviation of x [P]; exactly 0 for equal coordinates and for an empty vector.

    There are two passes, because the mean square minus the squared mean would cancel where the mean is large.
    """
    terms = x.astype(np.float64)
    mean = sum_in_lanes(terms) / max(1, len(terms))
    return float(np.sqrt(sum_in_lanes(np.square(terms - mean)) / max(1, len(terms))))


def bucket_norms(x: F32, bucket: int) -> F32:
    """Return the Euclidean norms [⌈P / bucket⌉] of buckets of coordinates, rounded up so that no coordinate is larger."""
    return round_up_to_float32(np.sqrt(bucket_sums(x, bucket, 2)))


def all_finite(x: F32) -> bool:
    """Return True if no coordinate is an infinity or a NaN."""
    return first_non_finite(x) < 0


def round_up_to_float32(sums: F64) -> F32:
    """Return the smallest float32 numbers that are not below the sums."""
    with np.errstate(over="ignore", under="ignore"):
        nearest_sums = sums.astype(np.float32)
        return np.where(nearest_sums < sums, np.nextafter(nearest_sums, np.float32(np.inf)), nearest_sums)


# ---------------------------------------------------------------------------------------------------------------- the kernels


def sum_in_lanes(terms: F64) -> float:
    """Return the sum of the terms [n] in the order of this module; kernels compute the same sum with `fold_lanes`.

    Numpy adds row after row along the slow axis, and uses pairwise summation only along the fast axis.
    """
    rows = np.concatenate([terms, np.zeros(-len(terms) % LANES)]).reshape(-1, LANES)
    lanes = np.add.reduce(rows, axis=0)
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return float(lanes[0])


@jit_helper
def fold_lanes(lanes: F64) -> float:
    """Return the sum of 64 lanes, which are overwritten; for kernels."""
    half = 32
    while half > 0:
        for j in range(half):
            lanes[j] += lanes[j + half]
        half //= 2
    total: float = lanes[0]
    return total


def _bucket_sums_reference(x: F32, bucket: int, power: int) -> F64:
    sums = []
    for start in range(0, len(x), bucket):
        sums.append(sum_in_lanes(np.abs(x[start : start + bucket].astype(np.float64)) ** power))
    return np.array(sums, dtype=np.float64)


@kernel(_bucket_sums_reference, element_ns=50)
def bucket_sums(x: F32, bucket: int, power: int) -> F64:
    """Return Σ|x_i|^power over each bucket of coordinates [⌈P / bucket⌉]. The last bucket may be shorter. power: 1 or 2."""
    sums = np.empty((x.size + bucket - 1) // bucket, dtype=np.float64)
    lanes = np.empty(64, dtype=np.float64)
    for b in range(sums.size):
        part = x[bucket * b : min(bucket * b + bucket, x.size)]
        for j in range(64):
            lanes[j] = 0.0
        for row in range(part.size // 64):
            terms = part[64 * row : 64 * row + 64]
            if power == 2:
                for j in range(64):
                    lanes[j] += np.float64(terms[j]) * np.float64(terms[j])
            else:
                for j in range(64):
                    lanes[j] += np.float64(abs(terms[j]))
        remainder = part[part.size - part.size % 64 :]
        for j in range(remainder.size):
            value = np.float64(abs(remainder[j]))
            lanes[j] += value * value if power == 2 else value
        sums[b] = fold_lanes(lanes)
    return sums


def _bucket_max_magnitudes_reference(x: F32, bucket: int) -> F32:
    return np.array([np.abs(x[i : i + bucket]).max() for i in range(0, len(x), bucket)], dtype=np.float32)


@kernel(_bucket_max_magnitudes_reference, element_ns=50)
def bucket_max_magnitudes(x: F32, bucket: int) -> F32:
    """Return the largest magnitude in each bucket of coordinates [⌈P / bucket⌉] of a finite vector.

    Floats without sign have the order of their bits.
    """
    bits = x.view(np.uint32)
    peaks = np.empty((x.size + bucket - 1) // bucket, dtype=np.uint32)
    for b in range(peaks.size):
        part = bits[bucket * b : min(bucket * b + bucket, bits.size)]
        peak = np.uint32(0)
        for i in range(part.size):
            peak = max(peak, part[i] & np.uint32(0x7FFFFFFF))
        peaks[b] = peak
    return peaks.view(np.float32)


def _first_non_finite_reference(x: F32) -> int:
    positions = np.flatnonzero(~np.isfinite(x))
    return int(positions[0]) if len(positions) else -1


@kernel(_first_non_finite_reference)
def first_non_finite(x: F32) -> int:
    """Return the position of the first infinity or NaN, or -1. The exponent bits of both are all ones."""
    bits = x.view(np.uint32)
    for block in range((bits.size + 255) // 256):
        part = bits[256 * block : min(256 * block + 256, bits.size)]
        peak = np.uint32(0)
        for i in range(part.size):
            peak = max(peak, part[i] & np.uint32(0x7FFFFFFF))
        if peak >= np.uint32(0x7F800000):
            for i in range(part.size):
                if part[i] & np.uint32(0x7FFFFFFF) >= np.uint32(0x7F800000):
                    return 256 * block + i
    return -1


def _scatter_add_reference(out: F64, indices: I64, values: F32, weight: float) -> None:
    out[indices] += values.astype(np.float64) * weight


@kernel(_scatter_add_reference, element_ns=10)
def scatter_add(out: F64, indices: I64, values: F32, weight: float) -> None:
    """Add weight · values to out[indices], in place. indices: [k], distinct, within `out`."""
    for i in range(indices.size):
        out[indices[i]] += np.float64(values[i]) * weight


_bucket_sums_loop = jit_helper(bucket_sums.loop)


def _patched_squared_norms_reference(x: F32, indices: I64, values: F32) -> tuple[float, float, float]:
    if len(indices) and (indices.min() < 0 or indices.max() >= len(x)):
        return np.nan, np.nan, np.nan
    return squared_norm(x), squared_norm(x[indices]), squared_norm(values)


@kernel(_patched_squared_norms_reference, element_ns=0)
def patched_squared_norms(x: F32, indices: I64, values: F32) -> tuple[float, float, float]:
    """Return |x|², |x[indices]|² and |values|², each as `squared_norm` computes it; NaN if an index [k] is outside of x."""
    part = np.empty(indices.size, dtype=np.float32)
    for i in range(indices.size):
        if indices[i] < 0 or indices[i] >= x.size:
            return np.nan, np.nan, np.nan
        part[i] = x[indices[i]]
    total = _bucket_sums_loop(x, x.size, 2)[0] if x.size else 0.0
    replaced = _bucket_sums_loop(part, part.size, 2)[0] if part.size else 0.0
    return total, replaced, _bucket_sums_loop(values, values.size, 2)[0] if values.size else 0.0
