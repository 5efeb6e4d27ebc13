"""Codecs of floating-point numbers: float32, bfloat16, float16 with a common scale, and powers of two with a sign.

`docs/reference/wire-format-values.md` describes the bytes: words(k) and natural values.

The entropy code rotates each word left by one bit, which moves the sign to the lowest bit. The upper byte then holds the
exponent (float32, bfloat16), or the exponent and three bits of the mantissa (float16). The exponents of selected values carry
one or two bits of information, and `rans` codes them. Signs and mantissas are noise, so the other bytes are stored as they are.
"""

from __future__ import annotations

import numpy as np

from fedsgd.errors import WireError, shift_offset
from fedsgd.numerics.arrays import F32, U8, U16, U32, U64
from fedsgd.numerics.kernels import jit_helper, kernel
from fedsgd.numerics.rng import counter_hash, counter_hash_scalar
from fedsgd.wire import bits, rans
from fedsgd.wire.bits import Bytes

PLAIN, ROTATED = 0, 1
MIN_SCALE_EXPONENT, MAX_SCALE_EXPONENT = -163, 113
"""Limits of the exponent of float16's common scale. They follow from the smallest and the largest float32."""
BLOCK = 2**16
"""Words of a block. A whole model is converted block after block, so that intermediate results need little memory."""


def encode_words(words: U32 | U16, entropy: bool) -> Bytes:
    """Encode the words of floating-point numbers. Without `entropy`, the result may be a view of the words.

    Args:
        words: [k] uint32 or uint16, the bits of the numbers.
        entropy: True to use the entropy code if it is shorter.
    """
    if entropy and rans.MIN_SYMBOLS_TO_CODE <= len(words) < rans.MIN_SYMBOLS_TO_ESTIMATE:
        return _encode_short(words.astype(np.uint32, copy=False), 8 * words.itemsize).tobytes()
    plain = words.astype(f"<u{words.itemsize}", copy=False).data.cast("B")
    if not entropy:
        return plain
    if len(words) > BLOCK:
        return _encode_in_blocks(words, plain)
    return _encode_in_steps(words.astype(np.uint32, copy=False), plain)


