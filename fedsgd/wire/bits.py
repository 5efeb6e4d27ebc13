"""Bit strings: fixed-width fields of any width, unary numbers, variable-length integers.

Bits are numbered from the least significant bit of the first byte. Unused bits of the last byte are zero.
"""

from __future__ import annotations

import numpy as np

from fedsgd.errors import WireError
from fedsgd.numerics.arrays import I64, U8, U32, U64
from fedsgd.numerics.kernels import jit_helper, kernel

Bytes = bytes | memoryview
_ONE_BYTE = [bytes([value]) for value in range(0x80)]


def n_bytes(n_bits: int) -> int:
    """Return the number of bytes that a bit string occupies.

    Args:
        n_bits: length of the bit string.
    """
    return (n_bits + 7) // 8


def pack(values: I64, widths: I64) -> bytes:
    """Pack the lowest `widths[i]` bits of each `values[i]`, one field after another.

    Args:
        values: [n] int64.
        widths: [n] int64, 0 to 32 bits each.

    >>> pack(np.array([5, 1]), np.array([3, 2])) == bytes([0b01_101])
    True
    """
    n_bits = int(widths.sum())
    return _pack(values, widths, n_bits)[: n_bytes(n_bits)].tobytes()


def unpack(data: Bytes, widths: I64) -> I64:
    """Unpack the fields of `pack`, [n] int64.

    Args:
        data: bytes of the fields, as many as the widths need; the caller checks the number.
        widths: [n] int64, 0 to 32 bits each.
    """
    n_bits = int(widths.sum())
    check_padding(data, n_bits)
    return _unpack(_to_words32(data), widths)


