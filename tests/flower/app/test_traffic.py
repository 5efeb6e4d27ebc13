"""Traffic of a user's Flower app: `strategy.traffic` compared with a counter of Flower's own objects."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsgd.flower import CompressedStrategy, compression_mod
from fedsgd.flower.app.strategy_round import StrategyRound, WarningLog
from fedsgd.flower.app.traffic import RoundTraffic
from fedsgd.flower.records import RECORD_KEY
from tests.flower.counting import SHAPES, CountingGrid, fed_avg, make_app, model_arrays, start
from tests.flower.grid import RUN

TOP_K = {"name": "top-k", "density": 0.05}
DIFFERENCE = {"policy": "difference"}
P = sum(int(np.prod(shape)) for shape in SHAPES.values())
PHASES = ("train", "evaluate")


def add_control_record(number: int, content: RecordDict) -> RecordDict:
    """Add a second ArrayRecord and a ConfigRecord to a reply."""
    rng = np.random.default_rng([9, number])
    content["control"] = ArrayRecord({"control": Array(rng.normal(size=P).astype(np.float32))})
    content["notes"] = ConfigRecord({"device": "cpu", "epochs": number})
    return content


class ModelFedAvg(FedAvg):
    """FedAvg for replies with a second ArrayRecord."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Aggregate the record with the model only."""
        replies = list(replies)
        for reply in replies:
            reply.content.pop("control", None)
        return super().aggregate_train(server_round, replies)


def sum_traffic(strategy: CompressedStrategy, phase: str, name: str) -> int:
    """Return the sum of a field over all rounds of a phase."""
    return sum(int(getattr(row, name)) for row in strategy.traffic if row.what == phase)


def check_message_bytes(grid: CountingGrid, strategy: CompressedStrategy) -> None:
    """Compare the traffic of a run with the bytes that its grid counted."""
    for phase in PHASES:
        assert sum_traffic(strategy, phase, "message_down") == grid.sum_of(phase, "down") > 0
        assert sum_traffic(strategy, phase, "message_up") == grid.sum_of(phase, "up") > 0


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("downlink", [None, DIFFERENCE], ids=["model", "difference"])
@pytest.mark.parametrize("compressor", ["dense", TOP_K, "sign"], ids=str)
def test_traffic_with_a_second_record_equals_the_bytes_of_compressed_and_plain_runs(
    compressor: str | dict[str, Any], downlink: dict[str, str] | None
) -> None:
    settings = {"min_train_nodes": 1, "min_available_nodes": 1}
    strategy = CompressedStrategy(ModelFedAvg(**settings), compressor, downlink=downlink)
    grid = start(make_app([compression_mod()], add_control_record), strategy, rounds=3)
    check_message_bytes(grid, strategy)
    plain_grid = start(make_app([], add_control_record), ModelFedAvg(**settings), rounds=3)
    for phase in PHASES:
        assert sum_traffic(strategy, phase, "plain_down") == plain_grid.sum_of(phase, "down")
        assert sum_traffic(strategy, phase, "plain_up") == plain_grid.sum_of(phase, "up")
    share_up = grid.sum_of("train", "up") / plain_grid.sum_of("train", "up")
    assert share_up > 0.5, "the second record is sent uncompressed"
    assert strategy.traffic[0].compression_ratios["uplink_ratio"] < 2
    assert sum(row.up for row in strategy.traffic) < sum(row.message_up for row in strategy.traffic)


def test_traffic_of_evaluation_replies_counts_metrics() -> None:
    strategy = CompressedStrategy(fed_avg(), TOP_K)
    start(make_app([compression_mod()]), strategy)
    for row in strategy.traffic[1::2]:
        assert (row.what, row.nodes, row.up) == ("evaluate", 3, 0)
        assert 0 < row.message_up == row.plain_up
        assert row.compression_ratios["uplink_ratio"] == 1.0
        assert f"round {row.round}, evaluation: 0 bytes up, {row.down:,} down" in str(row)


