"""Values as bytes, in one of seven formats. What comes back may differ from what went in (that is the loss of the format), but
is always finite.

| format | a value | sections |
|---|---|---|
| float32, bfloat16 | the number, rounded to nearest even | VALUE |
| float16 | the same over a common power of two | VALUE, SCALE |
| natural | sign and power of two, rounded stochastically | VALUE |
| int8, int4 | nearest of 255 or 15 levels up to the largest magnitude | VALUE, SCALE |
| ternary | a sign bit; all have the mean magnitude; none is zero | VALUE, SCALE |

The bytes are described in `floats` and `levels`; those of ternary are one bit each, 1 for minus, and a float32 scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsgd.arrays import F32, U8, U32
from fedsgd.errors import WireError, within
from fedsgd.profiling import phased
from fedsgd.vectors import bucket_peaks, first_bad, mean_magnitude
from fedsgd.wire import floats, levels, rans
from fedsgd.wire.bits import check_padding, n_bytes
from fedsgd.wire.frame import Part, Section, Sections

FloatFormat = Literal["float32", "bfloat16", "float16"]
DenseFormat = Literal["float32", "bfloat16", "float16", "natural", "int8", "int4"]
"""Formats that can hold a zero, and so can code every coordinate of a vector."""
ValueFormat = Literal["float32", "bfloat16", "float16", "natural", "int8", "int4", "ternary"]


@phased("encode")
def encode_values(values: F32, form: ValueFormat, key: int = 0, entropy: bool = True) -> tuple[Sections, F32]:
    """(sections, what they decode to). values: [k], finite; for "ternary" none is zero. key: of the shared randomness that
    "natural" rounds by. entropy: whether floats may be entropy-coded."""
    return _FORMATS[form].encode(values, key, entropy)


@phased("decode")
def decode_values(sections: Sections, k: int, form: ValueFormat, entropy: bool = True) -> F32:
    """The k values [k] of the given sections; WireError where lengths, padding or finiteness are not as they must be."""
    levels.expect_parts(sections, _FORMATS[form].parts)
    return _FORMATS[form].decode(sections, k, entropy)


def max_value_bytes(k: int, form: ValueFormat) -> int:
    """The most that the payload of k values weighs, the scale included."""
    return _FORMATS[form].max_bytes(k)


def value_error(form: ValueFormat) -> float | None:
    """The largest ‖decoded − values‖² / ‖values‖² there can be of normal numbers, in the mean for "natural"; None if that
    depends on the values: of int8, int4 and ternary nothing is sure but that a part as large as the largest coordinate
    survives."""
    return _FORMATS[form].error


class _Format(ABC):
    parts: tuple[Part, ...]
    error: float | None

    @abstractmethod
    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]: ...

    @abstractmethod
    def decode(self, sections: Sections, k: int, entropy: bool) -> F32: ...

    @abstractmethod
    def max_bytes(self, k: int) -> int: ...


def _finite(values: F32, section: Section) -> F32:
    bad = first_bad(values)
    if bad >= 0:
        raise WireError(section.offset, f"value {bad} is {values[bad]}")
    return values


def _words(section: Section, k: int, width: int, entropy: bool) -> U32:
    with within(section.offset):
        return floats.decode_words(section.data, k, width, entropy)


class _Float32(_Format):
    parts = (Part.VALUE,)
    error = 0.0

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        return (Section(Part.VALUE, floats.encode_words(values.view(np.uint32), entropy)),), values

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        values = _words(sections[0], k, 4, entropy).view(np.float32)
        return _finite(values, sections[0])

    def max_bytes(self, k: int) -> int:
        return 1 + 4 * k


class _Bfloat16(_Format):
    parts = (Part.VALUE,)
    error = 2.0**-16

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        words = floats.to_bfloat16(values)
        return (Section(Part.VALUE, floats.encode_words(words, entropy)),), floats.from_bfloat16(words.astype(np.uint32))

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        return _finite(floats.from_bfloat16(_words(sections[0], k, 2, entropy)), sections[0])

    def max_bytes(self, k: int) -> int:
        return 1 + 2 * k


class _Float16(_Format):
    parts = (Part.VALUE, Part.SCALE)
    error = 2.0**-21

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        exponent = floats.half_exponent(values)
        words = floats.to_float16(values, exponent)
        sections = (
            Section(Part.VALUE, floats.encode_words(words, entropy)),
            Section(Part.SCALE, exponent.to_bytes(2, "little", signed=True)),
        )
        return sections, floats.from_float16(words.astype(np.uint32), exponent)

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        if len(sections[1].data) != 2:  # looked at first: Python refuses to write out a number of thousands of digits
            raise WireError(sections[1].offset, f"an exponent of {len(sections[1].data)} bytes, expected 2")
        exponent = int.from_bytes(sections[1].data, "little", signed=True)
        if not floats.LEAST_EXPONENT <= exponent <= floats.GREATEST_EXPONENT:
            limits = f"{floats.LEAST_EXPONENT} to {floats.GREATEST_EXPONENT}"
            raise WireError(sections[1].offset, f"an exponent of {exponent}, expected {limits}")
        words = _words(sections[0], k, 2, entropy)
        if ((words & np.uint32(0x7C00)) == 0x7C00).any():
            raise WireError(sections[0].offset, "a half that is not finite")
        return _finite(floats.from_float16(words, exponent), sections[0])

    def max_bytes(self, k: int) -> int:
        return 3 + 2 * k


class _Natural(_Format):
    parts = (Part.VALUE,)
    error = 1 / 8

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        powers = floats.round_to_powers(values, key)
        signs, exponents = (powers >> np.uint16(8)).astype(np.uint8), powers.astype(np.uint8)
        body = np.packbits(signs, bitorder="little").tobytes() + rans.encode_symbols(exponents)
        return (Section(Part.VALUE, body),), floats.from_powers(signs, exponents)

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        body = sections[0]
        with within(body.offset + n_bytes(k)):
            exponents = rans.decode_symbols(body.data[n_bytes(k) :], k)
        if k and int(exponents.max()) == 255:
            raise WireError(body.offset, "an exponent of 255 is no power of two")
        signs = read_signs(Section(body.part, body.data[: n_bytes(k)], body.offset), k, "natural values")
        return floats.from_powers(np.unpackbits(signs, count=k, bitorder="little"), exponents)

    def max_bytes(self, k: int) -> int:
        return n_bytes(k) + rans.max_symbol_bytes(k)


@dataclass(frozen=True)
class _Levels(_Format):
    level: int
    parts = (Part.VALUE, Part.SCALE)
    error = None

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        bucket = max(1, len(values))
        scales = bucket_peaks(values, bucket)
        chosen = levels.quantise(values, scales, self.level, bucket, None)
        return levels.encode_levels(chosen, scales, self.level), levels.dequantise(chosen, scales, self.level, bucket)

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        bucket = max(1, k)
        return levels.dequantise(*levels.decode_levels(sections, k, self.level, bucket), self.level, bucket)

    def max_bytes(self, k: int) -> int:
        return levels.max_level_bytes(k, self.level, max(1, k))


class _Ternary(_Format):
    parts = (Part.VALUE, Part.SCALE)
    error = None

    def encode(self, values: F32, key: int, entropy: bool) -> tuple[Sections, F32]:
        negative = np.signbit(values)
        scale = np.float32(mean_magnitude(values))
        signs = np.packbits(negative, bitorder="little").tobytes()
        sections = Section(Part.VALUE, signs), Section(Part.SCALE, scale.astype("<f4").tobytes())
        return sections, np.where(negative, -scale, scale).astype(np.float32)

    def decode(self, sections: Sections, k: int, entropy: bool) -> F32:
        negative = np.unpackbits(read_signs(sections[0], k, "ternary values"), count=k, bitorder="little")
        (scale,) = levels.read_scales(sections[1], 1)
        if (scale > 0) != (k > 0):
            raise WireError(sections[1].offset, f"a scale of {scale} for {k} values")
        values: F32 = np.where(negative == 1, -scale, scale).astype(np.float32)
        return values

    def max_bytes(self, k: int) -> int:
        return n_bytes(k) + 4


def read_signs(section: Section, k: int, form: str) -> U8:
    """The k sign bits of a section that holds nothing else, still packed; form: what they are the signs of, for messages."""
    if len(section.data) != n_bytes(k):
        raise WireError(section.offset, f"{len(section.data)} bytes for {k} {form}, expected {n_bytes(k)}")
    with within(section.offset):
        check_padding(section.data, k)
    return np.frombuffer(section.data, dtype=np.uint8)


_FORMATS: Mapping[str, _Format] = {
    "float32": _Float32(),
    "bfloat16": _Bfloat16(),
    "float16": _Float16(),
    "natural": _Natural(),
    "int8": _Levels(127),
    "int4": _Levels(7),
    "ternary": _Ternary(),
}
