"""Entropy code of 8-bit symbols: a static range asymmetric numeral system (rANS; Duda 2009, arXiv 0902.0271).

`docs/reference/wire-format.md` describes the bytes: symbols(n). Mode 0 is plain, mode 1 is rANS with T = 4096, mode 2 ("fine")
with T = 32768.

Symbol i belongs to state i mod 4 (interleaving: Giesen, arXiv 1402.3392). A decoder begins with the four encoded states. A
state x decodes to the symbol whose cumulative-frequency range [c, c + f) contains x mod T. The new state is:

    x ← f · ⌊x / T⌋ + (x mod T) − c;   if x < 2¹⁵: x ← 2¹⁶ · x + the next word

A stream is valid if, after n symbols, every state is 2¹⁵ and all words are read. The encoder uses the mode with the shortest
result of those that it tries; ties go to the lowest mode. Mode 2 is tried only with `frequency_bits` = 15.

Bits: within a fraction of a per cent of the entropy where no symbol is rarer than 1/T. A rarer symbol still has the frequency
1/T, and the other symbols cost more. A million symbols, 99.9 % equal and forty others, take 1.6 times their entropy in mode 1.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from fedsgd.errors import WireError
from fedsgd.numerics.arrays import I64, U8
from fedsgd.numerics.kernels import jit_helper, kernel
from fedsgd.wire import bits, rans_kernels
from fedsgd.wire.bits import Bytes
from fedsgd.wire.rans_kernels import LANES, MIN_STATE

PLAIN = 0
SCALE_BITS = {1: 12, 2: 15}
"""log₂ T of each mode of rANS. The smallest state is 2¹⁵, so T may not be larger."""
MIN_SYMBOLS_TO_ESTIMATE = 4096
"""Smallest number of symbols for which the length of the code is estimated before it is computed."""
MIN_SYMBOLS_TO_CODE = 32
"""Smallest number of symbols for which rANS is tried. With fewer, table and states usually cost more than the code saves."""


def max_symbol_bytes(n: int) -> int:
    """Return the maximum length of encoded symbols in bytes.

    Args:
        n: number of symbols.
    """
    return 1 + n


def encode_symbols(symbols: U8, entropy: bool = True, frequency_bits: int = 12) -> bytes:
    """Encode symbols in the mode with the shortest result; fewer than `MIN_SYMBOLS_TO_CODE` symbols stay plain.

    Args:
        symbols: [n] uint8.
        entropy: False to leave the symbols plain.
        frequency_bits: maximum log₂ T of rANS to try, 12 or 15.
    """
    candidates = []
    if entropy and frequency_bits == SCALE_BITS[1] and MIN_SYMBOLS_TO_CODE <= len(symbols) < MIN_SYMBOLS_TO_ESTIMATE:
        candidates = [encode_short(symbols).tobytes()]
    elif entropy and len(symbols) >= MIN_SYMBOLS_TO_CODE:
        counts = rans_kernels.histogram(symbols)
        modes = [mode for mode, scale_bits in SCALE_BITS.items() if scale_bits <= frequency_bits]
        candidates = [_encode_mode(symbols, counts, mode) for mode in modes]
    shortest = min(filter(None, candidates), key=len, default=b"")
    return shortest or b"".join((bytes([PLAIN]), np.ascontiguousarray(symbols).data))


def _encode_mode(symbols: U8, counts: I64, mode: int) -> bytes:
    """Encode symbols in a mode of rANS; return no bytes if the result is not shorter than the plain form."""
    scale_bits = SCALE_BITS[mode]
    frequencies = rans_kernels.normalise_frequencies(counts, scale_bits)
    if len(symbols) >= MIN_SYMBOLS_TO_ESTIMATE and _estimate_bits(counts, frequencies, scale_bits) >= 8 * len(symbols):
        return b""
    table = _pack_table(frequencies)
    words, states = rans_kernels.encode(symbols, frequencies, scale_bits)
    code = bytes([mode]) + table + states.astype("<u4").tobytes() + words.astype("<u2").tobytes()
    return code if len(code) <= len(symbols) else b""


def _estimate_bits(counts: I64, frequencies: I64, scale_bits: int) -> int:
    """Estimate the bits of the encoded symbols from the cost of each symbol."""
    alphabet = np.flatnonzero(counts)
    costs = [_symbol_cost(f, scale_bits) for f in frequencies[alphabet].tolist()]
    return int(counts[alphabet] @ np.array(costs)) // 256


@cache
def _symbol_cost(frequency: int, scale_bits: int) -> int:
    """Return ⌈256 log₂(T / frequency)⌉, computed in integers so that the bytes do not depend on a library's logarithm."""
    return int((pow(1 << scale_bits, 256) - 1) // pow(frequency, 256)).bit_length()


def decode_symbols(data: Bytes, n: int) -> U8:
    """Decode the symbols of `encode_symbols`, [n] uint8.

    Args:
        data: bytes of the symbols alone.
        n: number of symbols.

    >>> code = encode_symbols(np.repeat(np.array([7, 9], dtype=np.uint8), [900, 100]))
    >>> len(code) < 1000 / 8, decode_symbols(code, 1000)[899:901].tolist()
    (True, [7, 9])
    """
    if not data or data[0] not in (PLAIN, *SCALE_BITS):
        raise WireError(0, f"mode {data[0]} of the symbol stream is unknown" if data else "the symbol stream is empty")
    if data[0] == PLAIN:
        if len(data) != 1 + n:
            raise WireError(0, f"{len(data) - 1} plain symbols, expected {n}")
        return np.frombuffer(data, dtype=np.uint8, offset=1)
    scale_bits = SCALE_BITS[data[0]]
    symbols, is_valid = _decode_stream(np.frombuffer(data, dtype=np.uint8), scale_bits, n)
    return symbols if is_valid else _decode_in_steps(data, scale_bits, n)


def _decode_in_steps(data: Bytes, scale_bits: int, n: int) -> U8:
    """Decode symbols in a mode of rANS; raise WireError for the first step that finds a fault."""
    frequencies, offset = _unpack_table(data, 1, scale_bits)
    body = np.frombuffer(data, dtype=np.uint8, offset=offset)
    if len(body) < 4 * LANES or len(body) % 2:
        raise WireError(offset, f"{len(body)} bytes of states and words, expected an even number from {4 * LANES} on")
    states = body[: 4 * LANES].copy().view("<u4").astype(np.uint64)
    if not ((states >= MIN_STATE) & (states < MIN_STATE << 16)).all():
        raise WireError(offset, "a state is outside its range")
    words = body[4 * LANES :].copy().view("<u2").astype(np.uint16)
    symbols, is_valid = rans_kernels.decode(words, states, frequencies, scale_bits, n)
    if not is_valid:
        raise WireError(offset, f"the stream does not end after {n} symbols")
    return symbols


# ------------------------------------------------------------------------------------------------------------------ the model


def _pack_table(frequencies: I64) -> bytes:
    alphabet = np.flatnonzero(frequencies)
    lowest, highest = int(alphabet[0]), int(alphabet[-1])
    return bytes([lowest, highest]) + b"".join(bits.pack_varint(int(f)) for f in frequencies[lowest:highest])


def _unpack_table(data: Bytes, offset: int, scale_bits: int) -> tuple[I64, int]:
    """Return the frequencies [256] and the offset after the table."""
    if len(data) < offset + 2 or data[offset] > data[offset + 1]:
        raise WireError(offset, "the frequency table has no range of symbols")
    frequencies = np.zeros(256, dtype=np.int64)
    lowest, highest = data[offset], data[offset + 1]
    offset += 2
    for symbol in range(lowest, highest):
        frequencies[symbol], offset = bits.unpack_varint(data, offset)
    total = 1 << scale_bits
    frequencies[highest] = total - int(frequencies.sum())
    if not frequencies[lowest] > 0 or not frequencies[highest] > 0:
        raise WireError(offset, f"the frequencies do not add up to {total}, or an end of the range has the frequency 0")
    return frequencies, offset


# ---------------------------------------------------------------------------------------------------------------- the kernels

# Each makes all steps of a code in one call, because a call from Python takes longer than a step of a short code.

_normalise_frequencies_loop = jit_helper(rans_kernels.normalise_frequencies.loop)
_encode_loop = jit_helper(rans_kernels.encode.loop)
_decode_loop = jit_helper(rans_kernels.decode.loop)


def _encode_short_reference(symbols: U8) -> U8:
    return np.frombuffer(_encode_mode(symbols, rans_kernels.histogram(symbols), 1), dtype=np.uint8)


@kernel(_encode_short_reference, element_ns=0)
def encode_short(symbols: U8) -> U8:
    """Return the bytes of encoded symbols in mode 1; none if they are more than the symbols.

    Args:
        symbols: [n] uint8, at least one symbol.
    """
    counts = np.zeros(256, dtype=np.int64)
    for i in range(symbols.size):
        counts[symbols[i]] += 1
    frequencies = _normalise_frequencies_loop(counts, 12)
    words, states = _encode_loop(symbols, frequencies, 12)
    lowest, highest = 0, 255
    while frequencies[lowest] == 0:
        lowest += 1
    while frequencies[highest] == 0:
        highest -= 1
    out = np.empty(3 + 2 * 256 + 16 + 2 * words.size, dtype=np.uint8)
    out[0], out[1], out[2] = np.uint8(1), np.uint8(lowest), np.uint8(highest)
    n = 3
    for s in range(lowest, highest):  # a frequency of at most 4096 has one or two bytes
        frequency = frequencies[s]
        if frequency >= 128:
            out[n] = np.uint8(frequency & 127 | 128)
            n += 1
            frequency >>= 7
        out[n] = np.uint8(frequency)
        n += 1
    for lane in range(4):
        for byte in range(4):
            out[n] = np.uint8(states[lane] >> np.uint32(8 * byte) & np.uint32(255))
            n += 1
    for i in range(words.size):
        out[n] = np.uint8(words[i] & np.uint16(255))
        out[n + 1] = np.uint8(words[i] >> np.uint16(8))
        n += 2
    return out[:n] if n <= symbols.size else out[:0]


def _decode_stream_reference(data: U8, scale_bits: int, n: int) -> tuple[U8, bool]:
    try:
        return _decode_in_steps(data.tobytes(), scale_bits, n), True
    except WireError:
        return np.zeros(0, dtype=np.uint8), False


@kernel(_decode_stream_reference, lambda data, scale_bits, n: n, element_ns=0)
def _decode_stream(data: U8, scale_bits: int, n: int) -> tuple[U8, bool]:
    """Return the symbols [n] of encoded symbols in a mode of rANS, and True if they are valid; else any symbols, and False."""
    invalid = np.zeros(0, dtype=np.uint8), False
    total, end = np.int64(1) << scale_bits, data.size
    if end < 3 or data[1] > data[2]:
        return invalid
    lowest, highest = np.int64(data[1]), np.int64(data[2])
    frequencies = np.zeros(256, dtype=np.int64)
    position, remaining = 3, total
    for s in range(lowest, highest):
        frequency, shift = np.int64(0), 0
        while True:
            if position >= end or shift > 14:  # 2^15, the largest sum, has three bytes
                return invalid
            byte = np.int64(data[position])
            position += 1
            frequency |= (byte & 127) << shift
            if byte < 128:
                if shift > 0 and byte == 0:
                    return invalid
                break
            shift += 7
        frequencies[s] = frequency
        remaining -= frequency
    frequencies[highest] = remaining
    n_bytes = end - position
    if frequencies[lowest] <= 0 or remaining <= 0 or n_bytes < 16 or n_bytes % 2:
        return invalid
    states = np.zeros(4, dtype=np.uint64)
    for lane in range(4):
        for byte_index in range(4):
            states[lane] |= np.uint64(data[position]) << np.uint64(8 * byte_index)
            position += 1
        if states[lane] < np.uint64(1 << 15) or states[lane] >= np.uint64(1 << 31):
            return invalid
    words = np.empty((end - position) // 2, dtype=np.uint16)
    for i in range(words.size):
        words[i] = np.uint16(data[position]) | np.uint16(data[position + 1]) << np.uint16(8)
        position += 2
    symbols, is_valid = _decode_loop(words, states, frequencies, scale_bits, n)
    return (symbols, True) if is_valid else invalid