@pytest.mark.slow
def test_traffic_of_a_second_message_counts_the_message_and_the_resync_reply(state_root: Path) -> None:
    """Without compression, there would be neither a RESYNC reply nor a second message."""
    send_numbers = iter(range(100))

    def delete_state(grid: CountingGrid) -> None:
        if next(send_numbers) == 2:
            shutil.rmtree(next((state_root / f"run-{RUN}").glob(f"node-{grid.find_id(1)}-app-*")))

    strategy = CompressedStrategy(fed_avg(), TOP_K, error_feedback="persist", downlink=DIFFERENCE)
    grid = start(make_app([compression_mod()]), strategy, 3, prepare=lambda grid: setattr(grid, "before", delete_state))
    plain_grid = start(make_app([]), fed_avg(), 3)
    assert [len(grid.message_bytes["train", direction]) for direction in ("down", "up")] == [10, 10]
    check_message_bytes(grid, strategy)
    for phase in PHASES:
        assert sum_traffic(strategy, phase, "plain_down") == plain_grid.sum_of(phase, "down")
        assert sum_traffic(strategy, phase, "plain_up") == plain_grid.sum_of(phase, "up")


def replace_by_arrays(number: int, content: RecordDict) -> RecordDict:
    """Replace fedsgd's record of node 1's reply by uncompressed arrays."""
    if number == 1 and RECORD_KEY in content:
        del content[RECORD_KEY]
        content["arrays"] = model_arrays()
    return content


def damage_record(number: int, content: RecordDict) -> RecordDict:
    """Damage fedsgd's record of node 1's reply."""
    if number == 1 and RECORD_KEY in content:
        content[RECORD_KEY] = ConfigRecord({"frames": b"nonsense"})
    return content


def raise_at_node_1(number: int) -> None:
    if number == 1:
        raise ValueError("no data")


@pytest.mark.slow
@pytest.mark.parametrize("change", [replace_by_arrays, damage_record], ids=["plain arrays", "damaged"])
def test_traffic_of_uncompressed_and_damaged_replies_counts_them_unchanged(
    change: Callable[[int, RecordDict], RecordDict],
) -> None:
    strategy = CompressedStrategy(fed_avg(), TOP_K)

    def prepare(grid: CountingGrid) -> None:
        grid.alter_reply = lambda node, content: change(grid.nodes[node].partition, content)

    grid = start(make_app([compression_mod()]), strategy, 2, prepare=prepare)
    check_message_bytes(grid, strategy)
    sizes = grid.message_bytes["train", "up"][:3]
    expected = (max if change is replace_by_arrays else min)(sizes)
    undisturbed = CompressedStrategy(fed_avg(), TOP_K)
    start(make_app([compression_mod()]), undisturbed, 2)
    assert strategy.traffic[0].plain_up - undisturbed.traffic[0].plain_up * 2 / 3 == pytest.approx(expected, abs=50)


def test_traffic_of_errors_counts_errors_of_nodes_only() -> None:
    strategy = CompressedStrategy(fed_avg(), TOP_K)
    app = make_app([compression_mod()], before_training=raise_at_node_1)
    grid = start(app, strategy, 2, prepare=lambda grid: grid.unavailable_nodes.add(grid.find_id(2)))
    assert [len(grid.message_bytes["train", direction]) for direction in ("down", "up")] == [6, 4]
    check_message_bytes(grid, strategy)


def test_traffic_of_an_evaluation_of_other_arrays_counts_uncompressed_messages() -> None:
    class InitialFedAvg(FedAvg):
        """FedAvg that always evaluates the initial model."""

        def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
            """Send the initial model."""
            return super().configure_evaluate(server_round, model_arrays(), config, grid)

    strategy = CompressedStrategy(InitialFedAvg(min_train_nodes=1, min_available_nodes=1), TOP_K)
    grid = start(make_app([compression_mod()]), strategy)
    check_message_bytes(grid, strategy)
    rows = [row for row in strategy.traffic if row.what == "evaluate"]
    assert [(row.nodes, row.down, row.compression_ratios["bidirectional_ratio"]) for row in rows] == [(3, 0, 1.0)] * 2


