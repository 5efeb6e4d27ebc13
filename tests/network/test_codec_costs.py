"""Codec costs: the table, and the prices that are computed from it; runs of equal digests have equal prices."""

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
from tests.bench.codec_costs import JOBS, SHAPES, Sample, fit_costs, key_text, measure, table_text
from tests.bench.measure import Effort

TINY = {"rounds": 6, "client.epochs": 1, "data.partition": {"name": "iid", "clients": 20}}
DENSE = {"uplink.compressor": {"name": "dense"}, "uplink.error_feedback": "none", "downlink.policy": "model"}
CAFE = {"uplink.compressor": {"name": "cafe"}, "uplink.error_feedback": "none", "downlink.policy": "model"}


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run six rounds of the quickstart with top-k, dense, and CAFe, which sends a reference down."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in {"topk": {}, "dense": DENSE, "cafe": CAFE}.items():
        fedsgd.run(fedsgd.load(root / "scenarios" / "quickstart.toml", {**TINY, **settings}), out=folder / name)
    return folder


def call_command(*arguments: str | Path) -> Result:
    """Call `fedsgd` with arguments."""
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
        for column in table.columns[[name.endswith("seconds") for name in table.columns]]:
            table[column] = table[column] * rng.uniform(0.1, 300, len(table))
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), folder / name, row_group_size=37)
    summary = json.loads((folder / "summary.json").read_text())
    work = {**summary["work"], "copy_seconds": 17 * summary["work"]["copy_seconds"]}
    rewrite_summary(folder, seconds=1e4, peak_memory_bytes=None, work=work)


# ----------------------------------------------------------------------------------------------------------------- equal prices

PRICING_OPTIONS = ("--network", "4g,lora", "--target", "0.3", "--device-spread", "0.4", "--spread", "0.5", "--jitter", "2ms")


