"""Tests of the benchmark of reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.report import ROOT, main, make_run

pytestmark = pytest.mark.slow


@pytest.mark.nightly
def test_report_benchmark_reports_seconds_memory_and_page_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--rows", "6000", "--json", str(tmp_path / "r.json")])
    figures = json.loads((tmp_path / "r.json").read_text())
    assert [figure["what"] for figure in figures] == ["read", "price", "report"]
    for figure in figures:
        assert figure["rows"] == 6000
        assert figure["seconds"] > 0
        assert figure["peak"] >= figure["before"]
    assert 3e5 < figures[2]["page_bytes"] < 1e6
    assert "× read" in capsys.readouterr().out


@pytest.mark.nightly
def test_report_of_a_million_rows_has_bounded_memory_and_a_small_page(tmp_path: Path) -> None:
    figures = []
    for rows in (100_000, 1_000_000):
        make_run(tmp_path / str(rows), rows)
        command = [sys.executable, "-m", "tests.bench.report", "--one", str(tmp_path / str(rows)), "report"]
        figures.append(json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout))
    few, many = (figure["peak"] - figure["before"] for figure in figures)
    assert many - few < 1e6 * 8 * 12, "limit: less than a twelfth of the memory of the ledger's columns"
    assert figures[1]["page_bytes"] < 3e6