def _encode_in_steps(words: U32, plain: Bytes) -> bytes:
    if len(words) >= rans.MIN_SYMBOLS_TO_CODE:
        upper, lower = _split(words, 8 * len(plain) // len(words))
        code = _encode_upper(upper)
        if len(code) + len(lower) < 1 + len(plain):
            return b"".join([code, lower.data])
    return b"".join([bytes([PLAIN]), plain])


def _encode_upper(upper: U8) -> bytes:
    symbols = rans.encode_symbols(upper)
    return bytes([ROTATED]) + bits.pack_varint(len(symbols)) + symbols


def _encode_in_blocks(words: U32 | U16, plain: memoryview) -> Bytes:
    """Return the same bytes as `encode_words` with entropy code, and need little memory besides them: the upper bytes [k]."""
    k, width = len(words), words.itemsize
    blocks = [slice(start, start + BLOCK) for start in range(0, k, BLOCK)]
    upper = np.empty(k, dtype=np.uint8)
    for block in blocks:
        np.right_shift(words[block], 8 * width - 9, out=upper[block], casting="unsafe")
    code = _encode_upper(upper)
    if len(code) + k * (width - 1) >= 1 + len(plain):
        return b"".join([bytes([PLAIN]), plain])
    out = np.empty(len(code) + k * (width - 1), dtype=np.uint8)
    out[: len(code)] = np.frombuffer(code, dtype=np.uint8)
    lower = out[len(code) :].reshape(k, width - 1)
    for block in blocks:
        lower[block] = _split(words[block].astype(np.uint32, copy=False), 8 * width)[1].reshape(-1, width - 1)
    return out.data


def decode_words(data: Bytes, k: int, width: int, entropy: bool) -> U32:
    """Decode the words of `encode_words`, [k] uint32.

    Args:
        data: bytes of the words alone.
        k: number of words.
        width: bytes of a word, 4 or 2.
        entropy: setting of the encoder.
    """
    if entropy:
        if not data or data[0] not in (PLAIN, ROTATED):
            raise WireError(0, f"mode {data[0]} of the values is unknown" if data else "the section of values is empty")
        if data[0] == ROTATED:
            return _decode_rotated(data, k, width)
        data = data[1:]
    if len(data) != k * width:
        raise WireError(0, f"{len(data)} bytes of values, expected {k} values of {width} bytes")
    return np.frombuffer(data, dtype=f"<u{width}").astype(np.uint32)


def _decode_rotated(data: Bytes, k: int, width: int) -> U32:
    length, start = bits.unpack_varint(data, 1)
    if len(data) - start - length != k * (width - 1):
        raise WireError(start, f"{len(data) - start} bytes of values, expected {length} of symbols and {k * (width - 1)} more")
    with shift_offset(start):
        upper = rans.decode_symbols(data[start : start + length], k)
    return _join(upper, np.frombuffer(data, dtype=np.uint8, offset=start + length), 8 * width)


def to_bfloat16(values: F32) -> U16:
    """Round to nearest even in the upper 16 bits. A finite value never becomes infinite.

    Args:
        values: [k] float32, finite.

    >>> from_bfloat16(to_bfloat16(np.array([1.0, 3.14159], dtype=np.float32)).astype(np.uint32)).tolist()
    [1.0, 3.140625]
    """
    return _to_bfloat16(values.view(np.uint32))


def from_bfloat16(words: U32 | U16, overwrite: bool = False) -> F32:
    """Return the float32 numbers that have the words as upper halves, and zeros as lower halves.

    Args:
        words: [k] uint32 or uint16, each below 2¹⁶.
        overwrite: True to return the numbers in the memory of the words, if these are uint32.
    """
    wide_words: U32 = words.astype(np.uint32, copy=not overwrite)
    return np.left_shift(wide_words, np.uint32(16), out=wide_words).view(np.float32)


def choose_scale_exponent(values: F32) -> int:
    """Return the e for which the largest magnitude is in [2¹⁴, 2¹⁵) · 2^e, or 0 if all values are zero.

    No value then exceeds float16's maximum of 65504, and only values up to 2⁻³⁹ of the largest become zero. Without a scale,
    float16 rounds small updates to zero.

    Args:
        values: [k] float32, finite.
    """
    peak = max(float(values.max(initial=0)), -float(values.min(initial=0)))
    return int(np.frexp(peak)[1]) - 15 if peak else 0


def to_float16(values: F32, exponent: int) -> U16:
    """Round values · 2^−e to the nearest float16 h, ties to even, but never to an h for which h · 2^e exceeds float32.

    Args:
        values: [k] float32, finite, with magnitudes of at most 2¹⁵ · 2^e.
        exponent: e, as `choose_scale_exponent` returns it.
    """
    words = _to_float16(values, float(np.ldexp(1.0, -exponent)))
    if exponent == MAX_SCALE_EXPONENT:
        words = np.minimum(words & np.uint16(0x7FFF), np.uint16(0x77FF)) | words & np.uint16(0x8000)
    return words


def from_float16(words: U32 | U16, exponent: int) -> F32:
    """Return half · 2^e as float32.

    Args:
        words: [k] uint32 or uint16, the bits of finite halves.
        exponent: e.
    """
    factor = float(np.ldexp(1.0, exponent))
    if len(words) <= BLOCK:
        return _from_float16(words.astype(np.uint32, copy=False), factor)
    values = np.empty(len(words), dtype=np.float32)
    for start in range(0, len(words), BLOCK):
        block = slice(start, start + BLOCK)
        values[block] = _from_float16(words[block].astype(np.uint32, copy=False), factor)
    return values


def has_non_finite_float16(words: U32) -> bool:
    """Return whether a half is an infinity or a NaN.

    Args:
        words: [k] uint32, the bits of halves.
    """
    blocks = (words[start : start + BLOCK] for start in range(0, len(words), BLOCK))
    return any(bool(((block & np.uint32(0x7C00)) == 0x7C00).any()) for block in blocks)


def round_to_powers_of_two(values: F32, key: int) -> U16:
    """Round each value stochastically to a power of two; return sign << 8 | exponent.

    A magnitude is rounded up with probability mantissa / 2²³, by 23 shared random bits, so the expected value is exact. The
    exceptions are magnitudes from 2¹²⁷ on, which are rounded down, and subnormal numbers, which become 0.

    Args:
        values: [k] float32, finite.
        key: key of the shared randomness, 64 bits.
    """
    return _round_to_powers_of_two(values.view(np.uint32), np.uint64(key))


def from_powers_of_two(signs: U8, exponents: U8) -> F32:
    """Return ± 2^(exponent − 127), or ± 0 for exponent 0.

    Args:
        signs: [k] uint8, 1 for minus, else 0.
        exponents: [k] uint8, below 255.
    """
    words = signs.astype(np.uint32) << np.uint32(31) | exponents.astype(np.uint32) << np.uint32(23)
    return words.view(np.float32)


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _split_reference(words: U32, width: int) -> tuple[U8, U8]:
    words64 = words.astype(np.uint64)
    rotated_words = (words64 << np.uint64(1) | words64 >> np.uint64(width - 1)) & np.uint64(2**width - 1)
    columns = rotated_words.astype("<u8").view(np.uint8).reshape(-1, 8)
    return columns[:, width // 8 - 1].copy(), np.ascontiguousarray(columns[:, : width // 8 - 1]).reshape(-1)


@kernel(_split_reference, element_ns=10)
def _split(words: U32, width: int) -> tuple[U8, U8]:
    """Rotate words left by one bit; return the upper bytes [k] and the lower bytes [k · (width / 8 − 1)]. width: 32 or 16."""
    upper = np.empty(words.size, dtype=np.uint8)
    lower = np.empty(words.size * (width // 8 - 1), dtype=np.uint8)
    if width == 32:
        for i in range(words.size):
            word = words[i]
            upper[i] = np.uint8((word >> np.uint32(23)) & np.uint32(255))
            lower[3 * i] = np.uint8(((word << np.uint32(1)) | (word >> np.uint32(31))) & np.uint32(255))
            lower[3 * i + 1] = np.uint8((word >> np.uint32(7)) & np.uint32(255))
            lower[3 * i + 2] = np.uint8((word >> np.uint32(15)) & np.uint32(255))
    else:
        for i in range(words.size):
            word = words[i]
            upper[i] = np.uint8((word >> np.uint32(7)) & np.uint32(255))
            lower[i] = np.uint8(((word << np.uint32(1)) | (word >> np.uint32(15))) & np.uint32(255))
    return upper, lower


_split_loop = jit_helper(_split.loop)
_encode_symbols_loop = jit_helper(rans.encode_short.loop)


def _encode_short_reference(words: U32, width: int) -> U8:
    plain = words.astype(f"<u{width // 8}").tobytes()
    return np.frombuffer(_encode_in_steps(words, plain), dtype=np.uint8)


@kernel(_encode_short_reference, element_ns=0)
def _encode_short(words: U32, width: int) -> U8:
    """Return the bytes of words(k) with entropy code, for 32 words or more and fewer than 4096. width: 32 or 16."""
    n_rest = width // 8 - 1
    upper, lower = _split_loop(words, width)
    symbols = _encode_symbols_loop(upper)
    n_symbols = symbols.size if symbols.size else 1 + upper.size
    n_head = 2 if n_symbols < 128 else 3
    out = np.empty(1 + (n_rest + 1) * words.size, dtype=np.uint8)
    if n_head + n_symbols + lower.size >= out.size:
        out[0] = np.uint8(0)
        for i in range(words.size):
            for byte in range(n_rest + 1):
                out[1 + (n_rest + 1) * i + byte] = np.uint8(words[i] >> np.uint32(8 * byte) & np.uint32(255))
        return out
    out[0] = np.uint8(1)
    if n_head == 3:
        out[1], out[2] = np.uint8(n_symbols & 127 | 128), np.uint8(n_symbols >> 7)
    else:
        out[1] = np.uint8(n_symbols)
    if symbols.size:
        out[n_head : n_head + n_symbols] = symbols
    else:
        out[n_head] = np.uint8(0)
        out[n_head + 1 : n_head + n_symbols] = upper
    out[n_head + n_symbols : n_head + n_symbols + lower.size] = lower
    return out[: n_head + n_symbols + lower.size]


def _join_reference(upper: U8, lower: U8, width: int) -> U32:
    columns = np.zeros((len(upper), 8), dtype=np.uint8)
    columns[:, width // 8 - 1] = upper
    columns[:, : width // 8 - 1] = lower.reshape(len(upper), width // 8 - 1)  # a -1 fails where there are no words
    rotated_words: U64 = columns.view("<u8").reshape(-1).astype(np.uint64)
    return (rotated_words >> np.uint64(1) | (rotated_words & np.uint64(1)) << np.uint64(width - 1)).astype(np.uint32)


@kernel(_join_reference)
def _join(upper: U8, lower: U8, width: int) -> U32:
    """Return the words that `_split` takes apart."""
    words = np.empty(upper.size, dtype=np.uint32)
    if width == 32:
        for i in range(upper.size):
            low = np.uint32(lower[3 * i])
            middle = np.uint32(lower[3 * i + 1]) << np.uint32(7) | np.uint32(lower[3 * i + 2]) << np.uint32(15)
            words[i] = (
                np.uint32(upper[i]) << np.uint32(23) | middle | low >> np.uint32(1) | (low & np.uint32(1)) << np.uint32(31)
            )
    else:
        for i in range(upper.size):
            low = np.uint32(lower[i])
            words[i] = np.uint32(upper[i]) << np.uint32(7) | low >> np.uint32(1) | (low & np.uint32(1)) << np.uint32(15)
    return words


def _to_bfloat16_reference(words: U32) -> U16:
    words64 = words.astype(np.uint64)
    half = ((words64 + np.uint64(0x7FFF) + (words64 >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)
    is_infinite = (half & np.uint16(0x7F80)) == np.uint16(0x7F80)
    return np.where(is_infinite, (half & np.uint16(0x8000)) | np.uint16(0x7F7F), half)


@kernel(_to_bfloat16_reference)
def _to_bfloat16(words: U32) -> U16:
    """Return the upper halves, rounded to nearest even, with the largest finite number in place of infinity."""
    out = np.empty(words.size, dtype=np.uint16)
    for i in range(words.size):
        half = (words[i] + np.uint32(0x7FFF) + (words[i] >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
        out[i] = np.uint16(half - np.uint32((half & np.uint32(0x7F80)) == np.uint32(0x7F80)))
    return out


def _to_float16_reference(values: F32, factor: float) -> U16:
    return (values.astype(np.float64) * factor).astype(np.float16).view(np.uint16)


@kernel(_to_float16_reference, element_ns=70)
def _to_float16(values: F32, factor: float) -> U16:
    """Return the halves nearest to values · factor: 11 significant bits from 2⁻¹⁴ on, multiples of 2⁻²⁴ below."""
    products = np.empty(values.size, dtype=np.float32)
    for i in range(values.size):
        products[i] = np.float32(np.float64(values[i]) * factor)
    words = products.view(np.uint32)
    out = np.empty(values.size, dtype=np.uint16)
    for i in range(values.size):
        word = words[i] & np.uint32(0x7FFFFFFF)
        half = (word - np.uint32(0x38000000) + np.uint32(0xFFF) + (word >> np.uint32(13) & np.uint32(1))) >> np.uint32(13)
        subnormal_half = np.uint32(np.int32(np.rint(min(np.float32(abs(products[i])), np.float32(1)) * np.float32(2**24))))
        magnitude = half if word >= np.uint32(0x38800000) else subnormal_half
        out[i] = np.uint16(words[i] >> np.uint32(16) & np.uint32(0x8000) | magnitude)
    return out


def _from_float16_reference(words: U32, factor: float) -> F32:
    with np.errstate(over="ignore"):
        return (words.astype(np.uint16).view(np.float16).astype(np.float64) * factor).astype(np.float32)


@kernel(_from_float16_reference)
def _from_float16(words: U32, factor: float) -> F32:
    """Return half · factor."""
    units = np.empty(32, dtype=np.float64)  # value of the last bit of a half, by its exponent
    unit = factor * 2.0**-24
    for e in range(32):
        units[e] = unit
        unit *= 2.0 if e else 1.0
    out = np.empty(words.size, dtype=np.float32)
    for i in range(words.size):
        exponent = np.int64(words[i] >> np.uint32(10) & np.uint32(31))
        mantissa = np.int64(words[i] & np.uint32(1023)) + (1024 if exponent > 0 else 0)
        magnitude = np.float32(mantissa * units[exponent])
        out[i] = -magnitude if words[i] & np.uint32(0x8000) else magnitude
    return out


def _round_to_powers_of_two_reference(words: U32, key: np.uint64) -> U16:
    random = (counter_hash(int(key), np.arange(len(words), dtype=np.uint64)) >> np.uint64(41)).astype(np.uint32)
    exponent = words >> np.uint32(23) & np.uint32(255)
    increment = (random < (words & np.uint32(0x7FFFFF))) & (exponent < 254) & (exponent > 0)
    return (words >> np.uint32(31) << np.uint32(8) | exponent + increment).astype(np.uint16)


@kernel(_round_to_powers_of_two_reference)
def _round_to_powers_of_two(words: U32, key: np.uint64) -> U16:
    """Return sign << 8 | exponent of each value."""
    out = np.empty(words.size, dtype=np.uint16)
    for i in range(words.size):
        random = np.uint32(counter_hash_scalar(key, np.uint64(i)) >> np.uint64(41))
        exponent = words[i] >> np.uint32(23) & np.uint32(255)
        has_next_power = np.uint32(exponent < np.uint32(254)) & np.uint32(exponent > np.uint32(0))
        increment = np.uint32(random < (words[i] & np.uint32(0x7FFFFF))) & has_next_power
        out[i] = np.uint16(words[i] >> np.uint32(31) << np.uint32(8) | exponent + increment)
    return out
