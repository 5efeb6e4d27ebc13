"""Tests of the benchmark of large models and small messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.size import UPLINKS, main, measure_messages


def test_size_benchmark_measures_messages_and_their_arithmetic() -> None:
    for uplink in UPLINKS:
        figures = measure_messages(uplink, n_messages=3)
        assert [figure.step for figure in figures] == ["encode", "reply", "decode"]
        assert all(figure.microseconds > 0 and figure.arithmetic > 0 and figure.n_kernels >= 0 for figure in figures)


@pytest.mark.nightly
@pytest.mark.slow
def test_size_benchmark_reports_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    main(["--parameters", "2e4", "--json", str(file)])
    report = json.loads(file.read_text())
    assert [run["uplink"] for run in report["runs"]] == [*UPLINKS]
    assert all(run["parameters"] == 20230 and run["to_training"] > 0 and run["import_bytes"] > 0 for run in report["runs"])
    assert "peak, copies" in capsys.readouterr().out