def test_traffic_of_messages_without_the_model_counts_them() -> None:
    class QueryFedAvg(FedAvg):
        """FedAvg that sends each node a query, and aggregates only replies with arrays."""

        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
            """Send messages to train, and queries."""
            messages = list(super().configure_train(server_round, arrays, config, grid))
            notes = RecordDict({"notes": ConfigRecord({"round": server_round})})
            return [*messages, *(Message(notes, message.metadata.dst_node_id, "query") for message in messages)]

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            """Aggregate the replies with arrays."""
            return super().aggregate_train(server_round, [reply for reply in replies if reply.content.array_records])

    app = make_app([compression_mod()])

    @app.query()
    def query(message: Message, context: Any) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"free": 1})}), reply_to=message)

    strategy = CompressedStrategy(QueryFedAvg(min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0), TOP_K)
    grid = start(app, strategy)
    for direction in ("down", "up"):
        message_bytes = grid.sum_of("train", direction) + grid.sum_of("query", direction)
        assert sum_traffic(strategy, "train", f"message_{direction}") == message_bytes
    assert strategy.traffic[0].nodes == 3


def test_round_without_a_session_counts_uncompressed_messages() -> None:
    """A model without compressible arrays is sent like this."""
    app = make_app([compression_mod()])
    grid = start(app, fed_avg(), 0)
    messages = list(fed_avg().configure_train(1, model_arrays(), ConfigRecord(), grid))
    strategy_round = StrategyRound(1, "train", model_arrays(), WarningLog())
    strategy_round.compress_messages(messages, None)
    assert all("arrays" in message.content for message in messages)
    replies = grid.send_and_receive(messages)
    restored_replies, accepted_nodes = strategy_round.decompress_replies(None, replies, grid, 1.0)
    assert (restored_replies, accepted_nodes) == (replies, [])
    down, up = grid.sum_of("train", "down"), grid.sum_of("train", "up")
    assert strategy_round.traffic == RoundTraffic(1, "train", 3, 0, 0, down, up, down, up)
    assert set(strategy_round.traffic.compression_ratios.values()) == {1.0}


def test_traffic_of_a_model_without_compressible_arrays_has_a_ratio_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = ArrayRecord({"table": Array(np.arange(50))})
    monkeypatch.setattr("tests.flower.counting.model_arrays", lambda: tables)

    def change(number: int, content: RecordDict) -> RecordDict:
        content["arrays"] = ArrayRecord({"table": Array(np.arange(50) + number)})
        return content

    strategy = CompressedStrategy(fed_avg(), TOP_K)
    grid = start(make_app([compression_mod()], change), strategy)
    check_message_bytes(grid, strategy)
    rows = [row for row in strategy.traffic if row.what == "train"]
    assert [(row.nodes, row.up, row.down) for row in rows[:1]] == [(3, 0, 0)]
    assert set(rows[0].compression_ratios.values()) == {1.0}


def test_log_of_a_round_has_the_bytes_of_records_and_messages_and_their_ratio(caplog: pytest.LogCaptureFixture) -> None:
    strategy = CompressedStrategy(fed_avg(), TOP_K)
    with caplog.at_level(logging.INFO, "flwr"):
        start(make_app([compression_mod()]), strategy, 1)
    row = strategy.traffic[0]
    ratio = (row.plain_up + row.plain_down) / (row.message_up + row.message_down)
    amounts = f"in Flower's messages {row.message_up:,} up, {row.message_down:,} down"
    line = f"fedsgd: round 1: {row.up:,} bytes up, {row.down:,} down; {amounts}; compression ratio {ratio:.1f} both ways\n"
    assert line in caplog.text
