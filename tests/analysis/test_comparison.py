"""Comparisons of methods."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fedsgd
from fedsgd.analysis import compare, load_methods
from fedsgd.analysis.pricing import price
from fedsgd.analysis.report import choose_default_target
from fedsgd.analysis.tables import to_markdown
from fedsgd.errors import ReportError
from fedsgd.experiment.time_to_target import find_first_reached, summarize_seeds
from fedsgd.scenario.target import Criterion
from tests.analysis.helpers import PRICING_MODEL, TINY, invoke


@pytest.mark.slow
def test_comparison_equals_medians_over_runs(runs: Path) -> None:
    methods = load_methods([runs])
    target = 0.5
    comparison = compare(methods, target, {"slow": PRICING_MODEL}, 0.1)
    for method, row in zip(methods, comparison.rows, strict=True):
        points = [find_first_reached(run.get_measurements("accuracy"), target) for run in method.runs]
        assert row.rounds == summarize_seeds([point and point.rounds for point in points])
        uplink_bytes = [
            point and point.interpolate_on(run.get_cumulative("uplink_bytes"))
            for point, run in zip(points, method.runs, strict=True)
        ]
        assert row.up_bytes == summarize_seeds(uplink_bytes)
        priced_runs = [price(run, [PRICING_MODEL])[0] for run in method.runs]
        assert row.network_costs["slow"].seconds == summarize_seeds(
            [point and point.interpolate_on(run.cumulative_seconds) for point, run in zip(points, priced_runs, strict=True)]
        )
        cost = row.network_costs["slow"].cost
        assert cost is not None
        if row.all_bytes.reached:
            assert cost.low == pytest.approx(row.all_bytes.low * 0.1 / 1e9)
    assert comparison.baseline.label == "dense"
    whole_runs = compare(methods)
    assert [row.rounds.median for row in whole_runs.rows] == [6, 6, 6]
    assert whole_runs.rows[0].up_bytes.low == methods[0].runs[0].summary["uplink_bytes"]


@pytest.mark.slow
def test_cost_of_broadcast_downlink_counts_distinct_frames(runs: Path) -> None:
    methods = load_methods([runs / "dense-0"])
    network = replace(PRICING_MODEL.network, downlink="broadcast")
    comparison = compare(methods, None, {"b": replace(PRICING_MODEL, network=network), "u": PRICING_MODEL}, 1.0)
    summary = methods[0].runs[0].summary
    costs = [cost.cost for cost in comparison.rows[0].network_costs.values()]
    assert [cost and cost.median * 1e9 for cost in costs] == pytest.approx(
        [summary["uplink_bytes"] + summary[f"downlink_{kind}bytes"] for kind in ("broadcast_", "")]
    )


def test_failed_seeds_count_as_not_reached(runs: Path) -> None:
    (method,) = load_methods([runs / "dense-0", runs / "dense-1"])
    (other,) = load_methods([runs / "topk-0"])
    failing = replace(method, label="failing", best_variant=replace(method.best_variant, n_failed=3))
    comparison = compare([failing, other], 0.3, {"slow": PRICING_MODEL}, 1.0)
    row = comparison.rows[0]
    for figures in (
        row.rounds,
        row.up_bytes,
        row.network_costs["slow"].seconds,
        row.network_costs["slow"].n_bytes,
        row.network_costs["slow"].cost,
    ):
        assert figures is not None
        assert (figures.n, figures.reached, figures.median) == (5, 2, math.inf)
    assert not comparison.break_evens["slow"], "a method that misses the target has no break-even"
    assert row.best_value is not None
    assert row.best_value.n == 2, "the accuracy is that of the finished seeds"
    assert "failing: 3 of 5 seeds ended in an error" in to_markdown(comparison)


def test_overhead_of_the_transport_is_priced(runs: Path) -> None:
    """Six rounds of ten clients, with a message in each direction."""
    methods = load_methods([runs / "dense-0"])
    with_overhead = replace(
        PRICING_MODEL, network=replace(PRICING_MODEL.network, up_overhead_bytes=1000.0, down_overhead_bytes=10.0)
    )
    comparison = compare(methods, None, {"plain": PRICING_MODEL, "overhead": with_overhead}, 1.0)
    plain, total = (comparison.rows[0].network_costs[name] for name in ("plain", "overhead"))
    assert total.n_bytes.median - plain.n_bytes.median == 60 * 1010
    assert total.cost is not None
    assert total.cost.median == pytest.approx(total.n_bytes.median / 1e9)
    broadcast = replace(with_overhead, network=replace(with_overhead.network, downlink="broadcast"))
    cost = compare(methods, None, {"b": broadcast}).rows[0].network_costs["b"]
    summary = methods[0].runs[0].summary
    assert cost.n_bytes.median == summary["uplink_bytes"] + summary["downlink_broadcast_bytes"] + 60 * 1010


def fail_on_some_batches(output: Any, target: Any) -> Any:
    """Fail on some batches once the model has learned, which no trial before round 1 finds."""
    loss = torch.nn.functional.cross_entropy(output, target)
    if output.requires_grad and loss.item() < 1.9 and int(target[0]) == 3:
        raise RuntimeError("a client fails")
    return loss


@pytest.mark.slow
def test_unanswered_messages_are_reported(root: Path, tmp_path: Path) -> None:
    partition = {"name": "dirichlet", "clients": 20, "alpha": 1.0}
    settings = {**TINY, "rounds": 2, "participation.on_failure": "continue", "data.partition": partition}
    fedsgd.run(
        fedsgd.load(root / "scenarios" / "quickstart.toml", settings),
        out=tmp_path / "run",
        model=fedsgd.CustomModel(loss=fail_on_some_batches),
    )
    methods = load_methods([tmp_path / "run"])
    failures = methods[0].runs[0].summary["failures"]
    assert failures > 0
    assert methods[0].runs[0].summary["timeouts"] == 0
    comparison = compare(methods, None, {"slow": PRICING_MODEL})
    assert comparison.rows[0].unanswered_messages == failures
    assert f"{failures} messages were not answered; their clients count with download and decoding only" in to_markdown(
        comparison
    )
    with_timeouts = replace(methods[0].runs[0], summary={**methods[0].runs[0].summary, "timeouts": 2})
    assert with_timeouts.why_not_repriceable is not None
    assert "2 replies did not arrive before a timeout" in with_timeouts.why_not_repriceable


def test_run_without_accuracy_is_not_measured(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "topk-0", tmp_path / "run")
    rounds = pd.read_parquet(tmp_path / "run" / "rounds.parquet")
    rounds.assign(accuracy=np.nan).to_parquet(tmp_path / "run" / "rounds.parquet")
    (method,) = load_methods([tmp_path / "run"])
    assert method.best_variant.summarize_best(Criterion()) is None
    assert "| not measured |" in to_markdown(compare([method]))
    assert "not measured" in " ".join(invoke("compare", tmp_path / "run").stdout.split())
    with pytest.raises(ReportError, match="have no measured accuracy"):
        choose_default_target(
            [replace(method, best_variant=replace(method.best_variant, runs=(replace(method.runs[0], settings={}),)))]
        )
