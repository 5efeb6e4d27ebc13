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
from fedsgd.numerics.arrays import I64, U8, U16, U32, U64
from fedsgd.numerics.kernels import kernel
from fedsgd.wire import bits
from fedsgd.wire.bits import Bytes

PLAIN = 0
SCALE_BITS = {1: 12, 2: 15}
"""log₂ T of each mode of rANS. The smallest state is 2¹⁵, so T may not be larger."""
MIN_STATE = 1 << 15
"""Lower end of a state's range, [2¹⁵, 2³¹)."""
LANES = 4
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
    if entropy and len(symbols) >= MIN_SYMBOLS_TO_CODE:
        counts = _histogram(symbols)
        modes = [mode for mode, scale_bits in SCALE_BITS.items() if scale_bits <= frequency_bits]
        candidates = [_encode_mode(symbols, counts, mode) for mode in modes]
    shortest = min(filter(None, candidates), key=len, default=b"")
    return shortest or b"".join((bytes([PLAIN]), np.ascontiguousarray(symbols).data))


def _encode_mode(symbols: U8, counts: I64, mode: int) -> bytes:
    """Encode symbols in a mode of rANS; return no bytes if the result is not shorter than the plain form."""
    scale_bits = SCALE_BITS[mode]
    frequencies = _normalise_frequencies(counts, scale_bits)
    if len(symbols) >= MIN_SYMBOLS_TO_ESTIMATE and _estimate_bits(counts, frequencies, scale_bits) >= 8 * len(symbols):
        return b""
    table = _pack_table(frequencies)
    words, states = _encode(symbols, frequencies, scale_bits)
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
    frequencies, offset = _unpack_table(data, 1, scale_bits)
    body = np.frombuffer(data, dtype=np.uint8, offset=offset)
    if len(body) < 4 * LANES or len(body) % 2:
        raise WireError(offset, f"{len(body)} bytes of states and words, expected an even number from {4 * LANES} on")
    states = body[: 4 * LANES].copy().view("<u4").astype(np.uint64)
    if not ((states >= MIN_STATE) & (states < MIN_STATE << 16)).all():
        raise WireError(offset, "a state is outside its range")
    words = body[4 * LANES :].copy().view("<u2").astype(np.uint16)
    symbols, is_valid = _decode(words, states, frequencies, scale_bits, n)
    if not is_valid:
        raise WireError(offset, f"the stream does not end after {n} symbols")
    return symbols


# ------------------------------------------------------------------------------------------------------------------ the model


