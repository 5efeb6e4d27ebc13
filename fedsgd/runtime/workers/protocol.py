"""What a server and a worker say to each other, as the head and the frames of a message. Nothing is pickled but errors.

server  TRAIN      clients and their messages
        EVALUATE   which set, from which example to which; frames: the model
worker  READY      or FAILED, once, at its start
        REPLY      client, seconds, steps and what else is known; frames: the reply's
        FAILED     client; frames: the error
        EVALUATED  examples; frames: the losses of the slices, what they weigh, then for
                   each metric its numbers by example and their weights; empty: no weights
        DONE       with what it was told last but not answered so far
"""

from __future__ import annotations

import pickle
import struct
import traceback
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum

import numpy as np

from fedsgd.compression import ClientId
from fedsgd.errors import WireError
from fedsgd.federation import Message, Reply
from fedsgd.numerics.arrays import F32, F64
from fedsgd.training import EvaluationResult


class MessageType(IntEnum):
    """The first byte of a head."""

    TRAIN = 1
    EVALUATE = 2
    READY = 3
    REPLY = 4
    FAILED = 5
    EVALUATED = 6
    DONE = 7


Packet = tuple[bytes, Sequence[bytes]]
"""(head, frames)."""
_REPLY = struct.Struct("<Bqddqddqq")
_NUMBER = struct.Struct("<Bq")
_EVALUATION = struct.Struct("<Bq?")
READY: Packet = bytes([MessageType.READY]), ()
DONE: Packet = bytes([MessageType.DONE]), ()


def message_type(head: bytes) -> MessageType:
    """What a message is."""
    return MessageType(head[0])


def encode_train_request(messages: Mapping[ClientId, Message]) -> Packet:
    """Clients with their messages; a frame that is in several is there once."""
    frames: dict[int, tuple[int, bytes]] = {}
    numbers: list[int] = []
    for client, message in messages.items():
        places = [frames.setdefault(id(frame), (len(frames), frame))[0] for frame in message]
        numbers += [client, len(places), *places]
    return _encode_numbers(MessageType.TRAIN, numbers), [frame for _, frame in frames.values()]


def decode_train_request(head: bytes, frames: Sequence[bytes]) -> dict[ClientId, Message]:
    """Inverse of `encode_train_request`."""
    numbers, messages, at = _decode_numbers(head), {}, 0
    while at < len(numbers):
        client, n = numbers[at : at + 2]
        if n < 0 or at + 2 + n > len(numbers) or not all(0 <= place < len(frames) for place in numbers[at + 2 : at + 2 + n]):
            raise ValueError("a message of frames that are not there")
        messages[client] = tuple(frames[place] for place in numbers[at + 2 : at + 2 + n])
        at += 2 + n
    return messages


def encode_evaluation_request(set_index: int, start: int, stop: int, model: Sequence[bytes]) -> Packet:
    """Examples `start` to before `stop` of a set; model: weights, float32 [P], and running statistics, if there are any [S]."""
    return _encode_numbers(MessageType.EVALUATE, [set_index, start, stop]), model


def decode_evaluation_request(head: bytes, frames: Sequence[bytes]) -> tuple[int, int, int, F32, F32 | None]:
    """Inverse of `encode_evaluation_request`."""
    which, start, stop = _decode_numbers(head)
    weights, *buffers = (np.frombuffer(frame, dtype=np.float32).copy() for frame in frames)
    return which, start, stop, weights, buffers[0] if buffers else None


def encode_reply(reply: Reply) -> Packet:
    """A client's reply."""
    known = (
        reply.decode_seconds,
        reply.encode_seconds,
        reply.steps,
        reply.residual_norm,
        reply.residual_norm_if_lost,
        reply.rounds_missed,
        reply.examples_processed,
    )
    return _REPLY.pack(MessageType.REPLY, reply.client, *known), reply.frames


def decode_reply(head: bytes, frames: Sequence[bytes]) -> Reply:
    """Inverse of `encode_reply`."""
    _, client, *known = _REPLY.unpack(head)
    return Reply(client, tuple(frames), *known)


