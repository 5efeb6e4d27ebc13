"""Tests of the benchmark of memory and time against the number of clients and parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.growth import QUANTITIES, Point, draw, main

pytestmark = pytest.mark.slow


def test_growth_figure_has_memory_and_seconds_of_each_quantity() -> None:
    points = [Point(quantity, 10**n, n * 1e8, n / 10) for quantity in QUANTITIES for n in (2, 3)]
    lines = [axis.get_lines()[0].get_ydata() for axis in draw(points).axes]
    assert [[round(float(y), 6) for y in heights] for heights in lines] == [[200, 300]] * 3 + [[0.2, 0.3]] * 3


@pytest.mark.nightly
def test_growth_benchmark_measures_each_quantity(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, figure = tmp_path / "points.json", tmp_path / "points.svg"
    main(["--clients", "300", "--cohorts", "20", "--parameters", "2e4", "--json", str(file), "--figure", str(figure)])
    points = [Point(**point) for point in json.loads(file.read_text())]
    assert [(point.quantity, point.value) for point in points] == [("N", 300), ("m", 20), ("P", 20230)]
    assert all(point.peak > 1e8 and point.seconds > 0 for point in points)
    assert "registered clients N" in capsys.readouterr().out
    assert "<svg" in figure.read_text()
