"""Kept values as bytes: float32, bfloat16, or ternary (a sign bit each and one scale).

`encode_values` and `decode_values` turn k float32 values into sections and back; what comes back may differ from what went
in (that is the loss of the format), but is always finite.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32
from fedsgd.errors import WireError
from fedsgd.wire.bits import n_bytes
from fedsgd.wire.frame import Part, Section, Sections

DenseFormat = Literal["float32", "bfloat16"]
"""Formats that can hold a zero, and so can code every coordinate of a vector."""
ValueFormat = Literal["float32", "bfloat16", "ternary"]
FORMATS: tuple[ValueFormat, ...] = get_args(ValueFormat)


def max_value_bytes(k: int, form: ValueFormat) -> int:
    """Payload bytes of k values, the scale included. Exact, not only a bound."""
    return {"float32": 4 * k, "bfloat16": 2 * k, "ternary": n_bytes(k) + 4}[form]


def encode_values(values: F32, form: ValueFormat) -> tuple[Sections, F32]:
    """(sections, what they decode to). values: [k], finite; for "ternary" none is zero."""
    if form == "float32":
        return (Section(Part.VALUE, values.astype("<f4").tobytes()),), values
    if form == "bfloat16":
        halves = _to_bfloat16(values)
        return (Section(Part.VALUE, halves.astype("<u2").tobytes()),), _from_bfloat16(halves)
    negative = np.signbit(values)
    scale = np.float32(np.abs(values.astype(np.float64)).mean() if len(values) else 0.0)
    signs = np.packbits(negative, bitorder="little").tobytes()
    sections = Section(Part.VALUE, signs), Section(Part.SCALE, scale.astype("<f4").tobytes())
    return sections, np.where(negative, -scale, scale).astype(np.float32)


def decode_values(sections: Sections, k: int, form: ValueFormat) -> F32:
    """The k values [k] of the given sections; WireError where lengths, padding or finiteness are not as they must be."""
    expected = (Part.VALUE, Part.SCALE) if form == "ternary" else (Part.VALUE,)
    if tuple(s.part for s in sections) != expected:
        got = ", ".join(s.part.name for s in sections) or "none"
        raise WireError(0, f"value sections {got}, expected {', '.join(p.name for p in expected)}")
    body = sections[0]
    n_body = n_bytes(k) if form == "ternary" else max_value_bytes(k, form)
    if len(body.data) != n_body:
        raise WireError(body.offset, f"{len(body.data)} bytes for {k} {form} values, expected {n_body}")
    if form == "ternary":
        return _decode_ternary(body, sections[1], k)
    if form == "float32":
        values = np.frombuffer(body.data, dtype="<f4").astype(np.float32)
    else:
        values = _from_bfloat16(np.frombuffer(body.data, dtype="<u2"))
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise WireError(body.offset + first * len(body.data) // k, f"value {first} is {values[first]}")
    return values


def _decode_ternary(body: Section, scale_section: Section, k: int) -> F32:
    if len(scale_section.data) != 4:
        raise WireError(scale_section.offset, f"a scale of {len(scale_section.data)} bytes, expected 4")
    scale = np.frombuffer(scale_section.data, dtype="<f4")[0].astype(np.float32)
    if not np.isfinite(scale) or np.signbit(scale) or (scale > 0) != (k > 0):
        raise WireError(scale_section.offset, f"a scale of {scale} for {k} values")
    signs = np.unpackbits(np.frombuffer(body.data, dtype=np.uint8), bitorder="little")
    if signs[k:].any():
        raise WireError(body.offset, "padding bits are not zero")
    values: F32 = np.where(signs[:k] == 1, -scale, scale).astype(np.float32)
    return values


def _to_bfloat16(values: F32) -> NDArray[np.uint16]:
    """Round to nearest even in the upper 16 bits; a finite value never becomes infinite."""
    word = values.view(np.uint32)
    rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    half = rounded.astype(np.uint16)
    overflow = (half & np.uint16(0x7F80)) == np.uint16(0x7F80)
    half[overflow] = (half[overflow] & np.uint16(0x8000)) | np.uint16(0x7F7F)
    return half


def _from_bfloat16(halves: NDArray[np.uint16]) -> F32:
    out: F32 = (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return out
