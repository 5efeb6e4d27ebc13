"""Reports: default target and tuned values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedsgd.analysis import load_methods
from fedsgd.analysis.report import choose_default_target
from tests.analysis.helpers import PRICING_MODEL, copy_run, invoke


def test_default_target_is_that_of_the_scenarios_or_the_best_common_accuracy(runs: Path) -> None:
    methods = load_methods([runs])
    assert choose_default_target(methods) == 0.9, "the target of the scenarios"
    without_target = [
        replace(
            m,
            best_variant=replace(
                m.best_variant,
                runs=tuple(replace(r, settings={k: v for k, v in r.settings.items() if "target" not in k}) for r in m.runs),
            ),
        )
        for m in methods
    ]
    summaries = [m.best_variant.summarize_best_accuracy() for m in methods]
    lowest = min(summary.median for summary in summaries if summary is not None)
    assert choose_default_target(without_target) == math.floor(lowest * 100) / 100


def test_report_selects_tuned_values_by_its_default_target(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value reaches 0.9, the target of the scenarios, first. The other value has the higher final accuracy."""
    from fedsgd.analysis import report as module

    for name, rate, accuracy in (
        ("faster", "0.05", [0.1, 0.91, 0.91, 0.91, 0.91, 0.91]),
        ("better", "0.07", [0.1] * 4 + [0.9, 0.99]),
    ):
        folder = copy_run(runs / "topk-0", tmp_path / name, "lr = 0.05", f"lr = {rate}")
        rounds = pd.read_parquet(folder / "rounds.parquet")
        rounds.assign(accuracy=accuracy).to_parquet(folder / "rounds.parquet")
    selected: list[Any] = []
    monkeypatch.setattr(
        module, "build_payload", lambda methods, options: selected.append((methods[0].best_variant.tuned, options.target)) or {}
    )
    monkeypatch.setattr(module, "render", lambda payload: "")
    module.write_report(
        [tmp_path / "faster", tmp_path / "better"],
        tmp_path / "r.html",
        "html",
        target=None,
        tuned=["client.optimizer.lr"],
        network_name="slow",
        pricing_model=PRICING_MODEL,
        price_per_gigabyte=None,
        title=None,
    )
    assert selected == [({"client.optimizer.lr": 0.05}, 0.9)]


