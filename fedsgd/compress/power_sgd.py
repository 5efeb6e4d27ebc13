"""Low-rank factors of each weight matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32, F64
from fedsgd.component import Count
from fedsgd.compress.base import Context, Scheme, Sent
from fedsgd.compress.update import Patch, State, Update
from fedsgd.errors import NonFiniteError, WireError
from fedsgd.kernel import kernel
from fedsgd.layout import Layout
from fedsgd.rng import shared_hash, shared_key
from fedsgd.vectors import all_finite, folded, lane_sum
from fedsgd.wire import Part, Section, Sections, decode_values, encode_values, max_value_bytes
from fedsgd.wire.levels import expect_parts


@dataclass(frozen=True)
class Matrix:
    """One tensor as a matrix [n, m] at `start` of the flat vector: the first dimension by all others. factors: where its left
    factor [n, r] begins in the vector of all factors, its right one [m, r] right behind it; rank: r."""

    start: int
    n: int
    m: int
    rank: int
    factors: int

    @property
    def part(self) -> slice:
        """Its stretch of the flat vector."""
        return slice(self.start, self.start + self.n * self.m)

    def factors_of(self, factors: F32) -> tuple[F32, F32]:
        """Its left factor [n, r] and right factor [m, r], as views."""
        cut, end = self.factors + self.rank * self.n, self.factors + self.rank * (self.n + self.m)
        return factors[self.factors : cut].reshape(self.n, -1), factors[cut:end].reshape(self.m, -1)


def n_factors(found: list[Matrix]) -> int:
    """Numbers in all factors together."""
    return sum(matrix.rank * (matrix.n + matrix.m) for matrix in found)


def matrices(layout: Layout, rank: int) -> tuple[list[Matrix], list[slice]]:
    """(tensors that rank-r factors make smaller, stretches of all others)."""
    found, rest, at = [], [], 0
    for _, part, shape in layout.slices():
        size = part.stop - part.start
        n = shape[0] if shape else 1
        m = size // n if n else 0
        if len(shape) > 1 and rank * (n + m) < n * m:
            found.append(Matrix(part.start, n, m, rank, at))
            at += rank * (n + m)
        else:
            rest.append(part)
    return found, rest


@dataclass(frozen=True, eq=False)
class LowRank(Update):
    """P̂Qᵀ for each matrix, and all other coordinates. factors: all P̂ [n, r] and Q [m, r], one behind the other; rest: the
    others, in order."""

    layout: Layout
    rank: int
    factors: F32
    rest: F32

    @property
    def kept(self) -> int:
        return len(self.factors) + len(self.rest)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        out += self.to_dense().astype(out.dtype, copy=False) * out.dtype.type(weight)

    def to_dense(self) -> F32:
        found, rest = matrices(self.layout, self.rank)
        out = np.empty(self.layout.size, dtype=np.float32)
        for matrix in found:
            out[matrix.part] = _product(*matrix.factors_of(self.factors))
        at = 0
        for part in rest:
            size = part.stop - part.start
            out[part] = self.rest[at : at + size]
            at += size
        return out


@dataclass(frozen=True)
class PowerSGD(Scheme):
    """Each weight matrix as two thin factors from one step of power iteration, with error feedback.

    PowerSGD (Vogels, Karimireddy and Jaggi 2019, algorithm 1). For each tensor as a matrix M [n, m] of residual plus update:
    P̂ = orthonormalised M Q, then Q = Mᵀ P̂; P̂Qᵀ is what arrives, the rest is the residual. |M − P̂Qᵀ|² = |M|² − |P̂ᵀM|²:
    exact on rank ≤ r. Q starts from the last round's (each client its own), so that the iteration goes on over the rounds, and
    from random signs where it is zero, or a matrix that was zero once would be sent as zero for ever. All clients start from
    the same signs: errors of their first rounds are alike, and `independent` is False. Tensors with one dimension, and those
    too small to gain, are sent whole.

    The paper averages P over the workers before it is orthonormalised, by an all-reduce between the two products. A federation
    has no second phase in a round: both factors of each client's own matrix are sent at once, and the server averages the
    products. So the update of a cohort may have rank m·r, and each client's approximation is its own. The paper's first Q is
    Gaussian, and its momentum (algorithm 2) comes after decompression: that is the server's optimizer here. r(n + m) floats a
    matrix.
    """

    name: ClassVar[str] = "power-sgd"
    codec: ClassVar[int] = 22
    backlog: ClassVar[tuple[str, ...]] = ("residual",)
    independent: ClassVar[bool] = False

    rank: Count = 2
    values: Literal["float32", "bfloat16"] = "float32"

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        accumulated: F32 = x if "residual" not in state else state["residual"] + x
        found, rest = matrices(ctx.layout, self.rank)
        factors = np.zeros(n_factors(found), dtype=np.float32)
        warm = state.get("factors", factors)
        for matrix in found:
            m = accumulated[matrix.part].reshape(matrix.n, matrix.m)
            start = _started(matrix.factors_of(warm)[1], matrix, ctx.seed)
            left, right = matrix.factors_of(factors)
            left[:] = self._rounded(_orthonormal(_times(m, start)))
            with np.errstate(over="ignore"):
                right[:] = _transposed_times(m, left)
        if not (all_finite(factors) and _products_fit(found, factors)):
            raise NonFiniteError(ctx.round, ctx.client, "a product of factors leaves float32's range")
        vectors = np.concatenate([np.zeros(0, dtype=np.float32), *(accumulated[part] for part in rest)])
        (coded,), factors = encode_values(factors, self.values, entropy=False)
        whole, vectors = encode_values(vectors, self.values, entropy=False)
        update = LowRank(ctx.layout, self.rank, factors, vectors)
        after: State = {"residual": accumulated - update.to_dense(), "factors": factors}
        return Sent((Section(Part.FACTOR, coded.data), *whole), after, {"residual": Patch(None, accumulated)})

    def withheld(self, state: State, layout: Layout) -> F32 | None:
        return state["residual"] if "residual" in state else np.zeros(layout.size, dtype=np.float32)

    def decode(self, sections: Sections, ctx: Context) -> Update:
        expect_parts(sections, (Part.FACTOR, Part.VALUE))
        found, rest = matrices(ctx.layout, self.rank)
        coded = Section(Part.VALUE, sections[0].data, sections[0].offset)
        factors = decode_values((coded,), n_factors(found), self.values, entropy=False)
        if not _products_fit(found, factors):
            raise WireError(sections[0].offset, "factors so large that their product is not finite")
        vectors = decode_values(sections[1:], _n_others(rest), self.values, entropy=False)
        return LowRank(ctx.layout, self.rank, factors, vectors)

    def max_bytes(self, layout: Layout) -> int:
        found, rest = matrices(layout, self.rank)
        return max_value_bytes(n_factors(found), self.values) + max_value_bytes(_n_others(rest), self.values)

    def _rounded(self, exact: F64) -> F32:
        """As the receiver will read it, so that the right factor fits the left one that arrives."""
        return encode_values(exact.astype(np.float32).reshape(-1), self.values, entropy=False)[1].reshape(exact.shape)


def _n_others(rest: list[slice]) -> int:
    return sum(part.stop - part.start for part in rest)


def _products_fit(found: list[Matrix], factors: F32) -> bool:
    """Whether no entry of a product can leave float32's range."""
    limit = float(np.finfo(np.float32).max)
    for matrix in found:
        left, right = matrix.factors_of(factors)
        if float(np.abs(left).max()) * float(np.abs(right).max()) * matrix.rank > limit:
            return False
    return True


