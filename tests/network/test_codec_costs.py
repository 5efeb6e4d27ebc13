"""Costs of codecs: equal digests give equal prices, and the table that prices rest on covers every compressor."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import math
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import fedsgd
from fedsgd.analysis import compare, load_methods, load_run
from fedsgd.analysis.compute_profile import find_uncosted_codecs
from fedsgd.analysis.pricing import BreakEven, MethodTiming, TimeToTarget, break_evens, price
from fedsgd.analysis.tables import describe_break_evens
from fedsgd.analysis.tracking import PricedTracker
from fedsgd.cli import main
from fedsgd.compression import COMPRESSORS, CompressionOperator
from fedsgd.errors import ReportError
from fedsgd.experiment.time_to_target import TargetReached
from fedsgd.network import Link, Network, RoundTimeModel, build_pricing_model
from fedsgd.network.codec_costs import COST_TABLE_PATH, CodecCost, look_up_cost, read_cost_table, select_uplink_job
from fedsgd.network.round_times import FLOAT_BYTES
from fedsgd.trackers import RunFinished, RunStarted, TrackerWarning
from tests.bench.codec_costs import JOBS, SHAPES, Sample, fitted, key_text, measure, table_text
from tests.bench.measure import Effort

TINY = {"rounds": 6, "client.epochs": 1}
DENSE = {"uplink.compressor": {"name": "dense"}, "uplink.error_feedback": "none", "downlink.policy": "model"}
CAFE = {"uplink.compressor": {"name": "cafe"}, "uplink.error_feedback": "none", "downlink.policy": "model"}


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rounds of the quickstart: top-k, dense, and CAFe, which sends a reference down."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in {"topk": {}, "dense": DENSE, "cafe": CAFE}.items():
        fedsgd.run(fedsgd.load(root / "scenarios" / "quickstart.toml", {**TINY, **settings}), out=folder / name)
    return folder


def called(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def rewrite_summary(folder: Path, **changes: Any) -> None:
    """Change keys of a summary."""
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copy_as_another_machine(run: Path, folder: Path) -> None:
    """Copy a run folder with other seconds, other row groups, and another machine in the summary."""
    shutil.copytree(run, folder)
    rng = np.random.default_rng(5)
    for name in ("ledger.parquet", "rounds.parquet"):
        table = pd.read_parquet(folder / name)
        for column in table.columns[[each.endswith("seconds") for each in table.columns]]:
            table[column] = table[column] * rng.uniform(0.1, 300, len(table))
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), folder / name, row_group_size=37)
    summary = json.loads((folder / "summary.json").read_text())
    work = {**summary["work"], "copy_seconds": 17 * summary["work"]["copy_seconds"]}
    rewrite_summary(folder, seconds=1e4, peak_memory_bytes=None, work=work)


# -------------------------------------------------------------------------------------------------------------------- the law

PRICED = ("--network", "4g,lora", "--target", "0.3", "--device-spread", "0.4", "--spread", "0.5", "--jitter", "2ms")


def outputs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return all that the commands make of the runs in `folder`, by name."""
    monkeypatch.chdir(folder)
    labelled = [f"{name}=runs/{name}" for name in ("topk", "dense", "cafe")]
    results = {"price": called("price", *labelled, *PRICED), "price --json": called("price", *labelled, *PRICED, "--json")}
    tables = [f"table.{suffix}" for suffix in ("csv", "json", "md", "tex")]
    results["compare"] = called("compare", *labelled, *PRICED, *(word for table in tables for word in ("--out", table)))
    results["report"] = called("report", *labelled, "--network", "4g", "--target", "0.3", "--out", "page.html")
    for name, result in results.items():
        assert result.exit_code == 0, (name, result.output)
    made = {name: result.stdout.encode() for name, result in results.items()}
    return made | {name: Path(name).read_bytes() for name in (*tables, "page.html")}


