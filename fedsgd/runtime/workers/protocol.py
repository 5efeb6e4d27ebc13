"""Messages between server and worker, each with a head and frames. Only errors are pickled.

server  TRAIN      clients and their messages
        EVALUATE   number of the set, first and last example; frames: the model
        END        the run is over
worker  READY      or FAILED, once, at its start
        REPLY      client, seconds, steps and other measurements; frames: frames of the reply
        FAILED     client; frames: the error
        EVALUATED  number of examples, True for a sum of losses; frames: losses of the slices, their weights, then for
                   each metric its values by example and their weights; an empty frame means no weights
        DONE       the oldest unfinished message is processed
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
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome
from fedsgd.numerics.arrays import F32, F64
from fedsgd.training import EvaluationResult


class MessageType(IntEnum):
    """First byte of a head."""

    TRAIN = 1
    EVALUATE = 2
    READY = 3
    REPLY = 4
    FAILED = 5
    EVALUATED = 6
    DONE = 7
    END = 8


Packet = tuple[bytes, Sequence[bytes]]
"""(head, frames) of a message."""
_REPLY = struct.Struct("<Bqddqddqq")
_NUMBER = struct.Struct("<Bq")
_EVALUATION = struct.Struct("<Bq?")
READY: Packet = bytes([MessageType.READY]), ()
DONE: Packet = bytes([MessageType.DONE]), ()
END: Packet = bytes([MessageType.END]), ()


def message_type(head: bytes) -> MessageType:
    """Return the type of a message."""
    return MessageType(head[0])


def encode_train_request(messages: Mapping[ClientId, Message]) -> Packet:
    """Return the message with clients and their messages. A frame that several messages share is included once."""
    frames: dict[int, tuple[int, bytes]] = {}
    numbers: list[int] = []
    for client, message in messages.items():
        frame_numbers = [frames.setdefault(id(frame), (len(frames), frame))[0] for frame in message]
        numbers += [client, len(frame_numbers), *frame_numbers]
    return _encode_numbers(MessageType.TRAIN, numbers), [frame for _, frame in frames.values()]


def decode_train_request(head: bytes, frames: Sequence[bytes]) -> dict[ClientId, Message]:
    """Return the clients and their messages: the inverse of `encode_train_request`."""
    numbers, messages, position = _decode_numbers(head), {}, 0
    while position < len(numbers):
        client, n_frames = numbers[position : position + 2]
        end = position + 2 + n_frames
        frame_numbers = numbers[position + 2 : end]
        if n_frames < 0 or end > len(numbers) or not all(0 <= number < len(frames) for number in frame_numbers):
            raise ValueError("a message has frame numbers out of range")
        messages[client] = tuple(frames[number] for number in frame_numbers)
        position = end
    return messages


def encode_evaluation_request(set_index: int, start: int, stop: int, model: Sequence[bytes]) -> Packet:
    """Return the message for the evaluation of a model on examples [start, stop) of one set.

    `model` has the bytes of the weights, [P] float32, and of the buffers, [S] float32, if there are any.
    """
    return _encode_numbers(MessageType.EVALUATE, [set_index, start, stop]), model


def decode_evaluation_request(head: bytes, frames: Sequence[bytes]) -> tuple[int, int, int, F32, F32 | None]:
    """Return set, start, stop, weights and buffers: the inverse of `encode_evaluation_request`."""
    set_index, start, stop = _decode_numbers(head)
    weights, *buffers = (np.frombuffer(frame, dtype=np.float32).copy() for frame in frames)
    return set_index, start, stop, weights, buffers[0] if buffers else None


def encode_reply(reply: Reply) -> Packet:
    """Return the message with a client's reply."""
    measurements = (
        reply.decode_seconds,
        reply.encode_seconds,
        reply.steps,
        reply.residual_norm,
        reply.residual_norm_if_lost,
        reply.rounds_missed,
        reply.examples_processed,
    )
    return _REPLY.pack(MessageType.REPLY, reply.client, *measurements), reply.frames


def decode_reply(head: bytes, frames: Sequence[bytes]) -> Reply:
    """Return a client's reply: the inverse of `encode_reply`."""
    _, client, *measurements = _REPLY.unpack(head)
    return Reply(client, tuple(frames), *measurements)