def _started(warm: F32, matrix: Matrix, seed: int) -> F32:
    """Q [m, r] to start from: the last round's, and random signs in columns that are zero."""
    words = shared_hash(shared_key(seed, "power-sgd", matrix.start), np.arange(warm.size, dtype=np.uint64))
    signs = (1 - 2 * (words & np.uint64(1)).astype(np.float32)).reshape(warm.shape)
    return np.where((warm != 0).any(axis=0), warm, signs)


def _orthonormal(columns: F64) -> F64:
    """The columns [n, r] by Gram and Schmidt, twice over for what rounding left; one that depends on those before it is
    zero."""
    out = columns.copy()
    for c in range(out.shape[1]):
        before = np.sqrt(lane_sum(out[:, c] * out[:, c]))
        for earlier in [*range(c), *range(c)]:
            out[:, c] -= lane_sum(out[:, earlier] * out[:, c]) * out[:, earlier]
        norm = np.sqrt(lane_sum(out[:, c] * out[:, c]))
        out[:, c] = out[:, c] / norm if norm > 1e-10 * before else 0.0
    return out


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _times_reference(m: F32, q: F32) -> F64:
    wide, columns = m.astype(np.float64), q.T.astype(np.float64)
    return np.array([[lane_sum(row * column) for column in columns] for row in wide])


