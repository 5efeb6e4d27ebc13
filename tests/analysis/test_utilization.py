"""Compute utilization: closed forms, a computation by pandas, and the output of the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsgd.analysis import load_methods, load_run
from fedsgd.analysis.pricing import SPEEDS, price
from fedsgd.analysis.utilization import UTILIZATION_LEVELS, MethodUtilization, compute_utilizations, find_utilization_speed
from fedsgd.cli.terminal.utilization_tables import _format_speed
from fedsgd.errors import ScenarioError
from fedsgd.experiment.time_to_target import summarize_seeds
from fedsgd.network import Link, Network, PricingModel, RoundTimeModel, build_pricing_model
from fedsgd.network.round_times import CANDIDATE_COLUMNS, ROUND_TIME_COLUMNS
from tests.analysis.helpers import PHONE, PRICING_MODEL, SERVER, invoke, read_all_traffic

NETWORK = Network(Link(1e6, 4e6, 0.25))


def build_rounds(**columns: list[float]) -> RoundTimeModel:
    """Return rounds of one client; columns that are not given are 0."""
    n = max(map(len, columns.values()))
    arrays = {name: np.zeros(n) for name in (*CANDIDATE_COLUMNS, *ROUND_TIME_COLUMNS)}
    return RoundTimeModel(offsets=np.arange(n + 1), **arrays | {name: np.array(values) for name, values in columns.items()})


@pytest.mark.parametrize("level", UTILIZATION_LEVELS)
def test_utilization_speed_is_that_of_the_closed_form(level: float) -> None:
    """C of training, F of latency, coding and server, U and D bits: C / (C + F + U/s + D/4s) = level."""
    model = build_rounds(
        compute=[10.0, 14.0],
        messages=[2.0, 2.0],
        coding=[0.01, 0.02],
        up=[3e6, 1e6],
        down=[8e6, 0.0],
        server_seconds=[0.1, 0.0],
    )
    training, fixed, bits = 24.0, 4 * 0.25 + 0.03 + 0.1, 4e6 + 8e6 / 4
    expected = bits * level / (training * (1 - level) - fixed * level)
    speed = find_utilization_speed(model, NETWORK, level)
    assert speed == pytest.approx(expected, rel=1e-9)
    assert model.utilization(expected, 4 * expected, 0.25) == pytest.approx(level, rel=1e-9)


def test_utilization_that_latency_limits_is_not_reached() -> None:
    """One second of training and half a second of latency are at most two thirds."""
    model = build_rounds(compute=[1.0], messages=[2.0], up=[1e6])
    assert find_utilization_speed(model, NETWORK, 0.8) is None
    assert find_utilization_speed(model, NETWORK, 0.5) == pytest.approx(1e6 / 0.5, rel=1e-9)
    assert model.utilization(SPEEDS[-1], SPEEDS[-1], 0.25) == pytest.approx(2 / 3, rel=1e-5)
    assert find_utilization_speed(build_rounds(compute=[1.0], up=[1.0]), NETWORK, 0.5) == SPEEDS[0], "at the slowest speed"
    late = build_rounds(compute=[1.0], up=[1e6], deadline=[3.0])
    assert late.utilization(1e5, 1e5, 0.0) == 0, "a reply after the deadline"
    assert build_rounds(compute=[0.0]).utilization(1e6, 1e6, 0.0) == 0, "rounds without clients"


def test_utilization_equals_computation_by_pandas(runs: Path) -> None:
    """Training of the slowest client of each round, by pandas, on a link of 1 Mbit/s up, 4 Mbit/s down and 20 ms one way."""
    (priced,) = price(load_run(runs / "topk-0"), [PRICING_MODEL])
    ledger = pd.read_parquet(runs / "topk-0" / "ledger.parquet")
    table = ledger.pivot_table(index=["round", "client"], columns="direction", values="n_bytes", aggfunc="sum").reset_index()
    examples = ledger.groupby(["round", "client"])["examples"].sum().reset_index(drop=True)
    table["training"] = examples * 20224 / PHONE.flops_per_second
    table["seconds"] = table.down * 8 / 4e6 + table.up * 8 / 1e6 + table.training
    slowest = table.loc[table.groupby("round")["seconds"].idxmax()]
    total = priced.cumulative_seconds[-1]
    assert priced.round_time_model.utilization(1e6, 4e6, 0.02) == pytest.approx(slowest.training.sum() / total, rel=1e-9)


@pytest.mark.slow
def test_utilizations_summarize_seeds_and_leave_out_unpriced_methods(runs: Path, stragglers: Path) -> None:
    methods = load_methods([("top-k", runs / "topk-0"), ("top-k", runs / "topk-1"), ("late", stragglers)])
    model = PricingModel(Network(Link(1e6, 4e6, 0.02)), PHONE, SERVER, training_seconds=3.0)
    (row,) = compute_utilizations(methods, {"slow": model})["slow"]
    assert (row.label, row.utilization.n, row.training_seconds.median) == ("top-k", 2, pytest.approx(3.0))
    singles = [price(run, [model])[0] for method in methods[:1] for run in method.runs]
    shares = [3.0 * run.run.n_rounds / run.cumulative_seconds[-1] for run in singles]
    assert (row.utilization.low, row.utilization.high) == (pytest.approx(min(shares)), pytest.approx(max(shares)))
    speeds = [find_utilization_speed(run.round_time_model, model.network, 0.8) for run in singles]
    assert row.speeds[0.8].median == pytest.approx(np.median(np.array(speeds, dtype=float)))


def test_training_option_replaces_the_operations_of_clients_that_trained(runs: Path) -> None:
    run = load_run(runs / "topk-0")
    assert (read_all_traffic(run).examples > 0).all()
    (priced,) = price(run, [build_pricing_model("4g", training="1min", device_spread=0.5)])
    factors = priced.round_time_model.compute / 60
    assert len(np.unique(factors)) > 1, "speeds of devices still differ"
    assert 0.2 < np.median(factors) < 5
    with pytest.raises(ScenarioError, match=r"^--training: got '0s', expected a time above 0$"):
        build_pricing_model("4g", training="0s")
    with pytest.raises(ScenarioError, match=r"^--flops: got '1 GFLOP/s' in addition to --training"):
        build_pricing_model("4g", training="1s", flops="1 GFLOP/s")


@pytest.mark.slow
def test_price_command_prints_utilization_in_80_columns_and_in_json(runs: Path) -> None:
    arguments = (
        "price",
        f"dense={runs}/dense-0",
        f"top-k={runs}/topk-0",
        "--network",
        "4g",
        "--training",
        "2s",
        "--utilization",
    )
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    table = result.stdout[result.stdout.index("compute utilization on 4g") :].splitlines()
    assert table[1].split() == ["method", "training", "a", "round", "utilization", "50", "%", "80", "%", "95", "%"]
    assert [line.split()[0] for line in table[3:5]] == ["dense", "top-k"]
    assert "clients train 2 s a round" in result.stdout
    assert max(map(len, table[:5])) <= 80
    report = json.loads(invoke(*arguments, "--json").stdout)
    dense, sparse = report["utilization"]["4g"]
    assert dense["training_seconds"]["median"] == pytest.approx(2.0)
    assert 0 < dense["utilization"]["median"] < sparse["utilization"]["median"] < sparse["limit"]["median"] < 1
    for level in ("0.5", "0.8", "0.95"):
        assert sparse["up_bits_per_second"][level]["median"] < dense["up_bits_per_second"][level]["median"]
    assert "utilization" not in json.loads(invoke(*arguments[:-1], "--json").stdout)


def test_speed_below_all_speeds_or_of_some_seeds_is_not_printed_as_a_speed() -> None:
    def build(level_speeds: list[float | None], limits: list[float]) -> MethodUtilization:
        seeds = summarize_seeds([0.5] * len(limits))
        return MethodUtilization("m", seeds, seeds, summarize_seeds(limits), {0.8: summarize_seeds(level_speeds)})

    texts = [
        _format_speed(build(speeds, limits), 0.8, "median")
        for speeds, limits in (([SPEEDS[0]], [1.0]), ([2e6], [0.9]), ([None, 1e6], [0.79, 0.85]), ([None], [0.5]))
    ]
    assert texts == ["≤ 100 bit/s", "2 Mbit/s", "1 of 2 seeds", "at most 50 %"]


def test_price_command_without_network_refuses_utilization(runs: Path) -> None:
    result = invoke("price", runs / "dense-0", "--utilization", "--rounds-per-month", 30)
    assert result.exit_code == 2
    assert "--utilization needs a network" in result.stderr
    result = invoke("price", runs / "dense-0", "--utilization", "--network", "lora")
    assert "at most 0.01 %" in result.stdout, "latency limits the utilization"
