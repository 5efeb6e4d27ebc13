"""Prices of runs on networks, and break-evens."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedsgd
from fedsgd.analysis import compare, load_methods, load_run
from fedsgd.analysis.pricing import SPEEDS, MethodTiming, TimeToTarget, break_evens, price, time_to_target
from fedsgd.errors import ReportError
from fedsgd.experiment.time_to_target import TargetReached, find_first_reached
from fedsgd.network import Link, Network, RoundTimeModel, build_pricing_model
from fedsgd.network.round_times import CANDIDATE_COLUMNS, ROUND_TIME_COLUMNS
from fedsgd.scenario.target import Target, parse_target
from tests.analysis.helpers import PHONE, PRICING_MODEL, SERVER, TINY, invoke, read_all_traffic


@pytest.mark.slow
def test_rounds_without_clients_take_no_time(root: Path, tmp_path: Path) -> None:
    scenario = fedsgd.load(
        root / "scenarios" / "quickstart.toml",
        {**TINY, "rounds": 5, "server.sampler": {"name": "trace", "file": "available.csv"}},
    )
    (tmp_path / "available.csv").write_text("client,first_round,last_round\n3,2,2\n4,4,4\n")
    fedsgd.run(scenario, out=tmp_path / "run", data=tmp_path)
    traffic = read_all_traffic(load_run(tmp_path / "run"))
    assert traffic.round.tolist() == [2, 4]
    (priced,) = price(load_run(tmp_path / "run"), [PRICING_MODEL])
    assert (np.diff(priced.cumulative_seconds) > 0).tolist() == [False, True, False, True, False]
    assert priced.compute_profile.sending_copies > 0, "rounds without clients do not count"
    (tmp_path / "available.csv").write_text("client,first_round,last_round\n3,90,90\n")
    fedsgd.run(scenario, out=tmp_path / "empty", data=tmp_path)
    (row,) = compare(load_methods([tmp_path / "empty"]), None, {"slow": PRICING_MODEL}).rows
    assert row.network_costs["slow"].seconds.median == row.network_costs["slow"].n_bytes.median == 0, "no client took part"


@pytest.mark.slow
def test_price_equals_computation_by_pandas(runs: Path) -> None:
    """All clients of all rounds by pandas, on a link of 1 Mbit/s up, 4 Mbit/s down and 20 ms one way."""
    run = load_run(runs / "topk-0")
    (priced,) = price(run, [PRICING_MODEL])
    ledger = pd.read_parquet(runs / "topk-0" / "ledger.parquet")
    table = ledger.pivot_table(index=["round", "client"], columns="direction", values="n_bytes", aggfunc="sum")
    examples = ledger.groupby(["round", "client"])["examples"].sum()
    copy_seconds = 4 * 4810 / PHONE.copy_bytes_per_second
    seconds = 0.04 + table.down * 8 / 4e6 + table.up * 8 / 1e6 + examples * 20224 / PHONE.flops_per_second
    seconds += copy_seconds * (priced.compute_profile.encode_copies + priced.compute_profile.decode_copies)
    server_seconds = (
        (10 * priced.compute_profile.server_copies + priced.compute_profile.sending_copies)
        * 4
        * 4810
        / SERVER.copy_bytes_per_second
    )
    np.testing.assert_allclose(np.diff(priced.cumulative_seconds), seconds.groupby("round").max() + server_seconds, rtol=1e-9)
    target = run.get_measurements("accuracy")[-1][1]
    reached = time_to_target(priced, parse_target(target))
    point = find_first_reached(run.get_measurements("accuracy"), target)
    assert reached is not None
    assert point is not None
    assert reached.compute_seconds(1e6, 4e6, 0.02) == pytest.approx(point.interpolate_on(priced.cumulative_seconds))
    assert time_to_target(priced, Target("loss", below=-1.0)) is None


def test_price_of_several_models_equals_single_prices(runs: Path) -> None:
    run = load_run(runs / "stc-1")
    models = [
        PRICING_MODEL,
        build_pricing_model("lora"),
        build_pricing_model("10g", spread=0.5, broadcast=True, device_spread=0.3),
    ]
    for model, priced in zip(models, price(run, models), strict=True):
        np.testing.assert_array_equal(price(run, [model])[0].cumulative_seconds, priced.cumulative_seconds)


@pytest.mark.slow
def test_price_of_run_that_depended_on_time_is_refused(stragglers: Path) -> None:
    with pytest.raises(ReportError, match=r"cannot be priced on another network: \[participation\] deadline = 60 s decided"):
        price(load_run(stragglers), [PRICING_MODEL])
    result = invoke("price", stragglers, "--network", "4g")
    assert result.exit_code == 1
    assert "deadline = 60 s" in result.stderr
    assert not result.stdout
    run = load_run(stragglers)
    over_selected = replace(run, settings={**run.settings, "participation.deadline": None})
    assert over_selected.why_not_repriceable is not None
    assert "over_selection = 1.5 accepted the first replies" in over_selected.why_not_repriceable
    lossy = replace(run, settings={**over_selected.settings, "participation.over_selection": 1.0})
    assert lossy.why_not_repriceable is None, "random losses are the same on every network"


def linear_timing(label: str, fixed: float, bits: float, n: int = 1) -> MethodTiming:
    """Times of a method of one round that takes fixed + bits / speed seconds."""
    columns = {name: np.zeros(1) for name in (*CANDIDATE_COLUMNS, *ROUND_TIME_COLUMNS) if name not in ("compute", "up")}
    time_model = RoundTimeModel(offsets=np.array([0, 1]), compute=np.array([fixed]), up=np.array([bits]), **columns)
    return MethodTiming(label, [TimeToTarget(time_model, TargetReached(1, 1, 0.0))] * n)


def test_break_even_of_two_lines_is_their_intersection() -> None:
    """1 + 100/s and 3 + 20/s are equal at s = 40 kbit/s."""
    network = Network(Link(1e6, 4e6))
    dense, sparse = linear_timing("dense", 1.0, 100_000), linear_timing("sparse", 3.0, 20_000)
    for pair in ((dense, sparse), (sparse, dense)):
        (point,) = break_evens(*pair, network)
        assert (point.faster_below, point.faster_above) == ("sparse", "dense")
        assert point.up_bits_per_second == pytest.approx(40_000, rel=1e-9)
    assert break_evens(dense, linear_timing("worse", 2.0, 200_000), network) == []
    assert break_evens(dense, linear_timing("equal", 1.0, 100_000), network) == []
    assert break_evens(dense, MethodTiming("never", [None]), network) == []


def test_break_evens_of_bent_line_are_both_intersections() -> None:
    """The maximum of two lines meets another line twice."""
    network = Network(Link(1e6, 1e6))
    columns = {name: np.zeros(2) for name in CANDIDATE_COLUMNS if name not in ("compute", "up")}
    shared = {name: np.zeros(1) for name in ROUND_TIME_COLUMNS}
    bent_model = RoundTimeModel(
        offsets=np.array([0, 2]), compute=np.array([10.0, 1.0]), up=np.array([0.0, 1e6]), **columns, **shared
    )
    bent = MethodTiming("bent", [TimeToTarget(bent_model, TargetReached(1, 1, 0.0))])
    points = break_evens(bent, linear_timing("line", 8.0, 3e5), network)
    assert [(point.faster_below, point.faster_above) for point in points] == [("line", "bent"), ("bent", "line")]
    assert [point.up_bits_per_second for point in points] == pytest.approx([7e5 / 7, 3e5 / 2])


def test_median_time_is_finite_if_most_seeds_reach_the_target() -> None:
    timing = MethodTiming(
        "most", [*linear_timing("", 1.0, 0.0).times_to_target, *linear_timing("", 2.0, 0.0).times_to_target, None]
    )
    assert timing.compute_median_seconds(1e6, 1e6, 0.0) == 2.0
    assert math.isinf(
        MethodTiming("half", [*linear_timing("", 1.0, 0.0).times_to_target, None]).compute_median_seconds(1e6, 1e6, 0.0)
    )
    assert len(SPEEDS) == 81
    assert (SPEEDS[0], SPEEDS[-1]) == (100, 1e12)


def test_time_to_target_is_infinite_after_the_deadline(runs: Path) -> None:
    """With a deadline, times are infinite at speeds at which an accepted reply would be late."""
    (run,) = load_methods([runs / "topk-0"])[0].runs
    (priced,) = price(run, [replace(PRICING_MODEL, deadline_seconds=1.0)])
    reached = time_to_target(priced, parse_target(0.3))
    assert reached is not None
    assert math.isfinite(reached.compute_seconds(1e6, 4e6, 0.02))
    assert math.isinf(reached.compute_seconds(1e3, 4e3, 0.02))
    curve = MethodTiming("", [reached]).compute_curve(PRICING_MODEL.network)
    assert [math.isfinite(seconds) for seconds in curve] == sorted(math.isfinite(seconds) for seconds in curve)
    with pytest.raises(ReportError, match="later than the deadline of 1 s"):
        price(run, [replace(PRICING_MODEL, network=Network(Link(1e3, 4e3)), deadline_seconds=1.0)])


@pytest.mark.slow
def test_price_with_lost_replies_equals_computation_by_pandas(root: Path, tmp_path: Path) -> None:
    """Client by client by pandas: a lost reply is waited for as if it had arrived, or up to the deadline."""
    settings = {**TINY, "rounds": 4, "participation.dropout": 0.4}
    fedsgd.run(fedsgd.load(root / "scenarios" / "quickstart.toml", settings), out=tmp_path / "run")
    run, ledger = load_run(tmp_path / "run"), pd.read_parquet(tmp_path / "run" / "ledger.parquet")
    without_deadline, with_deadline = price(run, [PRICING_MODEL, replace(PRICING_MODEL, deadline_seconds=3.0)])
    up, down = (
        ledger[ledger.direction == direction].groupby(["round", "client"]).n_bytes.sum() for direction in ("up", "down")
    )
    accepted = ledger[(ledger.kind == "UPDATE") & (ledger.fate == "received")].groupby(["round", "client"]).size()
    examples = ledger.groupby(["round", "client"]).examples.sum()
    profile, copy_bytes = without_deadline.compute_profile, 4 * 4810
    seconds = 0.04 + down * 8 / 4e6 + up * 8 / 1e6 + examples * 20224 / PHONE.flops_per_second
    seconds += copy_bytes * (profile.encode_copies + profile.decode_copies) / PHONE.copy_bytes_per_second
    n_accepted = accepted.groupby("round").size().reindex(range(1, 5), fill_value=0)
    server_seconds = (n_accepted * profile.server_copies + profile.sending_copies) * copy_bytes / SERVER.copy_bytes_per_second
    lost = 10 - n_accepted
    assert lost.sum() > 3
    np.testing.assert_allclose(np.diff(without_deadline.cumulative_seconds), seconds.groupby("round").max() + server_seconds)
    slowest = seconds[accepted.index].groupby("round").max().reindex(range(1, 5), fill_value=0)
    np.testing.assert_allclose(np.diff(with_deadline.cumulative_seconds), np.where(lost > 0, 3.0, slowest) + server_seconds)
    received = ledger[(ledger.kind == "UPDATE") & (ledger.fate == "received") & (ledger["round"] > 1)]
    (measured,) = price(run, [PRICING_MODEL], measured_coding=True)
    server_copies = received.decode_seconds.quantile(0.5) / run.summary["work"]["copy_seconds"]
    assert measured.compute_profile.server_copies == float(f"{server_copies:.1e}"), "lost replies are not decoded"
    assert without_deadline.ledger_stats.unanswered_messages == 0


def test_jitter_and_spread_depend_on_the_seed(runs: Path) -> None:
    run = load_run(runs / "dense-0")
    other_seed = replace(run, settings={**run.settings, "seed": 7})
    for pricing_model in (
        build_pricing_model("4g", jitter="50ms"),
        build_pricing_model("4g", device_spread=0.5),
        build_pricing_model("4g", spread=0.5),
    ):
        assert (
            price(run, [pricing_model])[0].cumulative_seconds.tolist()
            != price(other_seed, [pricing_model])[0].cumulative_seconds.tolist()
        )
