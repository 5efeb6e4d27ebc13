"""Statistics in comparisons: pairs of seeds, ratios to the baseline, cost of tuning, and their tables."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsgd
from fedsgd.analysis import Method, Run, compare, load_methods
from fedsgd.analysis.columns import TableConfig, build_text_columns
from fedsgd.analysis.comparison import Comparison
from fedsgd.analysis.methods import TunedVariant
from fedsgd.analysis.page.payload import ReportOptions, build_payload
from fedsgd.analysis.ratio_columns import build_ratio_columns, describe_row_ratios
from fedsgd.analysis.row_statistics import BaselineRatios, TuningCost
from fedsgd.analysis.tables import collect_notes, to_csv, to_json, to_latex, to_markdown
from fedsgd.cli.sweep import compare_methods
from fedsgd.cli.terminal import print_sweep
from fedsgd.config.text_columns import TextColumn
from fedsgd.errors import ReportError
from fedsgd.scenario.target import parse_target
from fedsgd.sweeps import SWEEP_FILE, Cell, Sweep
from tests.analysis.helpers import PRICING_MODEL, copy_run, invoke

ROUNDS = 10
LR = "client.optimizer.lr"


def make_run(template: Run, seed: int, reached: float | None, bytes_per_round: float = 100.0, **settings: Any) -> Run:
    """Return a run of ten rounds whose accuracy is 0.5 after `reached` rounds and 1 at twice of them; never with None."""
    steps = np.arange(1.0, ROUNDS + 1)
    accuracy = np.full(ROUNDS, 0.25) if reached is None else 0.5 * steps / reached
    rounds = {
        **{name: np.zeros(ROUNDS) for name in template.rounds},
        "round": steps, "accuracy": accuracy, "uplink_bytes": bytes_per_round * steps, "downlink_bytes": 50.0 * steps,
    }  # fmt: skip
    all_settings = {**template.settings, "seed": seed, **settings}
    summary = {**template.summary, "seconds": 7.0, "rounds": ROUNDS}
    return replace(template, folder=Path(f"r{id(rounds)}"), settings=all_settings, summary=summary, rounds=rounds)


def make_method(label: str, runs: Sequence[Run], failed_seeds: tuple[int, ...] = (), tuned: Mapping[str, Any] = {}) -> Method:
    variant = TunedVariant(tuned, tuple(runs), len(failed_seeds), failed_seeds)
    return Method(label, variant, (variant,), ())


@pytest.fixture
def template(runs: Path) -> Run:
    return load_methods([runs / "dense-0"])[0].runs[0]


@pytest.fixture
def compressed(runs: Path) -> Run:
    return load_methods([runs / "topk-0"])[0].runs[0]


def get_ratios(comparison: Comparison, index: int = 1) -> BaselineRatios:
    statistics = comparison.rows[index].statistics
    assert statistics is not None
    assert statistics.to_baseline is not None
    return statistics.to_baseline


def compare_pair(first: Method, second: Method, target: float | None = 0.5) -> BaselineRatios:
    return get_ratios(compare([first, second], target))


def test_ratios_over_paired_seeds_are_quotients_of_medians(template: Run, compressed: Run) -> None:
    dense = make_method("dense", [make_run(template, seed, 2 + seed) for seed in range(5)])
    topk = make_method("topk", [make_run(compressed, seed, 3 + seed, 10.0) for seed in range(5)])
    comparison = compare([dense, topk], 0.5)
    ratios = get_ratios(comparison)
    assert ratios.seeds == (0, 1, 2, 3, 4)
    assert (ratios.unpaired_seeds, ratios.unpaired_reason, ratios.has_equal_cohorts) == ((), None, True)
    assert ratios.ratios["rounds"].ratio == pytest.approx(4 / 5)
    up = ratios.ratios["up_bytes"]
    assert (up.ratio, up.relation, up.n) == (pytest.approx(400 / 50), "=", 5)
    assert up.interval is not None
    assert (up.interval.low, up.interval.high) == pytest.approx((200 / 30, 600 / 70))
    statistics = comparison.rows[0].statistics
    assert statistics is not None
    assert statistics.to_baseline is None
    assert statistics.medians["rounds"].median == comparison.rows[0].rounds.median == 4
    assert list(describe_row_ratios(comparison)) == ["dense / topk: 2× (1.67 to 2.14) bytes both ways to 0.5, 5 pairs"]


def test_seeds_of_one_method_only_are_not_paired(template: Run, compressed: Run) -> None:
    dense = make_method("dense", [make_run(template, seed, 2 + seed) for seed in range(6)])
    topk = make_method("topk", [make_run(compressed, seed, 4) for seed in (0, 1, 2, 9)], failed_seeds=(4,))
    ratios = compare_pair(dense, topk)
    assert ratios.seeds == (0, 1, 2, 4)
    assert ratios.unpaired_seeds == (3, 5, 9)
    assert ratios.ratios["rounds"].ratio == pytest.approx(3.5 / 4)
    assert ratios.ratios["rounds"].interval is not None
    assert ratios.ratios["rounds"].interval.low == 0, "the failed seed never reaches the target"
    notes = list(collect_notes(compare([dense, topk], 0.5)))
    assert "topk and dense: seeds that only one of them has are in no ratio: 3, 5, 9" in notes


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model.hidden": [7]}, "they differ in model"),
        ({"data.partition.alpha": 9.0}, "they differ in partition"),
        ({"seed_shift": 100}, "they have no seed in common"),
    ],
)
def test_runs_with_other_splits_or_initial_models_have_no_ratio(
    settings: dict[str, Any], reason: str, template: Run, compressed: Run
) -> None:
    shift = settings.pop("seed_shift", 0)
    dense = make_method("dense", [make_run(template, seed, 2) for seed in range(3)])
    topk = make_method("topk", [make_run(compressed, shift + seed, 4, **settings) for seed in range(3)])
    ratios = compare_pair(dense, topk)
    assert (ratios.unpaired_reason, ratios.ratios, ratios.seeds) == (reason, {}, ())
    assert ratios.logrank_p is not None
    assert f"topk and dense are not paired by seed: {reason}" in list(collect_notes(compare([dense, topk], 0.5)))


def test_pairs_with_other_cohorts_are_named(template: Run, compressed: Run) -> None:
    dense = make_method("dense", [make_run(template, seed, 2) for seed in range(3)])
    topk = make_method("topk", [make_run(compressed, seed, 4, **{"server.cohort": 3}) for seed in range(3)])
    assert not compare_pair(dense, topk).has_equal_cohorts
    notes = list(collect_notes(compare([dense, topk], 0.5)))
    assert "topk and dense have equal splits and initial models in a pair, but not equal cohorts" in notes


def test_diverged_run_never_reaches_the_target(template: Run) -> None:
    runs = [make_run(template, seed, 2) for seed in range(2)]
    last = make_run(template, 2, None)
    diverged = replace(last, summary={**last.summary, "diverged": "the loss is nan"})
    for run, counts in ((last, (1, 0)), (diverged, (0, 1))):
        statistics = compare([make_method("dense", [*runs, run])], 0.5).rows[0].statistics
        assert statistics is not None
        estimate = statistics.medians["rounds"]
        assert (estimate.n_censored, estimate.n_never) == counts


def test_median_of_runs_that_ended_early_is_noted(template: Run) -> None:
    """At 2: 3/5. At 4, after one run of three ended at 3: 3/5 · 1/2."""
    early = make_run(template, 2, None)
    early = replace(early, rounds={name: values[:3] for name, values in early.rounds.items()})
    runs = [make_run(template, 0, 2), make_run(template, 1, 2), early, make_run(template, 3, 4), make_run(template, 4, None)]
    comparison = compare([make_method("dense", runs)], 0.5)
    assert comparison.rows[0].rounds.median == 4
    late = replace(early, settings={**early.settings, "seed": 4})
    comparison = compare([make_method("dense", [*runs[:4], late])], 0.5)
    assert comparison.rows[0].rounds.median == 4
    ended = compare(
        [make_method("dense", [runs[0], early, late, runs[3], replace(late, settings={"seed": 7, "name": "x"})])], 0.5
    )
    assert math.isinf(ended.rows[0].rounds.median)
    statistics = ended.rows[0].statistics
    assert statistics is not None
    assert statistics.medians["rounds"].median == 4
    assert "dense: Kaplan–Meier median 4 rounds, 600 B both ways; 3 of 5 runs ended before the target" in list(
        collect_notes(ended)
    )
    columns = {c.name: c.cells for c in build_text_columns(ended, TableConfig("interval"))}
    assert columns["rounds"] == ("4 (2 to ∞)",)
    assert {c.name: c.cells for c in build_text_columns(ended)}["rounds"] == ("not reached (2 of 5 do)",)


def test_cost_of_tuning_is_that_of_other_variants(template: Run) -> None:
    best = TunedVariant({LR: 0.1}, (make_run(template, 0, 2),))
    other = TunedVariant({LR: 0.2}, tuple(make_run(template, seed, 9) for seed in range(2)), 1, (2,))
    method = Method("dense", best, (best, other), (LR,))
    comparison = compare([method], 0.5)
    assert comparison.rows[0].tuning_cost == TuningCost(2, 1, 2 * (1000 + 500), 14.0)
    assert "cost of runs at other tuned values: dense 2 runs, 3 kB both ways, 14 s, 1 failed and not counted" in list(
        collect_notes(comparison)
    )
    assert json.loads(to_json(comparison))["methods"][0]["tuning_cost"] == {
        "runs": 2, "failed": 1, "n_bytes": 3000, "seconds": 14.0,
    }  # fmt: skip
    (record,) = csv.DictReader(io.StringIO(to_csv(comparison)))
    assert (record["tuning n_bytes"], record["tuning seconds"]) == ("3000", "14.0")
    assert compare([make_method("dense", [make_run(template, 0, 2)])]).rows[0].tuning_cost is None


def test_too_few_seeds_are_said_once(template: Run, compressed: Run) -> None:
    methods = [
        make_method(label, [make_run(run, seed, 2) for seed in range(2)]) for label, run in (("a", template), ("b", compressed))
    ]
    comparison = compare(methods, 0.5)
    texts = "\n".join(collect_notes(comparison))
    assert texts.count("no confidence intervals and log-rank p: they need 3 seeds, and 6 for 95 %") == 1
    ratios = get_ratios(comparison)
    assert ratios.ratios["rounds"].interval is None
    assert ratios.logrank_p is None
    statistics = comparison.rows[0].statistics
    assert statistics is not None
    assert statistics.medians == {}
    assert "ratio of medians" not in to_markdown(comparison) + to_latex(comparison)


def test_tables_have_ratios_without_numbers_that_are_not_finite(template: Run, compressed: Run) -> None:
    dense = make_method("dense", [make_run(template, seed, None) for seed in range(6)])
    topk = make_method("topk", [make_run(compressed, seed, 2 + seed / 10, 10.0) for seed in range(6)], failed_seeds=(6,))
    comparison = compare([dense, topk], 0.5)
    content = json.loads(to_json(comparison), parse_constant=pytest.fail)
    assert content["baseline"] == "dense"
    ratio = content["methods"][1]["statistics"]["to_baseline"]["ratios"]["up_bytes"]
    assert ratio["relation"] == ">"
    assert ratio["ratio"] == pytest.approx(1000 / 22.5)
    assert ratio["interval"]["high"] is None
    assert content["methods"][0]["statistics"]["medians"]["rounds"]["median"] is None
    records = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert "inf" not in to_csv(comparison)
    assert records[1]["baseline"] == "dense"
    assert (records[1]["uplink_bytes ratio relation"], records[1]["uplink_bytes ratio high"]) == (">", "")
    assert "| topk | 6 | > 4.44× (4 to ∞) |" in to_markdown(comparison)
    latex = to_latex(comparison)
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 2
    assert r"\label{tab:comparison-ratios}" in latex
    assert r"topk   & 6     & \textgreater{} 4.44$\times$ (4 to $\infty$)" in latex


def test_columns_of_ratios_are_those_of_the_methods(template: Run, compressed: Run) -> None:
    methods = [
        make_method(label, [make_run(run, seed, 2) for seed in range(3)]) for label, run in (("a", template), ("b", compressed))
    ]

    def list_names(columns: Sequence[TextColumn]) -> list[str]:
        return [column.name for column in columns]

    comparison = compare(methods, 0.5)
    assert list_names(build_ratio_columns(comparison)) == ["method", "seeds", "rounds", "up", "down", "both", "p"]
    assert list_names(build_ratio_columns(comparison, ("up", "best"))) == ["method", "seeds", "up", "p"]
    assert list_names(build_ratio_columns(compare(methods))) == ["method", "seeds", "rounds", "up", "down", "both"]
    interval = to_latex(comparison, TableConfig("interval"))
    assert r"\caption{Kaplan--Meier median (confidence interval) over 3 seeds, to 0.5 test accuracy.}" in interval


@pytest.fixture(scope="module")
def seeds(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of two methods with three seeds each; the third seed has the files of the second one."""
    folder = tmp_path_factory.mktemp("seeds")
    for name in ("dense", "topk"):
        for seed in (0, 1, 2):
            old = min(seed, 1)
            copy_run(runs / f"{name}-{old}", folder / f"{name}-{seed}", f"seed = {old}", f"seed = {seed}", {"target": "0.3"})
    return folder


