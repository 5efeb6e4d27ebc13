"""Replies of a round: corrupted, hostile, repeated and uncompressed replies, and nodes without the mod."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.compression import CodecContext
from fedsgd.compression.operators.dense import Dense
from fedsgd.flower import CompressedStrategy
from fedsgd.flower.app.array_layout import build_array_layout
from fedsgd.flower.records import read_payload, write_payload
from fedsgd.runtime.workers import protocol
from fedsgd.wire import Frame, FrameKind, Header, decode_frame, encode_frame
from tests.effort import examples
from tests.flower.app.fixed_updates import (
    NODES,
    SIZE,
    TOP_K,
    Node,
    RecordingFedAvg,
    fixed_update,
    flatten,
    flip_bit,
    make_grid,
    make_model,
    run_rounds,
)
from tests.flower.grid import transfer_message

pytestmark = pytest.mark.usefixtures("quick_collection")


# -------------------------------------------------------------------------------------------------------- unreadable replies


def test_corrupted_reply_is_an_error_of_its_node(caplog: pytest.LogCaptureFixture) -> None:
    inner, grid = RecordingFedAvg(), make_grid()
    grid.alter_reply = lambda node, content: flip_bit(content, 60) if node == NODES[1] else content
    strategy = CompressedStrategy(inner, "dense")
    ((arrays, metrics),) = run_rounds(strategy, grid, make_model(), 1)
    assert sorted(inner.replies[0]) == sorted({*NODES} - {NODES[1]})
    assert metrics == {"loss": pytest.approx(0.5)}
    assert f"node {NODES[1]}: the reply is discarded" in caplog.text
    assert "checksum" in caplog.text
    assert f"Received error in reply from node {NODES[1]}: fedsgd: round 1, client" in caplog.text
    mean = np.mean([fixed_update(i, 1) for i in (0, 2, 3)], axis=0)
    np.testing.assert_allclose(flatten(arrays), flatten(make_model()) + mean, atol=1e-6)


@pytest.mark.slow
@examples(10)
@given(st.integers(0, 2**32), st.sampled_from(["flip", "cut", "grow", "swap"]))
def test_arbitrary_bytes_of_one_node_leave_other_replies_aggregated(seed: int, change: str) -> None:
    rng = np.random.default_rng(seed)

    def alter_reply(node: int, content: RecordDict) -> RecordDict:
        if node != NODES[0]:
            return content
        data = read_payload(content)
        position = int(rng.integers(0, len(data)))
        if change == "flip":
            return flip_bit(content, position)
        head, tail = data[:position], data[position:]
        new_data = {"cut": head, "grow": head + rng.bytes(9) + tail, "swap": tail + head}[change]
        return write_payload(RecordDict(dict(content)), new_data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIdentity, "_run_id", seed)
        inner, grid = RecordingFedAvg(), make_grid()
        for node in grid.nodes.values():
            node.context.run_id = seed
        grid.alter_reply = alter_reply
        ((arrays, _),) = run_rounds(CompressedStrategy(inner, TOP_K), grid, make_model(3, steps=np.int64(4)), 1)
    assert {*NODES[1:]} <= {*inner.replies[0]}
    assert np.isfinite(flatten(arrays)).all()


def replace_update(content: RecordDict, x: np.ndarray) -> RecordDict:
    """Return a reply with a valid frame of another update [P]."""
    (key, (frame,)), exact_packet = protocol.unpack_packets(read_payload(content))
    context = CodecContext(0, 1, 0, build_array_layout(make_model(), ()).layout)
    sections = Dense().encode(x.astype(np.float32), context)[0]
    new_frame = encode_frame(Frame(decode_frame(frame).header, sections))
    return write_payload(RecordDict(dict(content)), protocol.pack_packets([(key, (new_frame,)), exact_packet]))


def replace_exact_array(content: RecordDict, **fields: Any) -> RecordDict:
    """Return a reply whose exact array has other fields: name, dtype, shape, stype or data."""
    update_packet, (head, frames) = protocol.unpack_packets(read_payload(content))
    names = ("name", "dtype", "shape", "stype")
    entry = dict(zip(names, json.loads(head)[0], strict=True)) | {"data": frames[0]} | fields
    new_head = json.dumps([[entry[name] for name in names]]).encode()
    return write_payload(RecordDict(dict(content)), protocol.pack_packets([update_packet, (new_head, [entry["data"]])]))


def replace_key(content: RecordDict, key: bytes) -> RecordDict:
    """Return a reply whose frames replace a record of another name."""
    (_, frames), exact_packet = protocol.unpack_packets(read_payload(content))
    return write_payload(RecordDict(dict(content)), protocol.pack_packets([(key, frames), exact_packet]))


HOSTILE_CHANGES: list[tuple[Callable[[RecordDict], RecordDict], str]] = [
    (lambda content: replace_update(content, np.full(SIZE, 3e38)), "is outside float32's range"),
    (lambda content: replace_exact_array(content, stype="pickle"), '"steps" is no array of numbers of shape (2,)'),
    (lambda content: replace_exact_array(content, data=Array(np.array(["a", "b"])).data), '"steps" is no array of numbers'),
    (lambda content: replace_exact_array(content, data=Array(np.zeros(10**4)).data), '"steps" is no array of numbers'),
    (lambda content: replace_exact_array(content, data=b""), '"steps" is no array of numbers'),
    (lambda content: replace_exact_array(content, name="step"), "got the exact arrays ['step'], expected ['steps']"),
    (lambda content: replace_exact_array(content, shape=4), "cannot be read"),
    (lambda content: replace_key(content, b"metrics"), 'the reply already has a record "metrics"'),
    (lambda content: replace_key(content, b"\xff"), "the name of the record is no text"),
    (lambda content: write_payload(RecordDict(dict(content)), b""), "0 parts, expected 2"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE_CHANGES, ids=[message[:20] for _, message in HOSTILE_CHANGES])
def test_hostile_reply_is_discarded(
    change: Callable[[RecordDict], RecordDict], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    inner, grid = RecordingFedAvg(), make_grid()
    grid.alter_reply = lambda node, content: change(content) if node == NODES[0] else content
    initial = make_model(0, steps=np.array([1, 2]), scale=np.array(3e38, dtype=np.float32))
    ((arrays, _),) = run_rounds(CompressedStrategy(inner, "dense"), grid, initial, 1)
    assert sorted(inner.replies[0]) == sorted(NODES[1:])
    assert message in caplog.text
    assert np.isfinite(flatten(arrays)).all()


# ---------------------------------------------------------------------------------------------------------- repeated replies


def test_repeated_reply_counts_once(caplog: pytest.LogCaptureFixture) -> None:
    inner, grid = RecordingFedAvg(), make_grid()
    strategy = CompressedStrategy(inner, "dense")
    replies = grid.send_and_receive(strategy.configure_train(1, make_model(), ConfigRecord(), grid))
    arrays, _ = strategy.aggregate_train(1, [*replies, transfer_message(replies[0])])
    assert arrays is not None
    mean = np.mean([fixed_update(i, 1) for i in range(4)], axis=0)
    np.testing.assert_allclose(flatten(arrays), flatten(make_model()) + mean, atol=1e-6)
    assert "is discarded: the node already replied to this message" in caplog.text


def test_node_that_replies_resync_twice_is_discarded(caplog: pytest.LogCaptureFixture) -> None:
    inner, grid = RecordingFedAvg(), make_grid()

    def alter_reply(node: int, content: RecordDict) -> RecordDict:
        (key, _), _ = protocol.unpack_packets(read_payload(content))
        resync_frame = encode_frame(Frame(Header(FrameKind.RESYNC, 1, client=[*strategy._session.client_ids].index(node))))
        data = protocol.pack_packets([(key, (resync_frame,)), (b"", ())])
        return write_payload(RecordDict(), data) if node == 7 else content

    grid.alter_reply = alter_reply
    strategy = CompressedStrategy(inner, TOP_K)
    list(run_rounds(strategy, grid, make_model(), 1))
    assert sorted(inner.replies[0]) == sorted({*NODES} - {7})
    assert [node for direction, node, _ in grid.contents if direction == "down"].count(7) == 2
    assert "the node requested another message twice" in caplog.text


# ---------------------------------------------------------------------------------------------------------------- no mod


def test_node_without_the_mod_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    grid = make_grid()
    grid.nodes[7] = Node(7, 1, [])
    inner = RecordingFedAvg()
    list(run_rounds(CompressedStrategy(inner, TOP_K, error_feedback="persist"), grid, make_model(), 2))
    assert [sorted(replies) for replies in inner.replies] == [sorted({*NODES} - {7})] * 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "node 7: the ClientApp failed outside compression_mod() (KeyError: 'arrays')" in warning
    assert "expected ClientApp(mods=[compression_mod(), ...])" in warning


def test_uncompressed_reply_of_an_app_without_the_mod_is_used(caplog: pytest.LogCaptureFixture) -> None:
    """The app trains its own arrays, so the compressed message is no error for it."""
    grid = make_grid()
    grid.nodes[7] = Node(7, 1, [])
    grid.nodes[7].initial_arrays = make_model(4)
    inner = RecordingFedAvg()
    list(run_rounds(CompressedStrategy(inner, TOP_K, error_feedback="persist"), grid, make_model(), 2))
    assert np.array_equal(inner.replies[1][7], flatten(make_model(4)) + fixed_update(1, 2))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "node 7: the reply has uncompressed arrays, which the strategy uses" in warning
