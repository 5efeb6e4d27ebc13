"""Flower's records: packed payloads and contents, and the bytes of messages."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsgd.flower import CompressedStrategy
from fedsgd.flower.records import (
    CHUNK,
    MAX_CONFIG_VALUE_BYTES,
    RECORD_KEY,
    count_message_bytes,
    pack_records,
    unpack_records,
)
from tests.flower.app.fixed_updates import NODES, TOP_K, make_grid, make_model, run_rounds
from tests.flower.counting import object_bytes

pytestmark = pytest.mark.usefixtures("state_root")

# ---------------------------------------------------------------------------------------------------------------- packing


def test_unpacked_content_equals_the_packed_content() -> None:
    values = {"a": np.arange(6, dtype=np.float64).reshape(2, 3), "b": np.array(3, dtype=np.int64), "empty": np.zeros(0)}
    content = RecordDict(
        {
            "second": ArrayRecord({name: Array(value) for name, value in values.items()}),
            "metrics": MetricRecord({"x": 1, "y": [1.5, 2.5]}),
            "config": ConfigRecord({"s": "é", "b": b"\x00\xff", "flags": [True, False]}),
        }
    )
    unpacked = unpack_records(pack_records(content))
    assert unpacked == content
    assert list(unpacked) == list(content)
    assert unpacked["second"]["a"].numpy().tobytes() == values["a"].tobytes()


@pytest.mark.slow
def test_large_payload_is_an_array_and_a_small_payload_a_config_value() -> None:
    large = np.arange(MAX_CONFIG_VALUE_BYTES // 4 + 1, dtype=np.float32) / 1024
    grid = make_grid(nodes=NODES[:2])
    ((arrays, _),) = run_rounds(CompressedStrategy(FedAvg(), TOP_K), grid, make_model(0, large=large), 1)
    assert isinstance(grid.contents[0][2][RECORD_KEY], ArrayRecord)
    assert isinstance(grid.contents[1][2][RECORD_KEY], ConfigRecord)
    np.testing.assert_array_equal(arrays["large"].numpy(), large)


# ------------------------------------------------------------------------------------------------------ bytes of one message


def make_record(*arrays: np.ndarray) -> ArrayRecord:
    return ArrayRecord({f"layer{i}.wéight": Array(array) for i, array in enumerate(arrays)})


LARGE = np.random.default_rng(0).normal(size=CHUNK // 4 + 5000).astype(np.float32)
ZEROS = np.zeros(CHUNK // 4 * 2 + 100, dtype=np.float32)
SPARSE = ZEROS.copy()
SPARSE[[5, CHUNK // 4 + 7]] = 1.0, 2.0
CONTENTS: dict[str, RecordDict] = {
    "nothing": RecordDict(),
    "empty records": RecordDict({"a": ArrayRecord(), "b": ArrayRecord(), "c": ConfigRecord(), "d": MetricRecord()}),
    "no bytes": RecordDict({"a": ArrayRecord({"x": Array("uint8", (0,), "mine", b"")})}),
    "no numbers": RecordDict({"a": make_record(np.zeros(0, np.float32), np.zeros((0, 3), np.float64))}),
    "several types": RecordDict(
        {
            "a": make_record(np.arange(3), np.array(True), np.array(2.5)),
            "c": ConfigRecord({"x": [1, 2], "y": b"\0"}),
            "é\n": make_record(),
        }
    ),
    "equal arrays": RecordDict({"a": make_record(LARGE[:50], LARGE[:50], LARGE[:50].reshape(5, 10))}),
    "equal records": RecordDict({"a": make_record(LARGE[:50]), "b": make_record(LARGE[:50]), "c": make_record(LARGE[50:100])}),
    "equal config": RecordDict({"a": ConfigRecord({"x": 1}), "b": ConfigRecord({"x": 1}), "c": MetricRecord({"x": 1})}),
    "several chunks": RecordDict({"a": make_record(LARGE, LARGE[: CHUNK // 4 + 4999])}),
    "equal chunks": RecordDict({"a": make_record(ZEROS, ZEROS), "b": make_record(ZEROS[:-1])}),
    "chunks that differ in one number": RecordDict({"a": make_record(ZEROS, SPARSE, SPARSE)}),
    "a large value": RecordDict({"a": ConfigRecord({"x": LARGE.tobytes()})}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_message_bytes_of_any_content_equal_the_bytes_of_flowers_objects(name: str) -> None:
    message = Message(CONTENTS[name], 2**60, "train.action", ttl=3.5, group_id="7")
    assert count_message_bytes(message) == object_bytes(message)
    assert count_message_bytes(
        Message(RecordDict(), 2**60, "train.action", ttl=3.5, group_id="7"), CONTENTS[name]
    ) == object_bytes(message)
    reply = Message(CONTENTS[name], reply_to=message)
    assert count_message_bytes(reply) == object_bytes(reply)


@pytest.mark.parametrize("reason", ["", "é" * 200, None])
def test_message_bytes_of_an_error_equal_the_bytes_of_flowers_objects(reason: str | None) -> None:
    message = Message(Error(2, reason), reply_to=Message(RecordDict(), 5, "train"))
    assert count_message_bytes(message) == object_bytes(message)
