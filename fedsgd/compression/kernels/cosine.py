"""Discrete cosine transform of type II, orthonormal, of each block of a vector, and its inverse.

With n coordinates in a block, X_j = Σ_i x_i B_ji and x_i = Σ_j X_j B_ji, where B_0i = √(1/n), and for j > 0
B_ji = √(2/n) cos(π (2i + 1) j / 2n).

The entries of B are rounded to multiples of 2⁻⁴⁰, so that the last bit of a library's cosine does not matter. Sums are in
float64, in ascending order: results have equal bits on every machine.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.kernels import kernel


@cache
def cosine_basis(n: int) -> F64:
    """Return B [n, n], one basis vector a row, read-only.

    >>> np.round(cosine_basis(2), 4).tolist()
    [[0.7071, 0.7071], [0.7071, -0.7071]]
    """
    j, i = np.arange(n)[:, None], np.arange(n)
    angles = (2 * i + 1) * j % (4 * n)  # in units of π / 2n, reduced exactly
    basis = np.cos(np.pi * angles / (2 * n)) * np.sqrt(np.where(j > 0, 2.0, 1.0) / n)
    rounded: F64 = np.rint(basis * 2.0**40) * 2.0**-40
    rounded.flags.writeable = False
    return rounded


def to_coefficients(x: F32, length: int) -> F32:
    """Return the coefficients [P] float32 of each block of `length` coordinates of x [P]; the last block may be shorter."""
    return _transform(x, length, is_inverse=False)


def from_coefficients(coefficients: F32, length: int) -> F32:
    """Return the vector [P] float32 with the coefficients [P] of `to_coefficients`."""
    return _transform(coefficients, length, is_inverse=True)


def _transform(x: F32, length: int, is_inverse: bool) -> F32:
    n_whole = len(x) // length * length
    parts = []
    for part in (x[:n_whole], x[n_whole:]):
        if len(part):
            basis = cosine_basis(min(length, len(part)))
            parts.append(multiply_blocks(part, basis if is_inverse else np.ascontiguousarray(basis.T)))
    return np.concatenate(parts)


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _multiply_blocks_reference(x: F32, matrix: F64) -> F32:
    rows = x.reshape(-1, len(matrix)).astype(np.float64)
    out = np.zeros(rows.shape)
    for i in range(len(matrix)):
        out += rows[:, i : i + 1] * matrix[i]
    with np.errstate(over="ignore"):
        return out.astype(np.float32).reshape(-1)


@kernel(_multiply_blocks_reference, lambda x, matrix: x.size, element_ns=200)
def multiply_blocks(x: F32, matrix: F64) -> F32:
    """Return the product of each block [n] of x with a matrix [n, n], [P]: out_j = Σ_i x_i M_ij, summed in ascending i."""
    n = matrix.shape[0]
    out = np.empty(x.size, dtype=np.float32)
    sums = np.empty(n, dtype=np.float64)
    for block in range(x.size // n):
        part, target = x[block * n : block * n + n], out[block * n : block * n + n]
        for j in range(sums.size):
            sums[j] = 0.0
        for i in range(part.size):
            weight, row = np.float64(part[i]), matrix[i]
            if weight != 0.0:
                for j in range(sums.size):
                    sums[j] += weight * row[j]
        for j in range(sums.size):
            target[j] = np.float32(sums[j])
    return out
