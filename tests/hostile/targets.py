"""Targets: for each decoder, valid frames and a function that decodes any bytes as the receiver does and checks the result.

The function returns a vector or raises WireError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.compression import Compressor, SparseUpdate
from fedsgd.compression.kernels.top_k import chunk_top_k
from fedsgd.errors import WireError
from fedsgd.wire import (
    MAX_SECTIONS,
    Frame,
    FrameKind,
    Header,
    Section,
    SectionKind,
    Sections,
    chunk_codec,
    decode_frame,
    decode_indices,
    decode_values,
    encode_frame,
    encode_indices,
    encode_values,
    frame_overhead,
    gap_codec,
    index_codec,
    max_index_bytes,
    rans,
)
from fedsgd.wire.bits import pack_varint
from fedsgd.wire.levels import decode_digits, encode_digits
from tests.hostile.basis import CLIENT, ROUND, Target, context, require, vectors
from tests.hostile.rounds import round_targets
from tests.laws.members import name_of, operators, schemes, sections_of

# ---------------------------------------------------------------------------------------------------------------- compressors


def members() -> dict[str, Compressor]:
    """Return every operator, and every scheme with its own codec, by name."""
    schemes_with_codec = [
        scheme for scheme in schemes() if "codec" in type(scheme).__dict__ and isinstance(type(scheme).codec, int)
    ]
    return {name_of(member): member for member in [*operators(), *schemes_with_codec]}


def encode_sections(sections: Sections, codec: int = 0) -> bytes:
    """Encode sections as an UPDATE frame."""
    return encode_frame(Frame(Header(FrameKind.UPDATE, ROUND, codec, ROUND, 0, CLIENT, 60), sections))


def decode_update(member: Compressor, size: int, data: bytes) -> NDArray[Any]:
    """Decode a frame, count its coordinates and add its update to an aggregate, as the server does."""
    ctx, total = context(size), np.zeros(size, dtype=np.float64)
    try:
        sections = decode_frame(data, frame_overhead(MAX_SECTIONS) + member.max_bytes(ctx.layout)).sections
        update = member.decode(sections, ctx)
        k = member.n_coordinates(sections, ctx)
        update.add_to(total, 1.0)
    except WireError:
        require(not total.any(), "the frame was rejected after a part of it was added")
        raise
    counts = f"the sections have {k} coordinates, the update has {update.n_coordinates}"
    require(k == update.n_coordinates and 0 <= k <= size, counts)
    if isinstance(update, SparseUpdate):
        require(len(update.indices) == len(update.values) == k, "another number of positions than of values")
        require(not k or 0 <= update.indices[0] <= update.indices[-1] < size, "a position is out of range")
        require(bool((np.diff(update.indices) > 0).all()), "positions do not ascend")
    dense = update.to_dense()
    require(dense.shape == (size,) and dense.dtype == np.float32, f"{dense.shape} coordinates of {dense.dtype}")
    require(bool(np.isfinite(dense).all() and np.isfinite(total).all()), "a coordinate is not finite")
    require(np.array_equal(dense, total), "add_to and to_dense differ")
    return total


def _update_target(name: str, member: Compressor, size: int) -> Target:
    frames = [encode_sections(sections_of(member, x, context(size)), member.codec) for x in vectors(size)]
    return Target(name, size, tuple(frames), partial(decode_update, member, size))


# ----------------------------------------------------------------------------------------------------------------- the codecs


def _read_single_section(data: bytes, limit: int) -> Section:
    sections = decode_frame(data, frame_overhead(MAX_SECTIONS) + limit).sections
    if len(sections) != 1:
        raise WireError(0, "expected one section")
    return sections[0]


def _index_sections(size: int) -> Iterator[bytes]:
    """Yield three index sets in each of the five codecs and in the shortest one."""
    rng = np.random.default_rng(size)
    for share in (0.02, 0.3, 0.9):
        positions = np.sort(rng.choice(size, max(1, round(share * size)), replace=False))
        count, gaps = pack_varint(len(positions)), gap_codec.positions_to_gaps(positions)
        yield encode_indices(positions, size)
        yield bytes([index_codec.RICE]) + index_codec._encode_rice(positions)
        yield bytes([index_codec.BITMAP]) + np.packbits(index_codec._build_mask(positions, size), bitorder="little").tobytes()
        yield (
            bytes([index_codec.RAW])
            + count
            + b"".join(int(i).to_bytes(index_codec._raw_position_bytes(size), "little") for i in positions)
        )
        yield bytes([index_codec.COMPLEMENT]) + index_codec._encode_rice(index_codec._complement(positions, size))
        yield bytes([index_codec.CLASSES]) + count + gap_codec.encode_classes(gaps)


def _decode_indices(size: int, data: bytes) -> NDArray[Any]:
    section = _read_single_section(data, max_index_bytes(size))
    positions = decode_indices(section, size, max_k := max(1, round(0.9 * size)))
    require(positions.dtype == np.int64 and len(positions) <= max_k, "too many positions")
    require(not len(positions) or 0 <= positions[0] <= positions[-1] < size, "a position is out of range")
    require(bool((np.diff(positions) > 0).all()), "positions do not ascend")
    require(index_codec.count_indices(section.data, size) == len(positions), "count_indices is not the number of positions")
    return positions


def _index_target(size: int) -> Target:
    frames = [
        encode_sections((Section(SectionKind.INDEX, data),))
        for data in _index_sections(size)
        if len(data) <= max_index_bytes(size)
    ]
    return Target("index codecs", size, tuple(frames), partial(_decode_indices, size))


def _divide(size: int) -> chunk_codec.Chunks:
    """Return chunks of at most 300 coordinates, 30 positions each."""
    return chunk_codec.Chunks(size, min(size, 300), min(size, 30), min(size - (size - 1) // 300 * 300, 30))


def _decode_chunks(size: int, data: bytes) -> NDArray[Any]:
    chunks = _divide(size)
    section = _read_single_section(data, chunk_codec.max_chunk_index_bytes(chunks))
    positions, counts = chunk_codec.decode_chunk_indices(section, chunks)
    require(len(positions) == counts.sum() and bool((counts <= chunks.list_limits()).all()), "too many positions")
    require(not len(positions) or 0 <= positions[0] <= positions[-1] < size, "a position is out of range")
    require(bool((np.diff(positions) > 0).all()), "positions do not ascend")
    require(
        chunk_codec.count_chunk_indices(section.data, chunks) == len(positions),
        "count_chunk_indices is not the number of positions",
    )
    require(chunk_codec.encode_chunk_indices(positions, counts, chunks)[0] == section.data[0], "another tag")
    return positions


def _chunks_target(size: int) -> Target:
    chunks, frames = _divide(size), []
    for x in vectors(size):
        positions, _, counts = chunk_top_k(x, chunks.length, chunks.list_limits())
        frames.append(
            encode_sections((Section(SectionKind.INDEX, chunk_codec.encode_chunk_indices(positions, counts, chunks)),))
        )
    return Target("chunk codec", size, tuple(frames), partial(_decode_chunks, size))


def _decode_values(value_format: Any, entropy: bool, k: int, data: bytes) -> NDArray[Any]:
    values = decode_values(decode_frame(data, frame_overhead(MAX_SECTIONS) + 9 * k + 99).sections, k, value_format, entropy)
    require(values.shape == (k,) and values.dtype == np.float32, f"{values.shape} values of {values.dtype}")
    require(bool(np.isfinite(values).all()), "a value is not finite")
    return values


def _values_target(value_format: Any, entropy: bool, k: int) -> Target:
    frames = []
    for x in vectors(k):
        values = x[: 0 if value_format in ("ternary", "2bit") and not x.all() else k]
        if len(values) == k:
            frames.append(encode_sections(encode_values(values, value_format, 7, entropy)[0]))
    return Target(
        f"values {value_format}{'' if entropy else ' plain'}",
        k,
        tuple(frames),
        partial(_decode_values, value_format, entropy, k),
    )


def _decode_symbols(n: int, data: bytes) -> NDArray[Any]:
    symbols = rans.decode_symbols(_read_single_section(data, 2 * n + 99).data, n)
    require(symbols.shape == (n,) and symbols.dtype == np.uint8, "another number of symbols")
    return symbols


def _decode_digits(base: int, n: int, data: bytes) -> NDArray[Any]:
    digits = decode_digits(_read_single_section(data, 2 * n + 99).data, n, base)
    require(digits.shape == (n,) and digits.dtype == np.uint8, "another number of digits")
    require(not n or int(digits.max()) < base, "a digit is not below the base")
    return digits


def _symbols_target(n: int) -> Target:
    r = np.random.default_rng(n)
    streams = [np.minimum(r.geometric(p, n) - 1, 255).astype(np.uint8) for p in (0.9, 0.3, 0.02)]
    codes = [rans.encode_symbols(symbols) for symbols in streams]
    rare = np.where(r.random(n) < 0.998, 0, r.integers(1, 200, n)).astype(np.uint8)
    codes.append(rans.encode_symbols(rare, frequency_bits=15))
    frames = tuple(encode_sections((Section(SectionKind.VALUE, body),)) for body in codes)
    return Target("symbols", n, frames, partial(_decode_symbols, n))


def _digits_target(base: int, n: int) -> Target:
    r = np.random.default_rng(n)
    streams = [np.minimum(r.geometric(p, n) - 1, base - 1).astype(np.uint8) for p in (0.9, 0.3, 0.02)]
    frames = tuple(encode_sections((Section(SectionKind.VALUE, encode_digits(digits, base)),)) for digits in streams)
    return Target(f"digits of base {base}", n, frames, partial(_decode_digits, base, n))


# ----------------------------------------------------------------------------------------------------------------------- all


@cache
def targets(size: int) -> tuple[Callable[[], Target], ...]:
    """Return functions that build the target of each decoder at a size, once."""
    builders = [partial(_update_target, name, member, size) for name, member in members().items()]
    builders += [partial(_index_target, size), partial(_chunks_target, size), partial(_symbols_target, size)]
    for value_format in ("float32", "bfloat16", "float16", "natural", "int8", "int4", "ternary", "2bit"):
        builders += [partial(_values_target, value_format, entropy, size) for entropy in (True, False)]
    builders += [partial(_digits_target, base, size) for base in (2, 3, 9, 15, 255)]
    if size == 1:  # a sparsifier sends no values of a zero vector
        builders += [
            partial(_values_target, value_format, True, 0)
            for value_format in ("float32", "float16", "natural", "int4", "ternary", "2bit")
        ]
        builders += [partial(_symbols_target, 0), partial(_digits_target, 3, 0)]
    builders += [partial(build, size) for build in round_targets()]
    return tuple(cache(build) for build in builders)