@pytest.mark.slow
def test_command_prints_ratios_within_80_columns(seeds: Path) -> None:
    result = invoke("compare", seeds, "--target", "0.3", "--network", "4g")
    assert result.exit_code == 0, result.output
    assert "dense / method, to 0.3: ratio of medians over paired seeds, with its interval" in result.stdout
    tables = result.stdout.split("break-even")[0]
    assert max(map(len, tables.splitlines())) <= 80
    assert "time, 4g" in tables
    assert "minimum to maximum covers the true median with a confidence of 75 % (3 seeds)" in result.stdout
    assert "intervals of ratios to dense, by paired bootstrap: confidence 75 % (3 pairs)" in result.stdout
    interval = invoke("compare", seeds, "--target", "0.3", "--statistic", "interval")
    assert "intervals cover the true median with a confidence of 75 % (3 seeds)" in interval.stdout
    assert invoke("price", seeds, "--network", "4g", "--statistic", "interval").exit_code == 0


def test_time_ratio_is_that_of_the_priced_runs(seeds: Path) -> None:
    comparison = fedsgd.compare([seeds], target=0.3, networks={"slow": PRICING_MODEL.network}, baseline="top-k, error feedback")
    dense, topk = comparison.rows
    assert comparison.baseline is topk
    seconds = [row.network_costs["slow"].seconds.median for row in (topk, dense)]
    assert get_ratios(comparison, 0).ratios["seconds slow"].ratio == pytest.approx(seconds[0] / seconds[1])
    with pytest.raises(ReportError, match=r'baseline: there is no method "dens", did you mean "dense"\?'):
        fedsgd.compare([seeds], baseline="dens")