def encode_outcome(outcome: ClientOutcome) -> Packet:
    """Return the message with a client's reply or failure."""
    return encode_reply(outcome) if isinstance(outcome, Reply) else encode_failure(outcome.error, outcome.client)


def decode_outcome(head: bytes, frames: Sequence[bytes]) -> ClientOutcome:
    """Return a client's reply or failure: the inverse of `encode_outcome`."""
    return (
        decode_reply(head, frames) if message_type(head) is MessageType.REPLY else ClientFailure(*decode_failure(head, frames))
    )


def encode_evaluation(result: EvaluationResult) -> Packet:
    """Return the message with the result of an evaluation."""
    arrays: list[Sequence[float] | F64] = [result.losses, result.loss_weights or ()]
    for name, score in result.scores.items():
        arrays += [score, result.score_weights.get(name, ())]
    frames = [np.asarray(values, dtype=np.float64).tobytes() for values in arrays]
    return _EVALUATION.pack(MessageType.EVALUATED, result.n_examples, result.is_loss_sum), frames


def decode_evaluation(head: bytes, frames: Sequence[bytes], metrics: Sequence[str]) -> EvaluationResult:
    """Return the result of an evaluation: the inverse of `encode_evaluation`. `metrics` are the task's metrics, in order."""
    losses, loss_weights, *arrays = (np.frombuffer(frame, dtype=np.float64) for frame in frames)
    scores = dict(zip(metrics, arrays[::2], strict=True))
    weights = {name: values for name, values in zip(metrics, arrays[1::2], strict=True) if len(values)}
    _, examples, is_loss_sum = _EVALUATION.unpack(head)
    return EvaluationResult(examples, losses.tolist(), scores, weights, loss_weights.tolist() or None, is_loss_sum)


def encode_failure(error: Exception, client: ClientId = -1) -> Packet:
    """Return the message with an error, to which the worker's traceback is added as a note. `client` is −1 for no client.

    If an error cannot be pickled and restored, the message has the error's class name and text.
    """
    error.add_note("In a worker process:\n" + "".join(traceback.format_tb(error.__traceback__)).rstrip())
    try:
        data = pickle.dumps(error)
        if type(pickle.loads(data)) is not type(error) or str(pickle.loads(data)) != str(error):
            data = b""
    except Exception:  # pickling a user's class may raise any error
        data = b""
    texts = type(error).__name__.encode(), str(error).encode(errors="backslashreplace")
    return _NUMBER.pack(MessageType.FAILED, client), [data, *texts]


def decode_failure(head: bytes, frames: Sequence[bytes]) -> tuple[ClientId, Exception]:
    """Return client and error: the inverse of `encode_failure`."""
    client: int = _NUMBER.unpack(head)[1]
    data, name, message = frames
    if data:
        try:
            error: Exception = pickle.loads(data)
            return client, error
        except Exception:  # restoring works in the worker, but not in this process
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
    """Return messages as one byte string."""
    parts: list[bytes] = []
    for head, frames in packets:
        lengths = (_LENGTH.pack(len(frame)) for frame in frames)
        parts += [_COUNTS.pack(len(head), len(frames)), *lengths, head, *frames]
    return b"".join(parts)


def unpack_packets(data: bytes) -> Iterator[Packet]:
    """Yield the messages of a byte string: the inverse of `pack_packets`. Raise a WireError if bytes are missing."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < _COUNTS.size:
            raise WireError(offset, f"{len(data) - offset} bytes remain, expected {_COUNTS.size} with two lengths")
        head_length, n_frames = _COUNTS.unpack_from(data, offset)
        lengths_offset = offset + _COUNTS.size
        if (len(data) - lengths_offset) // _LENGTH.size < n_frames:
            raise WireError(offset, f"{n_frames} frames are announced in {len(data) - lengths_offset} bytes")
        lengths = [_LENGTH.unpack_from(data, lengths_offset + _LENGTH.size * i)[0] for i in range(n_frames)]
        head_offset = lengths_offset + _LENGTH.size * n_frames
        if len(data) - head_offset < head_length + sum(lengths):
            sizes = f"a head of {head_length} and frames of {sum(lengths)} bytes"
            raise WireError(offset, f"{sizes} are announced, {len(data) - head_offset} remain")
        offset = head_offset + head_length
        frames = []
        for length in lengths:
            frames.append(data[offset : offset + length])
            offset += length
        yield data[head_offset : head_offset + head_length], frames