def collect_outputs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return the outputs of all commands for the runs in `folder`, by name."""
    monkeypatch.chdir(folder)
    labelled = [f"{name}=runs/{name}" for name in ("topk", "dense", "cafe")]
    results = {
        "price": call_command("price", *labelled, *PRICING_OPTIONS),
        "price --json": call_command("price", *labelled, *PRICING_OPTIONS, "--json"),
    }
    tables = [f"table.{suffix}" for suffix in ("csv", "json", "md", "tex")]
    results["compare"] = call_command(
        "compare", *labelled, *PRICING_OPTIONS, *(word for table in tables for word in ("--out", table))
    )
    results["report"] = call_command("report", *labelled, "--network", "4g", "--target", "0.3", "--out", "page.html")
    for name, result in results.items():
        assert result.exit_code == 0, (name, result.output)
    printed = {name: result.stdout.encode() for name, result in results.items()}
    return printed | {name: Path(name).read_bytes() for name in (*tables, "page.html")}


@pytest.mark.slow
def test_prices_of_equal_runs_do_not_depend_on_measured_seconds(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("topk", "dense", "cafe"):
        shutil.copytree(runs / name, tmp_path / "original" / "runs" / name)
        copy_as_another_machine(runs / name, tmp_path / "copy" / "runs" / name)
    original, copy = (collect_outputs(tmp_path / folder, monkeypatch) for folder in ("original", "copy"))
    assert len(original) == 9
    for name, text in original.items():
        assert text == copy[name], name
    measured = call_command("price", tmp_path / "original" / "runs" / "topk", *PRICING_OPTIONS, "--measured-coding").stdout
    assert measured != call_command("price", tmp_path / "copy" / "runs" / "topk", *PRICING_OPTIONS, "--measured-coding").stdout


@pytest.mark.slow
def test_page_figures_do_not_depend_on_versions(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []
    for machine in ("first", "second"):
        copy_as_another_machine(runs / "topk", tmp_path / machine / "runs" / "topk")
        rewrite_summary(tmp_path / machine / "runs" / "topk", versions={"machine": machine})
        monkeypatch.chdir(tmp_path / machine)
        assert call_command("report", "runs/topk", "--target", "0.3", "--out", "page.html").exit_code == 0
        packed = re.search(r'id="payload"[^>]*>([^<]+)<', Path("page.html").read_text())
        assert packed is not None
        payload = json.loads(gzip.decompress(base64.b64decode(packed[1])))
        assert payload["methods"][0]["runs"][0].pop("versions") == {"machine": machine}
        pages.append(payload)
    assert pages[0] == pages[1]


# ------------------------------------------------------------------------------------------------------------------------ table


def list_compressors(job: str) -> set[str]:
    """Return the names of the compressors that have a row for a job."""
    return {row["compressor"]["name"] for row in read_cost_table()[job]}


@pytest.mark.parametrize("name", list(COMPRESSORS))
def test_cost_table_has_rows_of_every_compressor(name: str) -> None:
    assert name in list_compressors("encode") & list_compressors("add")
    compressor = COMPRESSORS[name]()
    if isinstance(compressor, CompressionOperator):
        assert name in list_compressors("send") & list_compressors("receive")
        if compressor.kind == "contractive":
            assert name in list_compressors("encode_with_feedback")
    else:
        assert name not in list_compressors("encode_with_feedback"), "a scheme has state and takes no error feedback"


def test_cost_table_has_its_origin_and_the_written_form() -> None:
    table = read_cost_table()
    assert table["command"] == "python -m tests.bench.codec --write"
    assert all(table[key] for key in ("date", "processor", "cores", "python", "numpy", "numba", "torch"))
    assert table_text(table) == COST_TABLE_PATH.read_text()
    for job in JOBS:
        for row in table[job]:
            figures = [row[key] for key in ("copies", "kept", "fixed_bytes")]
            assert all(0 <= figure < 1e9 for figure in figures), row
            assert row["compressor"]["name"] in {*COMPRESSORS, "changes"}


def read_cost(job: str, **key: Any) -> CodecCost:
    """Return the cost of the row with exactly this key."""
    (match,) = (entry for entry in read_cost_table()[job] if entry["compressor"] == key)
    return CodecCost(match["copies"], match["kept"], match["fixed_bytes"])


def test_look_up_cost_returns_best_matching_row() -> None:
    resolved = {"name": "top-k", "density": 0.01, "values": "float32"}
    assert look_up_cost("encode", resolved) == (read_cost("encode", name="top-k"), ())
    assert look_up_cost("encode", {"name": "dense", "values": "float32", "entropy": False})[0] == read_cost(
        "encode", name="dense"
    )
    assert look_up_cost("add", {"name": "dense", "values": "float32", "entropy": True})[0] == read_cost(
        "add", name="dense", entropy=True
    )
    for rank, nearest in ((1, 1), (2, 2), (3, 4), (6, 8), (100, 8)):
        assert look_up_cost("encode", {"name": "power-sgd", "rank": rank})[0] == read_cost(
            "encode", name="power-sgd", rank=nearest
        )
    assert look_up_cost("encode", {**resolved, "chunk": 64}) == (read_cost("encode", name="top-k", chunk=4096), ())
    assert look_up_cost("encode", {"name": "demo", "block": 2048})[0] == read_cost("encode", name="demo", block=1024)
    rounded = {"name": "integer", "bits": 8, "rounding": "nearest", "entropy": False}
    assert look_up_cost("encode", rounded)[0] == read_cost("encode", name="integer", bits=8, rounding="nearest")


def test_look_up_cost_of_wrapper_adds_its_operator() -> None:
    inner = {"name": "sign"}
    wrapper = read_cost("encode", name="ef21")
    assert look_up_cost("encode", {"name": "ef21", "op": inner})[0] == wrapper + read_cost("encode", name="sign")
    layered = {"name": "scheduled", "op": {"name": "per-layer", "separate": True, "op": inner}}
    rows = [
        read_cost("encode_with_feedback", **key)
        for key in ({"name": "scheduled"}, {"name": "per-layer", "separate": True}, inner)
    ]
    assert look_up_cost("encode_with_feedback", layered)[0] == rows[0] + rows[1] + rows[2]


def test_uplink_job_has_error_feedback_for_operators_only() -> None:
    for name, policy, job in (
        ("top-k", "persist", "encode_with_feedback"),
        ("top-k", "decay", "encode_with_feedback"),
        ("top-k", "none", "encode"),
        ("dgc", "decay", "encode"),
    ):
        assert select_uplink_job({"compressor": {"name": name}, "error_feedback": policy}) == job


def test_codec_cost_counts_bytes_of_copies() -> None:
    cost = CodecCost(copies=2, kept=30, fixed_bytes=1000)
    assert cost.count_bytes(10_000, 100) == 4 * (2 * 10_000 + 30 * 100) + 1000


# ----------------------------------------------------------------------------------------------------------------------- prices


def test_coding_work_follows_table_and_ledger(runs: Path) -> None:
    """The work equals the mean over updates, over messages, and over rounds, as pandas computes it."""
    run = load_run(runs / "topk")
    (priced,) = price(run, [build_pricing_model("4g")])
    ledger, vector = pd.read_parquet(runs / "topk" / "ledger.parquet"), FLOAT_BYTES * 4810
    updates, models = (ledger[ledger.kind == kind] for kind in ("UPDATE", "MODEL"))
    topk = {"name": "top-k"}
    for job, copies in (
        ("encode_with_feedback", priced.compute_profile.encode_copies),
        ("add", priced.compute_profile.server_copies),
    ):
        cost = read_cost(job, **topk)
        assert copies * vector == pytest.approx(np.mean([cost.count_bytes(4810, k) for k in updates.kept]))
    full_model = {"name": "dense", "entropy": True}
    distinct = models.drop_duplicates(["round", "frame_hash"])
    for job, frames, copies in (
        ("receive", models, priced.compute_profile.decode_copies),
        ("send", distinct, priced.compute_profile.sending_copies),
    ):
        costs = [
            (read_cost(job, **full_model) if f.base == 0 else read_cost(job, name="changes")).count_bytes(4810, f.kept)
            for f in frames.itertuples()
        ]
        assert copies * vector == pytest.approx(sum(costs) / (60 if job == "receive" else 6))


def test_reference_frames_count_as_changed_values(runs: Path) -> None:
    run = load_run(runs / "cafe")
    (priced,) = price(run, [build_pricing_model("4g")])
    ledger = pd.read_parquet(runs / "cafe" / "ledger.parquet")
    references = ledger[ledger.kind == "REFERENCE"]
    sent = priced.ledger_stats.downlink_frames["reference"]
    assert sent.n_frames == len(references) == 50, "the first round has no reference"
    assert sent.n_coordinates == (references.value_bytes // 3.5).clip(upper=4810).sum()
    assert priced.ledger_stats.distinct_downlink_frames["reference"].n_frames == 5
    cost = read_cost("send", name="dense").count_bytes(4810, 4810) * 6
    cost += sum(
        read_cost("send", name="changes").count_bytes(4810, k) for k in (references.drop_duplicates("round").value_bytes // 3.5)
    )
    assert priced.compute_profile.sending_copies * FLOAT_BYTES * 4810 == pytest.approx(cost / 6)
    (plain,) = price(load_run(runs / "dense"), [build_pricing_model("4g")])
    assert priced.compute_profile.decode_copies > plain.compute_profile.decode_copies


@pytest.mark.slow
def test_repeated_difference_is_encoded_once(root: Path, tmp_path: Path) -> None:
    """With a ternary downlink, a client that was absent receives the stored frames of the differences it missed."""
    downlink = {"policy": "error-feedback", "compressor": {"name": "top-k", "density": 0.01, "values": "ternary"}}
    settings = {**TINY, "uplink.compressor": {"name": "stc"}, "uplink.error_feedback": "none", "downlink": downlink}
    fedsgd.run(fedsgd.load(root / "scenarios" / "quickstart.toml", settings), out=tmp_path / "run")
    (priced,) = price(load_run(tmp_path / "run"), [build_pricing_model("4g")])
    frames = priced.ledger_stats.distinct_downlink_frames
    assert frames["latest"].n_frames <= 5 < frames["step"].n_frames
    full_model, step = read_cost("send", name="dense", entropy=True), read_cost("send", name="top-k")
    costs = frames["whole"].n_frames * full_model.count_bytes(4810, 4810)
    costs += frames["latest"].n_frames * step.count_bytes(4810, 48)
    assert priced.compute_profile.sending_copies * FLOAT_BYTES * 4810 == pytest.approx(costs / 6, rel=1e-3)


def test_runs_of_earlier_versions_have_equal_prices(runs: Path, tmp_path: Path) -> None:
    """Runs of earlier versions lack the time of a copy, and their scenarios may lack later settings."""
    run = tmp_path / "run"
    shutil.copytree(runs / "dense", run)
    rewrite_summary(run, work={"flops_per_example": 20224.0})
    text = (run / "scenario.toml").read_text().replace("entropy = false\n", "")
    (run / "scenario.toml").write_text(re.sub(r'\[downlink\]\npolicy = "model"\n', "", text))
    (old,), (new,) = (price(load_run(folder), [build_pricing_model("4g")]) for folder in (run, runs / "dense"))
    np.testing.assert_array_equal(old.cumulative_seconds, new.cumulative_seconds)
    with pytest.raises(ReportError, match=r"has no work\.copy_seconds; run the scenario again"):
        price(load_run(run), [build_pricing_model("4g")], measured_coding=True)


def rename_compressor(run: Path, folder: Path) -> Path:
    """Copy a run, with the name of a user's compressor in its scenario."""
    shutil.copytree(run, folder)
    text = (folder / "scenario.toml").read_text()
    (folder / "scenario.toml").write_text(
        text.replace('[uplink.compressor]\nname = "top-k"', '[uplink.compressor]\nname = "mine:Mine"')
    )
    return folder


