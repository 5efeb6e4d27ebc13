"""Bytes and money of fleets: hand-computed values, simulated clients, dropouts, and the command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedsgd
from fedsgd.analysis import load_run
from fedsgd.analysis.fleet import (
    MAX_CLIENT_QUANTILES,
    FleetConfig,
    MeasuredTraffic,
    _reduce_to_quantiles,
    build_fleet_row,
    compute_binomial_shares,
    measure_traffic,
    model_client_bytes,
)
from fedsgd.analysis.fleet_result import price_fleet
from fedsgd.config.quantities import format_bytes
from fedsgd.errors import FedsgdError, ReportError
from fedsgd.network import get_network
from fedsgd.sampling import SamplingPool
from fedsgd.sampling.uniform import Uniform
from fedsgd.scenario.scenario import Scenario
from tests.analysis.helpers import edit_summary, invoke

TRAFFIC = MeasuredTraffic(20, 6, 60, 0, 0, up_bytes=1000.0, down_bytes=4000.0, sampler="uniform", client_bytes=np.arange(20.0))
"""Half of the clients in each round; 5 kB for each participation."""
OVERHEADS = replace(get_network("4g"), up_overhead_bytes=12_000, down_overhead_bytes=3_000)
BROADCAST = replace(get_network("4g"), downlink="broadcast")
Make = Callable[..., Scenario]


# ------------------------------------------------------------------------------------------------------------------ arithmetic


def test_figures_equal_hand_computed_values() -> None:
    """Three rounds of one half: 0, 1, 2 or 3 participations with probabilities 1, 3, 3 and 1 of 8."""
    fleet = FleetConfig(3, clients=1000, cap="12 kB/month", price_per_gigabyte=2.0)
    row = build_fleet_row("a", [TRAFFIC], fleet)
    assert row.fleet_uplink_bytes_per_month is not None
    assert row.fleet_uplink_bytes_per_month.median == 1000 * 3 * 0.5 * 1000
    assert row.fleet_bytes_per_month is not None
    assert row.fleet_bytes_per_month.median == 7.5e6
    assert row.fleet_cost_per_month is not None
    assert row.fleet_cost_per_month.median == pytest.approx(0.015)
    assert (row.client_median_bytes_per_month.median, row.client_95th_percentile_bytes_per_month.median) == (5000, 15000)
    assert row.client_95th_percentile_cost_per_month is not None
    assert row.client_95th_percentile_cost_per_month.median == pytest.approx(15000 / 1e9 * 2)
    assert row.share_of_clients_within_cap is not None
    assert row.share_of_clients_within_cap.median == pytest.approx(7 / 8)


def test_fixed_cohort_changes_the_sampled_share() -> None:
    """The share of the run keeps each client's bytes for any number of clients; a cohort of 100 in 1000 clients is a tenth."""
    shared, fixed = (build_fleet_row("a", [TRAFFIC], FleetConfig(30, clients=1000, cohort=cohort)) for cohort in (None, 100))
    assert (shared.sampled_share.median, fixed.sampled_share.median) == (0.5, 0.1)
    assert shared.fleet_bytes_per_month is not None
    assert fixed.fleet_bytes_per_month is not None
    assert (shared.fleet_bytes_per_month.median, fixed.fleet_bytes_per_month.median) == (75e6, 15e6)
    assert (shared.client_median_bytes_per_month.median, fixed.client_median_bytes_per_month.median) == (75e3, 15e3)
    without_clients = build_fleet_row("a", [TRAFFIC], FleetConfig(30))
    assert without_clients.fleet_bytes_per_month is None
    assert without_clients.client_median_bytes_per_month == shared.client_median_bytes_per_month


@pytest.mark.parametrize(("rounds", "cohort"), [(30, 50), (30, 500), (300, 1)])
def test_binomial_percentiles_equal_those_of_sampled_clients(rounds: int, cohort: int) -> None:
    clients = 1000
    sample_cohort = Uniform().bind(SamplingPool(seed=3, clients=clients, sizes=lambda: np.ones(clients, dtype=np.int64)))
    cohorts = np.concatenate([sample_cohort(round, cohort).cohort for round in range(1, rounds + 1)])
    counts = np.bincount(cohorts, minlength=clients)
    shares = compute_binomial_shares(rounds, cohort / clients)
    simulated = np.cumsum(np.bincount(counts, minlength=rounds + 1)) / clients
    assert np.abs(shares - simulated).max() < 0.04
    model = model_client_bytes(TRAFFIC, rounds, cohort / clients)
    assert abs(model.percentile(0.95) / TRAFFIC.mean_bytes - np.quantile(counts, 0.95)) <= 1


