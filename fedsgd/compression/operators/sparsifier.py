"""What all sparsifiers share: the sections of some coordinates, and what the format of their values costs in contraction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from fedsgd.compression.base import CodecContext, CompressionOperator, OperatorKind
from fedsgd.compression.updates import SparseUpdate
from fedsgd.errors import WireError
from fedsgd.numerics.arrays import F32, I64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import (
    Section,
    SectionKind,
    Sections,
    ValueFormat,
    count_indices,
    decode_indices,
    decode_values,
    encode_indices,
    encode_values,
    max_index_bytes,
    max_relative_squared_error,
    max_value_bytes,
)


def top_k_size(density: float, size: int) -> int:
    """k = max(1, round(density · P)), halves to even as Python's round."""
    return max(1, round(density * size))


def density_in_round(density: float, stages: Sequence[float], rounds: int, round: int) -> float:
    """The density in `round` (from 1): each of `stages` for `rounds` rounds, then `density`."""
    stage = (round - 1) // rounds if rounds else len(stages)
    return stages[stage] if stage < len(stages) else density


@dataclass(frozen=True)
class Sparsifier(CompressionOperator):
    """An operator that keeps some large coordinates and sends where they are: contractive, whatever format the values have."""

    @property
    @abstractmethod
    def values(self) -> ValueFormat:
        """The format of the values: a field of each member."""

    @property
    def kind(self) -> OperatorKind:
        return "contractive"

    @property
    def deterministic(self) -> bool:
        """The rounding of "natural" values is random."""
        return self.values != "natural"

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return n_sparse_coordinates(sections, ctx)


def encode_sparse(indices: I64, values: F32, value_format: ValueFormat, ctx: CodecContext) -> tuple[Sections, SparseUpdate]:
    """An INDEX section and those of the values. indices: [k], ascending; values: [k]."""
    size = ctx.layout.size
    value_sections, decoded = encode_values(values, value_format, ctx.derive_key("values") if value_format == "natural" else 0)
    return (Section(SectionKind.INDEX, encode_indices(indices, size)), *value_sections), SparseUpdate(indices, decoded, size)


def decode_sparse(sections: Sections, value_format: ValueFormat, ctx: CodecContext, max_k: int | None = None) -> SparseUpdate:
    """Inverse of `encode_sparse`; WireError for more than `max_k` coordinates (default: P)."""
    size = ctx.layout.size
    if not sections or sections[0].kind != SectionKind.INDEX:
        where = sections[0].offset if sections else 0
        raise WireError(where, "the first section of a sparse update is not its index section")
    indices = decode_indices(sections[0], size, max_k)
    return SparseUpdate(indices, decode_values(sections[1:], len(indices), value_format), size)


def n_sparse_coordinates(sections: Sections, ctx: CodecContext) -> int:
    """The number of coordinates of valid sections."""
    return count_indices(sections[0].data, ctx.layout.size)


def max_sparse_bytes(k: int, value_format: ValueFormat, size: int) -> int:
    """The most that k of `size` coordinates weigh. Raw positions are always a candidate, and so is the bitmap."""
    return min(max_index_bytes(size), 6 + 4 * k) + max_value_bytes(k, value_format)


def contraction_after_rounding(energy_share: float, value_format: ValueFormat, layout: ParameterLayout) -> float:
    """δ when a share of the energy is kept before the values are rounded: of some formats nothing is sure but that as much as
    the largest coordinate survives."""
    error = max_relative_squared_error(value_format)
    return 1 / layout.size if error is None else min(1.0, energy_share) * (1 - error)
