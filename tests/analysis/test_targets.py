"""Targets on a metric other than accuracy, in all analyses of finished runs."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedsgd
from fedsgd.analysis import Run, compare, load_methods
from fedsgd.analysis.figures import build_figures
from fedsgd.analysis.methods import Method
from fedsgd.analysis.page.payload import ReportOptions, build_payload
from fedsgd.analysis.pricing import price
from fedsgd.analysis.report import choose_default_target
from fedsgd.analysis.tables import to_csv, to_json, to_latex, to_markdown
from fedsgd.errors import ReportError, ScenarioError
from fedsgd.experiment.time_to_target import find_first_reached, summarize_seeds
from fedsgd.scenario.target import Target
from tests.analysis.helpers import PRICING_MODEL, copy_run, invoke


@pytest.fixture(scope="module")
def methods(runs: Path) -> list[Method]:
    """All methods."""
    return load_methods([runs])


@pytest.fixture(scope="module")
def target(methods: list[Method]) -> Target:
    """Loss that every run reaches after its first round."""
    lowest = [min(run.rounds["loss"]) for method in methods for run in method.runs]
    return Target("loss", below=math.ceil(100 * max(lowest)) / 100)


@pytest.mark.slow
def test_comparison_has_the_rounds_at_which_the_loss_falls_to_the_target(methods: list[Method], target: Target) -> None:
    comparison = compare(methods, str(target), {"slow": PRICING_MODEL})
    assert comparison.target == target
    for method, row in zip(methods, comparison.rows, strict=True):
        mirrored = [[(r, -loss) for r, loss in enumerate(run.rounds["loss"].tolist(), start=1)] for run in method.runs]
        points = [find_first_reached(measurements, -target.threshold) for measurements in mirrored]
        assert all(point is not None and point.before >= 1 for point in points)
        assert row.rounds == summarize_seeds([point and point.rounds for point in points])
        assert row.best_value == summarize_seeds([min(run.rounds["loss"]) for run in method.runs])
        priced_runs = [price(run, [PRICING_MODEL])[0] for run in method.runs]
        assert row.network_costs["slow"].seconds == summarize_seeds([run.find_seconds(target) for run in priced_runs])
    assert comparison.break_evens["slow"], "dense and sparse methods have a break-even"


def test_target_text_is_in_every_table(methods: list[Method]) -> None:
    comparison = compare(methods, "loss<1.5", {"slow": PRICING_MODEL})
    assert "| lowest loss | rounds to loss<1.5 | uplink to loss<1.5 |" in to_markdown(comparison)
    latex = to_latex(comparison)
    assert r"{lowest loss} & \multicolumn{2}{r}{rounds to loss\textless{}1.5}" in latex
    assert r"over 2 seeds, to loss\textless{}1.5. Networks" in latex
    content = json.loads(to_json(comparison))
    assert (content["target"], content["criterion"]) == ("loss<1.5", {"metric": "loss", "direction": "below"})
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert rows[0]["target"] == "loss<1.5"
    assert float(rows[0]["lowest_loss median"]) == content["methods"][0]["best"]["median"]
    accuracy = json.loads(to_json(compare(methods, 0.5)))
    assert (accuracy["target"], accuracy["criterion"]["metric"]) == (0.5, "accuracy")


def test_best_tuned_value_reaches_the_target_first_or_has_the_lowest_loss(runs: Path, tmp_path: Path) -> None:
    losses = {"0.05": [2.0, 1.0, 0.9, 0.8, 0.7, 0.6], "0.07": [2.0, 1.9, 1.8, 1.7, 1.6, 0.1]}
    for rate, values in losses.items():
        folder = copy_run(runs / "topk-0", tmp_path / rate, "lr = 0.05", f"lr = {rate}")
        rounds = pd.read_parquet(folder / "rounds.parquet")
        rounds.assign(loss=values, accuracy=0.5).to_parquet(folder / "rounds.parquet")
    for text, rate in (("loss<1.0", 0.05), ("loss<0.5", 0.07), ("loss<0.01", 0.07)):
        (method,) = load_methods([tmp_path], target=text, tuned=["client.optimizer.lr"])
        assert method.best_variant.tuned == {"client.optimizer.lr": rate}, text


def test_seconds_of_a_priced_run_end_at_the_target(runs: Path, target: Target) -> None:
    priced = fedsgd.price(runs / "dense-0", "4g")
    seconds = priced.find_seconds(str(target))
    assert seconds is not None
    assert 0 < seconds < priced.cumulative_seconds[-1]
    assert priced.find_seconds("loss<0.001") is None
    with pytest.raises(ReportError, match=r'there is no metric "los" in any run, did you mean "loss"\?'):
        priced.find_seconds("los<0.3")
    assert fedsgd.compare([runs / "dense-0"], target=fedsgd.Target("loss", below=0.3)).criterion.metric == "loss"
    with pytest.raises(ScenarioError, match='target: got "loss<abc", expected a number after "<"'):
        fedsgd.compare([runs / "dense-0"], target="loss<abc")


def test_run_without_the_metric_is_named(runs: Path, tmp_path: Path) -> None:
    folder = copy_run(runs / "topk-0", tmp_path / "other", "seed = 0", "seed = 7")
    rounds = pd.read_parquet(folder / "rounds.parquet")
    rounds.assign(**{"macro-f1": np.linspace(0.1, 0.6, 6)}).to_parquet(folder / "rounds.parquet")
    message = rf'target macro-f1>0.5: there is no metric "macro-f1" in {runs}/dense-0, expected one of: "accuracy", "loss"'
    with pytest.raises(ReportError, match=message):
        load_methods([runs / "dense-0", folder], "macro-f1>0.5")
    (alone,) = load_methods([folder], "macro-f1>0.5")
    assert alone.best_variant.summarize_rounds_to_target(Target("macro-f1", above=0.5)).median == pytest.approx(5.0)


@pytest.mark.parametrize("command", ["compare", "price", "report"])
@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("los<0.3", 'target los<0.3: there is no metric "los" in any run, did you mean "loss"?'),
        ("loss<abc", '--target: got "loss<abc", expected a number after "<", such as "loss<0.3"'),
        ("<0.3", '--target: got "<0.3", expected a metric before "<", such as "loss<0.3"'),
        ("loss", "; quote the text, because a shell interprets < and >"),
        ("accuracy>1.5", "--target: got an accuracy of 1.5, expected a number above 0 and at most 1"),
    ],
)
def test_wrong_target_option_is_one_line(runs: Path, tmp_path: Path, command: str, target: str, problem: str) -> None:
    out = ("--out", tmp_path / "page.html") if command == "report" else ()
    result = invoke(command, runs / "dense-0", "--network", "4g", "--target", target, *out)
    assert result.exit_code in (1, 2)
    assert problem in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("compare", "--json"), ("price", "--network", "4g", "--json"), ("report", "--out", "r.html")]
)
def test_target_that_worse_models_reach_is_noted(
    runs: Path, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(command[0], runs, *command[1:], "--target", "loss>0.5")
    assert result.exit_code == 0
    problem = 'worse models reach it, because a smaller loss is better; set "loss<0.5"'
    assert result.stderr.splitlines()[0] == f"fedsgd: --target loss>0.5: {problem}"
    assert "worse models" not in invoke(command[0], runs, *command[1:], "--target", "loss<0.5").stderr


def test_default_target_without_accuracy_is_a_loss_that_all_methods_reach(methods: list[Method]) -> None:
    def drop_accuracy(run: Run) -> Run:
        settings = {key: value for key, value in run.settings.items() if "target" not in key}
        return replace(run, settings=settings, rounds={k: v for k, v in run.rounds.items() if k != "accuracy"})

    plain = [
        replace(m, best_variant=replace(m.best_variant, runs=tuple(map(drop_accuracy, m.best_variant.runs)))) for m in methods
    ]
    chosen = choose_default_target(plain)
    highest = max(statistics.median(min(run.rounds["loss"]) for run in method.runs) for method in methods)
    assert chosen == Target("loss", below=math.ceil(10 * highest) / 10)
    assert 1 < highest < 10, "two significant figures are one decimal"
    assert compare(plain).criterion.best_name == "lowest loss"
    settings = {"report.target.metric": "loss", "report.target.below": 0.25}
    with_target = [
        replace(m, best_variant=replace(m.best_variant, runs=tuple(replace(run, settings=settings) for run in m.runs)))
        for m in methods
    ]
    assert choose_default_target(with_target) == Target("loss", below=0.25)


@pytest.mark.slow
def test_payload_and_figures_have_the_metric_of_the_target(methods: list[Method], target: Target) -> None:
    options = ReportOptions("Loss", target, PRICING_MODEL, "slow")
    payload = build_payload(methods[:1], options)
    assert payload["metric"] == {"name": "loss", "direction": "below", "best": "lowest loss"}
    assert payload["target"] == target.threshold
    figures = build_figures(methods[:2], options)
    assert {"loss-bytes", "loss-rounds", "loss-time", "pareto"} <= set(figures)
    ax = figures["loss-rounds"].axes[0]
    assert ax.get_ylabel() == "lowest loss so far"
    (line,) = [line for line in ax.lines if line.get_gid() == "method-1"]
    medians = np.median([np.minimum.accumulate(run.rounds["loss"]) for run in methods[0].runs], axis=0)
    assert np.allclose(np.asarray(line.get_ydata()), medians)
    assert figures["link-speed"].axes[0].get_ylabel() == f"time to loss {target.threshold:g}"
    front = next(line for line in figures["pareto"].axes[0].lines if line.get_gid() == "front")
    assert (np.diff(np.asarray(front.get_ydata())) <= 0).all(), "the front of a loss falls"
