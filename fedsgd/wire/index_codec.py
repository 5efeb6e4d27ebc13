"""Index sets: k ascending positions below P, coded by the shortest of five codecs.

    section := tag u8, body
    0 Rice     k varint; the gaps before the positions in `gaps`' Rice code
    1 bitmap   P bits
    2 raw      k varint; each position in as few whole bytes as P - 1 needs
    3 absent   as 0, for the positions that are not in the set
    4 classes  k varint; the gaps in `gaps`' code of bit lengths

Of equal lengths the lowest tag wins. What is longer than the bitmap is refused, whatever the tag.
"""

from __future__ import annotations

import numpy as np

from fedsgd.errors import WireError, shift_offset
from fedsgd.numerics.arrays import I64, U8
from fedsgd.system.profiling import timed
from fedsgd.wire import bits, gap_codec
from fedsgd.wire.frame import Section

Bytes = bytes | memoryview

RICE, BITMAP, RAW, COMPLEMENT, CLASSES = range(5)
MIN_GAPS_FOR_CLASSES = 64
"""With fewer gaps the table of their bit lengths is too heavy, and it is not tried."""


def max_index_bytes(size: int) -> int:
    """The longest index section for P = size: the bitmap is always a candidate."""
    return 1 + bits.n_bytes(size)


@timed("encode")
def encode_indices(indices: I64, size: int) -> bytes:
    """indices: [k], strictly ascending, in [0, size)."""
    k, between = len(indices), _positions_to_gaps(indices)
    parameters, rice_bytes = gap_codec.choose_rice_parameters(between)
    count = bits.pack_varint(k)
    lengths = {RICE: len(count) + rice_bytes, BITMAP: bits.n_bytes(size), RAW: len(count) + _raw_position_bytes(size) * k}
    absent = classes = b""
    if 2 * k > size:
        absent = _encode_rice(_complement(indices, size))
        lengths[COMPLEMENT] = len(absent)
    if k >= MIN_GAPS_FOR_CLASSES:
        classes = count + gap_codec.encode_classes(between)
        lengths[CLASSES] = len(classes)
    tag = min(lengths, key=lambda tag: (lengths[tag], tag))
    if tag == BITMAP:
        body = np.packbits(_build_mask(indices, size), bitorder="little").tobytes()
    elif tag == RAW:
        body = count + indices.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : _raw_position_bytes(size)].tobytes()
    elif tag == RICE:
        body = count + gap_codec.encode_rice(between, parameters)
    else:
        body = absent if tag == COMPLEMENT else classes
    return bytes([tag]) + body


@timed("decode")
def decode_indices(section: Section, size: int, max_k: int | None = None) -> I64:
    """Inverse of `encode_indices`; WireError unless the result is strictly ascending, below `size` and at most `max_k` long.

    Nothing is expanded before the section's length has been held against P, and k against max_k and the section's length.
    """
    with shift_offset(section.offset):
        return _decode(section.data, size, size if max_k is None else max_k)


def _decode(data: Bytes, size: int, max_k: int) -> I64:
    if not data:
        raise WireError(0, "an empty index section")
    if len(data) > max_index_bytes(size):
        raise WireError(0, f"an index section of {len(data)} bytes, at most {max_index_bytes(size)} for {size} parameters")
    if data[0] > CLASSES:
        raise WireError(0, f"unknown index codec {data[0]}")
    kept = count_indices(data, size)
    if not 0 <= kept <= max_k:
        raise WireError(1, f"{kept} indices, expected 0 to {max_k}")
    if data[0] == BITMAP:
        return _decode_bitmap(data[1:], size)
    k, start = bits.unpack_varint(data, 1)
    if data[0] == RAW:
        return _decode_raw(data[start:], k, size)
    with shift_offset(start):
        between = gap_codec.decode_classes(data[start:], k) if data[0] == CLASSES else gap_codec.decode_rice(data[start:], k)
    if k and int(between.max()) >= size:
        raise WireError(start, f"a gap of {int(between.max())} positions, there are {size}")
    indices = _gaps_to_positions(between)
    _check_range(indices, size)
    return _complement(indices, size) if data[0] == COMPLEMENT else indices


def count_indices(data: Bytes, size: int) -> int:
    """k of a section that `encode_indices` made for P = size, without decoding it."""
    if data[0] == BITMAP:
        return bits.popcount(data[1:])
    k = bits.unpack_varint(data, 1)[0]
    return size - k if data[0] == COMPLEMENT else k


def _positions_to_gaps(indices: I64) -> I64:
    return np.diff(indices, prepend=-1) - 1


def _gaps_to_positions(gaps: I64) -> I64:
    indices: I64 = np.cumsum(gaps + 1) - 1
    return indices


def _encode_rice(indices: I64) -> bytes:
    between = _positions_to_gaps(indices)
    return bits.pack_varint(len(indices)) + gap_codec.encode_rice(between, gap_codec.choose_rice_parameters(between)[0])


def _check_range(indices: I64, size: int) -> None:
    if len(indices) and int(indices[-1]) >= size:
        raise WireError(1, f"index {int(indices[-1])} is outside [0, {size})")


def _build_mask(indices: I64, size: int) -> U8:
    mask = np.zeros(size, dtype=np.uint8)
    mask[indices] = 1
    return mask


def _complement(indices: I64, size: int) -> I64:
    """The positions below `size` that are not among `indices`."""
    return np.flatnonzero(_build_mask(indices, size) == 0)


def _decode_bitmap(body: Bytes, size: int) -> I64:
    if len(body) != bits.n_bytes(size):
        raise WireError(1, f"a bitmap of {len(body)} bytes, expected {bits.n_bytes(size)}")
    indices = bits.find_set_bits(body)
    _check_range(indices, size)
    return indices


def _raw_position_bytes(size: int) -> int:
    return max(1, bits.n_bytes((size - 1).bit_length()))


def _decode_raw(body: Bytes, k: int, size: int) -> I64:
    width = _raw_position_bytes(size)
    if len(body) != k * width:
        raise WireError(1, f"{len(body)} bytes for {k} indices of {width} bytes")
    columns = np.zeros((k, 4), dtype=np.uint8)
    columns[:, :width] = np.frombuffer(body, dtype=np.uint8).reshape(k, width)
    indices = columns.view("<u4").reshape(k).astype(np.int64)
    if k > 1 and (np.diff(indices) <= 0).any():
        raise WireError(1, "indices are not strictly ascending")
    _check_range(indices, size)
    return indices
