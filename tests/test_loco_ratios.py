"""Script of ratios of SparseLoCo, DeMo and OpenDiLoCo: at least the goals, and the published figures by arithmetic."""

from __future__ import annotations

from math import comb, log2
from types import ModuleType

import pytest

from tests.scripts import load_script


@pytest.fixture(scope="module")
def ratios() -> ModuleType:
    return load_script("loco/ratios.py")


def test_ratios_of_chunks_are_above_the_published_ones(ratios: ModuleType) -> None:
    rows = ratios.sparse_loco(ratios.draw_vector())
    assert [(k, round(published, 1)) for k, published, _, _ in rows] == [(32, 292.6), (64, 146.3), (128, 73.1)]
    for (k, _, measured, overhead), goal in zip(rows, (390, 216, 120), strict=True):
        assert goal <= measured["2 bits"] < 1.05 * 4096 * 32 / (2 * k + log2(comb(4096, k)))
        assert measured["2 bits, bins of chunks"] == pytest.approx(32 / (32 / measured["2 bits"] + 4 * 32 / 4096), rel=0.02), k
        assert measured["2 bits"] < measured["signs"]
        assert overhead < 1.001


def test_positions_of_demo_take_their_entropy(ratios: ModuleType) -> None:
    rows = ratios.demo_positions(ratios.draw_vector())
    assert [(block, information) for block, information, _, _ in rows] == [("64 coordinates", 6), ("64 × 64 of a matrix", 12)]
    assert all(bits == pytest.approx(entropy, rel=1e-3) for _, _, entropy, bits in rows)


def test_bytes_of_8_bit_codecs_follow_from_their_formats(ratios: ModuleType) -> None:
    sizes = dict(ratios.eight_bit(ratios.draw_vector()))
    assert sizes["hivemind, blocks of 4096"] - sizes["hivemind, uniform"] == 8 + 4 * 400
    assert 0 < sizes["fedsgd, integer"] - ratios.SIZE - 4 * 400 < 60
    assert sizes["fedsgd, integer with entropy"] < 0.9 * ratios.SIZE


@pytest.mark.slow
def test_tables_have_at_most_80_columns(ratios: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    ratios.main()
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())
