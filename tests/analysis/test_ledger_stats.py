"""Statistics of ledgers, compared with pandas."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedsgd
from fedsgd.analysis import load_run
from fedsgd.analysis.ledger_stats import read_client_traffic, read_ledger_stats
from fedsgd.analysis.pricing import price
from fedsgd.errors import ReportError
from fedsgd.experiment.partition_summary import summarize_partition
from fedsgd.network import ClientTraffic
from fedsgd.numerics.binomial import log2_choose
from tests.analysis.helpers import PRICING_MODEL, TINY, read_all_traffic


@pytest.mark.slow
def test_client_traffic_equals_sums_of_the_ledger(runs: Path) -> None:
    run = load_run(runs / "topk-0")
    ledger = pd.read_parquet(runs / "topk-0" / "ledger.parquet")
    sums = ledger.groupby(["round", "client", "direction"])["n_bytes"].sum().unstack(fill_value=0)
    traffic = read_all_traffic(run)
    assert list(zip(traffic.round, traffic.client, strict=True)) == list(sums.index)
    assert traffic.down_bytes.tolist() == sums["down"].tolist()
    assert traffic.up_bytes.tolist() == sums["up"].tolist()
    examples = ledger[ledger.kind == "UPDATE"].set_index(["round", "client"])["examples"]
    assert traffic.examples.tolist() == [examples.get(key, 0) for key in sums.index]
    assert (traffic.down_messages == 1).all()
    assert (traffic.up_messages == 1).all()
    assert traffic.accepted.all()
    assert traffic.down_distinct_bytes.sum() == run.summary["downlink_broadcast_bytes"]


def test_ledger_steps_and_examples_of_updates_match_the_partition(runs: Path, root: Path) -> None:
    """In one epoch of batches of ten, each example is used once, and each batch is a step."""
    ledger = pd.read_parquet(runs / "topk-0" / "ledger.parquet")
    updates = ledger[ledger.kind == "UPDATE"]
    assert (updates.steps == -(-updates.examples // 10)).all()
    assert (ledger[ledger.kind != "UPDATE"][["steps", "examples"]] == 0).all(axis=None)
    sizes = summarize_partition(fedsgd.load(root / "scenarios" / "quickstart.toml", TINY), None).sizes
    assert updates.examples.tolist() == [sizes[client] for client in updates.client]


@pytest.mark.parametrize("rows", [1, 7, 64, 10_000])
def test_client_traffic_is_independent_of_the_chunk_length(runs: Path, rows: int) -> None:
    run = load_run(runs / "topk-0")
    expected, traffic, chunks = read_all_traffic(run), read_all_traffic(run, rows), list(read_client_traffic(run, rows))
    assert len(chunks) == (2 if rows == 10_000 else 6 if rows < 60 else len(chunks))
    for field in fields(ClientTraffic)[1:]:
        np.testing.assert_array_equal(getattr(traffic, field.name), getattr(expected, field.name))
    assert [chunk.first_round for chunk in chunks] == [int(chunk.round[0]) for chunk in chunks]


def test_ledger_stats_equal_sums_of_the_ledger(runs: Path) -> None:
    run = load_run(runs / "topk-0")
    stats = read_ledger_stats(run)
    ledger = pd.read_parquet(runs / "topk-0" / "ledger.parquet")
    by_client = ledger[ledger.direction == "up"].groupby("client")["n_bytes"].sum()
    assert stats.uplink_bytes_by_client.tolist() == [by_client.get(client, 0) for client in range(20)]
    assert stats.downlink_bytes_by_client.sum() == run.summary["downlink_bytes"]
    assert run.summary["uplink"]["index"] == stats.index_bytes
    updates = ledger[ledger.kind == "UPDATE"]
    assert stats.bound_bytes == pytest.approx(sum(log2_choose(4810, k) for k in updates.kept) / 8)
    assert stats.bound_bytes < stats.index_bytes
    assert (stats.update_frames.n_frames, stats.update_frames.n_coordinates) == (60, updates.kept.sum())
    models = ledger[ledger.kind == "MODEL"]
    whole, step = models[models.base == 0], models[models.base > 0]
    assert (stats.downlink_frames["whole"].n_frames, stats.downlink_frames["step"].n_frames) == (len(whole), len(step))
    assert stats.downlink_frames["step"].n_coordinates == step.kept.sum()
    distinct = step.drop_duplicates(["round", "frame_hash"])
    assert (stats.distinct_downlink_frames["step"].n_frames, stats.distinct_downlink_frames["step"].n_coordinates) == (
        len(distinct),
        distinct.kept.sum(),
    )
    latest = distinct[distinct.base == distinct["round"] - 1]
    assert 0 < stats.distinct_downlink_frames["latest"].n_frames == len(latest) < len(distinct)
    assert stats.distinct_downlink_frames["whole"].n_frames == whole["round"].nunique()
    assert stats.coding_seconds is None


def test_ledger_of_another_run_is_refused(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "topk-0", tmp_path / "run")
    ledger = pd.read_parquet(runs / "topk-0" / "ledger.parquet")
    ledger.drop(columns="examples").to_parquet(tmp_path / "run" / "ledger.parquet")
    with pytest.raises(ReportError, match='has no column "examples"'):
        list(read_client_traffic(load_run(tmp_path / "run")))
    ledger.iloc[::-1].to_parquet(tmp_path / "run" / "ledger.parquet")
    with pytest.raises(ReportError, match="not in the order of rounds"):
        list(read_client_traffic(load_run(tmp_path / "run")))
    for damaged, problem in (
        (ledger.assign(client=ledger.client + 1), "client 20, expected 0 to 19, as summary.json says"),
        (ledger.assign(round=ledger["round"] + 1), "round 7, expected 1 to 6, as rounds.parquet has"),
        (ledger[ledger["round"] <= 3], "bytes of uplink, expected .*: the file is cut or belongs to another run"),
        (ledger[ledger.direction == "up"], "0 bytes of downlink, expected"),
        (ledger[:0], "0 bytes of uplink, expected"),
    ):
        damaged.to_parquet(tmp_path / "run" / "ledger.parquet")
        with pytest.raises(ReportError, match=problem):
            price(load_run(tmp_path / "run"), [PRICING_MODEL])
