"""Symbols of eight bits by a static range asymmetric numeral system (rANS).

    symbols := mode u8, then
    0 plain      the symbols themselves
    1 rANS       table, four states u32, words u16 ...; T = 4096
    2 fine rANS  the same; T = 32768

    table := lowest symbol u8, highest symbol u8, the frequency of each symbol from the lowest to the one before the highest
             as a varint; what is missing from T is the frequency of the highest

The number of symbols n is not in it. Symbol i belongs to state i mod 4. A decoder begins with the four states as sent, and for
each symbol in turn, x being its state and s the symbol in whose range [c, c + f) of the cumulated frequencies x mod T falls:

    x ← f · ⌊x / T⌋ + (x mod T) − c;   if x < 2¹⁵: x ← 2¹⁶ · x + the next word

In the end every state is 2¹⁵ and every word is read, or the stream is not valid. Duda 2009 (arXiv 0902.0271); the interleaving
is Giesen's (arXiv 1402.3392). The shortest of the modes is sent, of equal ones the lowest. Mode 2 is tried only where the
compressor asks for it.

Bits: within a fraction of a per cent of the entropy where no symbol is rarer than 1/T. A rarer one takes the share 1/T all the
same, at the cost of the others: a million symbols, .999 of them equal and forty others, take 1.6 times their entropy in mode 1.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from fedsgd.errors import WireError
from fedsgd.numerics.arrays import I64, U8, U16, U32, U64
from fedsgd.numerics.kernels import kernel
from fedsgd.wire import bits

Bytes = bytes | memoryview

PLAIN = 0
SCALE_BITS = {1: 12, 2: 15}
"""log₂ T of each mode of rANS. States begin at 2¹⁵, so T may not be larger."""
MIN_STATE = 1 << 15
"""The lower end of a state's range, [2¹⁵, 2³¹)."""
LANES = 4
MIN_SYMBOLS_TO_ESTIMATE = 4096
"""From so many symbols on it is worth asking first whether coding will save anything."""
MIN_SYMBOLS_TO_CODE = 32
"""With fewer symbols the table and the states weigh more than coding saves, and it is not tried."""


def max_symbol_bytes(n: int) -> int:
    """The longest form of n symbols."""
    return 1 + n


def encode_symbols(symbols: U8, entropy: bool = True, frequency_bits: int = 12) -> bytes:
    """Encode symbols in the shortest mode, of equal ones the lowest.

    Args:
        symbols: [n] uint8.
        entropy: False to leave them plain.
        frequency_bits: largest log₂ T to try, 12 or 15.
    """
    forms = []
    if entropy and len(symbols) >= MIN_SYMBOLS_TO_CODE:
        counts = _histogram(symbols)
        forms = [_encode_mode(symbols, counts, mode) for mode, scale_bits in SCALE_BITS.items() if scale_bits <= frequency_bits]
    shortest = min(filter(None, forms), key=len, default=b"")
    return shortest or b"".join((bytes([PLAIN]), np.ascontiguousarray(symbols).data))


def _encode_mode(symbols: U8, counts: I64, mode: int) -> bytes:
    """Encode symbols in a mode of rANS; return no bytes where the plain form is as short."""
    scale_bits = SCALE_BITS[mode]
    frequencies = normalise_frequencies(counts, scale_bits)
    if len(symbols) >= MIN_SYMBOLS_TO_ESTIMATE and _estimate_bits(counts, frequencies, scale_bits) >= 8 * len(symbols):
        return b""
    table = _pack_table(frequencies)
    words, states = _encode(symbols, frequencies, scale_bits)
    coded = bytes([mode]) + table + states.astype("<u4").tobytes() + words.astype("<u2").tobytes()
    return coded if len(coded) <= len(symbols) else b""


def _estimate_bits(counts: I64, frequencies: I64, scale_bits: int) -> int:
    """Bits that the symbols will take, from what each costs."""
    used = np.flatnonzero(counts)
    costs = [_symbol_cost(f, scale_bits) for f in frequencies[used].tolist()]
    return int(counts[used] @ np.array(costs)) // 256


