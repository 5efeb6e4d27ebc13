"""Codec of index sets: k ascending positions below P, in one of five forms that `wire-format-values.md` describes.

The encoder uses the shortest form that it tries, of equal lengths the lowest tag. Decoders reject every section that is longer
than the bitmap.
"""

from __future__ import annotations

import numpy as np

from fedsgd.errors import WireError, shift_offset
from fedsgd.numerics.arrays import I64, U8
from fedsgd.numerics.kernels import kernel
from fedsgd.system.profiling import timed
from fedsgd.wire import bits, gap_codec
from fedsgd.wire.bits import Bytes
from fedsgd.wire.frame import Section

RICE, BITMAP, RAW, COMPLEMENT, CLASSES = range(5)


def max_index_bytes(size: int) -> int:
    """Return the maximum length of an index section in bytes: a bitmap is always possible.

    Args:
        size: P.
    """
    return 1 + bits.n_bytes(size)


@timed("encode")
def encode_indices(indices: I64, size: int) -> bytes:
    """Encode an index set as the data of an INDEX section.

    Args:
        indices: [k] int64, strictly ascending, in [0, P).
        size: P.

    >>> data = encode_indices(np.array([3, 40, 41]), 1000)
    >>> data[0] == RICE, len(data), count_indices(data, 1000)
    (True, 6, 3)
    """
    k = len(indices)
    count = bits.pack_varint(k)
    gap_tag, gap_code = _encode_gaps(indices)
    n_count = len(count)
    candidates = [
        (n_count + len(gap_code), gap_tag),
        (bits.n_bytes(size), BITMAP),
        (n_count + _raw_position_bytes(size) * k, RAW),
    ]
    if 2 * k > size:
        complement_code = _encode_rice(_complement(indices, size))
        candidates.append((len(complement_code), COMPLEMENT))
    _, tag = min(candidates)
    if tag == BITMAP:
        body = np.packbits(_build_mask(indices, size), bitorder="little").tobytes()
    elif tag == RAW:
        body = count + indices.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : _raw_position_bytes(size)].tobytes()
    else:
        body = complement_code if tag == COMPLEMENT else count + gap_code
    return bytes([tag]) + body


def _encode_gaps(indices: I64) -> tuple[int, bytes]:
    """Return RICE or CLASSES, the tag of the shorter code of the gaps between positions, and the code."""
    if len(indices) <= gap_codec.MAX_SHORT_GAPS:
        code, is_classes = gap_codec.encode_short(indices)
        return (CLASSES if is_classes else RICE), code.tobytes()
    gaps = gap_codec.positions_to_gaps(indices)
    parameters, rice_bytes = gap_codec.choose_rice_parameters(gaps)
    classes = gap_codec.encode_classes(gaps)
    return (CLASSES, classes) if len(classes) < rice_bytes else (RICE, gap_codec.encode_rice(gaps, parameters))


@timed("decode")
def decode_indices(section: Section, size: int, max_k: int | None = None) -> I64:
    """Decode the positions of `encode_indices`, [k] int64, strictly ascending.

    Before memory for the positions is allocated, the section's length is compared with P, and k with `max_k`.

    Args:
        section: an INDEX section.
        size: P.
        max_k: maximum k to accept; None: P.
    """
    with shift_offset(section.offset):
        return _decode(section.data, size, size if max_k is None else max_k)


def _decode(data: Bytes, size: int, max_k: int) -> I64:
    if not data:
        raise WireError(0, "the index section is empty")
    if len(data) > max_index_bytes(size):
        raise WireError(0, f"an index section of {len(data)} bytes, expected at most {max_index_bytes(size)} for P = {size}")
    if data[0] > CLASSES:
        raise WireError(0, f"tag {data[0]} of the index section is unknown")
    count = count_indices(data, size)
    if not 0 <= count <= max_k:
        raise WireError(1, f"{count} indices, expected 0 to {max_k}")
    if data[0] == BITMAP:
        return _decode_bitmap(data[1:], size)
    k, start = bits.unpack_varint(data, 1)
    if data[0] == RAW:
        return _decode_raw(data[start:], k, size)
    with shift_offset(start):
        gaps = gap_codec.decode_classes(data[start:], k) if data[0] == CLASSES else gap_codec.decode_rice(data[start:], k)
    indices, is_valid = _gaps_to_positions(gaps, size)
    if not is_valid:
        if int(gaps.max()) >= size:
            raise WireError(start, f"a gap of {int(gaps.max())} positions, expected less than {size}")
        raise WireError(1, f"index {int(gaps.sum()) + k - 1} is outside [0, {size})")
    return _complement(indices, size) if data[0] == COMPLEMENT else indices


def count_indices(data: Bytes, size: int) -> int:
    """Return k of an encoded index set without decoding the positions.

    Args:
        data: data of an INDEX section, not empty.
        size: P.
    """
    if data[0] == BITMAP:
        return bits.popcount(data[1:])
    k = bits.unpack_varint(data, 1)[0]
    return size - k if data[0] == COMPLEMENT else k


def _encode_rice(indices: I64) -> bytes:
    gaps = gap_codec.positions_to_gaps(indices)
    return bits.pack_varint(len(indices)) + gap_codec.encode_rice(gaps, gap_codec.choose_rice_parameters(gaps)[0])


def _check_range(indices: I64, size: int) -> None:
    if len(indices) and int(indices[-1]) >= size:
        raise WireError(1, f"index {int(indices[-1])} is outside [0, {size})")


def _build_mask(indices: I64, size: int) -> U8:
    mask = np.zeros(size, dtype=np.uint8)
    mask[indices] = 1
    return mask


def _complement(indices: I64, size: int) -> I64:
    """Return the positions below `size` that are not in `indices`."""
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
        raise WireError(1, f"{len(body)} bytes of indices, expected {k} indices of {width} bytes")
    columns = np.zeros((k, 4), dtype=np.uint8)
    columns[:, :width] = np.frombuffer(body, dtype=np.uint8).reshape(k, width)
    indices = columns.view("<u4").reshape(k).astype(np.int64)
    if k > 1 and (np.diff(indices) <= 0).any():
        raise WireError(1, "indices are not strictly ascending")
    _check_range(indices, size)
    return indices


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _gaps_to_positions_reference(gaps: I64, size: int) -> tuple[I64, bool]:
    indices: I64 = np.cumsum(gaps + 1) - 1
    is_valid = not len(gaps) or bool(gaps.max() < size and indices[-1] < size)
    return (indices if is_valid else indices[:0]), is_valid


@kernel(_gaps_to_positions_reference)
def _gaps_to_positions(gaps: I64, size: int) -> tuple[I64, bool]:
    """Return the positions [k] of gaps that are not negative, and True; no positions, and False if one is not below `size`."""
    indices = np.empty(gaps.size, dtype=np.int64)
    position = -1
    for i in range(gaps.size):
        if gaps[i] >= size or position + gaps[i] + 1 >= size:
            return indices[:0], False
        position += gaps[i] + 1
        indices[i] = position
    return indices, True