@pytest.mark.parametrize(("n", "probability"), [(1, 0.3), (30, 0.05), (4000, 0.5), (100_000, 1e-4), (1000, 0.999)])
def test_binomial_shares_equal_those_of_scipy(n: int, probability: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binom.cdf(np.arange(n + 1), n, probability)
    np.testing.assert_allclose(compute_binomial_shares(n, probability), expected, atol=1e-9)


def test_binomial_shares_at_the_ends() -> None:
    assert compute_binomial_shares(2, 0.0).tolist() == [1, 1, 1]
    assert compute_binomial_shares(2, 1.0).tolist() == [0, 0, 1]


def test_cyclic_clients_take_part_in_turn() -> None:
    cyclic = replace(TRAFFIC, sampler="cyclic")
    model = model_client_bytes(cyclic, 30, 0.11)
    assert model.values.tolist() == [15_000, 20_000]
    assert model.share_within(15_000) == pytest.approx(0.7)
    assert (model.percentile(0.5), model.percentile(0.95)) == (15_000, 20_000)
    assert model_client_bytes(cyclic, 30, 0.1).share_within(15_000) == 1.0


def test_other_samplers_scale_the_bytes_of_the_clients() -> None:
    """A month has five times the rounds of the run; a client of 10 bytes in the run has 50, or 10 at a fifth of the share."""
    weighted = replace(TRAFFIC, sampler="weighted")
    assert model_client_bytes(weighted, 30, 0.5).percentile(0.5) == 45
    assert model_client_bytes(weighted, 30, 0.1).percentile(0.5) == 9
    assert model_client_bytes(weighted, 30, 0.5).percentile(0.95) == 90
    assert model_client_bytes(weighted, 30, 0.5).share_within(90) == 0.95
    assert model_client_bytes(weighted, 30, 0.5).share_within(-1) == 0


def test_many_clients_are_reduced_to_quantiles() -> None:
    values = np.random.default_rng(0).permutation(40_000).astype(np.float64)
    reduced = _reduce_to_quantiles(values)
    assert len(reduced) == MAX_CLIENT_QUANTILES
    for share in (0.5, 0.95, 1.0):
        assert reduced[int(share * MAX_CLIENT_QUANTILES) - 1] == np.quantile(values, share, method="inverted_cdf")


# ----------------------------------------------------------------------------------------------------------------- measurement


def test_traffic_equals_sums_of_the_ledger(runs: Path) -> None:
    traffic = measure_traffic(load_run(runs / "topk-0"), 100.0, 10.0)
    ledger = pd.read_parquet(runs / "topk-0" / "ledger.parquet")
    totals = ledger.groupby("direction").n_bytes.sum()
    assert (traffic.n_participations, traffic.sampled_share) == (60, 0.5)
    assert traffic.up_bytes == pytest.approx(totals["up"] / 60 + 100)
    assert traffic.down_bytes == pytest.approx(totals["down"] / 60 + 10)
    assert traffic.client_bytes.sum() == pytest.approx(60 * traffic.mean_bytes)
    assert (np.diff(traffic.client_bytes) >= 0).all()


@pytest.mark.slow
def test_dropouts_before_and_after_the_download_are_priced(scenario: Make, tmp_path: Path) -> None:
    """Dense updates, and the whole model as downlink, have equal bytes for all clients and rounds."""
    (tmp_path / "trace.csv").write_text("client,first_round,last_round\n" + "".join(f"{c},1,3\n" for c in range(3)))
    settings = {
        "all": {},
        "before the download": {"server.sampler": {"name": "trace", "file": str(tmp_path / "trace.csv")}},
        "after the download": {"client.optimizer.lr": 1e38, "client.epochs": 2, "participation.on_failure": "continue"},
        "after the upload": {"participation.dropout": 0.5},
    }
    traffic = {}
    for name, changes in settings.items():
        dense = {"uplink.compressor": {"name": "dense"}, "uplink.error_feedback": "none"}
        fedsgd.run(scenario({**dense, **changes}), out=tmp_path / name)
        traffic[name] = measure_traffic(load_run(tmp_path / name))
    counts = {name: (one.n_participations, one.n_unanswered, one.n_unused) for name, one in traffic.items()}
    lost = counts["after the upload"][2]
    assert 0 < lost < 12
    assert counts == {
        "all": (12, 0, 0),
        "before the download": (9, 0, 0),
        "after the download": (12, 12, 0),
        "after the upload": (12, 0, lost),
    }
    both = (traffic["all"].up_bytes, traffic["all"].down_bytes)
    assert min(both) > 1000
    assert {name: (one.up_bytes, one.down_bytes) for name, one in traffic.items()} == {
        "all": both,
        "before the download": both,
        "after the download": (0.0, both[1]),
        "after the upload": both,
    }
    assert (traffic["before the download"].client_bytes[:5] == 0).all(), "a client without a message has no bytes"
    notes = price_fleet([("a", tmp_path / "after the download"), ("b", tmp_path / "after the upload")], FleetConfig(30)).notes
    assert "sampler uniform: a client's participations in 30 rounds are binomial" in notes, "once for both methods"
    assert "a: 100 % of the participations ended after the download and count with the download alone" in notes
    assert any(note.startswith("b: ") and "sent but not used (lost, late or refused) and count fully" in note for note in notes)


def test_ledger_of_another_run_is_refused(runs: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(runs / "topk-0", tmp_path / "run")
    edit_summary(tmp_path / "run", clients=5)
    with pytest.raises(ReportError, match="client 19, expected 0 to 4"):
        measure_traffic(load_run(tmp_path / "run"))
    edit_summary(tmp_path / "run", clients=20)
    ledger = pd.read_parquet(tmp_path / "run" / "ledger.parquet")
    ledger[ledger["round"] <= 3].to_parquet(tmp_path / "run" / "ledger.parquet")
    with pytest.raises(ReportError, match="bytes of uplink, expected"):
        measure_traffic(load_run(tmp_path / "run"))


# ------------------------------------------------------------------------------------------------------------------------- use


def test_python_and_command_have_equal_figures(runs: Path) -> None:
    options = ("--clients", "1000000", "--rounds-per-month", "30", "--price-per-gigabyte", "0.02", "--cap", "200kB/month")
    result = invoke("price", runs, *options, "--overhead-up", "1kB", "--json")
    fleet = FleetConfig(30, 1_000_000, cap="200kB/month", price_per_gigabyte=0.02, overhead_up="1kB")
    expected = price_fleet([runs], fleet).to_json()
    assert json.loads(result.stdout)["fleet"] == json.loads(json.dumps(expected))
    assert expected["cap_bytes_per_month"] == 200_000
    assert expected["methods"][0]["sampled_share"]["median"] == 0.5


@pytest.mark.slow
def test_command_prints_tables_of_eighty_columns(runs: Path) -> None:
    options = ("--clients", "1000000", "--rounds-per-month", "30", "--price-per-gigabyte", "0.02", "--cap", "400kB/month")
    text = invoke("price", runs, *options).stdout
    assert "1,000,000 clients, 30 rounds a month" in text
    assert "each round samples 50 % of the clients, as in the run" in text
    assert "cost a month, at 0.02 per gigabyte" in text
    for row in price_fleet([runs], FleetConfig(30)).rows:
        assert format_bytes(round(row.client_median_bytes_per_month.median)) in text
    tables = text.split("95 %: not exceeded")[0]
    assert max(len(line) for line in tables.splitlines()) <= 80
    assert "…" not in re.sub(r"^  (dense|top-k|stc).*?…", "", tables, flags=re.MULTILINE), "only labels are cut"
    alone = invoke("price", runs, "--rounds-per-month", "30", "--network", "4g").stdout
    assert "4g: " in alone
    assert "a client, 30 rounds a month" in alone
    assert "clients, 30 rounds" not in alone


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--cap", "200MB/month"), "--cap: expected the rounds of a month too, for example --rounds-per-month 30"),
        (("--clients", "5"), "--clients: expected the rounds of a month too, for example --rounds-per-month 30"),
        (("--rounds-per-month", "30", "--cap", "200"), "--cap: got '200', expected SIZE/month or SIZE/day, for example"),
        (
            ("--rounds-per-month", "30", "--cohort", "5"),
            "--cohort: expected the number of clients too, for example --clients 1000",
        ),
        (
            ("--rounds-per-month", "30", "--clients", "4", "--cohort", "5"),
            "--cohort: got 5, expected at most 4, the number of clients",
        ),
        (
            ("--rounds-per-month", "3000000"),
            "--rounds-per-month: expected a whole number from 1 to 1000000, got 3000000",
        ),
        (("--rounds-per-month", "30", "--broadcast"), "--broadcast: a fleet counts the bytes that each client receives"),
        (("--rounds-per-month", "30", "--overhead-up", "12"), "--overhead-up: got '12'"),
        (("--rounds-per-month", "30", "--share", "0.9"), "--share: expected a cap too, for example --cap 200MB/month"),
        (("--network", "4g", "--share", "0.5"), "--share: expected a cap too, for example --cap 200MB/month"),
        (("--network", "4g", "--json", "--columns", "tme"), '"tme"'),
        (
            ("--network", "4g", "--rounds-per-month", "30", "--statistic", "mean"),
            "--statistic mean: figures of a fleet are medians over seeds; leave out --statistic or --rounds-per-month",
        ),
    ],
)
def test_wrong_fleet_option_is_one_line(runs: Path, options: tuple[str, ...], problem: str) -> None:
    result = invoke("price", runs / "topk-0", *options)
    assert result.exit_code == 2
    assert problem in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_fleet_has_the_overheads_of_the_users_network(runs: Path) -> None:
    options = ("--rounds-per-month", "30", "--json")
    given, own = (
        json.loads(invoke("price", runs / "topk-0", "--network", network, *options, *overheads).stdout)["fleet"]
        for network, overheads in (
            ("4g", ("--overhead-up", "12000 B", "--overhead-down", "3000 B")),
            (f"{__name__}:OVERHEADS", ()),
        )
    )
    assert own == given
    without = json.loads(invoke("price", runs / "topk-0", "--network", "4g", *options).stdout)["fleet"]
    assert own["methods"] != without["methods"]
    for networks, problem in (
        (
            f"4g,{__name__}:OVERHEADS",
            "--network: got networks with different overheads, expected one network, or --overhead-up",
        ),
        (
            f"{__name__}:BROADCAST",
            "--network: got one with broadcast, but a fleet counts the bytes that each client receives; add --no-broadcast",
        ),
    ):
        refused = invoke("price", runs / "topk-0", "--network", networks, *options)
        assert refused.exit_code == 2
        assert problem in refused.stderr
    unicast = invoke("price", runs / "topk-0", "--network", f"{__name__}:BROADCAST", "--no-broadcast", *options, "--json")
    assert json.loads(unicast.stdout)["fleet"]["methods"] == without["methods"]


