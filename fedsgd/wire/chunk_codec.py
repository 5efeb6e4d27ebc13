"""Codec of positions in chunks: some positions in each of consecutive chunks of a vector.

A range coder (Martin 1979; with carry) codes one decision for each coordinate: sent, or not sent. The decision has the exact
probability of a uniform draw without replacement. So a set of k of n coordinates takes log₂C(n, k) bits, whatever the set is,
and less than one byte is added for all chunks together. All arithmetic is in integers. `wire-format-values.md` describes the
bytes. There is one code for each set of positions: a decoder rejects all others.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor
from typing import NamedTuple

import numpy as np

from fedsgd.errors import WireError, shift_offset
from fedsgd.numerics.arrays import I64, U8
from fedsgd.numerics.binomial import log2_choose
from fedsgd.numerics.kernels import kernel
from fedsgd.system.profiling import timed
from fedsgd.wire import bits, gap_codec
from fedsgd.wire.bits import Bytes
from fedsgd.wire.frame import Section

FULL, COUNTED = range(2)
MAX_CHUNK = 2**16
"""Maximum length of a chunk. It is 2⁸ times less than MIN_SPAN, so a probability is exact up to a share of 2⁻⁸."""
MIN_SPAN, INITIAL_SPAN = 2**24, 2**32
LENGTH_TOLERANCE = 0.01
"""Bound of the relative difference between the code's length and log₂C(n, k)."""
AHEAD = 3
"""Bytes that a decoder reads after the end of the code; they count as zeros."""


