"""PowerSGD: low-rank factors of each weight matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionScheme, EncodedUpdate
from fedsgd.compression.updates import EntryPatch, StateArrays, Update
from fedsgd.config.component import PositiveInt
from fedsgd.errors import NonFiniteError, WireError
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.kernels import kernel
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import all_finite, fold_lanes, sum_in_lanes
from fedsgd.numerics.rng import counter_hash, shared_key
from fedsgd.wire import Section, SectionKind, Sections, decode_values, encode_values, max_value_bytes
from fedsgd.wire.levels import require_sections


@dataclass(frozen=True)
class MatrixLayout:
    """One tensor as a matrix [n, m], its first dimension by all others, from position `start` of the flat vector on.

    In the vector of all factors, the left factor [n, r] starts at `factor_offset`, and the right factor [m, r] follows.
    """

    start: int
    n: int
    m: int
    rank: int
    factor_offset: int

    @property
    def flat_slice(self) -> slice:
        """Slice of the tensor in the flat vector."""
        return slice(self.start, self.start + self.n * self.m)

    def view_factors(self, factors: F32) -> tuple[F32, F32]:
        """Return the left factor [n, r] and the right factor [m, r] as views of the vector of all factors."""
        cut, end = self.factor_offset + self.rank * self.n, self.factor_offset + self.rank * (self.n + self.m)
        return factors[self.factor_offset : cut].reshape(self.n, -1), factors[cut:end].reshape(self.m, -1)


def count_factor_values(matrices: list[MatrixLayout]) -> int:
    """Return the number of values in all factors together."""
    return sum(matrix.rank * (matrix.n + matrix.m) for matrix in matrices)


def split_tensors(layout: ParameterLayout, rank: int) -> tuple[list[MatrixLayout], list[slice]]:
    """Return the tensors that rank-r factors make smaller, and the slices of all other tensors."""
    matrices, other_slices, factor_offset = [], [], 0
    for _, part, shape in layout.list_slices():
        size = part.stop - part.start
        n = shape[0] if shape else 1
        m = size // n if n else 0
        if len(shape) > 1 and rank * (n + m) < n * m:
            matrices.append(MatrixLayout(part.start, n, m, rank, factor_offset))
            factor_offset += rank * (n + m)
        else:
            other_slices.append(part)
    return matrices, other_slices


@dataclass(frozen=True, eq=False)
class LowRankUpdate(Update):
    """Update with P̂Qᵀ for each matrix, and `other_values` for the coordinates of all other tensors, in order.

    `factors` has P̂ [n, r] and Q [m, r] of each matrix, flat and in order; `rank` is r.
    """

    layout: ParameterLayout
    rank: int
    factors: F32
    other_values: F32

    @property
    def n_coordinates(self) -> int:
        return len(self.factors) + len(self.other_values)

    def to_dense(self) -> F32:
        matrices, other_slices = split_tensors(self.layout, self.rank)
        out = np.empty(self.layout.size, dtype=np.float32)
        for matrix in matrices:
            out[matrix.flat_slice] = _product(*matrix.view_factors(self.factors))
        start = 0
        for part in other_slices:
            size = part.stop - part.start
            out[part] = self.other_values[start : start + size]
            start += size
        return out


@dataclass(frozen=True)
class PowerSGD(CompressionScheme):
    """Each weight matrix as two thin factors from one step of power iteration, with error feedback.

    PowerSGD (Vogels, Karimireddy and Jaggi 2019, algorithm 1). For each tensor as a matrix M [n, m] of residual plus update:
    P̂ = orthonormalised M Q, then Q = Mᵀ P̂. P̂Qᵀ is the decoded matrix and M − P̂Qᵀ the residual. |M − P̂Qᵀ|² = |M|² − |P̂ᵀM|²,
    so rank ≤ r is exact. r(n + m) floats a matrix. Tensors with one dimension, or that would not shrink, are sent whole.

    Q starts from the client's Q of its last round, so that the iteration continues over the rounds. Columns that are zero start
    from random signs, otherwise a matrix that was zero once would always be sent as zero. All clients start from the same
    signs, so the errors of their first rounds are alike, and `has_independent_errors` is False.

    Deviations:

    * The paper averages P over the workers before it is orthonormalised, by an all-reduce between the two products. A round of
      federated learning has no second phase. So each client sends both factors of its own matrix, and the server averages the
      products. The update of C clients may have rank C·r, and each client's approximation is its own.
    * The paper's first Q is Gaussian. The paper's momentum (algorithm 2) is applied after decompression; here the server's
      optimizer applies it.

    Use: for models whose parameters are mostly large matrices, where updates have a low rank.

    Avoid: for models of small or one-dimensional tensors, which are sent whole, and where clients return rarely. Encoding a
    matrix costs two products and an orthonormalisation.

    Attributes:
        rank: r, columns of each factor.
        values: format of the factors and of all other values.
    """

    name: ClassVar[str] = "power-sgd"
    codec: ClassVar[int] = 22
    residual_entries: ClassVar[tuple[str, ...]] = ("residual",)
    has_independent_errors: ClassVar[bool] = False

    rank: PositiveInt = 2
    values: Literal["float32", "bfloat16"] = "float32"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        total: F32 = x if "residual" not in state else state["residual"] + x
        matrices, other_slices = split_tensors(ctx.layout, self.rank)
        factors = np.zeros(count_factor_values(matrices), dtype=np.float32)
        previous_factors = state.get("factors", factors)
        for matrix in matrices:
            m = total[matrix.flat_slice].reshape(matrix.n, matrix.m)
            start = _make_start_factor(matrix.view_factors(previous_factors)[1], matrix, ctx.seed)
            left, right = matrix.view_factors(factors)
            left[:] = self._round_to_format(_orthonormalise(_multiply(m, start)))
            with np.errstate(over="ignore"):
                right[:] = _multiply_transposed(m, left)
        if not (all_finite(factors) and _has_finite_products(matrices, factors)):
            raise NonFiniteError(ctx.round, ctx.client, "a product of factors leaves float32's range")
        other_values = np.concatenate([np.zeros(0, dtype=np.float32), *(total[part] for part in other_slices)])
        (factor_section,), factors = encode_values(factors, self.values, entropy=False)
        other_sections, other_values = encode_values(other_values, self.values, entropy=False)
        update = LowRankUpdate(ctx.layout, self.rank, factors, other_values)
        next_state: StateArrays = {"residual": total - update.to_dense(), "factors": factors}
        return EncodedUpdate(
            (Section(SectionKind.FACTOR, factor_section.data), *other_sections),
            next_state,
            {"residual": EntryPatch(None, total)},
        )

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return state["residual"] if "residual" in state else np.zeros(layout.size, dtype=np.float32)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        require_sections(sections, (SectionKind.FACTOR, SectionKind.VALUE))
        matrices, other_slices = split_tensors(ctx.layout, self.rank)
        factor_section = Section(SectionKind.VALUE, sections[0].data, sections[0].offset)
        factors = decode_values((factor_section,), count_factor_values(matrices), self.values, entropy=False)
        if not _has_finite_products(matrices, factors):
            raise WireError(sections[0].offset, "the factors are so large that their product is not finite")
        other_values = decode_values(sections[1:], _count_others(other_slices), self.values, entropy=False)
        return LowRankUpdate(ctx.layout, self.rank, factors, other_values)

    def max_bytes(self, layout: ParameterLayout) -> int:
        matrices, other_slices = split_tensors(layout, self.rank)
        sizes = count_factor_values(matrices), _count_others(other_slices)
        return sum(max_value_bytes(size, self.values) for size in sizes)

    def _round_to_format(self, factor: F64) -> F32:
        """Return a factor as the receiver reads it, so that the right factor fits the decoded left factor."""
        return encode_values(factor.astype(np.float32).reshape(-1), self.values, entropy=False)[1].reshape(factor.shape)


def _count_others(other_slices: list[slice]) -> int:
    return sum(part.stop - part.start for part in other_slices)


def _has_finite_products(matrices: list[MatrixLayout], factors: F32) -> bool:
    """Return whether no entry of a product can leave float32's range."""
    limit = float(np.finfo(np.float32).max)
    for matrix in matrices:
        left, right = matrix.view_factors(factors)
        if float(np.abs(left).max()) * float(np.abs(right).max()) * matrix.rank > limit:
            return False
    return True


