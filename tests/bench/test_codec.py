"""Tests of the benchmark of the codec. They check complete reports and finite figures, but no times, since machines differ."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fedsgd.compression import COMPRESSORS
from tests.bench.codec import main
from tests.bench.goals import CASES
from tests.bench.rivals import fedlab_compressors

SIZES = (2000, 5000)
UNAVAILABLE = {"dgc", "sign", "int8", "qsgd", "eden"} - {"int8" if name == "integer" else name for name in COMPRESSORS}


@pytest.mark.slow
def test_codec_benchmark_reports_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    main(["--sizes", "2000,5000", "--repetitions", "1", "--pool", "1", "--json", str(file)])
    figures = json.loads(file.read_text())["figures"]
    assert [(f["size"], f["what"]) for f in figures] == [(size, case.name) for size in SIZES for case in CASES]
    for f in figures:
        if f["verdict"] == "unavailable":
            assert f["what"].split()[0] in UNAVAILABLE or ("FedLab" in f["what"] and not fedlab_compressors())
        else:
            assert all(math.isfinite(f[name]) for name in ("measured", "microseconds", "memcpy_microseconds"))
            assert f["verdict"] in (("pass", "miss") if f["goal"] is not None else ("no goal",))
    output = capsys.readouterr().out
    assert all(len(line) <= 120 for line in output.splitlines()[:-1])
    assert all(case.name in output for case in CASES)
    assert "P = 5,000: " in output.splitlines()[-1]


def test_codec_benchmark_with_only_measures_matching_cases(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--sizes", "2000", "--repetitions", "1", "--pool", "1", "--only", "rANS bytes"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("P = 2,000: 2 pass")
