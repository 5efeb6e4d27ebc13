"""Commands that analyze runs: price, compare, report and list."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path

import pytest

import fedsgd
from fedsgd.analysis import compare, load_methods
from fedsgd.network import build_pricing_model, get_device
from fedsgd.scenario.scenario import Scenario
from tests.analysis.helpers import PHONE, invoke

pytestmark = pytest.mark.slow


def test_price_prints_the_fastest_method_first(runs: Path) -> None:
    result = invoke("price", runs, "--network", "lora,10g", "--target", "0.3", "--price-per-gigabyte", "0.1")
    assert result.exit_code == 0, result.output
    comparison = compare(
        load_methods([runs]), 0.3, {"lora": build_pricing_model("lora"), "10g": build_pricing_model("10g")}, 0.1
    )
    lora = result.stdout.split("10g:")[0]
    order = sorted(comparison.rows, key=lambda row: row.network_costs["lora"].seconds.median)
    positions = [lora.index(row.label.split(",")[0]) for row in order]
    assert positions == sorted(positions)
    assert "break-even" in result.stdout
    assert "5.47 kbit/s up" in result.stdout
    assert "×: time divided by that of dense" in result.stdout
    assert max(len(line) for line in result.stdout.split("break-even")[0].splitlines()) <= 80


OVERRIDES = ("--network", "4g", "--up", "1Mbit/s", "--spread", "0.5", "--deadline", "9s")
OVERRIDDEN = "4g with 1 Mbit/s up, log-normal rates, spread 0.5"


def test_rounds_without_clients_are_priced_and_drawn(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("client,first_round,last_round\n0,3,4\n")
    sampler = {"server.sampler": {"name": "trace", "file": str(tmp_path / "trace.csv")}, "server.cohort": 2}
    for name in ("dense", "sign"):
        scenario = Scenario(name="empty").with_settings(
            {**sampler, "rounds": 2, "uplink.compressor": name, "uplink.error_feedback": "none"}
        )
        fedsgd.run(scenario, out=tmp_path / name)
    arguments = (tmp_path / "dense", tmp_path / "sign", "--network", "4g")
    prices = invoke("price", *arguments, "--target", "loss<9")
    assert prices.exit_code == 0, prices.output
    assert re.search(r"dense +0 ms +0 ms +0 B", prices.output), prices.output
    figures = invoke("report", *arguments, "--format", "svg", "--out", tmp_path / "figures")
    assert figures.exit_code == 0, figures.output


def test_price_heading_names_overridden_network_options(runs: Path) -> None:
    result = invoke("price", runs, *OVERRIDES)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert f"{OVERRIDDEN}: 1 Mbit/s up, " in text
    assert f"the server {get_device('server').copy_rate_text}, waits 9 s for a reply" in text
    assert "4g: " not in text
    assert build_pricing_model("4g").network.title not in text
    assert f"4g: {build_pricing_model('4g').network.title}" in " ".join(invoke("price", runs, "--network", "4g").stdout.split())


def test_compare_and_report_name_overridden_network_options(runs: Path, tmp_path: Path) -> None:
    comparison = invoke("compare", runs, *OVERRIDES, "--target", "0.3", "--out", tmp_path / "t.md", "--json")
    assert list(json.loads(comparison.stdout)["terms"]) == [OVERRIDDEN]
    assert f"| time to 0.3, {OVERRIDDEN} |" in (tmp_path / "t.md").read_text()
    report = invoke("report", runs, *OVERRIDES, "--target", "0.3", "--out", tmp_path / "page.html")
    assert report.exit_code == 0, report.output
    payload = re.search(r'id="payload">([^<]*)<', (tmp_path / "page.html").read_text())
    assert payload is not None
    terms = json.loads(gzip.decompress(base64.b64decode(payload[1])))["terms"]
    assert terms["network"] == OVERRIDDEN
    assert terms["source"].startswith("set by options: 1 Mbit/s up, log-normal rates, spread 0.5; all other figures: ")


def test_price_json_has_network_and_break_evens(runs: Path) -> None:
    result = invoke("price", runs, "--up", "2Mbit/s", "--down", "10Mbit/s", "--latency", "50ms", "--target", "0.3", "--json")
    content = json.loads(result.stdout)
    assert content["terms"]["as given"]["network"]["link"] == {
        "up_bits_per_second": 2e6,
        "down_bits_per_second": 1e7,
        "latency_seconds": 0.05,
        "jitter_seconds": 0.0,
    }
    assert {point["below"] for point in content["break_evens"]["as given"]} <= {
        method["label"] for method in content["methods"]
    }


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--up", "2Mb/s", "--down", "10Mbit/s"), "--up: got '2Mb/s'"),
        (("--up", "2Mbit/s"), "--down: expected a rate"),
        (("--network", "4k"), '--network: got "4k"'),
        (("--up", "1e-320bit/s", "--down", "1bit/s"), "--up: got"),
        ((), "--up: expected a rate, or a network by its name"),
    ],
)
def test_wrong_network_option_is_one_line(runs: Path, options: tuple[str, ...], problem: str) -> None:
    result = invoke("price", runs, *options)
    assert result.exit_code == 2
    assert problem in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_compare_writes_tables_and_refuses_wrong_options(runs: Path, stragglers: Path, tmp_path: Path) -> None:
    result = invoke(
        "compare",
        runs,
        stragglers,
        "--target",
        "0.3",
        "--network",
        "3g",
        "--out",
        tmp_path / "t.md",
        "--out",
        tmp_path / "t.csv",
    )
    assert result.exit_code == 0, result.output
    assert "not priced" in (tmp_path / "t.md").read_text()
    assert "is not priced: [participation] deadline = 60 s" in result.stdout
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 5
    refused = invoke("compare", runs, "--out", tmp_path / "t.doc")
    assert refused.exit_code == 2
    assert 'got a table ".doc"' in refused.stderr
    assert json.loads(invoke("compare", runs, "--json").stdout)["target"] is None
    for option in (
        ("--deadline", "5s"),
        ("--price-per-gigabyte", "5"),
        ("--device", "laptop"),
        ("--broadcast",),
        ("--no-broadcast",),
    ):
        refused = invoke("compare", runs, *option)
        assert refused.exit_code == 2
        assert f"{option[0]} needs a network" in refused.stderr
    for value in ("nan", "inf"):
        assert invoke("price", runs, "--network", "4g", "--price-per-gigabyte", value).exit_code == 2
    assert invoke("price", runs, "--network", "4g", "--target", "nan").exit_code == 2
    assert "is a file, expected a run folder" in invoke("price", runs / "topk-0" / "ledger.parquet", "--network", "4g").stderr


def test_list_prints_profiles_with_their_sources() -> None:
    text = invoke("list", "networks").stdout
    assert "satellite-geo" in text
    assert "WebPageTest" in text
    assert json.loads(invoke("list", "devices", "--json").stdout)["phone"]["flops_per_second"] == PHONE.flops_per_second


def test_network_option_without_tracker_is_refused(root: Path) -> None:
    alone = invoke("run", root / "scenarios" / "quickstart.toml", "--network", "4g")
    assert alone.exit_code == 2
    assert "--network needs --track" in alone.stderr
    unknown = invoke("run", root / "scenarios" / "quickstart.toml", "--track", "tensorboard", "--network", "brodband")
    assert unknown.exit_code == 2
    assert 'did you mean "broadband"' in unknown.stderr
