"""Codecs of values in eight formats. Decoded values are always finite; most formats are lossy.

- float32, bfloat16: the number, rounded to nearest even.
- float16: the number over a common power of two, the scale, rounded to nearest even.
- natural: sign and power of two, rounded stochastically.
- int8, int4: nearest of 255 or 15 levels up to the largest magnitude, which is the scale.
- ternary: a sign bit; all values have the mean magnitude, and none is zero.
- 2bit: four bins by sign and magnitude, each decoded as its mean; none is zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsgd.errors import WireError, shift_offset
from fedsgd.numerics.arrays import F32, U8, U32
from fedsgd.numerics.reductions import bucket_max_magnitudes, first_non_finite, mean_magnitude
from fedsgd.system.profiling import timed
from fedsgd.wire import floats, grouped_values, levels, rans
from fedsgd.wire.bits import check_padding, n_bytes
from fedsgd.wire.frame import Section, SectionKind, Sections

FloatFormat = Literal["float32", "bfloat16", "float16"]
DenseFormat = Literal["float32", "bfloat16", "float16", "natural", "int8", "int4"]
"""Formats that can represent zero, and so can encode every coordinate of a vector."""
ValueFormat = Literal["float32", "bfloat16", "float16", "natural", "int8", "int4", "ternary", "2bit"]


@timed("encode")
def encode_values(values: F32, value_format: ValueFormat, key: int = 0, entropy: bool = True) -> tuple[Sections, F32]:
    """Encode values in a format; return the sections, and the [k] float32 values that the sections decode to.

    Args:
        values: [k] float32, finite; for "ternary" and "2bit" none is zero.
        value_format: name of the format.
        key: key of the shared randomness, 64 bits, by which "natural" rounds.
        entropy: True to use the entropy code of floats if it is shorter.

    >>> sections, values = encode_values(np.array([3.0, -1.0, 2.0], dtype=np.float32), "ternary")
    >>> values.tolist(), [len(section.data) for section in sections]
    ([2.0, -2.0, 2.0], [1, 4])
    """
    return _CODECS[value_format].encode(values, key, entropy)


@timed("decode")
def decode_values(sections: Sections, k: int, value_format: ValueFormat, entropy: bool = True) -> F32:
    """Decode the values of `encode_values`, [k] float32, finite.

    Args:
        sections: sections of the values alone.
        k: number of values.
        value_format: name of the format.
        entropy: setting of the encoder.
    """
    levels.require_sections(sections, _CODECS[value_format].section_kinds)
    return _CODECS[value_format].decode(sections, k, entropy)


def max_value_bytes(k: int, value_format: ValueFormat) -> int:
    """Return the maximum payload of k values in bytes, scale included.

    Args:
        k: number of values.
        value_format: name of the format.
    """
    return _CODECS[value_format].max_bytes(k)


def max_relative_squared_error(value_format: ValueFormat) -> float | None:
    """Return a bound of ‖decoded − values‖² / ‖values‖² for normal numbers; for "natural", of its mean below 2¹²⁷.

    None for int8, int4, ternary and 2bit: their bound depends on the number k of values, and is at most 1 − 1/k.

    Args:
        value_format: name of the format.
    """
    return _CODECS[value_format].max_relative_squared_error


class _ValueCodec(ABC):
    section_kinds: tuple[SectionKind, ...]
    max_relative_squared_error: float | None

    @abstractmethod
    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]: ...

    @abstractmethod
    def decode(self, sections: Sections, k: int, entropy: bool) -> F32: ...

    @abstractmethod
    def max_bytes(self, k: int) -> int: ...


def _require_finite(values: F32, section: Section) -> F32:
    position = first_non_finite(values)
    if position >= 0:
        raise WireError(section.offset, f"value {position} is {values[position]}")
    return values


def _decode_words(section: Section, k: int, width: int, entropy: bool) -> U32:
    with shift_offset(section.offset):
        return floats.decode_words(section.data, k, width, entropy)


class _Float32Codec(_ValueCodec):
    section_kinds = (SectionKind.VALUE,)
    max_relative_squared_error = 0.0

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        return (Section(SectionKind.VALUE, floats.encode_words(values.view(np.uint32), entropy)),), values

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        values = _decode_words(sections[0], k, 4, entropy).view(np.float32)
        return _require_finite(values, sections[0])

    def max_bytes(self, k: int) -> int:
        return 1 + 4 * k


class _Bfloat16Codec(_ValueCodec):
    section_kinds = (SectionKind.VALUE,)
    max_relative_squared_error = 2.0**-16

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        words = floats.to_bfloat16(values)
        return (Section(SectionKind.VALUE, floats.encode_words(words, entropy)),), floats.from_bfloat16(words)

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        values = floats.from_bfloat16(_decode_words(sections[0], k, 2, entropy), overwrite=True)
        return _require_finite(values, sections[0])

    def max_bytes(self, k: int) -> int:
        return 1 + 2 * k


class _Float16Codec(_ValueCodec):
    section_kinds = (SectionKind.VALUE, SectionKind.SCALE)
    max_relative_squared_error = 2.0**-21

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        exponent = floats.choose_scale_exponent(values)
        words = floats.to_float16(values, exponent)
        sections = (
            Section(SectionKind.VALUE, floats.encode_words(words, entropy)),
            Section(SectionKind.SCALE, exponent.to_bytes(2, "little", signed=True)),
        )
        return sections, floats.from_float16(words, exponent)

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        if len(sections[1].data) != 2:  # checked first, as Python cannot print an integer of thousands of digits in a message
            raise WireError(sections[1].offset, f"an exponent of {len(sections[1].data)} bytes, expected 2")
        exponent = int.from_bytes(sections[1].data, "little", signed=True)
        if not floats.MIN_SCALE_EXPONENT <= exponent <= floats.MAX_SCALE_EXPONENT:
            limits = f"{floats.MIN_SCALE_EXPONENT} to {floats.MAX_SCALE_EXPONENT}"
            raise WireError(sections[1].offset, f"an exponent of {exponent}, expected {limits}")
        words = _decode_words(sections[0], k, 2, entropy)
        if floats.has_non_finite_float16(words):
            raise WireError(sections[0].offset, "a float16 number is not finite")
        return _require_finite(floats.from_float16(words, exponent), sections[0])

    def max_bytes(self, k: int) -> int:
        return 3 + 2 * k


class _NaturalCodec(_ValueCodec):
    section_kinds = (SectionKind.VALUE,)
    max_relative_squared_error = 1 / 8

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        powers = floats.round_to_powers_of_two(values, key)
        signs, exponents = (powers >> np.uint16(8)).astype(np.uint8), powers.astype(np.uint8)
        body = np.packbits(signs, bitorder="little").tobytes() + rans.encode_symbols(exponents)
        return (Section(SectionKind.VALUE, body),), floats.from_powers_of_two(signs, exponents)

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        body = sections[0]
        with shift_offset(body.offset + n_bytes(k)):
            exponents = rans.decode_symbols(body.data[n_bytes(k) :], k)
        if k and int(exponents.max()) == 255:
            raise WireError(body.offset, "an exponent is 255, which is no power of two")
        signs = decode_signs(Section(body.kind, body.data[: n_bytes(k)], body.offset), k, "natural values")
        return floats.from_powers_of_two(np.unpackbits(signs, count=k, bitorder="little"), exponents)

    def max_bytes(self, k: int) -> int:
        return n_bytes(k) + rans.max_symbol_bytes(k)


@dataclass(frozen=True)
class _LevelCodec(_ValueCodec):
    level: int
    section_kinds = (SectionKind.VALUE, SectionKind.SCALE)
    max_relative_squared_error = None

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        bucket = max(1, len(values))
        scales = bucket_max_magnitudes(values, bucket)
        quantised = levels.quantise(values, scales, self.level, bucket, None)
        return levels.encode_levels(quantised, scales, self.level), levels.dequantise(quantised, scales, self.level, bucket)

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        bucket = max(1, k)
        return levels.dequantise(*levels.decode_levels(sections, k, self.level, bucket), self.level, bucket)

    def max_bytes(self, k: int) -> int:
        return levels.max_level_bytes(k, self.level, max(1, k))


class _TernaryCodec(_ValueCodec):
    section_kinds = (SectionKind.VALUE, SectionKind.SCALE)
    max_relative_squared_error = None

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        signs = np.signbit(values)
        scale = np.float32(mean_magnitude(values))
        body = np.packbits(signs, bitorder="little").tobytes()
        sections = Section(SectionKind.VALUE, body), Section(SectionKind.SCALE, scale.astype("<f4").tobytes())
        return sections, np.where(signs, -scale, scale).astype(np.float32)

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        signs = np.unpackbits(decode_signs(sections[0], k, "ternary values"), count=k, bitorder="little")
        (scale,) = levels.decode_scales(sections[1], 1)
        if (scale > 0) != (k > 0):
            raise WireError(sections[1].offset, f"the scale of {k} values is {scale}, expected {'above 0' if k else 0}")
        values: F32 = np.where(signs == 1, -scale, scale).astype(np.float32)
        return values

    def max_bytes(self, k: int) -> int:
        return n_bytes(k) + 4


class _TwoBitCodec(_ValueCodec):
    section_kinds = (SectionKind.VALUE, SectionKind.SCALE)
    max_relative_squared_error = None

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        return grouped_values.encode_groups(values, np.array([len(values)]), "2bit", entropy)

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        return grouped_values.decode_groups(sections, np.array([k]), "2bit")

    def max_bytes(self, k: int) -> int:
        return grouped_values.max_group_bytes(k, 1, "2bit")


def decode_signs(section: Section, k: int, label: str) -> U8:
    """Check a section of sign bits and return the packed bits, [⌈k / 8⌉] uint8.

    Args:
        section: section that contains sign bits alone.
        k: number of sign bits.
        label: description of the values, for error messages.
    """
    if len(section.data) != n_bytes(k):
        raise WireError(section.offset, f"{len(section.data)} bytes for {k} {label}, expected {n_bytes(k)}")
    with shift_offset(section.offset):
        check_padding(section.data, k)
    return np.frombuffer(section.data, dtype=np.uint8)


_CODECS: Mapping[str, _ValueCodec] = {
    "float32": _Float32Codec(),
    "bfloat16": _Bfloat16Codec(),
    "float16": _Float16Codec(),
    "natural": _NaturalCodec(),
    "int8": _LevelCodec(127),
    "int4": _LevelCodec(7),
    "ternary": _TernaryCodec(),
    "2bit": _TwoBitCodec(),
}
