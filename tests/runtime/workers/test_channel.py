"""Messages between processes: what is sent is what is received, large or small, and large frames are written once."""

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
def ends() -> Iterator[tuple[PipeChannel, PipeChannel]]:
    here, there = mp.Pipe()
    ours, theirs = SharedOutbox(), SharedOutbox()
    with here, there:
        yield PipeChannel(here, ours, theirs.file), PipeChannel(there, theirs, ours.file)


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
def test_what_is_sent_is_what_is_received(ends: tuple[PipeChannel, PipeChannel], sizes: list[int]) -> None:
    frames = [bytes([i % 256]) * size for i, size in enumerate(sizes)]
    for head in (b"", b"head", b"h" * 10_000):
        for sender, receiver in (ends, ends[::-1]):
            sender.send(head, frames)
            assert receiver.receive() == (head, frames)


def test_a_large_frame_is_written_once_a_turn_and_read_once(ends: tuple[PipeChannel, PipeChannel]) -> None:
    here, there = ends
    model = bytes(10 * MIN_SHARED_FRAME_BYTES)
    for _ in range(2):
        here.outbox.flip()
        here.send(b"1", [model, b"task"])
        end = here.outbox._end_offset
        here.send(b"2", [b"other", model])
        assert here.outbox._end_offset == end
        (_, first), (_, second) = there.receive(), there.receive()
        assert first[0] is second[1]
        assert first[0] == model


def test_what_was_sent_before_the_last_turn_can_still_be_read(ends: tuple[PipeChannel, PipeChannel]) -> None:
    here, there = ends
    for number in range(5):
        here.outbox.flip()
        here.send(b"", [bytes([number]) * MIN_SHARED_FRAME_BYTES])
        if number:
            assert there.receive()[1] == [bytes([number - 1]) * MIN_SHARED_FRAME_BYTES]


def test_an_end_that_is_gone_is_noticed(ends: tuple[PipeChannel, PipeChannel]) -> None:
    ends[0].close()
    with pytest.raises((EOFError, OSError)):
        ends[1].receive()
    with pytest.raises(OSError, match="Broken pipe"):
        ends[1].send(b"hello")


@given(
    st.dictionaries(st.integers(0, 2**32 - 2), st.lists(st.sampled_from([b"a", b"b", b"", b"model"]), max_size=3).map(tuple))
)
def test_clients_and_their_messages(messages: dict[int, tuple[bytes, ...]]) -> None:
    head, frames = protocol.encode_train_request(messages)
    assert protocol.decode_train_request(head, frames) == messages
    assert len({id(frame) for frame in frames}) == len(frames)


def test_replies_and_evaluations() -> None:
    reply = protocol.decode_reply(*protocol.encode_reply(Reply(7, (b"frame", b""), 0.5, 0.25)))
    assert (reply.client, reply.frames, reply.decode_seconds, reply.encode_seconds) == (7, (b"frame", b""), 0.5, 0.25)
    evaluated = EvaluationResult(150, [1.5, float("nan")], {"accuracy": np.linspace(0, 1, 150), "other": np.zeros(150)})
    again = protocol.decode_evaluation(*protocol.encode_evaluation(evaluated), ["accuracy", "other"])
    assert str(again.losses) == str(evaluated.losses)
    assert again.n_examples == 150
    assert {n: s.tobytes() for n, s in again.scores.items()} == {n: s.tobytes() for n, s in evaluated.scores.items()}
    weighed = EvaluationResult(3, [1.0, 2.0], {"a": np.ones(3), "b": np.zeros(3)}, {"b": np.arange(3.0)}, [0.5, 4.0], True)
    again = protocol.decode_evaluation(*protocol.encode_evaluation(weighed), ["a", "b"])
    assert (again.is_loss_sum, again.loss_weights, list(again.score_weights)) == (True, [0.5, 4.0], ["b"])
    assert again.score_weights["b"].tolist() == [0, 1, 2]
    model = [np.float32([1, 2]).tobytes(), np.float32([3]).tobytes()]
    which, start, stop, weights, buffers = protocol.decode_evaluation_request(
        *protocol.encode_evaluation_request(2, 100, 200, model)
    )
    assert buffers is not None
    assert buffers.tolist() == [3]
    assert protocol.decode_evaluation_request(*protocol.encode_evaluation_request(2, 100, 200, model[:1]))[-1] is None
    assert (which, start, stop, weights.tolist()) == (2, 100, 200, [1, 2])


class TwoPartsError(Exception):
    """Pickled, it cannot be made again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def local() -> type[Exception]:
    class LocalError(Exception):
        pass

    return LocalError


ERRORS = [
    ValueError("wrong"),
    WireError(7, "cause", "round 1: "),
    RunError(3, 4, "why"),
    NonFiniteError(3, None, "why"),
    TwoPartsError("this", "that"),
    local()("here"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_errors_keep_their_name_and_message(error: Exception) -> None:
    client, again = protocol.decode_failure(*protocol.encode_failure(error, 5))
    assert (client, type(again).__name__, str(again)) == (5, type(error).__name__, str(error))
    if isinstance(error, RunError):
        assert isinstance(again, type(error))
        assert (again.round, again.client) == (error.round, error.client)


def test_a_blob_shares_arrays_and_keeps_who_is_who() -> None:
    array = np.arange(10**5)
    blob = SharedPickle.from_value({"a": array, "b": [array, array[:7], np.zeros((0, 3)), np.asfortranarray(np.ones((2, 3)))]})
    one, two = blob.load(), blob.load()
    assert one["a"] is one["b"][0]
    assert (one["a"] == array).all()
    assert one["b"][1].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert one["b"][2].shape == (0, 3)
    assert one["b"][3].tolist() == [[1, 1, 1]] * 2
    one["a"][0] = 5
    assert two["a"][0] == 0
    assert blob.load()["a"][0] == 0
