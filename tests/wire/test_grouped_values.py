"""Values in groups: bins and their means, errors, contraction, and malformed sections."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsgd.compression.kernels.top_k import top_k
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import ScenarioError, WireError
from fedsgd.numerics.arrays import F32
from fedsgd.wire import Section, SectionKind, Sections, decode_values, encode_values, max_value_bytes
from fedsgd.wire.grouped_values import GROUP_FORMATS, decode_groups, encode_groups, max_group_bytes
from tests.compression.helpers import draw_gaussian, make_context, relative_error
from tests.effort import examples

NONZERO = st.floats(2.0**-20, 2.0**20, width=32).flatmap(lambda x: st.sampled_from([x, -x]))


def bins_of(values: F32) -> list[int]:
    """Return the bin of each value by a plain loop over the rule."""
    magnitudes = np.abs(values.astype(np.float64))
    threshold = magnitudes.mean() + magnitudes.std() / 2
    return [(0 if v < 0 else 3) if abs(float(v)) >= threshold else (1 if v < 0 else 2) for v in values]


@pytest.mark.parametrize("size", [1, 2, 5, 400])
def test_each_value_is_decoded_as_the_mean_of_its_bin(size: int) -> None:
    values = draw_gaussian(size)
    decoded = encode_values(values, "2bit")[1]
    bins = np.array(bins_of(values))
    for b in range(4):
        if (bins == b).any():
            assert decoded[bins == b] == pytest.approx(values[bins == b].mean(dtype=np.float64), rel=1e-6)


@pytest.mark.slow
@examples(200)
@given(hnp.arrays(np.float32, st.integers(1, 60), elements=NONZERO))
def test_two_bit_values_keep_sum_and_signs_and_have_the_variance_within_bins_as_error(values: F32) -> None:
    sections, decoded = encode_values(values, "2bit")
    exact = values.astype(np.float64)
    assert decode_values(sections, len(values), "2bit").tobytes() == decoded.tobytes()
    assert (np.sign(decoded) == np.sign(values)).all()
    assert decoded.sum(dtype=np.float64) == pytest.approx(exact.sum(), abs=1e-6 * np.abs(exact).sum())
    within = sum(np.square(exact[decoded == level] - exact[decoded == level].mean()).sum() for level in np.unique(decoded))
    energy = np.square(exact).sum()
    error = np.square(exact - decoded).sum()
    assert error == pytest.approx(within, abs=1e-6 * energy)
    assert error <= energy - np.abs(exact).sum() ** 2 / len(values) + 1e-6 * energy, "at most the error of ternary values"
    assert len(np.unique(decoded)) <= 4
    assert sum(len(s.data) for s in sections) <= max_value_bytes(len(values), "2bit")


def test_error_of_two_bit_values_on_a_gaussian_vector_is_that_of_the_docstring() -> None:
    values = top_k(draw_gaussian(1_000_000), 1_000_000 // 64)[1]
    sections, decoded = encode_values(values, "2bit")
    energy = np.square(values, dtype=np.float64).sum()
    assert np.square(values - decoded, dtype=np.float64).sum() / energy == pytest.approx(0.0041, rel=0.02)
    shares = np.unique(decoded, return_counts=True)[1] / len(values)
    assert -(shares * np.log2(shares)).sum() == pytest.approx(1.8, abs=0.02)
    assert 8 * len(sections[0].data) / len(values) < 1.95, "with a table of 256 symbols"
    best = min(split_error(np.sort(np.abs(values.astype(np.float64))), cut) for cut in range(1, len(values), 50)) / energy
    assert np.square(values - decoded, dtype=np.float64).sum() / energy <= 1.01 * best


def split_error(magnitudes: np.ndarray, cut: int) -> float:
    """Return the variance within the lower and the upper part of sorted magnitudes, as a sum."""
    return sum(len(part) * float(part.var()) for part in (magnitudes[:cut], magnitudes[cut:]))


@pytest.mark.parametrize("group_format", GROUP_FORMATS)
def test_groups_are_encoded_as_each_group_alone(group_format: Any) -> None:
    counts = np.array([3, 0, 40, 1, 7])
    values = draw_gaussian(51)
    sections, decoded = encode_groups(values, counts, group_format)
    ends = np.cumsum(counts)
    parts = [values[end - count : end] for end, count in zip(ends, counts, strict=True)]
    expected = np.concatenate([encode_values(part, group_format)[1] for part in parts])
    assert decoded == pytest.approx(expected, rel=1e-6)
    assert decode_groups(sections, counts, group_format).tobytes() == decoded.tobytes()
    assert len(sections[1].data) == 4 * 4 * (4 if group_format == "2bit" else 1), "the empty group has no bytes"
    assert sum(len(s.data) for s in sections) <= max_group_bytes(51, 5, group_format)


@pytest.mark.parametrize("group_format", GROUP_FORMATS)
def test_values_with_scales_of_chunks_have_a_smaller_error_where_chunks_differ(group_format: Any) -> None:
    x = draw_gaussian(64 * 40) * np.repeat(np.float32(10) ** -(np.arange(40) % 4), 64).astype(np.float32)
    errors = [relative_error(TopK(0.25, group_format, 64, scales), x, make_context(len(x))) for scales in ("vector", "chunk")]
    assert errors[1] < errors[0]


def test_contraction_of_scales_of_chunks_is_reached_by_one_large_coordinate() -> None:
    """Of one chunk [1, ε, ε, ε], half the coordinates are sent as ternary values: their energy is about half of the chunk's."""
    op, x = TopK(1.0, "ternary", 4, "chunk"), np.tile(np.array([1, 1e-6, 1e-6, 1e-6], np.float32), 3)
    assert 1 - relative_error(op, x, make_context(12)) == pytest.approx(op.contraction(make_context(12).layout), rel=1e-4)


