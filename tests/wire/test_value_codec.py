"""Value formats: rounding and malformed sections."""

from __future__ import annotations

import struct
from typing import get_args

import numpy as np
import pytest

from fedsgd.errors import WireError
from fedsgd.wire import Section, SectionKind, ValueFormat, decode_values, encode_values


def test_bfloat16_values_are_rounded_to_nearest_even_and_never_to_infinity() -> None:
    from torch import bfloat16, float32, tensor

    rng = np.random.default_rng(0)
    x = (rng.standard_normal(5000) * 10.0 ** rng.integers(-30, 30, 5000)).astype(np.float32)
    decoded = encode_values(x, "bfloat16")[1]
    assert (decoded == tensor(x).to(bfloat16).to(float32).numpy()).all()
    largest = np.array([3.4028235e38, -3.4028235e38], dtype=np.float32)
    assert np.isfinite(encode_values(largest, "bfloat16")[1]).all()


def test_ternary_values_are_sign_times_mean_magnitude() -> None:
    x = np.array([3.0, -1.0, 2.0, -6.0], dtype=np.float32)
    sections, decoded = encode_values(x, "ternary")
    assert decoded.tolist() == [3.0, -3.0, 3.0, -3.0]
    assert [len(s.data) for s in sections] == [1, 4]


def build_sections(pairs: list[tuple[SectionKind, bytes]]) -> tuple[Section, ...]:
    return tuple(Section(kind, data) for kind, data in pairs)


PLAIN = b"\x00"
"""Mode of values without entropy coding."""
MALFORMED_VALUES: dict[str, tuple[str, list[tuple[SectionKind, bytes]]]] = {
    "no section": ("float32", []),
    "wrong kind": ("float32", [(SectionKind.SCALE, bytes(12))]),
    "two sections": ("float32", [(SectionKind.VALUE, bytes(12)), (SectionKind.SCALE, bytes(4))]),
    "too short": ("float32", [(SectionKind.VALUE, PLAIN + bytes(11))]),
    "not a number": ("float32", [(SectionKind.VALUE, PLAIN + struct.pack("<fff", 1, float("nan"), 1))]),
    "infinite": ("float32", [(SectionKind.VALUE, PLAIN + struct.pack("<fff", 1, 1, float("-inf")))]),
    "infinite bfloat16": ("bfloat16", [(SectionKind.VALUE, PLAIN + struct.pack("<HHH", 0, 0x7F80, 0))]),
    "no scale": ("ternary", [(SectionKind.VALUE, b"\x01")]),
    "scale too short": ("ternary", [(SectionKind.VALUE, b"\x01"), (SectionKind.SCALE, bytes(2))]),
    "scale zero": ("ternary", [(SectionKind.VALUE, b"\x01"), (SectionKind.SCALE, bytes(4))]),
    "scale negative": ("ternary", [(SectionKind.VALUE, b"\x01"), (SectionKind.SCALE, struct.pack("<f", -1))]),
    "scale infinite": ("ternary", [(SectionKind.VALUE, b"\x01"), (SectionKind.SCALE, struct.pack("<f", float("inf")))]),
    "sign padding": ("ternary", [(SectionKind.VALUE, b"\x08"), (SectionKind.SCALE, struct.pack("<f", 1))]),
}


@pytest.mark.parametrize(("value_format", "pairs"), MALFORMED_VALUES.values(), ids=MALFORMED_VALUES.keys())
def test_malformed_value_sections_raise_wire_error(value_format: str, pairs: list[tuple[SectionKind, bytes]]) -> None:
    assert value_format in get_args(ValueFormat)
    with pytest.raises(WireError):
        decode_values(build_sections(pairs), 3, value_format)


def test_valid_value_sections_are_decoded() -> None:
    assert decode_values(build_sections([(SectionKind.VALUE, PLAIN + bytes(12))]), 3, "float32").tolist() == [0, 0, 0]
    assert decode_values(
        build_sections([(SectionKind.VALUE, b"\x01"), (SectionKind.SCALE, struct.pack("<f", 1))]), 3, "ternary"
    ).tolist() == [
        -1,
        1,
        1,
    ]


@pytest.mark.parametrize(("value_format", "width"), [("float32", 4), ("bfloat16", 2)])
def test_value_that_is_not_finite_is_named_in_the_error(value_format: ValueFormat, width: int) -> None:
    words = np.array([1, np.inf, np.nan], "<f4").view("<u4")
    data = (words >> (8 * (4 - width))).astype(f"<u{width}").tobytes()
    with pytest.raises(WireError, match="byte 100: value 1 is inf"):
        decode_values((Section(SectionKind.VALUE, data, 100),), 3, value_format, entropy=False)
