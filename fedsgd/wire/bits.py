"""Bit strings in numpy: fixed-width fields of any width, unary numbers, variable-length integers.

Bits are numbered from the least significant of the first byte. Whole arrays at a time: no loop over symbols.
"""

from __future__ import annotations

import numpy as np

from fedsgd.arrays import I64
from fedsgd.errors import WireError

Bytes = bytes | memoryview


def n_bytes(n_bits: int) -> int:
    """Bytes that hold `n_bits` bits."""
    return (n_bits + 7) // 8


def pack(values: I64, widths: I64) -> bytes:
    """The lowest `widths[i]` bits of each `values[i]`, one field after the other. values, widths: [n]."""
    offsets = np.cumsum(widths) - widths
    bits = np.zeros(int(widths.sum()), dtype=np.uint8)
    for j in range(int(widths.max(initial=0))):
        wide = widths > j
        bits[offsets[wide] + j] = (values[wide] >> j) & 1
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(data: Bytes, widths: I64) -> I64:
    """Inverse of `pack`; `data` is exactly as long as the widths ask for, padded with zero bits."""
    n_bits = int(widths.sum())
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    if bits[n_bits:].any():
        raise WireError(0, "padding bits are not zero")
    offsets = np.cumsum(widths) - widths
    values = np.zeros(len(widths), dtype=np.int64)
    for j in range(int(widths.max(initial=0))):
        wide = widths > j
        values[wide] |= bits[offsets[wide] + j].astype(np.int64) << j
    return values


def pack_unary(values: I64) -> bytes:
    """Each value as that many 0 bits and a 1. values: [n], non-negative."""
    ends = np.cumsum(values + 1)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    bits[ends - 1] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def count_ones(data: Bytes) -> int:
    """The number of 1 bits."""
    return int(np.bitwise_count(np.frombuffer(data, dtype=np.uint8)).sum(dtype=np.int64))


def unpack_unary(data: Bytes, count: int) -> I64:
    """Inverse of `pack_unary` for `count` values; the last 1 must stand in the last byte."""
    if count_ones(data) != count:
        raise WireError(0, f"{count_ones(data)} unary numbers, expected {count}")
    ones = np.flatnonzero(np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little"))
    if n_bytes(int(ones[-1]) + 1 if count else 0) != len(data):
        raise WireError(0, "bytes after the last unary number")
    out: I64 = np.diff(ones, prepend=-1) - 1
    return out


def pack_varint(value: int) -> bytes:
    """LEB128: seven bits a byte, lowest first, the high bit set on all bytes but the last."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def unpack_varint(data: Bytes, offset: int) -> tuple[int, int]:
    """(value, offset behind it); at most five bytes, the shortest form only."""
    value = 0
    for i in range(5):
        if offset + i >= len(data):
            raise WireError(offset, "the section ends within a variable-length integer")
        byte = data[offset + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if i and not byte:
                raise WireError(offset, "a variable-length integer is longer than it needs to be")
            return value, offset + i + 1
    raise WireError(offset, "a variable-length integer is longer than five bytes")