def test_scales_of_the_vector_are_the_default() -> None:
    assert TopK(chunk=64, scales="vector") == TopK(chunk=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": "chunk", "values": "2bit"}, 'got "chunk" with no chunk, expected "vector", or chunk and values'),
        ({"scales": "chunk", "chunk": 64}, 'got "chunk" with values = "float32", expected "vector"'),
        ({"scales": "layer"}, 'expected "vector" or "chunk", or the key left out, got "layer"'),
    ],
)
def test_invalid_scales_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=rf"^top-k\.scales: {message}"):
        TopK(**options)


def build_sections(value: bytes, scale: bytes) -> Sections:
    return Section(SectionKind.VALUE, value, 5), Section(SectionKind.SCALE, scale, 50)


PLAIN = b"\x00"
"""Mode of symbols without entropy coding."""
MALFORMED: dict[str, tuple[bytes, bytes, str]] = {
    "bin with a value has mean 0": (
        PLAIN + b"\x03",
        struct.pack("<4f", 0, 1, 0, 0),
        "byte 50: scale 0 is 0.0, expected above 0",
    ),
    "bin without values has a mean": (PLAIN + b"\x03", struct.pack("<4f", 1, 0, 2, 1), "byte 58: scale 2 is 2.0, expected 0"),
    "negative mean": (PLAIN + b"\x03", struct.pack("<4f", -1, 0, 0, 1), "byte 50: scale 0 is -1.0, expected a finite number"),
    "infinite mean": (PLAIN + b"\x03", struct.pack("<4f", 1, 0, 0, float("inf")), "byte 62: scale 3 is inf"),
    "three means": (PLAIN + b"\x03", bytes(12), "byte 50: 12 bytes of scales, expected 16"),
    "padding": (PLAIN + b"\xc3", struct.pack("<4f", 1, 0, 0, 1), "byte 5: padding digits are not zero"),
    "too short": (PLAIN, struct.pack("<4f", 1, 0, 0, 1), "byte 5: 0 plain symbols, expected 1"),
}


@pytest.mark.parametrize(("value", "scale", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_two_bit_values_raise_wire_error(value: bytes, scale: bytes, message: str) -> None:
    """Two values with the digits 3 and 0, so only the first and the last bin have values."""
    with pytest.raises(WireError, match=message):
        decode_values(build_sections(value, scale), 2, "2bit")


def test_valid_two_bit_values_are_decoded() -> None:
    sections = build_sections(PLAIN + b"\x03", struct.pack("<4f", 2, 0, 0, 1))
    assert decode_values(sections, 2, "2bit").tolist() == [1, -2]


def test_two_bit_values_of_no_value_have_no_means() -> None:
    sections, decoded = encode_values(np.zeros(0, np.float32), "2bit")
    assert ([len(s.data) for s in sections], len(decoded)) == ([1, 0], 0)
    assert len(decode_values(sections, 0, "2bit")) == 0
