"""Bytes of a user's Flower app: `strategy.measure_traffic` beside a counter that adds up Flower's own objects."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsgd.flower import CompressedStrategy, compression_mod
from fedsgd.flower.app.strategy_round import StrategyRound, WarningLog
from fedsgd.flower.app.traffic import RoundTraffic
from fedsgd.flower.records import CHUNK, RECORD_KEY, count_message_bytes
from tests.flower.counting import SHAPES, CountingGrid, app_of, fed_avg, model_arrays, object_bytes, start
from tests.flower.grid import RUN, identity

TOP_K = {"name": "top-k", "density": 0.05}
FOLLOWING = {"policy": "difference"}
P = sum(int(np.prod(shape)) for shape in SHAPES.values())
PHASES = ("train", "evaluate")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of the nodes' state."""
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    with identity(1):
        yield tmp_path / "state"


# ------------------------------------------------------------------------------------------------------- bytes of one message


def record(*arrays: np.ndarray) -> ArrayRecord:
    return ArrayRecord({f"layer{i}.wéight": Array(array) for i, array in enumerate(arrays)})


LARGE = np.random.default_rng(0).normal(size=CHUNK // 4 + 5000).astype(np.float32)
ZEROS = np.zeros(CHUNK // 4 * 2 + 100, dtype=np.float32)
SPARSE = ZEROS.copy()
SPARSE[[5, CHUNK // 4 + 7]] = 1.0, 2.0
CONTENTS: dict[str, RecordDict] = {
    "nothing": RecordDict(),
    "empty records": RecordDict({"a": ArrayRecord(), "b": ArrayRecord(), "c": ConfigRecord(), "d": MetricRecord()}),
    "no bytes": RecordDict({"a": ArrayRecord({"x": Array("uint8", (0,), "mine", b"")})}),
    "no numbers": RecordDict({"a": record(np.zeros(0, np.float32), np.zeros((0, 3), np.float64))}),
    "several types": RecordDict(
        {
            "a": record(np.arange(3), np.array(True), np.array(2.5)),
            "c": ConfigRecord({"x": [1, 2], "y": b"\0"}),
            "é\n": record(),
        }
    ),
    "equal arrays": RecordDict({"a": record(LARGE[:50], LARGE[:50], LARGE[:50].reshape(5, 10))}),
    "equal records": RecordDict({"a": record(LARGE[:50]), "b": record(LARGE[:50]), "c": record(LARGE[50:100])}),
    "equal config": RecordDict({"a": ConfigRecord({"x": 1}), "b": ConfigRecord({"x": 1}), "c": MetricRecord({"x": 1})}),
    "several chunks": RecordDict({"a": record(LARGE, LARGE[: CHUNK // 4 + 4999])}),
    "equal chunks": RecordDict({"a": record(ZEROS, ZEROS), "b": record(ZEROS[:-1])}),
    "chunks that differ in one number": RecordDict({"a": record(ZEROS, SPARSE, SPARSE)}),
    "a large value": RecordDict({"a": ConfigRecord({"x": LARGE.tobytes()})}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_message_bytes_of_any_content_equals_flowers_objects(name: str) -> None:
    message = Message(CONTENTS[name], 2**60, "train.action", ttl=3.5, group_id="7")
    assert count_message_bytes(message) == object_bytes(message)
    assert count_message_bytes(
        Message(RecordDict(), 2**60, "train.action", ttl=3.5, group_id="7"), CONTENTS[name]
    ) == object_bytes(message)
    reply = Message(CONTENTS[name], reply_to=message)
    assert count_message_bytes(reply) == object_bytes(reply)


@pytest.mark.parametrize("reason", ["", "é" * 200, None])
def test_message_bytes_of_an_error_equals_flowers_objects(reason: str | None) -> None:
    message = Message(Error(2, reason), reply_to=Message(RecordDict(), 5, "train"))
    assert count_message_bytes(message) == object_bytes(message)


# --------------------------------------------------------------------------------------------------------- traffic of a run


def with_control(number: int, content: RecordDict) -> RecordDict:
    """Add a second ArrayRecord and a ConfigRecord to a reply."""
    rng = np.random.default_rng([9, number])
    content["control"] = record(rng.normal(size=P).astype(np.float32))
    content["notes"] = ConfigRecord({"device": "cpu", "epochs": number})
    return content


class Controlled(FedAvg):
    """FedAvg for replies with a second ArrayRecord."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Aggregate the model alone."""
        replies = list(replies)
        for reply in replies:
            reply.content.pop("control", None)
        return super().aggregate_train(server_round, replies)


def summed(strategy: CompressedStrategy, phase: str, name: str) -> int:
    return sum(int(getattr(row, name)) for row in strategy.traffic if row.what == phase)


def check_against(grid: CountingGrid, strategy: CompressedStrategy) -> None:
    """Compare the traffic of a run with what its grid has counted."""
    for phase in PHASES:
        assert summed(strategy, phase, "message_down") == grid.sum_of(phase, "down") > 0
        assert summed(strategy, phase, "message_up") == grid.sum_of(phase, "up") > 0


@pytest.mark.parametrize("downlink", [None, FOLLOWING], ids=["model", "difference"])
@pytest.mark.parametrize("compressor", ["dense", TOP_K, "sign"], ids=str)
def test_traffic_with_a_second_record_equals_flowers_objects_and_those_of_a_plain_run(
    compressor: str | dict[str, Any], downlink: dict[str, str] | None
) -> None:
    settings = {"min_train_nodes": 1, "min_available_nodes": 1}
    strategy = CompressedStrategy(Controlled(**settings), compressor, downlink=downlink)
    grid = start(app_of([compression_mod()], with_control), strategy, rounds=3)
    check_against(grid, strategy)
    plain = start(app_of([], with_control), Controlled(**settings), rounds=3)
    for phase in PHASES:
        assert summed(strategy, phase, "plain_down") == plain.sum_of(phase, "down")
        assert summed(strategy, phase, "plain_up") == plain.sum_of(phase, "up")
    up = grid.sum_of("train", "up") / plain.sum_of("train", "up")
    assert up > 0.5, "the second record crosses as it is"
    assert strategy.traffic[0].compression_ratios["uplink_ratio"] < 2
    assert sum(row.up for row in strategy.traffic) < sum(row.message_up for row in strategy.traffic)


def test_traffic_of_evaluation_replies_counts_metrics() -> None:
    strategy = CompressedStrategy(fed_avg(), TOP_K)
    start(app_of([compression_mod()]), strategy)
    for row in strategy.traffic[1::2]:
        assert (row.what, row.nodes, row.up) == ("evaluate", 3, 0)
        assert 0 < row.message_up == row.plain_up
        assert row.compression_ratios["uplink_ratio"] == 1.0
        assert f"round {row.round}, evaluation: 0 bytes up, {row.down:,} down" in str(row)


def test_traffic_of_a_second_message_counts_it_and_the_resync(state: Path) -> None:
    """Without compression, neither of them would exist."""
    sends = iter(range(100))

    def wipe(grid: CountingGrid) -> None:
        if next(sends) == 2:
            shutil.rmtree(next((state / f"run-{RUN}").glob("node-1-app-*")))

    strategy = CompressedStrategy(fed_avg(), TOP_K, error_feedback="persist", downlink=FOLLOWING)
    grid = start(app_of([compression_mod()]), strategy, 3, prepare=lambda grid: setattr(grid, "before", wipe))
    plain = start(app_of([]), fed_avg(), 3)
    assert [len(grid.counted["train", way]) for way in ("down", "up")] == [10, 10]
    check_against(grid, strategy)
    for phase in PHASES:
        assert summed(strategy, phase, "plain_down") == plain.sum_of(phase, "down")
        assert summed(strategy, phase, "plain_up") == plain.sum_of(phase, "up")


def plain_reply(number: int, content: RecordDict) -> RecordDict:
    """Remove our record of node 1's reply and send arrays in its place."""
    if number == 1 and RECORD_KEY in content:
        del content[RECORD_KEY]
        content["arrays"] = model_arrays()
    return content


def damaged(number: int, content: RecordDict) -> RecordDict:
    """Damage our record of node 1's reply."""
    if number == 1 and RECORD_KEY in content:
        content[RECORD_KEY] = ConfigRecord({"frames": b"nonsense"})
    return content


def fail_at_node_1(number: int) -> None:
    if number == 1:
        raise ValueError("no data")


@pytest.mark.parametrize("change", [plain_reply, damaged], ids=["plain arrays", "damaged"])
def test_traffic_of_replies_that_are_not_compressed_counts_them_as_they_came(
    change: Callable[[int, RecordDict], RecordDict],
) -> None:
    strategy = CompressedStrategy(fed_avg(), TOP_K)

    def prepare(grid: CountingGrid) -> None:
        grid.altered = lambda node, content: change(grid.nodes[node].partition, content)

    grid = start(app_of([compression_mod()]), strategy, 2, prepare=prepare)
    check_against(grid, strategy)
    sizes = grid.counted["train", "up"][:3]
    expected = (max if change is plain_reply else min)(sizes)
    compressed = CompressedStrategy(fed_avg(), TOP_K)
    start(app_of([compression_mod()]), compressed, 2)
    assert strategy.traffic[0].plain_up - compressed.traffic[0].plain_up * 2 / 3 == pytest.approx(expected, abs=50)


def test_traffic_of_errors_counts_those_that_nodes_sent() -> None:
    strategy = CompressedStrategy(fed_avg(), TOP_K)
    app = app_of([compression_mod()], fails=fail_at_node_1)
    grid = start(app, strategy, 2, prepare=lambda grid: grid.gone.add(grid.id_of(2)))
    assert [len(grid.counted["train", way]) for way in ("down", "up")] == [6, 4]
    check_against(grid, strategy)


def test_traffic_of_arrays_that_were_changed_before_evaluation_counts_plain_messages() -> None:
    class Changing(FedAvg):
        """FedAvg that evaluates other arrays than it trains."""

        def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
            """Send the initial model."""
            return super().configure_evaluate(server_round, model_arrays(), config, grid)

    strategy = CompressedStrategy(Changing(min_train_nodes=1, min_available_nodes=1), TOP_K)
    grid = start(app_of([compression_mod()]), strategy)
    check_against(grid, strategy)
    rows = [row for row in strategy.traffic if row.what == "evaluate"]
    assert [(row.nodes, row.down, row.compression_ratios["bidirectional_ratio"]) for row in rows] == [(3, 0, 1.0)] * 2


def test_traffic_of_messages_beside_the_model_counts_them() -> None:
    class Querying(FedAvg):
        """FedAvg that sends each node a second message."""

        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
            """Send a query, too."""
            messages = list(super().configure_train(server_round, arrays, config, grid))
            notes = RecordDict({"notes": ConfigRecord({"round": server_round})})
            return [*messages, *(Message(notes, message.metadata.dst_node_id, "query") for message in messages)]

    app = app_of([compression_mod()])

    @app.query()
    def query(message: Message, context: Any) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"free": 1})}), reply_to=message)

    class Training(Querying):
        """Querying that ignores the replies to queries."""

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            """Aggregate the replies with arrays."""
            return super().aggregate_train(server_round, [r for r in replies if r.content.array_records])

    strategy = CompressedStrategy(Training(min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0), TOP_K)
    grid = start(app, strategy)
    for way in ("down", "up"):
        crossed = grid.sum_of("train", way) + grid.sum_of("query", way)
        assert summed(strategy, "train", f"message_{way}") == crossed
    assert strategy.traffic[0].nodes == 3


def test_exchange_without_a_session_counts_plain_messages() -> None:
    """A strategy sends a model without compressible arrays this way."""
    app = app_of([compression_mod()])
    grid = start(app, fed_avg(), 0)
    messages = list(fed_avg().configure_train(1, model_arrays(), ConfigRecord(), grid))
    exchange = StrategyRound(1, "train", model_arrays(), WarningLog())
    exchange.compress_messages(messages, None)
    assert all("arrays" in message.content for message in messages)
    replies = grid.send_and_receive(messages)
    settled, accepted = exchange.decompress_replies(None, replies, grid, 1.0)
    assert (settled, accepted) == (replies, [])
    down, up = grid.sum_of("train", "down"), grid.sum_of("train", "up")
    assert exchange.traffic == RoundTraffic(1, "train", 3, 0, 0, down, up, down, up)
    assert set(exchange.traffic.compression_ratios.values()) == {1.0}


def test_traffic_of_a_model_without_compressible_arrays_has_a_ratio_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = ArrayRecord({"table": Array(np.arange(50))})
    monkeypatch.setattr("tests.flower.counting.model_arrays", lambda: tables)

    def change(number: int, content: RecordDict) -> RecordDict:
        content["arrays"] = ArrayRecord({"table": Array(np.arange(50) + number)})
        return content

    strategy = CompressedStrategy(fed_avg(), TOP_K)
    grid = start(app_of([compression_mod()], change), strategy)
    check_against(grid, strategy)
    rows = [row for row in strategy.traffic if row.what == "train"]
    assert [(row.nodes, row.up, row.down) for row in rows[:1]] == [(3, 0, 0)]
    assert set(rows[0].compression_ratios.values()) == {1.0}


def test_log_of_a_round_has_our_bytes_and_flowers_and_one_ratio(caplog: pytest.LogCaptureFixture) -> None:
    strategy = CompressedStrategy(fed_avg(), TOP_K)
    with caplog.at_level(logging.INFO, "flwr"):
        start(app_of([compression_mod()]), strategy, 1)
    row = strategy.traffic[0]
    ratio = (row.plain_up + row.plain_down) / (row.message_up + row.message_down)
    crossed = f"in Flower's messages {row.message_up:,} up, {row.message_down:,} down"
    assert (
        f"fedsgd: round 1: {row.up:,} bytes up, {row.down:,} down; {crossed}; compression ratio {ratio:.1f} both ways\n"
        in caplog.text
    )
