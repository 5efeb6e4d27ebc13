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
from fedsgd.scenario.target import Criterion, parse_target
from tests.analysis.helpers import PRICING_MODEL, copy_run, invoke


def test_default_target_is_that_of_the_scenarios_or_the_best_common_accuracy(runs: Path) -> None:
    methods = load_methods([runs])
    assert choose_default_target(methods) == parse_target(0.9), "the target of the scenarios"
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
    summaries = [m.best_variant.summarize_best(Criterion()) for m in methods]
    lowest = min(summary.median for summary in summaries if summary is not None)
    assert choose_default_target(without_target) == parse_target(math.floor(lowest * 100) / 100)


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
    assert selected == [({"client.optimizer.lr": 0.05}, parse_target(0.9))]


@pytest.mark.slow
def test_report_command_mentions_runs_of_different_experiments(runs: Path, stragglers: Path, tmp_path: Path) -> None:
    options = ("--network", "4g", "--target", "0.3", "--out")
    result = invoke("report", runs / "topk-0", stragglers, *options, tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "fedsgd: the runs differ in more than their method: " in result.stderr


def test_page_with_the_name_of_a_figure_is_refused(runs: Path, tmp_path: Path) -> None:
    result = invoke("report", runs / "topk-0", "--out", tmp_path / "r.pdf")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "expected a page such as r.html, or --format pdf" in result.stderr