def test_network_option_with_a_fleet_alone_is_refused(runs: Path) -> None:
    refused = invoke("price", runs / "topk-0", "--rounds-per-month", "30", "--deadline", "5s")
    assert refused.exit_code == 2
    assert "--deadline needs a network" in refused.stderr


@pytest.mark.parametrize("option", [("--cap", "200MB/month"), ("--rounds-per-month", "30"), ("--share", "0.5")])
def test_figures_refuse_options_of_a_fleet(runs: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    result = invoke("report", runs / "topk-0", *option, "--format", "svg", "--out", tmp_path / "figures")
    assert result.exit_code == 2
    assert f"{option[0]} needs --format html: only the page has a fleet" in result.stderr
    assert not (tmp_path / "figures").exists()


def test_wrong_argument_is_refused_in_python(runs: Path) -> None:
    with pytest.raises(FedsgdError, match=r"^fleet: got 3, expected fedsgd\.FleetConfig"):
        price_fleet([runs], 3)  # type: ignore[arg-type]
    with pytest.raises(FedsgdError, match=r"^runs: got .*, expected a list of run directories"):
        price_fleet(str(runs), FleetConfig(30))
    with pytest.raises(FedsgdError, match=r"FleetConfig\.cap: got '5 MB', expected SIZE/month .*, did you mean"):
        FleetConfig(30, cap="5 MB")
    with pytest.raises(FedsgdError, match=r"FleetConfig\.cohort: got 5, expected .*, for example clients=1000$"):
        FleetConfig(30, cohort=5)


def test_rarer_participation_than_in_the_run_is_a_lower_bound_with_method_size_and_remedies(runs: Path) -> None:
    size = format_bytes(4 * load_run(runs / "topk-0").summary["parameters"])
    priced = price_fleet([("top-k", runs / "topk-0")], FleetConfig(30, clients=1000, cohort=1))
    line, remedies = priced.lower_bounds
    assert line.startswith("lower bound for top-k: a round samples 0.1 % of the clients, in the run ")
    assert line.endswith(f"up to {size}, the whole model")
    assert "downlink.policy=model" in remedies
    assert remedies.endswith("server.fraction=0.001")
    assert priced.to_json()["lower_bounds"] == [line, remedies]
    assert not price_fleet([runs / "topk-0"], FleetConfig(30)).lower_bounds


def test_lower_bounds_are_printed_before_the_tables(runs: Path) -> None:
    fleet = ("--rounds-per-month", "30", "--clients", "1000", "--cohort", "1", "--price-per-gigabyte", "0.05")
    result = invoke("price", runs / "topk-0", *fleet)
    assert result.stdout.startswith("lower bound for ")
    assert not re.search(r"\de-\d", result.stdout)
