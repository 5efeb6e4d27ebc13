"""Sections of the largest coordinates of each chunk of a vector: positions in chunks, and values."""

from __future__ import annotations

from typing import cast

from fedsgd.compression.base import CodecContext
from fedsgd.compression.kernels.top_k import chunk_top_k
from fedsgd.compression.operators.sparsifier import top_k_size
from fedsgd.compression.updates import SparseUpdate
from fedsgd.config.component import FieldError
from fedsgd.errors import WireError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Section, SectionKind, Sections, ValueFormat, decode_values, encode_values, max_value_bytes
from fedsgd.wire.chunk_codec import (
    Chunks,
    count_chunk_indices,
    decode_chunk_indices,
    encode_chunk_indices,
    max_chunk_index_bytes,
)
from fedsgd.wire.grouped_values import GroupFormat, decode_groups, encode_groups, max_group_bytes


def divide_into_chunks(density: float, length: int, size: int) -> Chunks:
    """Return the division of P = `size` coordinates into chunks; one of n coordinates sends k = max(1, round(density · n))."""
    return Chunks.divide(size, length, lambda n: top_k_size(density, n))


def check_chunk_length(owner: str, length: int, layout: ParameterLayout, key: str = "chunk") -> None:
    """Raise FieldError if a chunk is longer than the vector; `key` is the field with the chunk's length."""
    if length > layout.size:
        raise FieldError(owner, key, f"got {length}, expected at most {layout.size}, the number of coordinates of the vector")


def encode_chunks(
    x: F32, chunks: Chunks, value_format: ValueFormat, ctx: CodecContext, in_groups: bool = False
) -> tuple[Sections, SparseUpdate]:
    """Encode the largest coordinates of each chunk of x [P]; return the sections, and the update that they decode to.

    With `in_groups`, the values of each chunk have a scale or bins of their own; the format is one of GROUP_FORMATS.
    """
    positions, values, counts = chunk_top_k(x, chunks.length, chunks.list_limits())
    index_section = Section(SectionKind.INDEX, encode_chunk_indices(positions, counts, chunks))
    key = ctx.derive_key("values") if value_format == "natural" else 0
    if in_groups:
        value_sections, decoded_values = encode_groups(values, counts, cast("GroupFormat", value_format))
    else:
        value_sections, decoded_values = encode_values(values, value_format, key)
    return (index_section, *value_sections), SparseUpdate(positions, decoded_values, len(x))


def decode_chunks(sections: Sections, chunks: Chunks, value_format: ValueFormat, in_groups: bool = False) -> SparseUpdate:
    """Decode the sections of `encode_chunks`; raise WireError for malformed sections."""
    if not sections or sections[0].kind != SectionKind.INDEX:
        offset = sections[0].offset if sections else 0
        raise WireError(offset, "expected an INDEX section first in an update of chunks")
    positions, counts = decode_chunk_indices(sections[0], chunks)
    if in_groups:
        values = decode_groups(sections[1:], counts, cast("GroupFormat", value_format))
    else:
        values = decode_values(sections[1:], len(positions), value_format)
    return SparseUpdate(positions, values, chunks.size)


def count_chunk_coordinates(sections: Sections, chunks: Chunks) -> int:
    """Return the number of coordinates in valid sections of `encode_chunks`."""
    return count_chunk_indices(sections[0].data, chunks)


def max_chunks_bytes(chunks: Chunks, value_format: ValueFormat, in_groups: bool = False) -> int:
    """Return the maximum payload of `encode_chunks` in bytes."""
    if in_groups:
        value_bytes = max_group_bytes(chunks.max_k, chunks.n_chunks, cast("GroupFormat", value_format))
        return max_chunk_index_bytes(chunks) + value_bytes
    return max_chunk_index_bytes(chunks) + max_value_bytes(chunks.max_k, value_format)


def min_chunk_share(chunks: Chunks) -> float:
    """Return the smallest share k / n of a chunk's coordinates: at least this share of the energy is selected."""
    return min(chunks.k / chunks.length if chunks.n_chunks > 1 else 1.0, chunks.last_k / chunks.last_length)
