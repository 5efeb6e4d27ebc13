"""The benchmark of checkpoints, at a small size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.checkpoint import measure_registered, measure_run, measure_states

pytestmark = pytest.mark.slow


def test_benchmark_measures_a_run_states_and_registered_clients(tmp_path: Path) -> None:
    run = measure_run(tmp_path, n_rounds=1, n_examples=1000)
    assert run["checkpoint"] > 0
    assert run["checkpoint"] == pytest.approx(run["share"] * run["rounds"])
    (tmp_path / "states").mkdir()
    states = measure_states(tmp_path / "states", size=1000, repetitions=1)
    assert states["bytes"] > 100 * 4 * 1000
    assert states["ratio"] > 0
    assert list(measure_registered(tmp_path / "states", repetitions=1, registered=(200, 400))) == ["200", "400"]