def test_report_command_mentions_runs_of_different_experiments(runs: Path, stragglers: Path, tmp_path: Path) -> None:
    options = ("--network", "4g", "--target", "0.3", "--out")
    result = invoke("report", runs / "topk-0", stragglers, *options, tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "fedsgd: the runs differ in more than their method: " in result.stderr


def test_break_evens_in_words() -> None:
    two = [BreakEven("A", "B", 1e6), BreakEven("B", "A", 1e9)]
    three = [*two, BreakEven("A", "B", 1e10)]
    assert list(describe_break_evens(two[:1])) == ["A is sooner than B below 1 Mbit/s up"]
    assert list(describe_break_evens(two)) == ["A is sooner than B below 1 Mbit/s and above 1 Gbit/s up"]
    assert list(describe_break_evens(three)) == ["A is sooner than B below 1 Mbit/s and between 1 Gbit/s and 10 Gbit/s up"]


# ----------------------------------------------------------------------------------------------------------- the command line


def test_price_prints_the_soonest_first(runs: Path) -> None:
    result = called("price", runs, "--network", "lora,10g", "--target", "0.3", "--price-per-gigabyte", "0.1")
    assert result.exit_code == 0, result.output
    compared = compare(load_methods([runs]), 0.3, {"lora": build_pricing_model("lora"), "10g": build_pricing_model("10g")}, 0.1)
    lora = result.stdout.split("10g:")[0]
    order = sorted(compared.rows, key=lambda row: row.network_costs["lora"].seconds.median)
    places = [lora.index(row.label.split(",")[0]) for row in order]
    assert places == sorted(places)
    assert "break-even" in result.stdout
    assert "5.47 kbit/s up" in result.stdout
    assert "×: of the time of dense" in result.stdout
    assert max(len(line) for line in result.stdout.split("break-even")[0].splitlines()) <= 80


OVERRIDES = ("--network", "4g", "--up", "1Mbit/s", "--spread", "0.5", "--deadline", "9s")
OVERRIDDEN = "4g with 1 Mbit/s up, log-normal rates, spread 0.5"


def test_price_heading_names_the_figures_that_were_used(runs: Path) -> None:
    priced = called("price", runs, *OVERRIDES)
    assert priced.exit_code == 0, priced.output
    text = " ".join(priced.stdout.split())
    assert f"{OVERRIDDEN}: 1 Mbit/s up, " in text
    assert f"the server {get_device('server').copy_rate_text}, waits 9 s for a reply" in text
    assert "4g: " not in text
    assert build_pricing_model("4g").network.title not in text
    assert f"4g: {build_pricing_model('4g').network.title}" in " ".join(called("price", runs, "--network", "4g").stdout.split())


def test_compare_and_report_name_the_figures_that_were_used(runs: Path, tmp_path: Path) -> None:
    compared = called("compare", runs, *OVERRIDES, "--target", "0.3", "--out", tmp_path / "t.md", "--json")
    assert list(json.loads(compared.stdout)["terms"]) == [OVERRIDDEN]
    assert f"| time to 0.3, {OVERRIDDEN} |" in (tmp_path / "t.md").read_text()
    made = called("report", runs, *OVERRIDES, "--target", "0.3", "--out", tmp_path / "page.html")
    assert made.exit_code == 0, made.output
    packed = re.search(r'id="payload">([^<]*)<', (tmp_path / "page.html").read_text())
    assert packed is not None
    terms = json.loads(gzip.decompress(base64.b64decode(packed[1])))["terms"]
    assert terms["network"] == OVERRIDDEN
    assert terms["source"].startswith("as asked for: 1 Mbit/s up, log-normal rates, spread 0.5; all other figures: ")


def test_price_as_json_has_everything(runs: Path) -> None:
    result = called("price", runs, "--up", "2Mbit/s", "--down", "10Mbit/s", "--latency", "50ms", "--target", "0.3", "--json")
    plain = json.loads(result.stdout)
    assert plain["terms"]["as given"]["network"]["link"] == {
        "up_bits_per_second": 2e6,
        "down_bits_per_second": 1e7,
        "latency_seconds": 0.05,
        "jitter_seconds": 0.0,
    }
    assert {even["below"] for even in plain["break_evens"]["as given"]} <= {method["label"] for method in plain["methods"]}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--up", "2Mb/s", "--down", "10Mbit/s"), "--up: got '2Mb/s'"),
        (("--up", "2Mbit/s"), "--down: expected a rate"),
        (("--network", "4k"), '--network: got "4k"'),
        (("--up", "1e-320bit/s", "--down", "1bit/s"), "--up: got"),
        ((), "--up: expected a rate, or a network by its name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(runs: Path, options: tuple[str, ...], says: str) -> None:
    result = called("price", runs, *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_compare_writes_what_it_prints(runs: Path, stragglers: Path, tmp_path: Path) -> None:
    result = called(
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
    refused = called("compare", runs, "--out", tmp_path / "t.doc")
    assert refused.exit_code == 2
    assert 'got a table ".doc"' in refused.stderr
    assert json.loads(called("compare", runs, "--json").stdout)["target"] is None
    for option in (("--deadline", "5s"), ("--price-per-gigabyte", "5"), ("--device", "laptop"), ("--broadcast",)):
        refused = called("compare", runs, *option)
        assert refused.exit_code == 2
        assert f"{option[0]} needs a network" in refused.stderr
    for value in ("nan", "inf"):
        assert called("price", runs, "--network", "4g", "--price-per-gigabyte", value).exit_code == 2
    assert called("price", runs, "--network", "4g", "--target", "nan").exit_code == 2
    assert "is a file, expected the run folder" in called("price", runs / "topk-0" / "ledger.parquet", "--network", "4g").stderr


def test_the_profiles_are_listed_with_their_sources() -> None:
    text = called("list", "networks").stdout
    assert "satellite-geo" in text
    assert "WebPageTest" in text
    assert json.loads(called("list", "devices", "--json").stdout)["phone"]["flops_per_second"] == PHONE.flops_per_second


# ------------------------------------------------------------------------------------------------------------------- trackers


class Heard:
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        self.ended: list[RunFinished] = []
        self.rounds: list[int] = []

    def begin(self, run: RunStarted) -> None:
        self.run = run

    def round(self, record: fedsgd.RoundRecord) -> None:
        self.rounds.append(record.round)

    def end(self, ended: RunFinished) -> None:
        self.ended.append(ended)


def test_a_tracker_is_told_the_time_on_networks(root: Path, tmp_path: Path) -> None:
    heard, terms = Heard(), {"4g": build_pricing_model("4g"), "slow": TERMS}
    scenario = fedsgd.load(root / "scenarios" / "quickstart.toml", {**TINY, "rounds": 3})
    fedsgd.run(scenario, out=tmp_path / "run", trackers=[PricedTracker(heard, terms)])
    (ended,) = heard.ended
    assert heard.rounds == [1, 2, 3]
    for (name, seconds), priced in zip(
        ended.seconds_by_network.items(), price(load_run(tmp_path / "run"), list(terms.values())), strict=True
    ):
        assert terms[name] == priced.pricing_model
        assert list(seconds) == priced.cumulative_seconds[1:].tolist()


def test_a_tracker_of_a_run_that_cannot_be_priced_is_told_the_rest(root: Path, tmp_path: Path) -> None:
    settings = {"rounds": 2, "client.epochs": 1}
    late = fedsgd.load(root / "scenarios" / "participation" / "stragglers.toml", settings)
    for scenario, out, says in (
        (late, tmp_path / "late", "deadline = 60 s"),
        (fedsgd.load(root / "scenarios" / "quickstart.toml", settings), None, "without a run folder"),
    ):
        heard = Heard()
        with pytest.warns(TrackerWarning, match=says):
            fedsgd.run(scenario, out=out, trackers=[PricedTracker(heard, {"4g": build_pricing_model("4g")})])
        (ended,) = heard.ended
        assert ended.summary is not None
        assert not ended.seconds_by_network


def test_networks_go_with_trackers(root: Path) -> None:
    alone = called("run", root / "scenarios" / "quickstart.toml", "--network", "4g")
    assert alone.exit_code == 2
    assert "--network goes with --track" in alone.stderr
    unknown = called("run", root / "scenarios" / "quickstart.toml", "--track", "tensorboard", "--network", "brodband")
    assert unknown.exit_code == 2
    assert 'did you mean "broadband"' in unknown.stderr