@cache
def _symbol_cost(frequency: int, scale_bits: int) -> int:
    """⌈256 log₂(T / frequency)⌉ by integers alone, so that no library's logarithm decides what is sent."""
    return int((pow(1 << scale_bits, 256) - 1) // pow(frequency, 256)).bit_length()


def decode_symbols(data: Bytes, n: int) -> U8:
    """Inverse of `encode_symbols` for n symbols, `data` being exactly theirs; WireError where it is not valid."""
    if not data or data[0] not in (PLAIN, *SCALE_BITS):
        raise WireError(0, f"unknown mode {data[0]} of a symbol stream" if data else "an empty symbol stream")
    if data[0] == PLAIN:
        if len(data) != 1 + n:
            raise WireError(0, f"{len(data) - 1} plain symbols, expected {n}")
        return np.frombuffer(data, dtype=np.uint8, offset=1)
    scale_bits = SCALE_BITS[data[0]]
    frequencies, at = _unpack_table(data, 1, scale_bits)
    body = np.frombuffer(data, dtype=np.uint8, offset=at)
    if len(body) < 4 * LANES or len(body) % 2:
        raise WireError(at, f"{len(body)} bytes of states and words, expected an even number from {4 * LANES}")
    states = body[: 4 * LANES].copy().view("<u4").astype(np.uint64)
    if not ((states >= MIN_STATE) & (states < MIN_STATE << 16)).all():
        raise WireError(at, "a state is outside its range")
    words = body[4 * LANES :].copy().view("<u2").astype(np.uint16)
    symbols, good = _decode(words, states, frequencies, scale_bits, n)
    if not good:
        raise WireError(at, f"the stream does not end with its {n}th symbol")
    return symbols


# ------------------------------------------------------------------------------------------------------------------ the model


def _normalise_frequencies_reference(counts: I64, scale_bits: int) -> I64:
    total = int(counts.sum())
    scaled = counts << scale_bits
    frequencies: I64 = np.maximum(scaled // total, counts > 0)
    remainders = np.where(scaled >= total, scaled % total, -1)
    missing = (1 << scale_bits) - int(frequencies.sum())
    if missing > 0:
        frequencies[np.argsort(-remainders, kind="stable")[:missing]] += 1
    for _ in range(-missing):
        frequencies[np.argmax(frequencies)] -= 1
    return frequencies


@kernel(_normalise_frequencies_reference)
def normalise_frequencies(counts: I64, scale_bits: int) -> I64:
    """Frequencies that add up to T, at least 1 for each symbol that occurs, by largest remainder.

    counts: [256], not all 0; scale_bits: log₂ T.

    Integers only, so that it is the same everywhere: shares are rounded down, then the largest remainders get one more each; if
    the ones given to rare symbols are too many, the most frequent symbol pays for each in turn. Of equals the lowest symbol.
    """
    total = np.int64(0)
    for s in range(256):
        total += counts[s]
    frequencies = np.zeros(256, dtype=np.int64)
    remainders = np.full(256, -1, dtype=np.int64)
    missing = 1 << scale_bits
    for s in range(256):
        scaled = counts[s] << scale_bits
        if scaled >= total:
            frequencies[s] = scaled // total
            remainders[s] = scaled % total
        elif scaled > 0:
            frequencies[s] = 1
        missing -= int(frequencies[s])
    while missing > 0:
        most = np.argmax(remainders)
        frequencies[most] += 1
        remainders[most] = -1
        missing -= 1
    while missing < 0:
        frequencies[np.argmax(frequencies)] -= 1
        missing += 1
    return frequencies


def _pack_table(frequencies: I64) -> bytes:
    used = np.flatnonzero(frequencies)
    lowest, highest = int(used[0]), int(used[-1])
    return bytes([lowest, highest]) + b"".join(bits.pack_varint(int(f)) for f in frequencies[lowest:highest])


def _unpack_table(data: Bytes, at: int, scale_bits: int) -> tuple[I64, int]:
    """(frequencies [256], offset behind the table)."""
    if len(data) < at + 2 or data[at] > data[at + 1]:
        raise WireError(at, "a frequency table without a range of symbols")
    frequencies = np.zeros(256, dtype=np.int64)
    lowest, highest = data[at], data[at + 1]
    at += 2
    for symbol in range(lowest, highest):
        frequencies[symbol], at = bits.unpack_varint(data, at)
    total = 1 << scale_bits
    frequencies[highest] = total - int(frequencies.sum())
    if not frequencies[lowest] > 0 or not frequencies[highest] > 0:
        raise WireError(at, f"the frequencies do not add up to {total}, or the range of symbols is wider than they are")
    return frequencies, at


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _histogram_reference(symbols: U8) -> I64:
    return np.bincount(symbols, minlength=256).astype(np.int64)


@kernel(_histogram_reference)
def _histogram(symbols: U8) -> I64:
    """How often each of 256 symbols occurs. Four tables, because equal neighbours would wait for each other's store."""
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
    starts = np.cumsum(frequencies) - frequencies
    states = [MIN_STATE] * LANES
    words: list[int] = []
    for i in reversed(range(len(symbols))):
        f, c = int(frequencies[symbols[i]]), int(starts[symbols[i]])
        x = states[i % LANES]
        if x >= (MIN_STATE >> scale_bits << 16) * f:
            words.append(x & 0xFFFF)
            x >>= 16
        states[i % LANES] = (x // f << scale_bits) + x % f + c
    return np.array(words[::-1], dtype=np.uint16), np.array(states, dtype=np.uint32)


@kernel(_encode_reference)
def _encode(symbols: U8, frequencies: I64, scale_bits: int) -> tuple[U16, U32]:
    """(words, states) of symbols that all have a frequency.

    x // f without a division: x is below 2³¹, so with s = ⌈log₂ f⌉ and r = ⌈2^(31 + s) / f⌉ it is x · r >> 31 + s exactly
    (Alverson 1991).
    """
    reciprocals = np.zeros(256, dtype=np.uint64)
    shifts = np.zeros(256, dtype=np.uint64)
    limits = np.zeros(256, dtype=np.uint64)
    complements = np.zeros(256, dtype=np.uint64)  # T - f: x // f * T + x % f = x + x // f * (T - f)
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
    at = symbols.size
    states = np.full(4, 1 << 15, dtype=np.uint64)
    for i in range(symbols.size - 1, -1, -1):
        lane = i & 3
        s = symbols[i]
        x = states[lane]
        words[at] = np.uint16(x & np.uint64(0xFFFF))
        full = x >= limits[s]
        at -= int(full)
        x = x >> np.uint64(16) if full else x
        states[lane] = x + ((x * reciprocals[s]) >> shifts[s]) * complements[s] + starts[s]
    return words[at + 1 :].copy(), states.astype(np.uint32)


def _decode_reference(words: U16, states: U64, frequencies: I64, scale_bits: int, n: int) -> tuple[U8, bool]:
    starts = np.cumsum(frequencies) - frequencies
    symbol_of = np.repeat(np.arange(256, dtype=np.uint8), frequencies)
    x = [int(state) for state in states]
    symbols = np.zeros(n, dtype=np.uint8)
    at = 0
    for i in range(n):
        lane, slot = i % LANES, x[i % LANES] % (1 << scale_bits)
        symbols[i] = symbol_of[slot]
        x[lane] = int(frequencies[symbols[i]]) * (x[lane] >> scale_bits) + slot - int(starts[symbols[i]])
        if x[lane] < MIN_STATE:
            if at == len(words):
                return symbols, False
            x[lane] = (x[lane] << 16) + int(words[at])
            at += 1
    return symbols, at == len(words) and x == [MIN_STATE] * LANES


@kernel(_decode_reference)
def _decode(words: U16, states: U64, frequencies: I64, scale_bits: int, n: int) -> tuple[U8, bool]:
    """(symbols [n], whether the stream ended as it must). frequencies add up to T. Reads no further than its words."""
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
    at = 0
    for i in range(n):
        lane = i & 3
        slot = int(x[lane] & mask)
        symbols[i] = symbol_of[slot]
        y = frequency[slot] * (x[lane] >> shift) + offset[slot]
        short = y < np.uint64(1 << 15)
        x[lane] = (y << np.uint64(16)) | padded[at] if short else y
        at += int(short)
        if at > words.size:
            return symbols, False
    left = words.size - at
    for lane in range(4):
        left += int(x[lane] != np.uint64(1 << 15))
    return symbols, left == 0
