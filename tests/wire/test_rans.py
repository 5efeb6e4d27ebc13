"""Entropy code of symbols."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedsgd.errors import WireError
from fedsgd.wire.rans import decode_symbols, encode_symbols


def draw_skewed_symbols(n: int, common: float, rare: int) -> np.ndarray:
    """Draw n symbols: 0 with probability `common`, else one of `rare` other symbols."""
    rng = np.random.default_rng([n, rare])
    return np.where(rng.random(n) < common, 0, 1 + rng.integers(0, rare, n)).astype(np.uint8)


@pytest.mark.parametrize("n", [31, 32, 500, 4095, 4096, 100_000])
@pytest.mark.parametrize("common", [0.0, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("rare", [1, 40, 255])
def test_fine_frequencies_are_used_only_where_they_are_shorter(n: int, common: float, rare: int) -> None:
    symbols = draw_skewed_symbols(n, common, rare)
    coarse, fine = encode_symbols(symbols), encode_symbols(symbols, frequency_bits=15)
    assert coarse[0] in (0, 1), "mode 2 without the setting"
    assert fine == coarse or (fine[0] == 2 and len(fine) < len(coarse))
    for code in (coarse, fine):
        assert (decode_symbols(code, n) == symbols).all()


def test_fine_frequencies_of_rare_symbols_are_near_the_entropy() -> None:
    """Each of forty symbols has probability 1/40,000, but a frequency of 12 bits is at least 1/4096."""
    symbols = draw_skewed_symbols(1_000_000, 0.999, 40)
    counts = np.bincount(symbols)
    entropy = float(-(counts * np.log2(counts / len(symbols))).sum()) / 8
    coarse, fine = encode_symbols(symbols), encode_symbols(symbols, frequency_bits=15)
    assert (coarse[0], fine[0]) == (1, 2)
    assert len(coarse) / entropy == pytest.approx(1.6, abs=0.01)
    assert len(fine) / entropy == pytest.approx(1.05, abs=0.02)
    assert encode_symbols(symbols, entropy=False, frequency_bits=15)[0] == 0


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (lambda c: bytes([3]) + c[1:], "mode 3 of the symbol stream is unknown"),
        (lambda c: bytes([3 - c[0]]) + c[1:], "add up to|a state|does not end"),
        (lambda c: c[:-2], "does not end"),
        (lambda c: c + bytes(2), "does not end"),
    ],
)
def test_malformed_symbols_raise_wire_error(mode: int, mutate: Callable[[bytes], bytes], message: str) -> None:
    symbols = draw_skewed_symbols(30_000, 0.999, 50)
    code = encode_symbols(symbols, frequency_bits=12 if mode == 1 else 15)
    assert code[0] == mode
    with pytest.raises(WireError, match=message):
        decode_symbols(mutate(code), len(symbols))
