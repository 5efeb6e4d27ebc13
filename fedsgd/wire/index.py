"""Index sets: k ascending positions below P, coded by the shortest of four codecs.

    section := tag u8, body
    0 Rice    k varint; a 5-bit parameter b for each block of 128 gaps; the low b bits of each gap; the rest in unary
    1 bitmap  P bits
    2 raw     k varint; each index in as few whole bytes as P - 1 needs
    3 absent  as 0, for the positions that are not in the set

A gap is the number of positions skipped. Positions of kept coordinates are close to a Bernoulli process, whose gaps are
geometric, and Rice's code is the optimal code of a geometric source to within a few per cent (Golomb 1966; Rice 1979). A
parameter a block, because real supports cluster by layer. The unary and the fixed bits stand in two streams, which costs
nothing and lets numpy decode without a loop over symbols. Of equal lengths the lowest tag wins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import I64
from fedsgd.errors import WireError
from fedsgd.wire import bits
from fedsgd.wire.frame import Section

Bytes = bytes | memoryview

RICE, BITMAP, RAW, ABSENT = 0, 1, 2, 3
BLOCK = 128
PARAMETER_BITS = 5


def max_index_bytes(size: int) -> int:
    """The longest index section for P = size: the bitmap is always a candidate."""
    return 1 + bits.n_bytes(size)


def encode_indices(indices: I64, size: int) -> bytes:
    """indices: [k], strictly ascending, in [0, size)."""
    gaps = np.diff(indices, prepend=-1) - 1
    absent = np.diff(_others(indices, size), prepend=-1) - 1 if 2 * len(indices) > size else None
    raw_bytes = len(bits.pack_varint(len(gaps))) + _raw_width(size) * len(gaps)
    absent_bytes = max_index_bytes(size) if absent is None else _rice_bytes(absent)
    tag = int(np.argmin([_rice_bytes(gaps), bits.n_bytes(size), raw_bytes, absent_bytes]))
    if tag == BITMAP:
        body = np.packbits(_mask(indices, size), bitorder="little").tobytes()
    elif tag == RAW:
        columns = indices.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : _raw_width(size)]
        body = bits.pack_varint(len(indices)) + columns.tobytes()
    else:
        body = _encode_rice(gaps if tag == RICE or absent is None else absent)
    return bytes([tag]) + body


def decode_indices(section: Section, size: int, max_k: int | None = None) -> I64:
    """Inverse of `encode_indices`; WireError unless the result is strictly ascending, below `size` and at most `max_k` long.

    Nothing is expanded before the section's length has been held against P, and k against max_k and the section's length.
    """
    try:
        return _decode(section.data, size, size if max_k is None else max_k)
    except WireError as error:
        raise WireError(section.offset + error.offset, error.cause) from None


def _decode(data: Bytes, size: int, max_k: int) -> I64:
    if not data:
        raise WireError(0, "an empty index section")
    if len(data) > max_index_bytes(size):
        raise WireError(0, f"an index section of {len(data)} bytes, at most {max_index_bytes(size)} for {size} parameters")
    if data[0] not in (RICE, BITMAP, RAW, ABSENT):
        raise WireError(0, f"unknown index codec {data[0]}")
    kept = count_indices(data, size)
    if not 0 <= kept <= max_k:
        raise WireError(1, f"{kept} indices, expected 0 to {max_k}")
    if data[0] == BITMAP:
        return _decode_bitmap(data[1:], size)
    k, start = bits.unpack_varint(data, 1)
    indices = _decode_raw(data[start:], k, size) if data[0] == RAW else _decode_rice(data[start:], k, size)
    if k and int(indices[-1]) >= size:
        raise WireError(1, f"index {int(indices[-1])} is outside [0, {size})")
    return _others(indices, size) if data[0] == ABSENT else indices


def count_indices(data: Bytes, size: int) -> int:
    """k of a section that `encode_indices` made for P = size, without decoding it."""
    if data[0] == BITMAP:
        return bits.count_ones(data[1:])
    k = bits.unpack_varint(data, 1)[0]
    return size - k if data[0] == ABSENT else k


def _mask(indices: I64, size: int) -> NDArray[np.uint8]:
    mask = np.zeros(size, dtype=np.uint8)
    mask[indices] = 1
    return mask


def _others(indices: I64, size: int) -> I64:
    """The positions below `size` that are not among `indices`."""
    return np.flatnonzero(_mask(indices, size) == 0)


def _blocks(k: int) -> I64:
    """The block of each of k gaps."""
    out: I64 = np.arange(k, dtype=np.int64) // BLOCK
    return out


def _rice_parameters(gaps: I64) -> I64:
    """The parameter of each block that makes it shortest, the lowest of equals. gaps: [k]; returns [ceil(k / 128)]."""
    starts = np.arange(0, len(gaps), BLOCK)
    if not len(starts):
        return starts
    counts = np.diff(starts, append=len(gaps))
    widest = int(gaps.max()).bit_length()
    costs = [counts * (1 + b) + np.add.reduceat(gaps >> b, starts) for b in range(min(widest, 31) + 1)]
    cheapest: I64 = np.argmin(costs, axis=0)
    return cheapest


def _rice_bytes(gaps: I64) -> int:
    parameters = _rice_parameters(gaps)
    widths = parameters[_blocks(len(gaps))]
    streams = [PARAMETER_BITS * len(parameters), int(widths.sum()), int((gaps >> widths).sum()) + len(gaps)]
    return len(bits.pack_varint(len(gaps))) + sum(bits.n_bytes(s) for s in streams)


def _encode_rice(gaps: I64) -> bytes:
    parameters = _rice_parameters(gaps)
    widths = parameters[_blocks(len(gaps))]
    head = bits.pack(parameters, np.full(len(parameters), PARAMETER_BITS, dtype=np.int64))
    return bits.pack_varint(len(gaps)) + head + bits.pack(gaps, widths) + bits.pack_unary(gaps >> widths)


def _decode_rice(body: Bytes, k: int, size: int) -> I64:
    n_blocks = (k + BLOCK - 1) // BLOCK
    head = bits.n_bytes(PARAMETER_BITS * n_blocks)
    if 8 * (len(body) - head) < k:
        raise WireError(1, f"{k} Rice-coded indices cannot stand in {len(body)} bytes")
    widths = bits.unpack(body[:head], np.full(n_blocks, PARAMETER_BITS, dtype=np.int64))[_blocks(k)]
    fixed = bits.n_bytes(int(widths.sum()))
    if len(body) < head + fixed:
        raise WireError(1, f"the fixed bits need {fixed} bytes, {len(body) - head} are left")
    quotients = bits.unpack_unary(body[head + fixed :], k)
    if (quotients > (size >> widths)).any():
        raise WireError(1, "a gap is larger than the model")
    gaps = (quotients << widths) | bits.unpack(body[head : head + fixed], widths)
    indices: I64 = np.cumsum(gaps + 1) - 1
    return indices


def _decode_bitmap(body: Bytes, size: int) -> I64:
    if len(body) != bits.n_bytes(size):
        raise WireError(1, f"a bitmap of {len(body)} bytes, expected {bits.n_bytes(size)}")
    ones = np.flatnonzero(np.unpackbits(np.frombuffer(body, dtype=np.uint8), bitorder="little"))
    if len(ones) and int(ones[-1]) >= size:
        raise WireError(1, f"index {int(ones[-1])} is outside [0, {size})")
    return ones


def _raw_width(size: int) -> int:
    return max(1, bits.n_bytes((size - 1).bit_length()))


def _decode_raw(body: Bytes, k: int, size: int) -> I64:
    width = _raw_width(size)
    if len(body) != k * width:
        raise WireError(1, f"{len(body)} bytes for {k} indices of {width} bytes")
    columns = np.zeros((k, 4), dtype=np.uint8)
    columns[:, :width] = np.frombuffer(body, dtype=np.uint8).reshape(k, width)
    indices = columns.view("<u4").reshape(k).astype(np.int64)
    if k > 1 and (np.diff(indices) <= 0).any():
        raise WireError(1, "indices are not strictly ascending")
    return indices