def encode_evaluation(result: EvaluationResult) -> Packet:
    """What an evaluation gave."""
    arrays: list[Sequence[float] | F64] = [result.losses, result.loss_weights or ()]
    for name, score in result.scores.items():
        arrays += [score, result.score_weights.get(name, ())]
    frames = [np.asarray(values, dtype=np.float64).tobytes() for values in arrays]
    return _EVALUATION.pack(MessageType.EVALUATED, result.n_examples, result.is_loss_sum), frames


def decode_evaluation(head: bytes, frames: Sequence[bytes], metrics: Sequence[str]) -> EvaluationResult:
    """Inverse of `encode_evaluation`. metrics: the task's, in its order."""
    losses, loss_weights, *arrays = (np.frombuffer(frame, dtype=np.float64) for frame in frames)
    scores = dict(zip(metrics, arrays[::2], strict=True))
    weights = {name: values for name, values in zip(metrics, arrays[1::2], strict=True) if len(values)}
    _, examples, summed = _EVALUATION.unpack(head)
    return EvaluationResult(examples, losses.tolist(), scores, weights, loss_weights.tolist() or None, summed)


def encode_failure(error: Exception, client: ClientId = -1) -> Packet:
    """What went wrong, at which client if at one. Where it cannot be pickled and made again, its name and message."""
    error.add_note("In a worker process:\n" + "".join(traceback.format_tb(error.__traceback__)).rstrip())
    try:
        data = pickle.dumps(error)
        if type(pickle.loads(data)) is not type(error) or str(pickle.loads(data)) != str(error):
            data = b""
    except Exception:  # the user's own class may do anything
        data = b""
    return _NUMBER.pack(MessageType.FAILED, client), [
        data,
        type(error).__name__.encode(),
        str(error).encode(errors="backslashreplace"),
    ]


def decode_failure(head: bytes, frames: Sequence[bytes]) -> tuple[ClientId, Exception]:
    """Inverse of `encode_failure`."""
    client: int = _NUMBER.unpack(head)[1]
    data, name, message = frames
    if data:
        try:
            error: Exception = pickle.loads(data)
            return client, error
        except Exception:  # it could be made there, and cannot be here
            pass
    return client, type(name.decode(), (Exception,), {})(message.decode())


def _encode_numbers(kind: MessageType, numbers: Sequence[int]) -> bytes:
    return bytes([kind]) + np.array(numbers, dtype="<i8").tobytes()


def _decode_numbers(head: bytes) -> list[int]:
    numbers: list[int] = np.frombuffer(head, dtype="<i8", offset=1).tolist()
    return numbers


_COUNTS = struct.Struct("<II")
_LENGTH = struct.Struct("<Q")


def pack_packets(packets: Sequence[Packet]) -> bytes:
    """All of it, as one string of bytes."""
    parts: list[bytes] = []
    for head, frames in packets:
        lengths = (_LENGTH.pack(len(frame)) for frame in frames)
        parts += [_COUNTS.pack(len(head), len(frames)), *lengths, head, *frames]
    return b"".join(parts)


def unpack_packets(data: bytes) -> Iterator[Packet]:
    """Inverse of `pack_packets`, one after the other; WireError at the first that does not fit into what there is."""
    at = 0
    while at < len(data):
        if len(data) - at < _COUNTS.size:
            raise WireError(at, f"{len(data) - at} bytes are left, expected {_COUNTS.size} with two lengths")
        n_head, n_frames = _COUNTS.unpack_from(data, at)
        first = at + _COUNTS.size
        if (len(data) - first) // _LENGTH.size < n_frames:
            raise WireError(at, f"{n_frames} frames are announced in {len(data) - first} bytes")
        lengths = [_LENGTH.unpack_from(data, first + _LENGTH.size * i)[0] for i in range(n_frames)]
        begin = first + _LENGTH.size * n_frames
        if len(data) - begin < n_head + sum(lengths):
            raise WireError(
                at, f"a head of {n_head} and frames of {sum(lengths)} bytes are announced, {len(data) - begin} are left"
            )
        at = begin + n_head
        frames = []
        for length in lengths:
            frames.append(data[at : at + length])
            at += length
        yield data[begin : begin + n_head], frames