class Chunks(NamedTuple):
    """Division of a vector into consecutive chunks.

    Attributes:
        size: P.
        length: coordinates of a chunk; the last one may be shorter. At most P, and at most MAX_CHUNK.
        k: maximum number of positions in a chunk.
        last_k: maximum number of positions in the last chunk.
    """

    size: int
    length: int
    k: int
    last_k: int

    @classmethod
    def divide(cls, size: int, length: int, choose_k: Callable[[int], int]) -> Chunks:
        """Return the division of a vector into consecutive chunks, of which the last one may be shorter.

        Args:
            size: P.
            length: coordinates of a chunk; P if it is larger.
            choose_k: function of the coordinates of a chunk that returns its maximum number of positions.
        """
        length = min(length, size)
        return cls(size, length, choose_k(length), choose_k(size - (size - 1) // length * length))

    @property
    def n_chunks(self) -> int:
        """C, number of chunks."""
        return -(-self.size // self.length)

    @property
    def last_length(self) -> int:
        """Coordinates of the last chunk."""
        return self.size - (self.n_chunks - 1) * self.length

    @property
    def max_k(self) -> int:
        """Maximum number of positions in all chunks."""
        return (self.n_chunks - 1) * self.k + self.last_k

    def list_limits(self) -> I64:
        """Return the maximum number of positions in each chunk, [C] int64."""
        limits = np.full(self.n_chunks, self.k, dtype=np.int64)
        limits[-1] = self.last_k
        return limits


def max_chunk_index_bytes(chunks: Chunks) -> int:
    """Return the maximum length of an index section of chunks in bytes.

    Args:
        chunks: division of the vector.
    """
    widest = (chunks.n_chunks - 1) * log2_choose(chunks.length, min(chunks.k, chunks.length // 2))
    widest += log2_choose(chunks.last_length, min(chunks.last_k, chunks.last_length // 2))
    count_bits = chunks.n_chunks * (1 + max(chunks.k, chunks.last_k).bit_length())
    n_blocks = -(-chunks.n_chunks // gap_codec.GAPS_PER_BLOCK)
    count_bytes = 5 + bits.n_bytes(count_bits) + bits.n_bytes(gap_codec.PARAMETER_BITS * n_blocks) + 2
    return 1 + count_bytes + _max_stream_bytes(widest)


@timed("encode")
def encode_chunk_indices(positions: I64, counts: I64, chunks: Chunks) -> bytes:
    """Encode positions in chunks as the data of an INDEX section.

    Args:
        positions: [k] int64, strictly ascending, in [0, P).
        counts: [C] int64, number of positions in each chunk, at most its limit.
        chunks: division of the vector.

    >>> chunks = Chunks(size=8192, length=4096, k=2, last_k=2)
    >>> data = encode_chunk_indices(np.array([3, 40, 5000, 8000]), np.array([2, 2]), chunks)
    >>> data[0] == FULL, len(data), count_chunk_indices(data, chunks)
    (True, 7, 4)
    """
    deficits = chunks.list_limits() - counts
    head = bytes([FULL])
    if deficits.any():
        code = _encode_deficits(deficits)
        head = bytes([COUNTED]) + bits.pack_varint(len(code)) + code
    return head + _encode_decisions(positions, counts, chunks.length, chunks.size).tobytes()


@timed("decode")
def decode_chunk_indices(section: Section, chunks: Chunks) -> tuple[I64, I64]:
    """Decode the positions, [k] int64, strictly ascending, and the counts, [C] int64, of `encode_chunk_indices`.

    Before memory for the positions is allocated, counts are compared with the limits, and the code's length with the counts.

    Args:
        section: an INDEX section.
        chunks: division of the vector.
    """
    with shift_offset(section.offset):
        counts, start = _decode_counts(section.data, chunks)
        code = np.frombuffer(section.data, dtype=np.uint8, offset=start)
        n_bits = _sum_log2_binomials(counts, chunks)
        minimum, maximum = max(1, floor((1 - LENGTH_TOLERANCE) * n_bits / 8) - 1), _max_stream_bytes(n_bits)
        if not minimum <= len(code) <= maximum:
            raise WireError(start, f"{len(code)} bytes of positions, expected {minimum} to {maximum}")
        positions, is_valid = _decode_decisions(code, counts, chunks.length, chunks.size)
        if not is_valid:
            raise WireError(start, f"the code does not end with the {int(counts.sum())} positions")
        return positions, counts


def count_chunk_indices(data: Bytes, chunks: Chunks) -> int:
    """Return the number of encoded positions without decoding the positions.

    Args:
        data: data of an INDEX section, not empty.
        chunks: division of the vector.
    """
    return chunks.max_k if data[0] == FULL else int(_decode_counts(data, chunks)[0].sum())


def _encode_deficits(deficits: I64) -> bytes:
    return gap_codec.encode_rice(deficits, gap_codec.choose_rice_parameters(deficits)[0])


def _decode_counts(data: Bytes, chunks: Chunks) -> tuple[I64, int]:
    """Return the number of positions in each chunk [C], and the offset of the code of the positions."""
    if not data:
        raise WireError(0, "the index section is empty")
    if data[0] > COUNTED:
        raise WireError(0, f"tag {data[0]} of the index section is unknown")
    limits = chunks.list_limits()
    if data[0] == FULL:
        return limits, 1
    n_bytes, start = bits.unpack_varint(data, 1)
    if n_bytes > len(data) - start:
        raise WireError(start, f"{len(data) - start} bytes of counts and positions, expected {n_bytes} bytes of counts alone")
    with shift_offset(start):
        deficits = gap_codec.decode_rice(data[start : start + n_bytes], chunks.n_chunks)
    if not deficits.any():
        raise WireError(0, "the counts of all chunks are full, expected tag 0")
    if _encode_deficits(deficits) != bytes(data[start : start + n_bytes]):
        raise WireError(start, "the counts are not in their shortest code")
    if (deficits > limits).any():
        chunk = int((deficits > limits).argmax())
        raise WireError(start, f"chunk {chunk} lacks {int(deficits[chunk])} of {int(limits[chunk])} positions")
    return limits - deficits, start + n_bytes


def _sum_log2_binomials(counts: I64, chunks: Chunks) -> float:
    """Return the sum of log₂C(n, k) over the chunks, with k = counts [C]."""
    values, numbers = np.unique(counts[:-1], return_counts=True)
    pairs = zip(values.tolist(), numbers.tolist(), strict=True)
    whole = float(sum(m * log2_choose(chunks.length, k) for k, m in pairs))
    return whole + log2_choose(chunks.last_length, int(counts[-1]))


def _max_stream_bytes(n_bits: float) -> int:
    return ceil((1 + LENGTH_TOLERANCE) * n_bits / 8) + 2


# ---------------------------------------------------------------------------------------------------------------- the kernels

# With k of n coordinates still to come, the rarer of "sent" and "not sent" gets ⌊span / n⌋ · min(k, n − k) at the upper end of
# the interval [low, low + span), "sent" if both are equally likely. The rest is for the other decision.


def _encode_decisions_reference(positions: I64, counts: I64, length: int, size: int) -> U8:
    sent = {*positions.tolist()}
    low, span, n_bytes = 0, INITIAL_SPAN, 1
    for chunk, k in enumerate(counts.tolist()):
        first, end = chunk * length, min(chunk * length + length, size)
        for position in range(first, end):
            n = end - position
            if k in (0, n):
                break
            is_sent = position in sent
            rare_span = span // n * min(k, n - k)
            if is_sent == (2 * k <= n):
                low, span = low + span - rare_span, rare_span
            else:
                span -= rare_span
            k -= is_sent
            while span < MIN_SPAN:
                low, span, n_bytes = low << 8, span << 8, n_bytes + 1
    return np.frombuffer((-(-low // MIN_SPAN)).to_bytes(n_bytes, "big"), dtype=np.uint8)


@kernel(_encode_decisions_reference, lambda positions, counts, length, size: size, element_ns=300)
def _encode_decisions(positions: I64, counts: I64, length: int, size: int) -> U8:
    """Return the code of the positions [k]; `counts` [C] has the number of positions in each chunk."""
    out = np.empty(size // 7 + 16, dtype=np.uint8)
    n_bytes, i = 0, 0
    low, span = np.int64(0), np.int64(INITIAL_SPAN)
    for chunk in range(counts.size):
        position, k = np.int64(chunk * length), counts[chunk]
        n = min(np.int64(length), np.int64(size - position))
        while 0 < k < n:
            is_sent = positions[i] == position
            rare_span = np.int64(np.uint64(span) // np.uint64(n)) * min(k, n - k)
            if is_sent == (2 * k <= n):
                low += span - rare_span
                span = rare_span
                if low >= INITIAL_SPAN:
                    low -= INITIAL_SPAN
                    carry = n_bytes - 1
                    while out[carry] == 255:
                        out[carry] = np.uint8(0)
                        carry -= 1
                    out[carry] += np.uint8(1)
            else:
                span -= rare_span
            k -= np.int64(is_sent)
            i += int(is_sent)
            position += 1
            n -= 1
            while span < MIN_SPAN:
                out[n_bytes] = np.uint8(low >> 24)
                n_bytes += 1
                low = (low << 8) & np.int64(0xFFFFFFFF)
                span <<= 8
        i += k
    last = (low + MIN_SPAN - 1) >> 24
    if last == 256:
        carry = n_bytes - 1
        while out[carry] == 255:
            out[carry] = np.uint8(0)
            carry -= 1
        out[carry] += np.uint8(1)
    out[n_bytes] = np.uint8(last & 255)
    return out[: n_bytes + 1]


def _decode_decisions_reference(code: U8, counts: I64, length: int, size: int) -> tuple[I64, bool]:
    data = code.tobytes() + bytes(AHEAD)
    offset, span = 4, INITIAL_SPAN
    value = int.from_bytes(data[:offset], "big")
    positions: list[int] = []
    for chunk, k in enumerate(counts.tolist()):
        first, end = chunk * length, min(chunk * length + length, size)
        for position in range(first, end):
            n = end - position
            if k in (0, n):
                positions += range(position, position + k)
                break
            rare_span = span // n * min(k, n - k)
            is_rare = value >= span - rare_span
            value, span = (value - span + rare_span, rare_span) if is_rare else (value, span - rare_span)
            if is_rare == (2 * k <= n):
                positions.append(position)
                k -= 1
            while span < MIN_SPAN:
                if offset >= len(data):
                    return np.zeros(0, dtype=np.int64), False
                value, span, offset = value << 8 | data[offset], span << 8, offset + 1
    is_valid = offset == len(data) and value < MIN_SPAN
    return np.array(positions if is_valid else [], dtype=np.int64), is_valid


@kernel(_decode_decisions_reference, lambda code, counts, length, size: size, element_ns=300)
def _decode_decisions(code: U8, counts: I64, length: int, size: int) -> tuple[I64, bool]:
    """Return the positions [k] of a code of at least one byte, and True; no positions, and False if the code is malformed."""
    positions = np.empty(counts.sum(), dtype=np.int64)
    i, offset = 0, 4
    value, span = np.int64(0), np.int64(INITIAL_SPAN)
    for j in range(4):
        value = value << 8 | (np.int64(code[j]) if j < code.size else 0)
    for chunk in range(counts.size):
        position, k = np.int64(chunk * length), counts[chunk]
        n = min(np.int64(length), np.int64(size - position))
        while 0 < k < n:
            rare_span = np.int64(np.uint64(span) // np.uint64(n)) * min(k, n - k)
            is_rare = value >= span - rare_span
            if is_rare:
                value -= span - rare_span
                span = rare_span
            else:
                span -= rare_span
            if is_rare == (2 * k <= n):
                positions[i] = position
                i += 1
                k -= 1
            position += 1
            n -= 1
            while span < MIN_SPAN:
                if offset >= code.size + AHEAD:
                    return positions[:0], False
                value = value << 8 | (np.int64(code[offset]) if offset < code.size else 0)
                offset += 1
                span <<= 8
        for _ in range(k):
            positions[i] = position
            position += 1
            i += 1
    if offset != code.size + AHEAD or value >= MIN_SPAN:
        return positions[:0], False
    return positions, True