def _make_start_factor(previous_factor: F32, matrix: MatrixLayout, seed: int) -> F32:
    """Return Q [m, r] to start from: the previous Q, with random signs in columns that are zero."""
    words = counter_hash(shared_key(seed, "power-sgd", matrix.start), np.arange(previous_factor.size, dtype=np.uint64))
    signs = (1 - 2 * (words & np.uint64(1)).astype(np.float32)).reshape(previous_factor.shape)
    return np.where((previous_factor != 0).any(axis=0), previous_factor, signs)


def _orthonormalise(columns: F64) -> F64:
    """Return the columns [n, r] orthonormalised by Gram and Schmidt, twice to remove rounding errors.

    A column that depends on earlier columns becomes zero.
    """
    out = columns.copy()
    for c in range(out.shape[1]):
        original_norm = np.sqrt(sum_in_lanes(out[:, c] * out[:, c]))
        for j in [*range(c), *range(c)]:
            out[:, c] -= sum_in_lanes(out[:, j] * out[:, c]) * out[:, j]
        norm = np.sqrt(sum_in_lanes(out[:, c] * out[:, c]))
        out[:, c] = out[:, c] / norm if norm > 1e-10 * original_norm else 0.0
    return out


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _multiply_reference(m: F32, q: F32) -> F64:
    rows, columns = m.astype(np.float64), q.T.astype(np.float64)
    return np.array([[sum_in_lanes(row * column) for column in columns] for row in rows])


@kernel(_multiply_reference, element_ns=300)
def _multiply(m: F32, q: F32) -> F64:
    """Return M Q [n, r] in float64, each sum over 64 lanes as in `reductions`."""
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
            out[i, c] = fold_lanes(lanes)
    return out


def _multiply_transposed_reference(m: F32, p: F32) -> F32:
    out = np.zeros((m.shape[1], p.shape[1]))
    for row, weights in zip(m.astype(np.float64), p.astype(np.float64), strict=True):
        out += row[:, None] * weights
    return out.astype(np.float32)


@kernel(_multiply_transposed_reference, element_ns=300)
def _multiply_transposed(m: F32, p: F32) -> F32:
    """Return Mᵀ P [m, r], summed in float64 in ascending rows."""
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


@kernel(_product_reference, lambda left, right: len(left) * len(right), element_ns=10)
def _product(left: F32, right: F32) -> F32:
    """Return P Qᵀ [n · m], summed in float64 in ascending rank."""
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