def test_runs_of_equal_digests_have_equal_prices_whatever_the_clock_said(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("topk", "dense", "cafe"):
        shutil.copytree(runs / name, tmp_path / "here" / "runs" / name)
        copy_as_another_machine(runs / name, tmp_path / "there" / "runs" / name)
    here, there = (outputs(tmp_path / where, monkeypatch) for where in ("here", "there"))
    assert len(here) == 9
    for name, text in here.items():
        assert text == there[name], name
    measured = called("price", tmp_path / "here" / "runs" / "topk", *PRICED, "--measured-coding").stdout
    assert measured != called("price", tmp_path / "there" / "runs" / "topk", *PRICED, "--measured-coding").stdout


def test_other_versions_on_the_page_change_no_figure(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []
    for where in ("here", "there"):
        copy_as_another_machine(runs / "topk", tmp_path / where / "runs" / "topk")
        rewrite_summary(tmp_path / where / "runs" / "topk", versions={"machine": where})
        monkeypatch.chdir(tmp_path / where)
        assert called("report", "runs/topk", "--target", "0.3", "--out", "page.html").exit_code == 0
        packed = re.search(r'id="payload"[^>]*>([^<]+)<', Path("page.html").read_text())
        assert packed is not None
        payload = json.loads(gzip.decompress(base64.b64decode(packed[1])))
        assert payload["methods"][0]["runs"][0].pop("versions") == {"machine": where}
        pages.append(payload)
    assert pages[0] == pages[1]


# ------------------------------------------------------------------------------------------------------------------ the table


def names(job: str) -> set[str]:
    return {row["compressor"]["name"] for row in read_cost_table()[job]}


@pytest.mark.parametrize("name", list(COMPRESSORS))
def test_every_registered_compressor_has_its_costs(name: str) -> None:
    assert name in names("encode") & names("add")
    compressor = COMPRESSORS[name]()
    if isinstance(compressor, CompressionOperator):
        assert name in names("send") & names("receive")
        if compressor.kind == "contractive":
            assert name in names("encode_with_feedback")
    else:
        assert name not in names("encode_with_feedback"), "it has a memory of its own"


def test_the_table_says_how_it_was_made_and_has_the_form_that_write_gives() -> None:
    table = read_cost_table()
    assert table["command"] == "python -m tests.bench.codec --write"
    assert all(table[key] for key in ("date", "processor", "cores", "python", "numpy", "numba", "torch"))
    assert table_text(table) == COST_TABLE_PATH.read_text()
    for job in JOBS:
        for row in table[job]:
            figures = [row[key] for key in ("copies", "kept", "fixed_bytes")]
            assert all(0 <= figure < 1e9 for figure in figures), row
            assert row["compressor"]["name"] in {*COMPRESSORS, "changes"}


def row(job: str, **key: Any) -> CodecCost:
    """Return the row with exactly this key."""
    (found,) = (each for each in read_cost_table()[job] if each["compressor"] == key)
    return CodecCost(found["copies"], found["kept"], found["fixed_bytes"])


def test_a_compressor_costs_the_row_that_fits_it_best() -> None:
    resolved = {"name": "top-k", "density": 0.01, "values": "float32"}
    assert look_up_cost("encode", resolved) == (row("encode", name="top-k"), ())
    assert look_up_cost("encode", {"name": "dense", "values": "float32", "entropy": False})[0] == row("encode", name="dense")
    assert look_up_cost("add", {"name": "dense", "values": "float32", "entropy": True})[0] == row(
        "add", name="dense", entropy=True
    )
    for rank, nearest in ((1, 1), (2, 2), (3, 4), (6, 8), (100, 8)):
        assert look_up_cost("encode", {"name": "power-sgd", "rank": rank})[0] == row("encode", name="power-sgd", rank=nearest)
    rounded = {"name": "integer", "bits": 8, "rounding": "nearest", "entropy": False}
    assert look_up_cost("encode", rounded)[0] == row("encode", name="integer", bits=8, rounding="nearest")


def test_a_wrapper_costs_its_own_row_and_its_operators() -> None:
    inner = {"name": "sign"}
    own = row("encode", name="ef21")
    assert look_up_cost("encode", {"name": "ef21", "op": inner})[0] == own + row("encode", name="sign")
    layered = {"name": "scheduled", "op": {"name": "per-layer", "separate": True, "op": inner}}
    rows = [
        row("encode_with_feedback", **key) for key in ({"name": "scheduled"}, {"name": "per-layer", "separate": True}, inner)
    ]
    assert look_up_cost("encode_with_feedback", layered)[0] == rows[0] + rows[1] + rows[2]


def test_error_feedback_is_counted_around_operators_alone() -> None:
    for name, policy, job in (
        ("top-k", "persist", "encode_with_feedback"),
        ("top-k", "decay", "encode_with_feedback"),
        ("top-k", "none", "encode"),
        ("dgc", "decay", "encode"),
    ):
        assert select_uplink_job({"compressor": {"name": name}, "error_feedback": policy}) == job


def test_a_cost_is_in_bytes_of_copies() -> None:
    cost = CodecCost(copies=2, kept=30, fixed_bytes=1000)
    assert cost.count_bytes(10_000, 100) == 4 * (2 * 10_000 + 30 * 100) + 1000


# ------------------------------------------------------------------------------------------------------------------ the price


def test_coding_is_what_the_table_has_for_the_frames_of_the_ledger(runs: Path) -> None:
    """By pandas: the mean over updates, over messages, and over rounds."""
    run = load_run(runs / "topk")
    (priced,) = price(run, [build_pricing_model("4g")])
    ledger, vector = pd.read_parquet(runs / "topk" / "ledger.parquet"), FLOAT_BYTES * 4810
    updates, models = (ledger[ledger.kind == kind] for kind in ("UPDATE", "MODEL"))
    topk = {"name": "top-k"}
    for job, copies in (
        ("encode_with_feedback", priced.compute_profile.encode_copies),
        ("add", priced.compute_profile.server_copies),
    ):
        cost = row(job, **topk)
        assert copies * vector == pytest.approx(np.mean([cost.count_bytes(4810, kept) for kept in updates.kept]))
    whole = {"name": "dense", "entropy": True}
    distinct = models.drop_duplicates(["round", "frame_hash"])
    for job, frames, copies in (
        ("receive", models, priced.compute_profile.decode_copies),
        ("send", distinct, priced.compute_profile.sending_copies),
    ):
        costs = [
            (row(job, **whole) if f.base == 0 else row(job, name="changes")).count_bytes(4810, f.kept)
            for f in frames.itertuples()
        ]
        assert copies * vector == pytest.approx(sum(costs) / (60 if job == "receive" else 6))


def test_a_reference_is_counted_as_values_that_changed(runs: Path) -> None:
    run = load_run(runs / "cafe")
    (priced,) = price(run, [build_pricing_model("4g")])
    ledger = pd.read_parquet(runs / "cafe" / "ledger.parquet")
    references = ledger[ledger.kind == "REFERENCE"]
    sent = priced.ledger_stats.downlink_frames["reference"]
    assert sent.n_frames == len(references) == 50, "in the first round there is none"
    assert sent.n_coordinates == (references.value_bytes // 3.5).clip(upper=4810).sum()
    assert priced.ledger_stats.distinct_downlink_frames["reference"].n_frames == 5
    cost = row("send", name="dense").count_bytes(4810, 4810) * 6
    cost += sum(
        row("send", name="changes").count_bytes(4810, kept) for kept in (references.drop_duplicates("round").value_bytes // 3.5)
    )
    assert priced.compute_profile.sending_copies * FLOAT_BYTES * 4810 == pytest.approx(cost / 6)
    (plain,) = price(load_run(runs / "dense"), [build_pricing_model("4g")])
    assert priced.compute_profile.decode_copies > plain.compute_profile.decode_copies


def test_a_difference_that_is_sent_again_is_encoded_once(root: Path, tmp_path: Path) -> None:
    """With a ternary downlink a client that was away is sent the differences that it missed, as they were."""
    downlink = {"policy": "error-feedback", "compressor": {"name": "top-k", "density": 0.01, "values": "ternary"}}
    settings = {**TINY, "uplink.compressor": {"name": "stc"}, "uplink.error_feedback": "none", "downlink": downlink}
    fedsgd.run(fedsgd.load(root / "scenarios" / "quickstart.toml", settings), out=tmp_path / "run")
    (priced,) = price(load_run(tmp_path / "run"), [build_pricing_model("4g")])
    encoded = priced.ledger_stats.distinct_downlink_frames
    assert encoded["latest"].n_frames <= 5 < encoded["step"].n_frames
    whole, step = row("send", name="dense", entropy=True), row("send", name="top-k")
    costs = encoded["whole"].n_frames * whole.count_bytes(4810, 4810) + encoded["latest"].n_frames * step.count_bytes(4810, 48)
    assert priced.compute_profile.sending_copies * FLOAT_BYTES * 4810 == pytest.approx(costs / 6, rel=1e-3)


def test_runs_of_earlier_versions_are_priced(runs: Path, tmp_path: Path) -> None:
    """They do not say what a copy took, and their scenarios may lack settings that were added later."""
    run = tmp_path / "run"
    shutil.copytree(runs / "dense", run)
    rewrite_summary(run, work={"flops_per_example": 20224.0})
    text = (run / "scenario.toml").read_text().replace("entropy = false\n", "")
    (run / "scenario.toml").write_text(re.sub(r'\[downlink\]\npolicy = "model"\n', "", text))
    (old,), (new,) = (price(load_run(each), [build_pricing_model("4g")]) for each in (run, runs / "dense"))
    np.testing.assert_array_equal(old.cumulative_seconds, new.cumulative_seconds)
    with pytest.raises(ReportError, match=r"has no work\.copy_seconds; run the scenario again"):
        price(load_run(run), [build_pricing_model("4g")], measured_coding=True)


def rename_compressor(run: Path, folder: Path) -> Path:
    """Copy a run, as if its uplink were a compressor of the user's own."""
    shutil.copytree(run, folder)
    text = (folder / "scenario.toml").read_text()
    (folder / "scenario.toml").write_text(
        text.replace('[uplink.compressor]\nname = "top-k"', '[uplink.compressor]\nname = "mine:Mine"')
    )
    return folder


def test_a_compressor_that_is_not_in_the_table_is_named(runs: Path, tmp_path: Path) -> None:
    own = rename_compressor(runs / "topk", tmp_path / "own")
    (priced,) = price(load_run(own), [build_pricing_model("4g")])
    assert find_uncosted_codecs(load_run(own)) == ("uplink mine:Mine",)
    assert (
        priced.compute_profile.encode_copies == priced.compute_profile.server_copies == 0 < priced.compute_profile.decode_copies
    )
    says = "uplink mine:Mine is not in the table of codec costs, so its coding time counts as 0"
    for result in (called("price", own, "--network", "4g"), called("compare", own, "--network", "4g")):
        assert says in result.stdout
        assert "--measured-coding uses times that the run measured" in result.stdout
    clocked = called("price", own, "--network", "4g", "--measured-coding").stdout
    assert "is not in the table" not in clocked
    assert called("report", own, "--target", "0.3", "--out", tmp_path / "page.html").exit_code == 0
    packed = re.search(r'id="payload"[^>]*>([^<]+)<', (tmp_path / "page.html").read_text())
    assert packed is not None
    notes = json.loads(gzip.decompress(base64.b64decode(packed[1])))["notes"]
    assert any(says in note for note in notes)
    drawn = called("report", own, "--target", "0.3", "--format", "png", "--out", tmp_path / "figures")
    assert says in drawn.stderr


class Silent:
    """A tracker that only waits for the end."""

    def begin(self, run: RunStarted) -> None: ...

    def round(self, record: fedsgd.RoundRecord) -> None: ...

    def end(self, ended: RunFinished) -> None:
        self.ended = ended


def test_a_tracker_is_warned_of_a_compressor_that_is_not_in_the_table(runs: Path, tmp_path: Path) -> None:
    own, silent = rename_compressor(runs / "topk", tmp_path / "own"), Silent()
    tracker = PricedTracker(silent, {"4g": build_pricing_model("4g")})
    scenario = fedsgd.load(runs / "topk" / "scenario.toml")
    tracker.begin(RunStarted(scenario, own))
    with pytest.warns(TrackerWarning, match="own: uplink mine:Mine is not in the table of codec costs"):
        tracker.end(RunFinished(summary={}))
    assert (
        list(silent.ended.seconds_by_network["4g"])
        == price(load_run(own), [build_pricing_model("4g")])[0].cumulative_seconds[1:].tolist()
    )


# ------------------------------------------------------------------------------------------------------------------- by the clock


def test_measured_coding_is_an_interval_of_times_and_of_break_evens(runs: Path, tmp_path: Path) -> None:
    methods, terms = load_methods([("topk", runs / "topk"), ("dense", runs / "dense")], 0.3), {"4g": build_pricing_model("4g")}
    clocked = compare(methods, 0.3, terms, measured_coding=True)
    for each in clocked.rows:
        on = each.network_costs["4g"]
        assert on.coding_low is not None
        assert on.coding_high is not None
        assert on.coding_low.median < on.seconds.median < on.coding_high.median
    run = methods[0].runs[0]
    (priced,) = price(run, [terms["4g"]], measured_coding=True)
    assert priced.coding_deciles is not None
    updates = pd.read_parquet(runs / "topk" / "ledger.parquet").query("kind == 'UPDATE' and round > 1")
    for one, quantile in zip((priced.coding_deciles[0], priced, priced.coding_deciles[1]), (0.1, 0.5, 0.9), strict=True):
        copies = updates.encode_seconds.quantile(quantile) / run.summary["work"]["copy_seconds"]
        assert one.compute_profile.encode_copies == float(f"{copies:.1e}"), "to two figures, without round one"
    (even,) = clocked.break_evens["4g"]
    assert even.low is not None
    assert even.high is not None
    assert even.low <= even.up_bits_per_second <= even.high
    (plain,) = compare(methods, 0.3, terms).break_evens["4g"]
    assert plain.low is plain.high is None


def test_measured_coding_is_said_wherever_it_is_shown(runs: Path, tmp_path: Path) -> None:
    given = (f"topk={runs / 'topk'}", f"dense={runs / 'dense'}", "--target", "0.3", "--measured-coding")
    out = [f"{tmp_path}/table.{suffix}" for suffix in ("csv", "json", "md")]
    shown = called("price", *given, "--network", "4g").stdout
    assert "coding times were measured by the machine of each run: median [first to ninth decile]" in shown
    assert len(re.findall(r"\[[\d.]+ m?s to [\d.]+ m?s\]", shown)) == 2
    assert re.search(r"topk is faster than dense below .* \[.* to .*\] up", shown)
    assert max(len(line.rstrip()) for line in shown.splitlines()[:12]) <= 80
    assert called("compare", *given, "--network", "4g", *(word for path in out for word in ("--out", path))).exit_code == 0
    (first, _) = csv.DictReader(io.StringIO(Path(out[0]).read_text()))
    low, middle, high = (float(first[f"seconds{which} 4g median"]) for which in ("_coding_low", "", "_coding_high"))
    assert low < middle < high
    plain = json.loads(Path(out[1]).read_text())
    assert plain["measured_coding"] is True
    assert plain["methods"][0]["on"]["4g"]["coding_low"]["median"] == low
    assert "low" in plain["break_evens"]["4g"][0]
    page = tmp_path / "page.html"
    assert called("report", *given, "--network", "4g", "--out", page).exit_code == 0
    packed = re.search(r'id="payload"[^>]*>([^<]+)<', page.read_text())
    assert packed is not None
    payload = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    assert payload["coding"].startswith("Coding times are medians that the machine of each run measured")
    assert sum("with measured coding times [first to ninth decile]" in note for note in payload["notes"]) == 2
    refused = called("compare", runs / "topk", "--measured-coding")
    assert refused.exit_code == 2
    assert "--measured-coding needs a network" in refused.stderr


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((None, None), "3 Mbit/s"),
        ((1e6, 9e6), "3 Mbit/s [1 Mbit/s to 9 Mbit/s]"),
        ((1e6, math.inf), "3 Mbit/s [1 Mbit/s or more]"),
        ((0.0, 9e6), "3 Mbit/s [9 Mbit/s or less]"),
        ((0.0, math.inf), "3 Mbit/s [any]"),
    ],
)
def test_a_break_even_has_its_range(ends: tuple[float | None, float | None], text: str) -> None:
    assert list(describe_break_evens([BreakEven("a", "b", 3e6, *ends)])) == [f"a is faster than b below {text} up"]


def test_a_range_has_no_end_where_the_order_does_not_change() -> None:
    """By hand: `quick` sends nothing and codes for 1 to 3 s, `lean` sends 1 Mbit and codes for 2 s at most."""
    net = Network(Link(1e6, 1e6))

    def made(label: str, bits: float, *coding: float) -> MethodTiming:
        columns = [np.array([value]) for value in (0.0, 0.0, 0.0, 0.0)]
        reaches = []
        for each in coding:
            line = RoundTimeModel(
                np.array([0, 1]), *columns, np.array([each]), np.array([bits]), *(np.zeros(1) for _ in range(5))
            )
            reaches.append(TimeToTarget(line, TargetReached(1, 1, 0.0)))
        low, middle, high = (MethodTiming(label, [one]) for one in reaches)
        return MethodTiming(label, middle.times_to_target, (low, high))

    (even,) = break_evens(made("quick", 0.0, 1.0, 2.0, 3.0), made("lean", 1e6, 0.5, 1.0, 2.0), net)
    assert even.up_bits_per_second == pytest.approx(1e6), "2 s = 1 s + 1 Mbit"
    assert even.low == pytest.approx(1e6 / 2.5), "3 s = 0.5 s + 1 Mbit"
    assert even.high == math.inf, "1 s is less than 2 s and whatever the link takes"


# --------------------------------------------------------------------------------------------------------------- the measuring


def test_the_table_can_be_measured_again() -> None:
    """At the smallest size, one repetition: every row that the committed table has, and no other."""
    samples, rate = measure(Effort(pool_mib=1, seconds=0, fewest=1, most=1), passes=1, shapes=SHAPES[:1])
    assert rate > 0
    assert all(math.isfinite(second) for sample in samples.values() for second in sample.seconds)
    costs, worst = fitted(samples, rate)
    assert worst >= 1
    for job in JOBS:
        assert {key for of, key in costs if of == job} == {key_text(each["compressor"]) for each in read_cost_table()[job]}


def test_a_fit_finds_the_costs_that_made_the_figures() -> None:
    true, rate = CodecCost(copies=3, kept=50, fixed_bytes=2e5), 1e10
    samples = {}
    for i, density in enumerate((0.1, 0.01, 0.001)):
        for size in (5_000, 200_000, 2_000_000):
            kept = round(density * size)
            sample = samples.setdefault(("encode", key_text({"name": "top-k"}), i, size), Sample())
            for slower in (1.0, 1.0, 1.0, 7.0):
                sample.add(slower * true.count_bytes(size, kept) / rate, kept)
    costs, worst = fitted(samples, rate)
    assert costs["encode", key_text({"name": "top-k"})] == true
    assert worst == pytest.approx(1)
    assert tomllib.loads(table_text({"date": "x", **{job: [] for job in JOBS}}))["date"] == "x"


def test_cost_of_per_layer_names_operators_without_a_row() -> None:
    rules = [{"pattern": "a*", "op": {"name": "own"}}, {"pattern": "b*", "op": {"name": "sign"}}]
    table = {"name": "per-layer", "op": {"name": "terngrad"}, "biases": {"name": "mine"}, "rules": rules}
    cost, missing = look_up_cost("encode", table)
    assert missing == ("mine", "own")
    assert cost == look_up_cost("encode", {"name": "per-layer", "op": {"name": "terngrad"}})[0]
