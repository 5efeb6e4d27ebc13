"""Sums over long vectors whose bits do not depend on the machine, and the first number that is not finite.

A sum in floating point depends on its order, and libraries choose the order by the width of the processor's registers. Here it
is fixed: 64 running sums in float64, the i-th element going to the (i mod 64)-th; then the upper half of them is added to the
lower half until one is left.
"""

from __future__ import annotations

import numpy as np

from fedsgd.numerics.arrays import F32, F64, I64
from fedsgd.numerics.kernels import jit_helper, kernel

LANES = 64


def mean_magnitude(x: F32) -> float:
    """|x|₁ / P, 0 for an empty vector. x: [P]."""
    return float(bucket_sums(x, len(x), 1)[0]) / len(x) if len(x) else 0.0


def squared_norm(x: F32) -> float:
    """|x|². x: [P]."""
    return float(bucket_sums(x, len(x), 2)[0]) if len(x) else 0.0


def standard_deviation(x: F32) -> float:
    """Return the population's standard deviation of x [P], exactly 0 for equal coordinates and for an empty vector.

    Two passes: the difference of the mean square and the squared mean would cancel where the mean is large.
    """
    wide = x.astype(np.float64)
    mean = sum_in_lanes(wide) / max(1, len(wide))
    return float(np.sqrt(sum_in_lanes(np.square(wide - mean)) / max(1, len(wide))))


def bucket_norms(x: F32, bucket: int) -> F32:
    """The Euclidean norm of each stretch of `bucket` coordinates [ceil(P / bucket)], rounded up: no coordinate is larger."""
    return _round_up_to_float32(np.sqrt(bucket_sums(x, bucket, 2)))


def all_finite(x: F32) -> bool:
    """Whether no coordinate is an infinity or a NaN."""
    return first_non_finite(x) < 0


def _round_up_to_float32(sums: F64) -> F32:
    with np.errstate(over="ignore", under="ignore"):
        near = sums.astype(np.float32)
        return np.where(near < sums, np.nextafter(near, np.float32(np.inf)), near)


# ---------------------------------------------------------------------------------------------------------------- the kernels


def sum_in_lanes(terms: F64) -> float:
    """Return the sum of the terms [n] in the order of this module: the obvious form of what kernels do with `fold_lanes`.

    Along the slow axis numpy adds row after row. Its pairwise order is for the fast axis alone.
    """
    rows = np.concatenate([terms, np.zeros(-len(terms) % LANES)]).reshape(-1, LANES)
    lanes = np.add.reduce(rows, axis=0)
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return float(lanes[0])


@jit_helper
def fold_lanes(lanes: F64) -> float:
    """The sum of 64 running sums, in place, for kernels."""
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


@kernel(_bucket_sums_reference)
def bucket_sums(x: F32, bucket: int, power: int) -> F64:
    """Σ|x_i|^power over each stretch of `bucket` coordinates, the last one being shorter. power: 1 or 2."""
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
        rest = part[part.size - part.size % 64 :]
        for j in range(rest.size):
            value = np.float64(abs(rest[j]))
            lanes[j] += value * value if power == 2 else value
        sums[b] = fold_lanes(lanes)
    return sums


def _bucket_max_magnitudes_reference(x: F32, bucket: int) -> F32:
    return np.array([np.abs(x[i : i + bucket]).max() for i in range(0, len(x), bucket)], dtype=np.float32)


@kernel(_bucket_max_magnitudes_reference)
def bucket_max_magnitudes(x: F32, bucket: int) -> F32:
    """The largest magnitude in each stretch of `bucket` coordinates. x: finite. Floats without sign order as their bits do."""
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
    bad = np.flatnonzero(~np.isfinite(x))
    return int(bad[0]) if len(bad) else -1


@kernel(_first_non_finite_reference)
def first_non_finite(x: F32) -> int:
    """The position of the first infinity or NaN, -1 if there is none. Their exponents are all ones."""
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


@kernel(_scatter_add_reference)
def scatter_add(out: F64, indices: I64, values: F32, weight: float) -> None:
    """out[indices] += weight · values, in place. indices: [k], distinct, within `out`."""
    for i in range(indices.size):
        out[indices[i]] += np.float64(values[i]) * weight