@kernel(_times_reference)
def _times(m: F32, q: F32) -> F64:
    """M Q [n, r] in float64, each sum over 64 lanes as in `vectors`."""
    n, size = m.shape
    rank = q.shape[1]
    columns = np.empty((rank, size), dtype=np.float64)
    for j in range(size):
        for c in range(rank):
            columns[c, j] = q[j, c]
    out = np.empty((n, rank), dtype=np.float64)
    lanes = np.empty(64, dtype=np.float64)
    for i in range(n):
        for c in range(rank):
            for j in range(64):
                lanes[j] = 0.0
            for block in range(size // 64):
                row, column = m[i, 64 * block : 64 * block + 64], columns[c, 64 * block : 64 * block + 64]
                for j in range(64):
                    lanes[j] += np.float64(row[j]) * column[j]
            for j in range(size - size % 64, size):
                lanes[j - (size - size % 64)] += np.float64(m[i, j]) * columns[c, j]
            out[i, c] = folded(lanes)
    return out


def _transposed_times_reference(m: F32, p: F32) -> F32:
    out = np.zeros((m.shape[1], p.shape[1]))
    for row, weights in zip(m.astype(np.float64), p.astype(np.float64), strict=True):
        out += row[:, None] * weights
    return out.astype(np.float32)


@kernel(_transposed_times_reference)
def _transposed_times(m: F32, p: F32) -> F32:
    """Mᵀ P [m, r], summed in float64 in ascending rows."""
    size, rank = m.shape[1], p.shape[1]
    sums = np.zeros((rank, size), dtype=np.float64)
    for i in range(m.shape[0]):
        row = m[i]
        for c in range(rank):
            weight, target = np.float64(p[i, c]), sums[c]
            for j in range(size):
                target[j] += np.float64(row[j]) * weight
    out = np.empty((size, rank), dtype=np.float32)
    for j in range(size):
        for c in range(rank):
            out[j, c] = np.float32(sums[c, j])
    return out


def _product_reference(left: F32, right: F32) -> F32:
    out = np.zeros((len(left), len(right)))
    for p, q in zip(left.T.astype(np.float64), right.T.astype(np.float64), strict=True):
        out += p[:, None] * q
    return out.astype(np.float32).reshape(-1)


@kernel(_product_reference)
def _product(left: F32, right: F32) -> F32:
    """P Qᵀ [n · m], summed in float64 in ascending rank."""
    rank = left.shape[1]
    columns = np.empty((rank, right.shape[0]), dtype=np.float64)
    for j in range(right.shape[0]):
        for c in range(rank):
            columns[c, j] = right[j, c]
    out = np.empty((left.shape[0], right.shape[0]), dtype=np.float32)
    sums = np.empty(right.shape[0], dtype=np.float64)
    for i in range(left.shape[0]):
        for j in range(sums.size):
            sums[j] = 0.0
        for c in range(rank):
            weight, column = np.float64(left[i, c]), columns[c]
            for j in range(sums.size):
                sums[j] += weight * column[j]
        target = out[i]
        for j in range(sums.size):
            target[j] = np.float32(sums[j])
    return out.reshape(-1)
