"""Kernels of the entropy code of `fedsgd.wire.rans`: counts, frequencies, and the states of rANS."""

from __future__ import annotations

import numpy as np

from fedsgd.numerics.arrays import I64, U8, U16, U32, U64
from fedsgd.numerics.kernels import kernel

MIN_STATE = 1 << 15
"""Lower end of a state's range, [2¹⁵, 2³¹)."""
LANES = 4
"""Number of states, each of which codes every fourth symbol."""


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
def normalise_frequencies(counts: I64, scale_bits: int) -> I64:
    """Return frequencies [256] that add up to T, at least 1 for each symbol that occurs, by the method of largest remainders.

    All arithmetic is in integers, so that the result is equal on every machine. Shares of the counts [256], not all 0, are
    rounded down; the symbols with the largest remainders get 1 more each. While rare symbols make the sum exceed T, the largest
    frequency is reduced by 1. Ties go to the lowest symbol.

    Args:
        counts: [256] int64, number of each symbol.
        scale_bits: log₂ T.
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


def _histogram_reference(symbols: U8) -> I64:
    return np.bincount(symbols, minlength=256).astype(np.int64)


@kernel(_histogram_reference)
def histogram(symbols: U8) -> I64:
    """Count each of 256 symbols. Four tables avoid store-to-load stalls when neighbouring symbols are equal.

    Args:
        symbols: [n] uint8.
    """
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
def encode(symbols: U8, frequencies: I64, scale_bits: int) -> tuple[U16, U32]:
    """Return the words and the final states. Every symbol has a frequency above 0.

    x // f is computed without a division (Alverson 1991). With x below 2³¹, s = ⌈log₂ f⌉ and r = ⌈2^(31 + s) / f⌉, it equals
    x · r >> 31 + s.

    Args:
        symbols: [n] uint8.
        frequencies: [256] int64, which add up to T.
        scale_bits: log₂ T.
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
def decode(words: U16, states: U64, frequencies: I64, scale_bits: int, n: int) -> tuple[U8, bool]:
    """Return the symbols [n], and True if the stream is valid (see the module).

    Words beyond the end are never read.

    Args:
        words: [m] uint16, words of the stream.
        states: [4] uint64, encoded states, each in its range.
        frequencies: [256] int64, which add up to T.
        scale_bits: log₂ T.
        n: number of symbols.
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
