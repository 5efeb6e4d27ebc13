"""Tests of the benchmark of registered clients."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.bench.clients import Figure, Variant, assess, describe, main

pytestmark = pytest.mark.slow


@pytest.mark.nightly
def test_clients_benchmark_reports_every_number_of_clients(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    main(["--clients", "300,100", "--rounds", "4", "--turns", "1", "--only", "disk", "--json", str(file)])
    report = json.loads(file.read_text())
    assert [(f["clients"], f["states"]) for f in report["figures"]] == [(100, 0), (300, 0)]
    assert [f["seen"] for f in report["figures"]] == [100, pytest.approx(240, abs=40)]
    assert all(math.isfinite(f[key]) and f[key] > 0 for f in report["figures"] for key in ("seconds", "peak"))
    assert "bytes for each registered client (≤ 16: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--clients", "300,300"])


def test_growth_with_registered_clients_excludes_states() -> None:
    figures = [
        Figure("x", n, n / 100, 10**6 + 8 * n + 1000 * n_states, 1000 * n_states, n_states)
        for n, n_states in ((100, 9), (300, 7), (900, 90))
    ]
    verdict = assess(Variant("x", {}, 8.5), figures)
    assert verdict.growth == pytest.approx(8)
    line = "x: time of a round 9.00 × (≤ 1.15: miss), +8.0 bytes for each registered client (≤ 8.5: pass)"
    assert describe(verdict) == line
