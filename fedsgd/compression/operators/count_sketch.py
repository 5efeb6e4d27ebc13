"""Count sketch: a small table of random sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedsgd.compression.base import CodecContext, DenseOperator, OperatorKind
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.updates import DenseUpdate, LazyUpdate, Update
from fedsgd.config.component import FractionAboveZero
from fedsgd.errors import NonFiniteError
from fedsgd.numerics.arrays import F32, F64, I64
from fedsgd.numerics.kernels import jit_helper, kernel
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import all_finite
from fedsgd.numerics.rng import counter_hash, counter_hash_scalar
from fedsgd.wire import FloatFormat, Sections, decode_values, encode_values, max_value_bytes

Rows = Literal[1, 3, 5, 7]


def n_columns(size: int, density: float, rows: int) -> int:
    """Return the number of columns of a table with about density · size cells."""
    return max(1, round(density * size / rows))


@dataclass(frozen=True)
class CountSketch(DenseOperator):
    """Table of random sums: every coordinate is added, with a random sign, to one random cell in each row.

    Charikar, Chen and Farach-Colton 2002. C(x)_i is the median over the rows of sign · cell. Unbiased over the random signs:
    the other coordinates in a cell add symmetric noise. The variance is large, (|x|² − x_i²)/columns for each coordinate of a
    single row, so only coordinates well above |x|/√columns are recoverable. 32 · density bits per parameter (float32).

    Each client has its own hash and signs in each round. The table is linear in x, so tables can be added instead of vectors,
    as in `fetch-sgd` (with one shared key).

    Use: where messages have to be added without decoding, and few coordinates hold most of the energy.

    Avoid: for dense updates, whose coordinates are smaller than the noise of collisions. For training, `fetch-sgd` adds the
    error feedback that a sketch needs.

    Attributes:
        density: cells of the table as a share of the parameters.
        rows: rows of the table.
        values: format of the cells.
    """

    name: ClassVar[str] = "count-sketch"
    codec: ClassVar[int] = 12
    deterministic: ClassVar[bool] = False

    density: FractionAboveZero = 0.1
    rows: Rows = 5
    values: FloatFormat = "float32"

    @property
    def kind(self) -> OperatorKind:
        return "unbiased" if self.values == "float32" else "neither"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        key = ctx.derive_key(self.name)
        with np.errstate(over="ignore"):
            table = sketch(x, self.rows, n_columns(len(x), self.density, self.rows), key).astype(np.float32).reshape(-1)
        if not all_finite(table):
            raise NonFiniteError(ctx.round, ctx.client, "a sum in the sketch leaves float32's range")
        sections, decoded_table = encode_values(table, self.values)
        return sections, self._decode_table(decoded_table, len(x), key)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        size = ctx.layout.size
        n_cells = self.rows * n_columns(size, self.density, self.rows)
        return self._decode_table(decode_values(sections, n_cells, self.values), size, ctx.derive_key(self.name))

    def _decode_table(self, table: F32, size: int, key: int) -> Update:
        rows = table.reshape(self.rows, -1).astype(np.float64)
        return LazyUpdate(size, lambda: DenseUpdate(unsketch(rows, size, key).astype(np.float32)))

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_value_bytes(self.rows * n_columns(layout.size, self.density, self.rows), self.values)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn of noise that remains in the mean over the cohort: the squared error is about |x|²/density."""
        return [*super().find_warnings(run), *run.find_noise_warnings(1 / self.density)]


def sketch(x: F32, rows: int, columns: int, key: int) -> F64:
    """Return the table [rows, columns] of x [P]: cell (r, h_r(i)) is the sum of s_r(i) x_i in ascending i, in float64."""
    return _sketch(x, rows, columns, np.uint64(key))


def unsketch(table: F64, size: int, key: int) -> F64:
    """Return the median over an odd number of rows of s_r(i) · cell (r, h_r(i)) for each of `size` coordinates [P]."""
    return _unsketch(table, size, np.uint64(key))


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _hash_coordinates(row: int, size: int, columns: int, key: np.uint64) -> tuple[I64, F64]:
    """Return column ⌊upper 32 bits · columns / 2³²⌋ and sign (lowest bit) of each coordinate, from 64 random bits for each."""
    words = counter_hash(int(key), np.arange(size, dtype=np.uint64) + np.uint64(row << 32))
    column = ((words >> np.uint64(32)) * np.uint64(columns) >> np.uint64(32)).astype(np.int64)
    return column, 1.0 - 2.0 * (words & np.uint64(1)).astype(np.float64)


def _sketch_reference(x: F32, rows: int, columns: int, key: np.uint64) -> F64:
    table = np.zeros((rows, columns))
    for row in range(rows):
        column, sign = _hash_coordinates(row, len(x), columns, key)
        np.add.at(table[row], column, sign * x)
    return table


@kernel(_sketch_reference, lambda x, rows, columns, key: x.size * rows, element_ns=20)
def _sketch(x: F32, rows: int, columns: int, key: np.uint64) -> F64:
    """Return the table [rows, columns]."""
    table = np.zeros((rows, columns), dtype=np.float64)
    for row in range(rows):
        cells = table[row]
        for i in range(x.size):
            word = counter_hash_scalar(key, np.uint64(i) + (np.uint64(row) << np.uint64(32)))
            column = np.int64((word >> np.uint64(32)) * np.uint64(columns) >> np.uint64(32))
            cells[column] += -np.float64(x[i]) if word & np.uint64(1) else np.float64(x[i])
    return table


def _unsketch_reference(table: F64, size: int, key: np.uint64) -> F64:
    estimates = []
    for row in range(len(table)):
        column, sign = _hash_coordinates(row, size, table.shape[1], key)
        estimates.append(sign * table[row, column])
    middle: F64 = np.sort(estimates, axis=0, kind="stable")[len(table) // 2]
    return middle


@jit_helper
def _median(values: F64) -> float:
    """Return the median of an odd number of values, by insertion sort in place."""
    for i in range(1, values.size):
        value, j = values[i], i
        while j > 0 and values[j - 1] > value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value
    middle: float = values[values.size // 2]
    return middle


@kernel(_unsketch_reference, lambda table, size, key: len(table) * size, element_ns=20)
def _unsketch(table: F64, size: int, key: np.uint64) -> F64:
    """Return the estimates [P]."""
    rows, columns = table.shape
    out = np.empty(size, dtype=np.float64)
    values = np.empty(rows, dtype=np.float64)
    for i in range(size):
        for row in range(rows):
            word = counter_hash_scalar(key, np.uint64(i) + (np.uint64(row) << np.uint64(32)))
            column = np.int64((word >> np.uint64(32)) * np.uint64(columns) >> np.uint64(32))
            values[row] = -table[row, column] if word & np.uint64(1) else table[row, column]
        out[i] = _median(values)
    return out
