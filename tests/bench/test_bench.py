"""Tests of the benchmarks: complete reports with finite figures. No test limits a time, since machines differ."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsgd.compression import COMPRESSORS, CodecContext, ErrorFeedback
from fedsgd.compression.operators.topk import TopK
from fedsgd.models import MODELS
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.system.torch_threads import use_single_thread
from tests.bench.clients import Figure, Variant, assess, describe
from tests.bench.clients import main as clients_main
from tests.bench.codec import main
from tests.bench.engine import SCENARIOS, Workload, measure, table, verdicts
from tests.bench.engine import main as engine_main
from tests.bench.flower.__main__ import Overhead, print_table
from tests.bench.flower.__main__ import main as flower_main
from tests.bench.goals import CASES, Clients, Work, time_relative_to_memcpy
from tests.bench.measure import Bench, Effort
from tests.bench.report import ROOT, make_run
from tests.bench.report import main as report_main
from tests.bench.rivals import dgc_selection, fedlab_compressors, torch_top_k
from tests.bench.rounds import images
from tests.bench.rounds import main as rounds_main

SIZES = (2000, 5000)
UNAVAILABLE = {"dgc", "sign", "int8", "qsgd", "eden"} - {"int8" if name == "integer" else name for name in COMPRESSORS}
QUICK = Effort(pool_mib=1, repetitions=1)


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


def test_flower_benchmark_with_unknown_part_names_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flower_main(["overheads"])
    assert "got overheads, expected some of overhead, app, rounds" in capsys.readouterr().err
    print_table([Overhead(1000, "up", 1396, 10_995)], "overhead")
    assert "10,995" in capsys.readouterr().out


def test_flower_benchmark_after_sigterm_leaves_no_temporary_folder(tmp_path: Path) -> None:
    command, env = [sys.executable, "-m", "tests.bench.flower", "overhead"], {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(tmp_path.glob("fedsgd-bench-*/logs/superlink.log")):
            time.sleep(0.02)
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_codec_benchmark_with_only_measures_matching_cases(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--sizes", "2000", "--repetitions", "1", "--pool", "1", "--only", "rANS bytes"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("P = 2,000: 2 pass")


def test_clients_keep_their_states_and_repeat_an_encoding() -> None:
    bench = Bench(3000, QUICK)
    clients = Clients(bench, ErrorFeedback(TopK(0.01)))
    assert all("residual" in state for state in clients.states)
    clients.find_support()
    assert len(clients.support) == 30
    reading = time_relative_to_memcpy(lambda bench: Work(clients.send, subtracted_step=clients.encode_again))(bench)
    assert math.isfinite(reading.measured)


def test_other_selections_find_large_coordinates() -> None:
    bench = Bench(20_000, QUICK)
    x, k = bench.tensor(0), 200
    exact = set(torch_top_k(x, k).tolist())
    _, update = TopK(0.01).encode(bench.vector(0), CodecContext(0, 1, 0, ParameterLayout.from_size(20_000)))
    assert exact == set(update.indices.tolist())
    positions = dgc_selection(x, k)
    assert 0 < len(positions) <= 1.3 * k
    assert abs(x[positions]).min() >= 0.8 * abs(x[list(exact)]).min()


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
    engine_main(["rounding", "--only", "mlp", "--clients", "2", "--seeds", "1", "--json", str(file)])
    figures = json.loads(file.read_text())["figures"]
    assert [f["how"] for f in figures] == ["captured, fused", "sequential, one float away", "stacked, fused"]
    assert all(len(f["each"]) == 2 and f["steps"] > 9 and 0 < min(f["each"]) <= max(f["each"]) < 1e-5 for f in figures)
    assert "one float away" in capsys.readouterr().out
    assert set(SCENARIOS) == {name for name in MODELS if name != "module"}


def test_rounds_benchmark_reports_every_uplink(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.bench.rounds.images", lambda: images(examples=10))
    rounds_main(["--rounds", "4", "--turns", "1", "--only", "2nn", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [f["what"] for f in figures] == [
        "training alone", "dense", "dense, two workers", "top-k 1 %", "top-k 1 %, two workers",
    ]  # fmt: skip
    assert all(math.isfinite(f["seconds"]) for f in figures)
    assert "× training alone" in capsys.readouterr().out


def test_clients_benchmark_reports_every_number_of_clients(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    clients_main(["--clients", "300,100", "--rounds", "4", "--turns", "1", "--only", "disk", "--json", str(file)])
    report = json.loads(file.read_text())
    assert [(f["clients"], f["states"]) for f in report["figures"]] == [(100, 0), (300, 0)]
    assert [f["seen"] for f in report["figures"]] == [100, pytest.approx(240, abs=40)]
    assert all(math.isfinite(f[key]) and f[key] > 0 for f in report["figures"] for key in ("seconds", "peak"))
    assert "bytes for each registered client (≤ 16: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        clients_main(["--clients", "300,300"])


def test_growth_with_registered_clients_excludes_states() -> None:
    figures = [
        Figure("x", n, n / 100, 10**6 + 8 * n + 1000 * seen, 1000 * seen, seen) for n, seen in ((100, 9), (300, 7), (900, 90))
    ]
    verdict = assess(Variant("x", {}, 8.5), figures)
    assert verdict.growth == pytest.approx(8)
    line = "x: time of a round 9.00 × (≤ 1.15: miss), +8.0 bytes for each registered client (≤ 8.5: pass)"
    assert describe(verdict) == line


def test_report_benchmark_reports_seconds_memory_and_page_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_main(["--rows", "6000", "--json", str(tmp_path / "r.json")])
    figures = json.loads((tmp_path / "r.json").read_text())
    assert [figure["what"] for figure in figures] == ["read", "price", "report"]
    for figure in figures:
        assert figure["rows"] == 6000
        assert figure["seconds"] > 0
        assert figure["peak"] >= figure["before"]
    assert 3e5 < figures[2]["page_bytes"] < 1e6
    assert "× read" in capsys.readouterr().out


def test_report_of_a_million_rows_has_bounded_memory_and_a_small_page(tmp_path: Path) -> None:
    figures = []
    for rows in (100_000, 1_000_000):
        make_run(tmp_path / str(rows), rows)
        command = [sys.executable, "-m", "tests.bench.report", "--one", str(tmp_path / str(rows)), "report"]
        figures.append(json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout))
    few, many = (figure["peak"] - figure["before"] for figure in figures)
    assert many - few < 1e6 * 8 * 12, "limit: less than a twelfth of the memory of the ledger's columns"
    assert figures[1]["page_bytes"] < 3e6