@pytest.mark.slow
def test_compressor_without_row_is_named_in_outputs(runs: Path, tmp_path: Path) -> None:
    run = rename_compressor(runs / "topk", tmp_path / "own")
    (priced,) = price(load_run(run), [build_pricing_model("4g")])
    assert find_uncosted_codecs(load_run(run)) == ("uplink mine:Mine",)
    assert (
        priced.compute_profile.encode_copies == priced.compute_profile.server_copies == 0 < priced.compute_profile.decode_copies
    )
    note = "uplink mine:Mine is not in the table of codec costs, so its coding time counts as 0"
    for result in (call_command("price", run, "--network", "4g"), call_command("compare", run, "--network", "4g")):
        assert note in result.stdout
        assert "--measured-coding uses times that the run measured" in result.stdout
    measured = call_command("price", run, "--network", "4g", "--measured-coding").stdout
    assert "is not in the table" not in measured
    assert call_command("report", run, "--target", "0.3", "--out", tmp_path / "page.html").exit_code == 0
    packed = re.search(r'id="payload"[^>]*>([^<]+)<', (tmp_path / "page.html").read_text())
    assert packed is not None
    notes = json.loads(gzip.decompress(base64.b64decode(packed[1])))["notes"]
    assert any(note in text for text in notes)
    result = call_command("report", run, "--target", "0.3", "--format", "png", "--out", tmp_path / "figures")
    assert note in result.stderr