def _normalise_frequencies_reference(counts: I64, scale_bits: int) -> I64:
    total = int(counts.sum())
    product = counts << scale_bits
    frequencies: I64 = np.maximum(product // total, counts > 0)
    remainders = np.where(product >= total, product % total, -1)
    deficit = (1 << scale_bits) - int(frequencies.sum())
    if deficit > 0:
        frequencies[np.argsort(-remainders, kind="stable")[:deficit]] += 1
    for _ in range(-deficit):
        frequencies[np.argmax(frequencies)] -= 1
    return frequencies


@kernel(_normalise_frequencies_reference)
def _normalise_frequencies(counts: I64, scale_bits: int) -> I64:
    """Return frequencies [256] that add up to T, at least 1 for each symbol that occurs, by the method of largest remainders.

    All arithmetic is in integers, so that the result is equal on every machine. Shares of the counts [256], not all 0, are
    rounded down; the symbols with the largest remainders get 1 more each. While rare symbols make the sum exceed T, the largest
    frequency is reduced by 1. Ties go to the lowest symbol.
    """
    total = np.int64(0)
    for s in range(256):
        total += counts[s]
    frequencies = np.zeros(256, dtype=np.int64)
    remainders = np.full(256, -1, dtype=np.int64)
    deficit = 1 << scale_bits
    for s in range(256):
        product = counts[s] << scale_bits
        if product >= total:
            frequencies[s] = product // total
            remainders[s] = product % total
        elif product > 0:
            frequencies[s] = 1
        deficit -= int(frequencies[s])
    while deficit > 0:
        symbol = np.argmax(remainders)
        frequencies[symbol] += 1
        remainders[symbol] = -1
        deficit -= 1
    while deficit < 0:
        frequencies[np.argmax(frequencies)] -= 1
        deficit += 1
    return frequencies


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


def _histogram_reference(symbols: U8) -> I64:
    return np.bincount(symbols, minlength=256).astype(np.int64)


@kernel(_histogram_reference)
def _histogram(symbols: U8) -> I64:
    """Count each of 256 symbols. Four tables avoid store-to-load stalls when neighbouring symbols are equal."""
    counts = np.zeros((4, 256), dtype=np.int64)
    even = symbols.size - symbols.size % 4
    for i in range(0, even, 4):
        counts[0, symbols[i]] += 1
        counts[1, symbols[i + 1]] += 1
        counts[2, symbols[i + 2]] += 1
        counts[3, symbols[i + 3]] += 1
    for i in range(even, symbols.size):
        counts[0, symbols[i]] += 1
    for s in range(256):
        counts[0, s] += counts[1, s] + counts[2, s] + counts[3, s]
    total: I64 = counts[0]
    return total


def _encode_reference(symbols: U8, frequencies: I64, scale_bits: int) -> tuple[U16, U32]:
    frequency_of, start_of = frequencies.tolist(), (np.cumsum(frequencies) - frequencies).tolist()
    limit = MIN_STATE >> scale_bits << 16
    states = [MIN_STATE] * LANES
    words: list[int] = []
    for i, symbol in reversed(list(enumerate(symbols.tolist()))):
        f, c = frequency_of[symbol], start_of[symbol]
        x = states[i % LANES]
        if x >= limit * f:
            words.append(x & 0xFFFF)
            x >>= 16
        states[i % LANES] = (x // f << scale_bits) + x % f + c
    return np.array(words[::-1], dtype=np.uint16), np.array(states, dtype=np.uint32)


@kernel(_encode_reference, element_ns=400)
def _encode(symbols: U8, frequencies: I64, scale_bits: int) -> tuple[U16, U32]:
    """Return the words and the final states. Every symbol has a frequency above 0.

    x // f is computed without a division (Alverson 1991). With x below 2³¹, s = ⌈log₂ f⌉ and r = ⌈2^(31 + s) / f⌉, it equals
    x · r >> 31 + s.
    """
    reciprocals = np.zeros(256, dtype=np.uint64)
    shifts = np.zeros(256, dtype=np.uint64)
    limits = np.zeros(256, dtype=np.uint64)
    complements = np.zeros(256, dtype=np.uint64)  # T - f, as (x // f) T + x % f = x + (x // f)(T - f)
    starts = np.zeros(256, dtype=np.uint64)
    start = np.int64(0)
    for s in range(256):
        f = frequencies[s]
        if f > 0:
            log = np.int64(0)
            while (np.int64(1) << log) < f:
                log += 1
            reciprocals[s] = ((np.int64(1) << (31 + log)) + f - 1) // f
            shifts[s] = 31 + log
            limits[s] = f << (31 - scale_bits)
            complements[s] = (np.int64(1) << scale_bits) - f
            starts[s] = start
            start += f
    words = np.empty(symbols.size + 1, dtype=np.uint16)
    position = symbols.size
    states = np.full(4, 1 << 15, dtype=np.uint64)
    for i in range(symbols.size - 1, -1, -1):
        lane = i & 3
        s = symbols[i]
        x = states[lane]
        words[position] = np.uint16(x & np.uint64(0xFFFF))
        overflows = x >= limits[s]
        position -= int(overflows)
        x = x >> np.uint64(16) if overflows else x
        states[lane] = x + ((x * reciprocals[s]) >> shifts[s]) * complements[s] + starts[s]
    return words[position + 1 :].copy(), states.astype(np.uint32)


def _decode_reference(words: U16, states: U64, frequencies: I64, scale_bits: int, n: int) -> tuple[U8, bool]:
    frequency_of, start_of = frequencies.tolist(), (np.cumsum(frequencies) - frequencies).tolist()
    symbol_of = np.repeat(np.arange(256, dtype=np.uint8), frequencies)
    x = states.tolist()
    remaining_words = words.tolist()[::-1]
    symbols = np.zeros(n, dtype=np.uint8)
    for i in range(n):
        lane, slot = i % LANES, x[i % LANES] % (1 << scale_bits)
        symbol = symbols[i] = int(symbol_of[slot])
        x[lane] = frequency_of[symbol] * (x[lane] >> scale_bits) + slot - start_of[symbol]
        if x[lane] < MIN_STATE:
            if not remaining_words:
                return symbols, False
            x[lane] = (x[lane] << 16) + remaining_words.pop()
    return symbols, not remaining_words and x == [MIN_STATE] * LANES


@kernel(_decode_reference, lambda words, states, frequencies, scale_bits, n: n, element_ns=400)
def _decode(words: U16, states: U64, frequencies: I64, scale_bits: int, n: int) -> tuple[U8, bool]:
    """Return the symbols [n], and True if the stream is valid (see the module).

    The frequencies must add up to T. Words beyond the end are never read.
    """
    total = 1 << scale_bits
    mask, shift = np.uint64(total - 1), np.uint64(scale_bits)
    symbol_of = np.empty(total, dtype=np.uint8)
    frequency = np.empty(total, dtype=np.uint64)
    offset = np.empty(total, dtype=np.uint64)
    slot = 0
    for s in range(256):
        for j in range(frequencies[s]):
            symbol_of[slot] = s
            frequency[slot] = frequencies[s]
            offset[slot] = j
            slot += 1
    padded = np.zeros(words.size + 1, dtype=np.uint64)
    padded[: words.size] = words
    x = states.copy()
    symbols = np.empty(n, dtype=np.uint8)
    n_read = 0
    for i in range(n):
        lane = i & 3
        slot = int(x[lane] & mask)
        symbols[i] = symbol_of[slot]
        y = frequency[slot] * (x[lane] >> shift) + offset[slot]
        underflows = y < np.uint64(1 << 15)
        x[lane] = (y << np.uint64(16)) | padded[n_read] if underflows else y
        n_read += int(underflows)
        if n_read > words.size:
            return symbols, False
    n_errors = words.size - n_read
    for lane in range(4):
        n_errors += int(x[lane] != np.uint64(1 << 15))
    return symbols, n_errors == 0
