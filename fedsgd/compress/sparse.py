"""What all sparsifiers share: the sections of some coordinates, and what the format of their values costs in contraction."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from fedsgd.arrays import F32, I64
from fedsgd.compress.base import Context, Kind, Operator
from fedsgd.compress.update import Sparse
from fedsgd.errors import WireError
from fedsgd.layout import Layout
from fedsgd.wire import (
    Part,
    Section,
    Sections,
    ValueFormat,
    count_indices,
    decode_indices,
    decode_values,
    encode_indices,
    encode_values,
    max_index_bytes,
    max_value_bytes,
    value_error,
)


@dataclass(frozen=True)
class Sparsifier(Operator):
    """An operator that keeps some large coordinates and sends where they are: contractive, whatever format the values have."""

    @property
    @abstractmethod
    def values(self) -> ValueFormat:
        """The format of the values: a field of each member."""

    @property
    def kind(self) -> Kind:
        return "contractive"

    @property
    def deterministic(self) -> bool:
        """The rounding of "natural" values is random."""
        return self.values != "natural"

    def kept(self, sections: Sections, ctx: Context) -> int:
        return kept_sparse(sections, ctx)


def encode_sparse(indices: I64, values: F32, form: ValueFormat, ctx: Context) -> tuple[Sections, Sparse]:
    """An INDEX section and those of the values. indices: [k], ascending; values: [k]."""
    size = ctx.layout.size
    value_sections, decoded = encode_values(values, form, ctx.key("values") if form == "natural" else 0)
    return (Section(Part.INDEX, encode_indices(indices, size)), *value_sections), Sparse(indices, decoded, size)


def decode_sparse(sections: Sections, form: ValueFormat, ctx: Context, max_k: int | None = None) -> Sparse:
    """Inverse of `encode_sparse`; WireError for more than `max_k` coordinates (default: P)."""
    size = ctx.layout.size
    if not sections or sections[0].part != Part.INDEX:
        where = sections[0].offset if sections else 0
        raise WireError(where, "the first section of a sparse update is not its index section")
    indices = decode_indices(sections[0], size, max_k)
    return Sparse(indices, decode_values(sections[1:], len(indices), form), size)


def kept_sparse(sections: Sections, ctx: Context) -> int:
    """The number of coordinates of valid sections."""
    return count_indices(sections[0].data, ctx.layout.size)


def max_sparse_bytes(k: int, form: ValueFormat, size: int) -> int:
    """The most that k of `size` coordinates weigh. Raw positions are always a candidate, and so is the bitmap."""
    return min(max_index_bytes(size), 6 + 4 * k) + max_value_bytes(k, form)


def surviving(share: float, form: ValueFormat, layout: Layout) -> float:
    """δ when a share of the energy is kept before the values are rounded: of some formats nothing is sure but that as much as
    the largest coordinate survives."""
    error = value_error(form)
    return 1 / layout.size if error is None else min(1.0, share) * (1 - error)