class LastRecordTracker:
    """Tracker that stores the record of the end."""

    def begin(self, run: RunStarted) -> None: ...

    def round(self, record: fedsgd.RoundRecord) -> None: ...

    def end(self, ended: RunFinished) -> None:
        self.last_record = ended


def test_priced_tracker_warns_of_compressor_without_row(runs: Path, tmp_path: Path) -> None:
    run, inner = rename_compressor(runs / "topk", tmp_path / "own"), LastRecordTracker()
    tracker = PricedTracker(inner, {"4g": build_pricing_model("4g")})
    scenario = fedsgd.load(runs / "topk" / "scenario.toml")
    tracker.begin(RunStarted(scenario, run))
    with pytest.warns(TrackerWarning, match="own: uplink mine:Mine is not in the table of codec costs"):
        tracker.end(RunFinished(summary={}))
    assert (
        list(inner.last_record.seconds_by_network["4g"])
        == price(load_run(run), [build_pricing_model("4g")])[0].cumulative_seconds[1:].tolist()
    )


# -------------------------------------------------------------------------------------------------------------- measured coding


def test_measured_coding_gives_intervals_of_times_and_break_evens(runs: Path, tmp_path: Path) -> None:
    methods = load_methods([("topk", runs / "topk"), ("dense", runs / "dense")], 0.3)
    pricing_models = {"4g": build_pricing_model("4g")}
    measured = compare(methods, 0.3, pricing_models, measured_coding=True)
    for method in measured.rows:
        costs = method.network_costs["4g"]
        assert costs.coding_low is not None
        assert costs.coding_high is not None
        assert costs.coding_low.median < costs.seconds.median < costs.coding_high.median
    run = methods[0].runs[0]
    (priced,) = price(run, [pricing_models["4g"]], measured_coding=True)
    assert priced.coding_deciles is not None
    updates = pd.read_parquet(runs / "topk" / "ledger.parquet").query("kind == 'UPDATE' and round > 1")
    for priced_run, quantile in zip((priced.coding_deciles[0], priced, priced.coding_deciles[1]), (0.1, 0.5, 0.9), strict=True):
        copies = updates.encode_seconds.quantile(quantile) / run.summary["work"]["copy_seconds"]
        assert priced_run.compute_profile.encode_copies == float(f"{copies:.1e}"), "two significant figures, without round 1"
    (break_even,) = measured.break_evens["4g"]
    assert break_even.low is not None
    assert break_even.high is not None
    assert break_even.low <= break_even.up_bits_per_second <= break_even.high
    (plain,) = compare(methods, 0.3, pricing_models).break_evens["4g"]
    assert plain.low is plain.high is None


