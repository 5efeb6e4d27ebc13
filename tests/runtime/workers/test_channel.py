"""Channels and messages between processes: round trips, and large frames that are written once."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.errors import NonFiniteError, RunError, WireError
from fedsgd.federation import Reply
from fedsgd.runtime.workers import protocol
from fedsgd.runtime.workers.channel import MIN_SHARED_FRAME_BYTES, PipeChannel, SharedOutbox
from fedsgd.runtime.workers.shared_memory import SharedPickle
from fedsgd.training import EvaluationResult


@pytest.fixture
def channels() -> Iterator[tuple[PipeChannel, PipeChannel]]:
    pipe, other_pipe = mp.Pipe()
    outbox, other_outbox = SharedOutbox(), SharedOutbox()
    with pipe, other_pipe:
        yield PipeChannel(pipe, outbox, other_outbox.file), PipeChannel(other_pipe, other_outbox, outbox.file)


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [5, 0, 7],
        [5000],
        [MIN_SHARED_FRAME_BYTES - 1, 3, MIN_SHARED_FRAME_BYTES, 3 * MIN_SHARED_FRAME_BYTES],
        [10] * 1000,
    ],
)
def test_received_message_equals_sent_message(channels: tuple[PipeChannel, PipeChannel], sizes: list[int]) -> None:
    frames = [bytes([i % 256]) * size for i, size in enumerate(sizes)]
    for head in (b"", b"head", b"h" * 10_000):
        for sender, receiver in (channels, channels[::-1]):
            sender.send(head, frames)
            assert receiver.receive() == (head, frames)


def test_large_frame_is_written_once_per_flip_and_read_once(channels: tuple[PipeChannel, PipeChannel]) -> None:
    sender, receiver = channels
    model = bytes(10 * MIN_SHARED_FRAME_BYTES)
    for _ in range(2):
        sender.outbox.flip()
        sender.send(b"1", [model, b"task"])
        end = sender.outbox._end_offset
        sender.send(b"2", [b"other", model])
        assert sender.outbox._end_offset == end
        (_, first), (_, second) = receiver.receive(), receiver.receive()
        assert first[0] is second[1]
        assert first[0] == model


def test_message_sent_before_the_last_flip_can_be_read(channels: tuple[PipeChannel, PipeChannel]) -> None:
    sender, receiver = channels
    for number in range(5):
        sender.outbox.flip()
        sender.send(b"", [bytes([number]) * MIN_SHARED_FRAME_BYTES])
        if number:
            assert receiver.receive()[1] == [bytes([number - 1]) * MIN_SHARED_FRAME_BYTES]


def test_closed_end_raises_error_at_the_other_end(channels: tuple[PipeChannel, PipeChannel]) -> None:
    channels[0].close()
    with pytest.raises((EOFError, OSError)):
        channels[1].receive()
    with pytest.raises(OSError, match="Broken pipe"):
        channels[1].send(b"hello")


@given(
    st.dictionaries(st.integers(0, 2**32 - 2), st.lists(st.sampled_from([b"a", b"b", b"", b"model"]), max_size=3).map(tuple))
)
def test_train_request_round_trips(messages: dict[int, tuple[bytes, ...]]) -> None:
    head, frames = protocol.encode_train_request(messages)
    assert protocol.decode_train_request(head, frames) == messages
    assert len({id(frame) for frame in frames}) == len(frames)


def test_reply_and_evaluation_round_trip() -> None:
    reply = protocol.decode_reply(*protocol.encode_reply(Reply(7, (b"frame", b""), 0.5, 0.25)))
    assert (reply.client, reply.frames, reply.decode_seconds, reply.encode_seconds) == (7, (b"frame", b""), 0.5, 0.25)
    result = EvaluationResult(150, [1.5, float("nan")], {"accuracy": np.linspace(0, 1, 150), "other": np.zeros(150)})
    decoded = protocol.decode_evaluation(*protocol.encode_evaluation(result), ["accuracy", "other"])
    assert str(decoded.losses) == str(result.losses)
    assert decoded.n_examples == 150
    assert {n: s.tobytes() for n, s in decoded.scores.items()} == {n: s.tobytes() for n, s in result.scores.items()}
    weighted_result = EvaluationResult(
        3, [1.0, 2.0], {"a": np.ones(3), "b": np.zeros(3)}, {"b": np.arange(3.0)}, [0.5, 4.0], True
    )
    decoded = protocol.decode_evaluation(*protocol.encode_evaluation(weighted_result), ["a", "b"])
    assert (decoded.is_loss_sum, decoded.loss_weights, list(decoded.score_weights)) == (True, [0.5, 4.0], ["b"])
    assert decoded.score_weights["b"].tolist() == [0, 1, 2]
    model = [np.float32([1, 2]).tobytes(), np.float32([3]).tobytes()]
    set_index, start, stop, weights, buffers = protocol.decode_evaluation_request(
        *protocol.encode_evaluation_request(2, 100, 200, model)
    )
    assert buffers is not None
    assert buffers.tolist() == [3]
    assert protocol.decode_evaluation_request(*protocol.encode_evaluation_request(2, 100, 200, model[:1]))[-1] is None
    assert (set_index, start, stop, weights.tolist()) == (2, 100, 200, [1, 2])


class TwoPartsError(Exception):
    """Exception that can be pickled but not restored."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def make_local_error() -> type[Exception]:
    class LocalError(Exception):
        pass

    return LocalError


ERRORS = [
    ValueError("wrong"),
    WireError(7, "cause", "round 1: "),
    RunError(3, 4, "why"),
    NonFiniteError(3, None, "why"),
    TwoPartsError("this", "that"),
    make_local_error()("here"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_failure_round_trip_keeps_class_name_and_message(error: Exception) -> None:
    client, decoded = protocol.decode_failure(*protocol.encode_failure(error, 5))
    assert (client, type(decoded).__name__, str(decoded)) == (5, type(error).__name__, str(error))
    if isinstance(error, RunError):
        assert isinstance(decoded, type(error))
        assert (decoded.round, decoded.client) == (error.round, error.client)


def test_shared_pickle_shares_arrays_and_keeps_identity() -> None:
    array = np.arange(10**5)
    shared = SharedPickle.from_value(
        {"a": array, "b": [array, array[:7], np.zeros((0, 3)), np.asfortranarray(np.ones((2, 3)))]}
    )
    first, second = shared.load(), shared.load()
    assert first["a"] is first["b"][0]
    assert (first["a"] == array).all()
    assert first["b"][1].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert first["b"][2].shape == (0, 3)
    assert first["b"][3].tolist() == [[1, 1, 1]] * 2
    first["a"][0] = 5
    assert second["a"][0] == 0
    assert shared.load()["a"][0] == 0
