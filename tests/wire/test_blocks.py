"""Whole models are converted block after block, and short codes in one call, with the bytes of the conversion in steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsgd.errors import WireError
from fedsgd.wire import Section, SectionKind, decode_values, encode_values, floats, gap_codec, rans
from fedsgd.wire.index_codec import decode_indices, encode_indices

BLOCK = 64
SIZES = (BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 5 * BLOCK + 7)


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return a function that selects short blocks, or no blocks."""
    monkeypatch.setattr(rans, "MIN_SYMBOLS_TO_ESTIMATE", 0)  # excludes the codes in one call
    return lambda in_blocks: monkeypatch.setattr(floats, "BLOCK", BLOCK if in_blocks else 10**9)


def draw_values(size: int, compressible: bool) -> np.ndarray:
    rng = np.random.default_rng(size)
    values = rng.standard_normal(size).astype(np.float32)
    return values if compressible else values * np.float32(2) ** rng.integers(-120, 100, size).astype(np.float32)


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("value_format", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", SIZES)
def test_values_in_blocks_have_the_bytes_of_one_block(
    short_blocks: Callable[[bool], None], size: int, value_format: Any, entropy: bool
) -> None:
    for compressible in (True, False):
        values = draw_values(size, compressible)
        results = []
        for in_blocks in (False, True):
            short_blocks(in_blocks)
            sections, decoded = encode_values(values, value_format, entropy=entropy)
            assert decode_values(sections, size, value_format, entropy).tobytes() == decoded.tobytes()
            results.append(([bytes(section.data) for section in sections], decoded.tobytes()))
        assert results[0] == results[1]


@pytest.mark.parametrize("position", [0, BLOCK - 1, BLOCK, 2 * BLOCK])
def test_half_that_is_not_finite_is_found_in_each_block(short_blocks: Callable[[bool], None], position: int) -> None:
    short_blocks(True)
    words = np.zeros(2 * BLOCK + 1, dtype=np.uint32)
    assert not floats.has_non_finite_float16(words)
    words[position] = 0x7C00
    assert floats.has_non_finite_float16(words)


def test_bfloat16_numbers_may_use_the_memory_of_their_words() -> None:
    words = np.arange(5, dtype=np.uint32)
    expected = floats.from_bfloat16(words)
    assert words.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(floats.from_bfloat16(words.astype(np.uint16)), expected)
    assert np.shares_memory(floats.from_bfloat16(words, overwrite=True), words)
    assert np.array_equal(words.view(np.float32), expected)


@pytest.mark.parametrize("k", [0, 1, 31, 32, 63, 64, 65, 127, 128, 129, 300])
@pytest.mark.parametrize("spread", ["even", "clustered", "dense"])
def test_positions_in_one_call_have_the_bytes_of_the_steps(monkeypatch: pytest.MonkeyPatch, k: int, spread: str) -> None:
    rng = np.random.default_rng(k)
    gaps = {"even": rng.geometric(0.01, k), "clustered": (rng.pareto(0.5, k) + 1).clip(1, 10**5), "dense": np.ones(k)}[spread]
    indices = np.cumsum(gaps.astype(np.int64)) - 1
    size = int(indices[-1]) + 5 if k else 5
    data = encode_indices(indices, size)
    assert np.array_equal(decode_indices(Section(SectionKind.INDEX, data), size), indices)
    monkeypatch.setattr(gap_codec, "MAX_SHORT_GAPS", gap_codec.MIN_GAPS_FOR_CLASSES - 1)
    assert encode_indices(indices, size) == data
    assert np.array_equal(decode_indices(Section(SectionKind.INDEX, data), size), indices)


def test_damaged_short_codes_raise_the_error_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        k = int(rng.integers(1, 200))
        indices = np.sort(rng.choice(9000, k, replace=False))
        data = bytearray(encode_indices(indices, 9000))
        data[rng.integers(len(data))] = rng.integers(256)
        results = []
        for limit in (4095, -1):
            with monkeypatch.context() as patch:
                patch.setattr(gap_codec, "MAX_SHORT_GAPS", limit)
                try:
                    results.append(decode_indices(Section(SectionKind.INDEX, bytes(data)), 9000).tolist())
                except WireError as error:
                    results.append(str(error))
        assert results[0] == results[1]