@pytest.mark.slow
def test_measured_coding_is_named_in_all_outputs(runs: Path, tmp_path: Path) -> None:
    arguments = (f"topk={runs / 'topk'}", f"dense={runs / 'dense'}", "--target", "0.3", "--measured-coding")
    tables = [f"{tmp_path}/table.{suffix}" for suffix in ("csv", "json", "md")]
    shown = call_command("price", *arguments, "--network", "4g").stdout
    assert "coding times were measured by the machine of each run: median [first to ninth decile]" in shown
    assert len(re.findall(r"\[[\d.]+ m?s to [\d.]+ m?s\]", shown)) == 2
    assert re.search(r"topk is faster than dense below .* \[.* to .*\] up", shown)
    table = shown.split("\n\n")[0]
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80
    assert (
        call_command("compare", *arguments, "--network", "4g", *(word for path in tables for word in ("--out", path))).exit_code
        == 0
    )
    (first, _) = csv.DictReader(io.StringIO(Path(tables[0]).read_text()))
    low, median, high = (float(first[f"seconds{suffix} 4g median"]) for suffix in ("_coding_low", "", "_coding_high"))
    assert low < median < high
    plain = json.loads(Path(tables[1]).read_text())
    assert plain["measured_coding"] is True
    assert plain["methods"][0]["on"]["4g"]["coding_low"]["median"] == low
    assert "low" in plain["break_evens"]["4g"][0]
    page = tmp_path / "page.html"
    assert call_command("report", *arguments, "--network", "4g", "--out", page).exit_code == 0
    packed = re.search(r'id="payload"[^>]*>([^<]+)<', page.read_text())
    assert packed is not None
    payload = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    assert payload["coding"].startswith("Coding times are medians that each run's machine measured")
    assert sum("with measured coding times [first to ninth decile]" in note for note in payload["notes"]) == 2
    result = call_command("compare", runs / "topk", "--measured-coding")
    assert result.exit_code == 2
    assert "--measured-coding needs a network" in result.stderr


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ((None, None), "3 Mbit/s"),
        ((1e6, 9e6), "3 Mbit/s [1 Mbit/s to 9 Mbit/s]"),
        ((1e6, math.inf), "3 Mbit/s [1 Mbit/s or more]"),
        ((0.0, 9e6), "3 Mbit/s [9 Mbit/s or less]"),
        ((0.0, math.inf), "3 Mbit/s [any]"),
    ],
)
def test_break_even_text_has_its_range(bounds: tuple[float | None, float | None], text: str) -> None:
    assert list(describe_break_evens([BreakEven("a", "b", 3e6, *bounds)])) == [f"a is faster than b below {text} up"]