def test_report_figures_name_ratios_and_confidences(seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsgd.analysis.report.draw_figures", lambda *arguments: [])
    result = invoke("report", seeds, "--target", "0.3", "--format", "svg", "--out", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    assert "bytes both ways to 0.3, 3 pairs" in result.stderr
    assert "confidence 75 % (3 pairs)" in result.stderr


def test_page_has_tables_of_intervals_and_ratios(seeds: Path) -> None:
    options = ReportOptions("", parse_target(0.3), PRICING_MODEL, "slow", baseline="top-k, error feedback")
    payload = build_payload(load_methods([seeds]), options)
    medians, ratios = payload["statistics"]["tables"]
    assert [row[0] for row in medians["rows"]] == [["dense"], ["top-k, error feedback"]]
    assert ratios["headings"] == ["method", "pairs", "rounds", "uplink", "downlink", "both ways", "log-rank p"]
    assert [len(cell) for cell in ratios["rows"][0]] == [1, 1, 2, 2, 2, 2, 1]
    assert payload["baseline"] == "top-k, error feedback"
    assert "intervals cover the true median with a confidence of 75 % (3 seeds)" in payload["statistics"]["notes"]
    single = build_payload(load_methods([seeds / "dense-0"]), replace(options, baseline=None))
    assert single["statistics"] == {"tables": [], "notes": []}


@pytest.mark.parametrize(("failed_seeds", "is_noted"), [((2,), False), ((3,), True), ((), True)])
def test_failed_seeds_are_seeds_that_a_method_was_run_with(
    template: Run, compressed: Run, failed_seeds: tuple[int, ...], is_noted: bool
) -> None:
    dense = make_method("dense", [make_run(template, seed, 2) for seed in range(3)])
    topk = make_method("topk", [make_run(compressed, seed, 3) for seed in range(2)], failed_seeds)
    assert ("the methods were not run with the same seeds" in collect_notes(compare([dense, topk], 0.5))) == is_noted


def test_sweep_prints_best_values_edges_cost_of_tuning_and_ratios(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cells of both learning rates have the same runs, so that the first one is the best."""
    cells = tuple(
        Cell(f"{name}-{seed}", name, name, {}, {LR: lr}, seed, "finished") for lr in (0.1, 0.2) for name in ("dense", "topk") for seed in range(3)
    )  # fmt: skip
    sweep = Sweep(seeds, "digits", (LR,), (), cells)
    (seeds / SWEEP_FILE).write_text(sweep.to_json())
    try:
        print_sweep(sweep, compare_methods(sweep))
    finally:
        (seeds / SWEEP_FILE).unlink()
    lines = capsys.readouterr().out.splitlines()
    assert "dense / method, to 0.3: ratio of medians over paired seeds, with its interval" in lines
    assert "best tuned values to 0.3: dense (lr 0.1*); topk (lr 0.1*)" in lines
    assert any(line.startswith("cost of runs at other tuned values: dense 3 runs, 6.9") for line in lines)
    assert any(line.startswith("* the best value is the smallest or largest value that was tried") for line in lines)
    assert "intervals of ratios to dense, by paired bootstrap: confidence 75 % (3 pairs)" in lines
    assert max(len(line) for line in lines[: lines.index("medians over the finished seeds of each row")]) <= 80


@pytest.mark.slow
def test_commands_without_intervals_do_not_load_scipy(seeds: Path) -> None:
    code = f"""
import sys
from fedsgd.analysis import compare, load_methods
compare(load_methods([{str(seeds / "dense-0")!r}, {str(seeds / "topk-0")!r}]), 0.3)
print("scipy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
