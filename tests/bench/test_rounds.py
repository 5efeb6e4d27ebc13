"""Tests of the benchmark of whole rounds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.bench.rounds import images, main

pytestmark = pytest.mark.slow


@pytest.mark.nightly
def test_rounds_benchmark_reports_every_uplink(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.bench.rounds.images", lambda: images(examples=10))
    main(["--rounds", "4", "--turns", "1", "--only", "2nn", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [f["what"] for f in figures] == [
        "training alone", "dense", "dense, two workers", "top-k 1 %", "top-k 1 %, two workers",
    ]  # fmt: skip
    assert all(math.isfinite(f["seconds"]) for f in figures)
    assert "× training alone" in capsys.readouterr().out