def test_break_even_range_is_unbounded_without_change_of_order() -> None:
    """Method `quick` sends nothing and codes for 1 to 3 s; `lean` sends 1 Mbit and codes for 0.5 to 2 s."""
    network = Network(Link(1e6, 1e6))

    def make_timing(label: str, bits: float, *coding: float) -> MethodTiming:
        columns = [np.array([value]) for value in (0.0, 0.0, 0.0, 0.0)]
        times = []
        for seconds in coding:
            model = RoundTimeModel(
                np.array([0, 1]), *columns, np.array([seconds]), np.array([bits]), *(np.zeros(1) for _ in range(5))
            )
            times.append(TimeToTarget(model, TargetReached(1, 1, 0.0)))
        low, median, high = (MethodTiming(label, [time]) for time in times)
        return MethodTiming(label, median.times_to_target, (low, high))

    (break_even,) = break_evens(make_timing("quick", 0.0, 1.0, 2.0, 3.0), make_timing("lean", 1e6, 0.5, 1.0, 2.0), network)
    assert break_even.up_bits_per_second == pytest.approx(1e6), "2 s = 1 s + 1 Mbit"
    assert break_even.low == pytest.approx(1e6 / 2.5), "3 s = 0.5 s + 1 Mbit"
    assert break_even.high == math.inf, "1 s is less than 2 s plus any time of the link"


# ------------------------------------------------------------------------------------------------------------------ measurement


@pytest.mark.slow
def test_measurement_covers_rows_of_the_cost_table() -> None:
    """One repetition at the smallest size gives exactly the rows of the committed table."""
    samples, rate = measure(Effort(pool_mib=1, seconds=0, fewest=1, most=1), passes=1, shapes=SHAPES[:1])
    assert rate > 0
    assert all(math.isfinite(second) for sample in samples.values() for second in sample.seconds)
    costs, worst = fit_costs(samples, rate)
    assert worst >= 1
    for job in JOBS:
        assert {key for cost_job, key in costs if cost_job == job} == {
            key_text(entry["compressor"]) for entry in read_cost_table()[job]
        }


def test_fit_recovers_costs_of_synthetic_samples() -> None:
    true, rate = CodecCost(copies=3, kept=50, fixed_bytes=2e5), 1e10
    samples = {}
    for i, density in enumerate((0.1, 0.01, 0.001)):
        for size in (5_000, 200_000, 2_000_000):
            k = round(density * size)
            sample = samples.setdefault(("encode", key_text({"name": "top-k"}), i, size), Sample())
            for factor in (1.0, 1.0, 1.0, 7.0):
                sample.add(factor * true.count_bytes(size, k) / rate, k)
    costs, worst = fit_costs(samples, rate)
    assert costs["encode", key_text({"name": "top-k"})] == true
    assert worst == pytest.approx(1)
    assert tomllib.loads(table_text({"date": "x", **{job: [] for job in JOBS}}))["date"] == "x"


def test_cost_of_per_layer_names_operators_without_a_row() -> None:
    rules = [{"pattern": "a*", "op": {"name": "own"}}, {"pattern": "b*", "op": {"name": "sign"}}]
    table = {"name": "per-layer", "op": {"name": "terngrad"}, "biases": {"name": "mine"}, "rules": rules}
    cost, missing = look_up_cost("encode", table)
    assert missing == ("mine", "own")
    assert cost == look_up_cost("encode", {"name": "per-layer", "op": {"name": "terngrad"}})[0]
