"""Codec of few-bit levels: integers from −L to L with a scale for each bucket of coordinates.

A VALUE section has the levels plus L as digits of base 2L + 1, as many in a byte as possible, the first one lowest. The bytes
are symbols of `rans`. A SCALE section has a float32 for each bucket. A coordinate decodes to level · scale / L, computed in
float64 and rounded to float32. Coding several digits in a byte is faster than coding one, and the entropy code can use the
dependence of neighbours.
"""

from __future__ import annotations

import numpy as np

from fedsgd.errors import WireError, shift_offset
from fedsgd.numerics.arrays import F32, F64, U8
from fedsgd.numerics.kernels import kernel
from fedsgd.numerics.reductions import first_non_finite
from fedsgd.numerics.rng import counter_hash, counter_hash_scalar
from fedsgd.system.profiling import timed
from fedsgd.wire import rans
from fedsgd.wire.frame import Section, SectionKind, Sections


def digits_per_byte(base: int) -> int:
    """Return the number of digits that a byte holds: 8 bits, 5 trits, ..., 1 from base 17 on.

    Args:
        base: base of the digits, 2 to 256.
    """
    count = 1
    while base ** (count + 1) <= 256:
        count += 1
    return count


def max_level_bytes(size: int, level: int, bucket: int) -> int:
    """Return the maximum payload of a vector in bytes.

    Args:
        size: P.
        level: L.
        bucket: coordinates in a bucket.
    """
    digits = digits_per_byte(2 * level + 1)
    return rans.max_symbol_bytes((size + digits - 1) // digits) + 4 * ((size + bucket - 1) // bucket)


def quantise(x: F32, scales: F32, level: int, bucket: int, key: int | None) -> U8:
    """Quantise a vector to levels: |x_i| · L / scale with the sign of x_i, rounded, plus L, [P] uint8.

    Without a key, numbers are rounded to nearest, halves to even. With a key they are rounded stochastically: up with a
    probability equal to the fraction, by 32 shared random bits.

    Args:
        x: [P] float32, finite.
        scales: [⌈P / bucket⌉] float32, none less than a magnitude in its bucket.
        level: L, 1 to 127.
        bucket: coordinates in a bucket.
        key: key of the shared randomness, 64 bits; None: round to nearest.

    >>> x, scales = np.array([0.3, -2.0, 1.1], dtype=np.float32), np.array([2.0], dtype=np.float32)
    >>> quantise(x, scales, level=1, bucket=3, key=None).tolist()
    [1, 0, 2]
    """
    return _quantise(x, scales, level, bucket, np.uint64(key or 0), key is not None)


@timed("encode")
def encode_levels(levels: U8, scales: F32, level: int, entropy: bool = True, frequency_bits: int = 12) -> Sections:
    """Encode levels and scales as a VALUE and a SCALE section.

    Args:
        levels: [P] uint8, the levels plus L.
        scales: [⌈P / bucket⌉] float32.
        level: L.
        entropy: False to leave the digits plain.
        frequency_bits: maximum log₂ T of rANS to try, 12 or 15.
    """
    body = encode_digits(levels, 2 * level + 1, entropy, frequency_bits)
    return Section(SectionKind.VALUE, body), Section(SectionKind.SCALE, scales.astype("<f4").tobytes())


@timed("decode")
def decode_levels(sections: Sections, size: int, level: int, bucket: int) -> tuple[U8, F32]:
    """Decode the levels plus L, [P] uint8, and the scales, [⌈P / bucket⌉] float32, of `encode_levels`.

    Args:
        sections: a VALUE and a SCALE section.
        size: P.
        level: L.
        bucket: coordinates in a bucket.
    """
    require_sections(sections, (SectionKind.VALUE, SectionKind.SCALE))
    scales = decode_scales(sections[1], (size + bucket - 1) // bucket)
    with shift_offset(sections[0].offset):
        return decode_digits(sections[0].data, size, 2 * level + 1), scales


@timed("encode")
def encode_digits(digits: U8, base: int, entropy: bool = True, frequency_bits: int = 12) -> bytes:
    """Encode digits, several to a byte, as symbols of `rans`.

    Args:
        digits: [n] uint8, below `base`.
        base: base of the digits, 2 to 255.
        entropy: False to leave the digits plain.
        frequency_bits: maximum log₂ T of rANS to try, 12 or 15.
    """
    count = digits_per_byte(base)
    if base == 2:
        packed = np.packbits(digits, bitorder="little")
    else:
        packed = digits if count == 1 else _pack_digits(digits, base, count)
    return rans.encode_symbols(packed, entropy, frequency_bits)


@timed("decode")
def decode_digits(data: bytes | memoryview, n: int, base: int) -> U8:
    """Decode the digits of `encode_digits`, [n] uint8.

    Args:
        data: bytes of the digits alone.
        n: number of digits.
        base: base of the digits.
    """
    count = digits_per_byte(base)
    packed = rans.decode_symbols(data, (n + count - 1) // count)
    if len(packed) and int(packed.max()) >= base**count:
        raise WireError(0, f"a byte of {int(packed.max())}, expected less than {base}^{count}")
    if base == 2:
        digits = np.unpackbits(packed, bitorder="little")
    else:
        digits = packed if count == 1 else _unpack_digits(packed, base, count)
    if digits[n:].any():
        raise WireError(0, "padding digits are not zero")
    return digits[:n]


def require_sections(sections: Sections, kinds: tuple[SectionKind, ...]) -> None:
    """Raise WireError unless sections have the expected kinds, in order.

    Args:
        sections: sections of a decoded frame.
        kinds: expected kinds.
    """
    if tuple(s.kind for s in sections) != kinds:
        names = ", ".join(s.kind.name for s in sections) or "none"
        offset = sections[0].offset if sections else 0
        raise WireError(offset, f"value sections {names}, expected {', '.join(kind.name for kind in kinds)}")


def decode_scales(section: Section, count: int) -> F32:
    """Decode the scales of a SCALE section, [count] float32: finite, not negative and not −0.

    Args:
        section: section with one float32 for each scale.
        count: number of scales.
    """
    if len(section.data) != 4 * count:
        raise WireError(section.offset, f"{len(section.data)} bytes of scales, expected {4 * count}")
    scales = np.frombuffer(section.data, dtype="<f4").astype(np.float32)
    position = first_non_finite(scales)
    if position < 0 and np.signbit(scales).any():
        position = int(np.signbit(scales).argmax())
    if position >= 0:
        cause = f"scale {position} is {scales[position]}, expected a finite number without a minus sign"
        raise WireError(section.offset + 4 * position, cause)
    return scales


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _uniform_numbers_reference(key: int, bucket_index: int, n: int) -> F64:
    """Return the random numbers in [0, 1) of n coordinates of a bucket: 32 bits each, the lower half of a word first."""
    words = counter_hash(key, np.uint64(bucket_index << 32) + np.arange((n + 1) // 2, dtype=np.uint64))
    random: F64 = words.astype("<u8").view("<u4")[:n] * 2.0**-32
    return random


def _quantise_reference(x: F32, scales: F32, level: int, bucket: int, key: np.uint64, stochastic: bool) -> U8:
    scale = np.repeat(scales.astype(np.float64), bucket)[: len(x)]
    quotients = np.abs(x.astype(np.float64)) * np.divide(level, scale, out=np.zeros(len(x)), where=scale > 0)
    if stochastic:
        random = [_uniform_numbers_reference(int(key), b, len(x[b * bucket : (b + 1) * bucket])) for b in range(len(scales))]
        integer = np.floor(quotients + np.concatenate([np.zeros(0), *random]))
    else:
        integer = np.rint(quotients)
    magnitude = np.minimum(integer, level)
    levels: U8 = (level + np.where(x < 0, -magnitude, magnitude)).astype(np.uint8)
    return levels


@kernel(_quantise_reference, element_ns=50)
def _quantise(x: F32, scales: F32, level: int, bucket: int, key: np.uint64, stochastic: bool) -> U8:
    """Return the levels plus L.

    The random words of 128 coordinates are drawn before they are used, so that the compiler can vectorise both loops.
    """
    out = np.empty(x.size, dtype=np.uint8)
    words = np.empty(64, dtype=np.uint64)
    halves = words.view(np.uint32)
    for b in range(scales.size):
        factor = level / np.float64(scales[b]) if scales[b] > 0 else 0.0
        part = x[bucket * b : min(bucket * b + bucket, x.size)]
        target = out[bucket * b : min(bucket * b + bucket, x.size)]
        if stochastic:
            for first in range(0, part.size, 128):
                for j in range(64):
                    words[j] = counter_hash_scalar(key, (np.uint64(b) << np.uint64(32)) + np.uint64(first // 2 + j))
                values, outputs = part[first : first + 128], target[first : first + 128]
                for i in range(values.size):
                    random = np.float64(np.int64(halves[i])) * 2.0**-32
                    integer = np.int32(np.float64(abs(values[i])) * factor + random)
                    magnitude = min(integer, np.int32(level))
                    outputs[i] = np.uint8(level - magnitude if values[i] < 0 else level + magnitude)
        else:
            for i in range(part.size):
                integer = np.int32(np.rint(np.float64(abs(part[i])) * factor))
                magnitude = min(integer, np.int32(level))
                target[i] = np.uint8(level - magnitude if part[i] < 0 else level + magnitude)
    return out


def _dequantise_reference(levels: U8, scales: F32, level: int, bucket: int) -> F32:
    steps = np.repeat(scales.astype(np.float64) / level, bucket)[: len(levels)]
    return ((levels.astype(np.int64) - level) * steps).astype(np.float32)


@kernel(_dequantise_reference)
def dequantise(levels: U8, scales: F32, level: int, bucket: int) -> F32:
    """Return the coordinates of levels, level · scale / L, [P] float32.

    Args:
        levels: [P] uint8, the levels plus L.
        scales: [⌈P / bucket⌉] float32.
        level: L.
        bucket: coordinates in a bucket.
    """
    out = np.empty(levels.size, dtype=np.float32)
    for b in range(scales.size):
        step = np.float64(scales[b]) / level
        part = levels[bucket * b : min(bucket * b + bucket, levels.size)]
        target = out[bucket * b : min(bucket * b + bucket, levels.size)]
        for i in range(part.size):
            target[i] = np.float32((np.int64(part[i]) - level) * step)
    return out


def _pack_digits_reference(digits: U8, base: int, count: int) -> U8:
    rows = np.concatenate([digits, np.zeros(-len(digits) % count, dtype=np.uint8)]).reshape(-1, count)
    packed: U8 = (rows * base ** np.arange(count)).sum(axis=1).astype(np.uint8)
    return packed


@kernel(_pack_digits_reference)
def _pack_digits(digits: U8, base: int, count: int) -> U8:
    """Pack `count` digits into a byte, the first one lowest; the last byte is filled up with zeros.

    Pairs of digits, the most frequent case, are packed in one loop. Otherwise there is one loop for each digit of a byte.
    """
    out = np.zeros((digits.size + count - 1) // count, dtype=np.uint8)
    if count == 2:
        for i in range(digits.size // 2):
            out[i] = np.uint8(digits[2 * i] + base * digits[2 * i + 1])
        if digits.size % 2:
            out[digits.size // 2] = digits[digits.size - 1]
        return out
    power = 1
    for j in range(min(count, digits.size)):
        tail = digits[j:]
        for i in range((tail.size + count - 1) // count):
            out[i] += np.uint8(power * tail[i * count])
        power *= base
    return out


def _unpack_digits_reference(packed: U8, base: int, count: int) -> U8:
    return (packed[:, None] // base ** np.arange(count) % base).reshape(-1).astype(np.uint8)


@kernel(_unpack_digits_reference, lambda packed, base, count: packed.size * count, element_ns=70)
def _unpack_digits(packed: U8, base: int, count: int) -> U8:
    """Return the digits, `count` for each byte."""
    table = np.empty(256, dtype=np.uint8)
    out = np.empty(packed.size * count, dtype=np.uint8)
    power = 1
    for j in range(count if packed.size > 0 else 0):
        for value in range(256):
            table[value] = value // power % base
        tail = out[j:]
        for i in range(packed.size):
            tail[i * count] = table[packed[i]]
        power *= base
    return out
