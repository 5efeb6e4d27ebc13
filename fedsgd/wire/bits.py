"""Bit strings: fixed-width fields of any width, unary numbers, variable-length integers.

Bits are numbered from the least significant of the first byte; what is left of the last byte is zero.
"""

from __future__ import annotations

import numpy as np

from fedsgd.errors import WireError
from fedsgd.numerics.arrays import I64, U8, U32, U64
from fedsgd.numerics.kernels import jit_helper, kernel

Bytes = bytes | memoryview


def n_bytes(n_bits: int) -> int:
    """Bytes that hold `n_bits` bits."""
    return (n_bits + 7) // 8


def pack(values: I64, widths: I64) -> bytes:
    """The lowest `widths[i]` bits of each `values[i]`, one field after the other. values, widths: [n]; widths at most 32."""
    n_bits = int(widths.sum())
    return _pack(values, widths, n_bits)[: n_bytes(n_bits)].tobytes()


def unpack(data: Bytes, widths: I64) -> I64:
    """Inverse of `pack`; `data` is exactly as long as the widths ask for, padded with zero bits."""
    n_bits = int(widths.sum())
    check_padding(data, n_bits)
    return _unpack(_to_words32(data), widths)


def check_padding(data: Bytes, n_bits: int) -> None:
    """WireError unless the bits of the last byte behind the first `n_bits` of `data` are zero."""
    if n_bits % 8 and data[n_bits // 8] >> n_bits % 8:
        raise WireError(n_bits // 8, "padding bits are not zero")


def pack_unary(values: I64) -> bytes:
    """Each value as that many 0 bits and a 1. values: [n], non-negative."""
    n_bits = int(values.sum()) + len(values)
    return _pack_unary(values, n_bits)[: n_bytes(n_bits)].tobytes()


def popcount(data: Bytes) -> int:
    """The number of 1 bits."""
    return int(np.bitwise_count(np.frombuffer(data, dtype=np.uint8)).sum(dtype=np.int64))


def find_set_bits(data: Bytes) -> I64:
    """The positions of the 1 bits, ascending."""
    return bitmap_positions(_to_words64(data), popcount(data))


def unpack_unary(data: Bytes, count: int) -> I64:
    """Inverse of `pack_unary` for `count` values; the last 1 must stand in the last byte."""
    if popcount(data) != count:
        raise WireError(0, f"{popcount(data)} unary numbers, expected {count}")
    ends = bitmap_positions(_to_words64(data), count)
    if n_bytes(int(ends[-1]) + 1 if count else 0) != len(data):
        raise WireError(0, "bytes after the last unary number")
    out: I64 = np.diff(ends, prepend=-1) - 1
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


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _to_words32(data: Bytes) -> U32:
    """`data` as words of 32 bits, and at least one of zeros behind it, so that a field can be read across a word's end."""
    padded = np.zeros(len(data) // 4 + 2, dtype="<u4")
    padded.view(np.uint8)[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return padded.astype(np.uint32, copy=False)


def _to_words64(data: Bytes) -> U64:
    padded = np.zeros(len(data) // 8 + 1, dtype="<u8")
    padded.view(np.uint8)[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return padded.astype(np.uint64, copy=False)


def _pack_reference(values: I64, widths: I64, n_bits: int) -> U8:
    offsets = np.cumsum(widths) - widths
    bits = np.zeros(n_bits, dtype=np.uint8)
    for j in range(int(widths.max(initial=0))):
        wide = widths > j
        bits[offsets[wide] + j] = (values[wide] >> j) & 1
    return np.packbits(bits, bitorder="little")


@kernel(_pack_reference)
def _pack(values: I64, widths: I64, n_bits: int) -> U8:
    """The packed bytes, and perhaps some more behind them."""
    out = np.empty((n_bits >> 3) + 9, dtype=np.uint8)
    waiting, n_waiting, at = np.uint64(0), np.uint64(0), 0
    for i in range(values.size):
        width = np.uint64(widths[i])
        waiting |= (np.uint64(values[i]) & ((np.uint64(1) << width) - np.uint64(1))) << n_waiting
        n_waiting += width
        if n_waiting >= np.uint64(32):
            out[at] = np.uint8(waiting)
            out[at + 1] = np.uint8(waiting >> np.uint64(8))
            out[at + 2] = np.uint8(waiting >> np.uint64(16))
            out[at + 3] = np.uint8(waiting >> np.uint64(24))
            at += 4
            waiting >>= np.uint64(32)
            n_waiting -= np.uint64(32)
    for _ in range(5):
        out[at] = np.uint8(waiting & np.uint64(255))
        waiting >>= np.uint64(8)
        at += 1
    return out


def _unpack_reference(words: U32, widths: I64) -> I64:
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
    offsets = np.cumsum(widths) - widths
    values = np.zeros(len(widths), dtype=np.int64)
    for j in range(int(widths.max(initial=0))):
        wide = widths > j
        values[wide] |= bits[offsets[wide] + j].astype(np.int64) << j
    return values


@kernel(_unpack_reference)
def _unpack(words: U32, widths: I64) -> I64:
    """The fields, `words` being longer than their widths' sum by a word."""
    values = np.empty(widths.size, dtype=np.int64)
    at = 0
    for i in range(widths.size):
        both = np.uint64(words[at >> 5]) | (np.uint64(words[(at >> 5) + 1]) << np.uint64(32))
        mask = (np.uint64(1) << np.uint64(widths[i])) - np.uint64(1)
        values[i] = np.int64((both >> np.uint64(at & 31)) & mask)
        at += widths[i]
    return values


def _pack_unary_reference(values: I64, n_bits: int) -> U8:
    bits = np.zeros(n_bits, dtype=np.uint8)
    bits[np.cumsum(values + 1) - 1] = 1
    return np.packbits(bits, bitorder="little")


@kernel(_pack_unary_reference)
def _pack_unary(values: I64, n_bits: int) -> U8:
    """The packed bytes."""
    out = np.zeros((n_bits + 7) >> 3, dtype=np.uint8)
    at = -1
    for i in range(values.size):
        at += values[i] + 1
        out[at >> 3] |= np.uint8(1 << (at & 7))
    return out


_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_TRAILING_ZEROS = np.zeros(64, dtype=np.int64)
for _i in range(64):
    _TRAILING_ZEROS[((int(_DE_BRUIJN) << _i) & (2**64 - 1)) >> 58] = _i


@jit_helper
def count_trailing_zeros(word: np.uint64) -> int:
    """The position of the lowest 1 bit of a word that is not 0: every window of six bits of a de Bruijn sequence is another
    (Leiserson, Prokop and Randall 1998)."""
    lowest = word & (~word + np.uint64(1))
    place: int = _TRAILING_ZEROS[(lowest * _DE_BRUIJN) >> np.uint64(58)]
    return place


def _bitmap_positions_reference(words: U64, count: int) -> I64:
    return np.flatnonzero(np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little"))


@kernel(_bitmap_positions_reference)
def bitmap_positions(words: U64, count: int) -> I64:
    """Where the `count` 1 bits of a bitmap stand, ascending."""
    positions = np.empty(count, dtype=np.int64)
    at = 0
    for i in range(words.size):
        word = words[i]
        while word != np.uint64(0):
            positions[at] = 64 * i + count_trailing_zeros(word)
            at += 1
            word &= word - np.uint64(1)
    return positions
