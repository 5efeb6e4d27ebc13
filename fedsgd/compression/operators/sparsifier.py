"""Base class of sparsifiers, sections of a sparse update, and the contraction that remains after values are rounded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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
    """Return k = max(1, round(density · P)) for P = `size`; halves are rounded to even, as by Python's `round`."""
    return max(1, round(density * size))


def density_in_round(density: float, stages: Sequence[float], rounds: int, round: int) -> float:
    """Return the density in `round` (from 1): each of `stages` for `rounds` rounds, then `density`. 0 rounds: no stages."""
    stage = (round - 1) // rounds if rounds else len(stages)
    return stages[stage] if stage < len(stages) else density


@dataclass(frozen=True)
class Sparsifier(CompressionOperator):
    """Operator that sends some large coordinates and their positions: contractive, whatever the format of the values."""

    kind: ClassVar[OperatorKind] = "contractive"

    @property
    @abstractmethod
    def values(self) -> ValueFormat:
        """Format of the values: a field of each member."""

    @property
    def deterministic(self) -> bool:
        """False for "natural" values, which are rounded at random."""
        return self.values != "natural"

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return n_sparse_coordinates(sections, ctx)


def encode_sparse(indices: I64, values: F32, value_format: ValueFormat, ctx: CodecContext) -> tuple[Sections, SparseUpdate]:
    """Encode ascending positions [k] and values [k] as an INDEX section and value sections. Also return the update."""
    size = ctx.layout.size
    key = ctx.derive_key("values") if value_format == "natural" else 0  # other formats draw no random numbers
    value_sections, decoded_values = encode_values(values, value_format, key)
    index_section = Section(SectionKind.INDEX, encode_indices(indices, size))
    return (index_section, *value_sections), SparseUpdate(indices, decoded_values, size)


def decode_sparse(sections: Sections, value_format: ValueFormat, ctx: CodecContext, max_k: int | None = None) -> SparseUpdate:
    """Decode the sections of `encode_sparse`; raise WireError for more than `max_k` coordinates (default: P)."""
    size = ctx.layout.size
    if not sections or sections[0].kind != SectionKind.INDEX:
        offset = sections[0].offset if sections else 0
        raise WireError(offset, "expected an INDEX section first in a sparse update")
    indices = decode_indices(sections[0], size, max_k)
    return SparseUpdate(indices, decode_values(sections[1:], len(indices), value_format), size)


def n_sparse_coordinates(sections: Sections, ctx: CodecContext) -> int:
    """Return the number of coordinates in valid sections of `encode_sparse`."""
    return count_indices(sections[0].data, ctx.layout.size)


def max_sparse_bytes(k: int, value_format: ValueFormat, size: int) -> int:
    """Return the maximum payload of k of `size` coordinates in bytes. Raw positions and a bitmap are always candidates."""
    return min(max_index_bytes(size), 6 + 4 * k) + max_value_bytes(k, value_format)


def contraction_after_rounding(energy_share: float, value_format: ValueFormat, layout: ParameterLayout) -> float:
    """Return δ after rounding, if at least `energy_share` of the energy is sent; 1/P for a format without a bound."""
    error = max_relative_squared_error(value_format)
    return 1 / layout.size if error is None else min(1.0, energy_share) * (1 - error)
