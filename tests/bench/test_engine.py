"""Tests of the benchmark of local training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fedsgd.models import MODELS
from fedsgd.system.torch_threads import use_single_thread
from tests.bench.engine import SCENARIOS, Workload, main, measure, table, verdicts

pytestmark = pytest.mark.slow


@pytest.mark.nightly
def test_engine_benchmark_compares_every_engine_with_the_oracle() -> None:
    load = Workload("tiny", "softmax", (8, 8), 9, 6, 4, {"stacked": 1e-9})
    with use_single_thread():
        figures = measure(load, 1)
    assert [f.how for f in figures] == [
        "naive loop", "sequential", "captured, exact", "captured, fused", "stacked, exact", "stacked, fused", "floor",
    ]  # fmt: skip
    assert all(math.isfinite(f.seconds) and f.seconds > 0 for f in figures)
    assert [f.how for f in figures if f.note] == ["stacked, fused"]
    assert [f.how for f in figures if f.goal] == ["stacked, fused"]
    assert figures[1].off == figures[2].off == 0
    assert "[green]pass[/]" in str(table(figures).columns[5]._cells)


@pytest.mark.nightly
def test_loop_by_hand_trains_like_the_oracle(tmp_path: Path) -> None:
    load = Workload("2NN, B = 10", "2nn", (4, 4), 2, 7, 5, {})
    with use_single_thread():
        figures = measure(load, 1)
    (by_hand,) = (f for f in figures if f.how == "by hand")
    assert by_hand.off < 1e-5
    assert any("the loop by hand" in line for line in verdicts(figures))


def test_rounding_benchmark_reports_each_engine_and_the_oracle_one_float_away(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    main(["rounding", "--only", "mlp", "--clients", "2", "--seeds", "1", "--json", str(file)])
    figures = json.loads(file.read_text())["figures"]
    assert [f["how"] for f in figures] == ["captured, fused", "sequential, one float away", "stacked, fused"]
    assert all(len(f["each"]) == 2 and f["steps"] > 9 and 0 < min(f["each"]) <= max(f["each"]) < 1e-5 for f in figures)
    assert "one float away" in capsys.readouterr().out
    assert set(SCENARIOS) == {name for name in MODELS if name != "module"}