def check_padding(data: Bytes, n_bits: int) -> None:
    """Raise WireError if an unused bit of the last byte is 1.

    Args:
        data: bytes of a bit string.
        n_bits: length of the bit string.
    """
    if n_bits % 8 and data[n_bits // 8] >> n_bits % 8:
        raise WireError(n_bits // 8, "padding bits are not zero")


def pack_unary(values: I64) -> bytes:
    """Encode each value v as v zero bits and a one bit.

    Args:
        values: [n] int64, non-negative.
    """
    n_bits = int(values.sum()) + len(values)
    return _pack_unary(values, n_bits)[: n_bytes(n_bits)].tobytes()


def popcount(data: Bytes) -> int:
    """Return the number of 1 bits.

    Args:
        data: bytes of a bitmap.
    """
    return int(np.bitwise_count(np.frombuffer(data, dtype=np.uint8)).sum(dtype=np.int64))


def find_set_bits(data: Bytes) -> I64:
    """Return the positions of the 1 bits, ascending.

    Args:
        data: bytes of a bitmap.
    """
    return bitmap_positions(_to_words64(data), popcount(data))


def unpack_unary(data: Bytes, count: int) -> I64:
    """Decode the values of `pack_unary`, [count] int64.

    Args:
        data: bytes of the unary numbers alone.
        count: number of values.
    """
    if popcount(data) != count:
        raise WireError(0, f"{popcount(data)} unary numbers, expected {count}")
    ends = bitmap_positions(_to_words64(data), count)
    if n_bytes(int(ends[-1]) + 1 if count else 0) != len(data):
        raise WireError(0, "bytes follow the last unary number")
    return np.diff(ends, prepend=-1) - 1


def pack_varint(value: int) -> bytes:
    """Encode an integer as LEB128: seven bits a byte, lowest first, the high bit set on all bytes but the last.

    Args:
        value: integer, at least 0; `unpack_varint` reads integers below 2³⁵.
    """
    if value < 0x80:
        return _ONE_BYTE[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def unpack_varint(data: Bytes, offset: int) -> tuple[int, int]:
    """Decode an integer of `pack_varint`; return the value and the offset after its last byte.

    Args:
        data: bytes that contain the integer.
        offset: position of the integer's first byte in `data`.
    """
    if offset < len(data) and data[offset] < 0x80:
        return data[offset], offset + 1
    value = 0
    for i in range(5):
        if offset + i >= len(data):
            raise WireError(offset, "the data end within a variable-length integer")
        byte = data[offset + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if i and not byte:
                raise WireError(offset, "a variable-length integer is longer than it needs to be")
            return value, offset + i + 1
    raise WireError(offset, "a variable-length integer is longer than five bytes")


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _to_words32(data: Bytes) -> U32:
    """Return `data` as words of 32 bits and at least one zero word, so that a field can be read across a word's end."""
    padded = np.zeros(len(data) // 4 + 2, dtype="<u4")
    padded.view(np.uint8)[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return padded.astype(np.uint32, copy=False)


def _to_words64(data: Bytes) -> U64:
    padded = np.zeros(len(data) // 8 + 1, dtype="<u8")
    padded.view(np.uint8)[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return padded.astype(np.uint64, copy=False)


def _pack_reference(values: I64, widths: I64, n_bits: int) -> U8:
    places = np.arange(n_bits) - np.repeat(np.cumsum(widths) - widths, widths)
    bits = (np.repeat(values, widths) >> places & 1).astype(np.uint8)
    return np.packbits(bits, bitorder="little")


@kernel(_pack_reference, element_ns=60)
def _pack(values: I64, widths: I64, n_bits: int) -> U8:
    """Return the packed bytes. In the compiled form, eight or nine unused bytes follow."""
    out = np.empty((n_bits >> 3) + 9, dtype=np.uint8)
    buffer, n_buffered, position = np.uint64(0), np.uint64(0), 0
    for i in range(values.size):
        width = np.uint64(widths[i])
        buffer |= (np.uint64(values[i]) & ((np.uint64(1) << width) - np.uint64(1))) << n_buffered
        n_buffered += width
        if n_buffered >= np.uint64(32):
            out[position] = np.uint8(buffer)
            out[position + 1] = np.uint8(buffer >> np.uint64(8))
            out[position + 2] = np.uint8(buffer >> np.uint64(16))
            out[position + 3] = np.uint8(buffer >> np.uint64(24))
            position += 4
            buffer >>= np.uint64(32)
            n_buffered -= np.uint64(32)
    for _ in range(5):
        out[position] = np.uint8(buffer & np.uint64(255))
        buffer >>= np.uint64(8)
        position += 1
    return out


def _unpack_reference(words: U32, widths: I64) -> I64:
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
    starts = np.cumsum(widths) - widths
    n_bits = int(widths.sum())
    terms = bits[:n_bits].astype(np.int64) << np.arange(n_bits) - np.repeat(starts, widths)
    values = np.zeros(len(widths), dtype=np.int64)
    if n_bits:
        values[widths > 0] = np.add.reduceat(terms, starts[widths > 0])
    return values


@kernel(_unpack_reference, element_ns=50)
def _unpack(words: U32, widths: I64) -> I64:
    """Return the fields [n]. At least one word of zeros follows the last field."""
    values = np.empty(widths.size, dtype=np.int64)
    offset = 0
    for i in range(widths.size):
        pair = np.uint64(words[offset >> 5]) | (np.uint64(words[(offset >> 5) + 1]) << np.uint64(32))
        mask = (np.uint64(1) << np.uint64(widths[i])) - np.uint64(1)
        values[i] = np.int64((pair >> np.uint64(offset & 31)) & mask)
        offset += widths[i]
    return values


def _pack_unary_reference(values: I64, n_bits: int) -> U8:
    bits = np.zeros(n_bits, dtype=np.uint8)
    bits[np.cumsum(values + 1) - 1] = 1
    return np.packbits(bits, bitorder="little")


@kernel(_pack_unary_reference)
def _pack_unary(values: I64, n_bits: int) -> U8:
    """Return the packed bytes."""
    out = np.zeros((n_bits + 7) >> 3, dtype=np.uint8)
    position = -1
    for i in range(values.size):
        position += values[i] + 1
        out[position >> 3] |= np.uint8(1 << (position & 7))
    return out


_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_TRAILING_ZEROS = np.zeros(64, dtype=np.int64)
for _i in range(64):
    _TRAILING_ZEROS[((int(_DE_BRUIJN) << _i) & (2**64 - 1)) >> 58] = _i


@jit_helper
def count_trailing_zeros(word: np.uint64) -> int:
    """Return the position of the lowest 1 bit.

    All windows of six bits of a de Bruijn sequence differ (Leiserson, Prokop and Randall 1998).

    Args:
        word: 64 bits, not all zero.
    """
    lowest = word & (~word + np.uint64(1))
    position: int = _TRAILING_ZEROS[(lowest * _DE_BRUIJN) >> np.uint64(58)]
    return position


def _bitmap_positions_reference(words: U64, count: int) -> I64:
    return np.flatnonzero(np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little"))


@kernel(_bitmap_positions_reference, element_ns=300)
def bitmap_positions(words: U64, count: int) -> I64:
    """Return the positions of the 1 bits of a bitmap, ascending.

    Args:
        words: [n] uint64, lowest bit first.
        count: number of 1 bits in the words.
    """
    positions = np.empty(count, dtype=np.int64)
    n = 0
    for i in range(words.size):
        word = words[i]
        while word != np.uint64(0):
            positions[n] = 64 * i + count_trailing_zeros(word)
            n += 1
            word &= word - np.uint64(1)
    return positions
