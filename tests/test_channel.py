"""Messages between processes: what is sent is what is received, large or small, and large frames are written once."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.engine import Evaluated
from fedsgd.errors import NonFiniteError, RunError, WireError
from fedsgd.rounds import Reply
from fedsgd.runtime import protocol
from fedsgd.runtime.channel import LARGE, Outbox, PipeChannel
from fedsgd.runtime.shared import Blob


@pytest.fixture
def ends() -> Iterator[tuple[PipeChannel, PipeChannel]]:
    here, there = mp.Pipe()
    ours, theirs = Outbox(), Outbox()
    with here, there:
        yield PipeChannel(here, ours, theirs.file), PipeChannel(there, theirs, ours.file)


@pytest.mark.parametrize("sizes", [[], [0], [5, 0, 7], [5000], [LARGE - 1, 3, LARGE, 3 * LARGE], [10] * 1000])
def test_what_is_sent_is_what_is_received(ends: tuple[PipeChannel, PipeChannel], sizes: list[int]) -> None:
    frames = [bytes([i % 256]) * size for i, size in enumerate(sizes)]
    for head in (b"", b"head", b"h" * 10_000):
        for sender, receiver in (ends, ends[::-1]):
            sender.send(head, frames)
            assert receiver.receive() == (head, frames)


def test_a_large_frame_is_written_once_a_turn_and_read_once(ends: tuple[PipeChannel, PipeChannel]) -> None:
    here, there = ends
    model = bytes(10 * LARGE)
    for _ in range(2):
        here.outbox.turn()
        here.send(b"1", [model, b"task"])
        end = here.outbox._end
        here.send(b"2", [b"other", model])
        assert here.outbox._end == end
        (_, first), (_, second) = there.receive(), there.receive()
        assert first[0] is second[1]
        assert first[0] == model


def test_what_was_sent_before_the_last_turn_can_still_be_read(ends: tuple[PipeChannel, PipeChannel]) -> None:
    here, there = ends
    for number in range(5):
        here.outbox.turn()
        here.send(b"", [bytes([number]) * LARGE])
        if number:
            assert there.receive()[1] == [bytes([number - 1]) * LARGE]


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
    head, frames = protocol.train(messages)
    assert protocol.read_train(head, frames) == messages
    assert len({id(frame) for frame in frames}) == len(frames)


def test_replies_and_evaluations() -> None:
    reply = protocol.read_reply(*protocol.reply(Reply(7, (b"frame", b""), 0.5, 0.25)))
    assert (reply.client, reply.frames, reply.decode_seconds, reply.encode_seconds) == (7, (b"frame", b""), 0.5, 0.25)
    evaluated = Evaluated(150, [1.5, float("nan")], {"accuracy": np.linspace(0, 1, 150), "other": np.zeros(150)})
    again = protocol.read_evaluated(*protocol.evaluated(evaluated), ["accuracy", "other"])
    assert str(again.losses) == str(evaluated.losses)
    assert again.examples == 150
    assert {n: s.tobytes() for n, s in again.scores.items()} == {n: s.tobytes() for n, s in evaluated.scores.items()}
    weighed = Evaluated(3, [1.0, 2.0], {"a": np.ones(3), "b": np.zeros(3)}, {"b": np.arange(3.0)}, [0.5, 4.0], True)
    again = protocol.read_evaluated(*protocol.evaluated(weighed), ["a", "b"])
    assert (again.summed, again.loss_weights, list(again.weights)) == (True, [0.5, 4.0], ["b"])
    assert again.weights["b"].tolist() == [0, 1, 2]
    model = [np.float32([1, 2]).tobytes(), np.float32([3]).tobytes()]
    which, start, stop, weights, buffers = protocol.read_evaluate(*protocol.evaluate(2, 100, 200, model))
    assert buffers is not None
    assert buffers.tolist() == [3]
    assert protocol.read_evaluate(*protocol.evaluate(2, 100, 200, model[:1]))[-1] is None
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
    client, again = protocol.read_failed(*protocol.failed(error, 5))
    assert (client, type(again).__name__, str(again)) == (5, type(error).__name__, str(error))
    if isinstance(error, RunError):
        assert isinstance(again, type(error))
        assert (again.round, again.client) == (error.round, error.client)


def test_a_blob_shares_arrays_and_keeps_who_is_who() -> None:
    array = np.arange(10**5)
    blob = Blob.of({"a": array, "b": [array, array[:7], np.zeros((0, 3)), np.asfortranarray(np.ones((2, 3)))]})
    one, two = blob.load(), blob.load()
    assert one["a"] is one["b"][0]
    assert (one["a"] == array).all()
    assert one["b"][1].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert one["b"][2].shape == (0, 3)
    assert one["b"][3].tolist() == [[1, 1, 1]] * 2
    one["a"][0] = 5
    assert two["a"][0] == 0
    assert blob.load()["a"][0] == 0
