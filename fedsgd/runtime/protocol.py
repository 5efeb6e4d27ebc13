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
from collections.abc import Mapping, Sequence
from enum import IntEnum

import numpy as np

from fedsgd.arrays import F32, F64
from fedsgd.compress import ClientId
from fedsgd.engine import Evaluated
from fedsgd.rounds import Message, Reply


class Verb(IntEnum):
    """The first byte of a head."""

    TRAIN = 1
    EVALUATE = 2
    READY = 3
    REPLY = 4
    FAILED = 5
    EVALUATED = 6
    DONE = 7


Said = tuple[bytes, Sequence[bytes]]
"""(head, frames)."""
_REPLY = struct.Struct("<Bqddqddqq")
_NUMBER = struct.Struct("<Bq")
_EVALUATED = struct.Struct("<Bq?")
READY: Said = bytes([Verb.READY]), ()
DONE: Said = bytes([Verb.DONE]), ()


def verb(head: bytes) -> Verb:
    """What a message is."""
    return Verb(head[0])


def train(messages: Mapping[ClientId, Message]) -> Said:
    """Clients with their messages; a frame that is in several is there once."""
    frames: dict[int, tuple[int, bytes]] = {}
    numbers: list[int] = []
    for client, message in messages.items():
        places = [frames.setdefault(id(frame), (len(frames), frame))[0] for frame in message]
        numbers += [client, len(places), *places]
    return _with_numbers(Verb.TRAIN, numbers), [frame for _, frame in frames.values()]


def read_train(head: bytes, frames: Sequence[bytes]) -> dict[ClientId, Message]:
    """Inverse of `train`."""
    numbers, messages, at = _numbers(head), {}, 0
    while at < len(numbers):
        client, n = numbers[at : at + 2]
        if n < 0 or at + 2 + n > len(numbers) or not all(0 <= place < len(frames) for place in numbers[at + 2 : at + 2 + n]):
            raise ValueError("a message of frames that are not there")
        messages[client] = tuple(frames[place] for place in numbers[at + 2 : at + 2 + n])
        at += 2 + n
    return messages


def evaluate(which: int, start: int, stop: int, model: Sequence[bytes]) -> Said:
    """Examples `start` to before `stop` of a set; model: weights, float32 [P], and running statistics, if there are any [S]."""
    return _with_numbers(Verb.EVALUATE, [which, start, stop]), model


def read_evaluate(head: bytes, frames: Sequence[bytes]) -> tuple[int, int, int, F32, F32 | None]:
    """Inverse of `evaluate`."""
    which, start, stop = _numbers(head)
    weights, *buffers = (np.frombuffer(frame, dtype=np.float32).copy() for frame in frames)
    return which, start, stop, weights, buffers[0] if buffers else None


def reply(of: Reply) -> Said:
    """A client's reply."""
    known = of.decode_seconds, of.encode_seconds, of.steps, of.withheld, of.withheld_if_lost, of.missed, of.seen
    return _REPLY.pack(Verb.REPLY, of.client, *known), of.frames


def read_reply(head: bytes, frames: Sequence[bytes]) -> Reply:
    """Inverse of `reply`."""
    _, client, *known = _REPLY.unpack(head)
    return Reply(client, tuple(frames), *known)


def evaluated(of: Evaluated) -> Said:
    """What an evaluation gave."""
    arrays: list[Sequence[float] | F64] = [of.losses, of.loss_weights or ()]
    for name, score in of.scores.items():
        arrays += [score, of.weights.get(name, ())]
    frames = [np.asarray(values, dtype=np.float64).tobytes() for values in arrays]
    return _EVALUATED.pack(Verb.EVALUATED, of.examples, of.summed), frames


def read_evaluated(head: bytes, frames: Sequence[bytes], metrics: Sequence[str]) -> Evaluated:
    """Inverse of `evaluated`. metrics: the task's, in its order."""
    losses, loss_weights, *arrays = (np.frombuffer(frame, dtype=np.float64) for frame in frames)
    scores = dict(zip(metrics, arrays[::2], strict=True))
    weights = {name: values for name, values in zip(metrics, arrays[1::2], strict=True) if len(values)}
    _, examples, summed = _EVALUATED.unpack(head)
    return Evaluated(examples, losses.tolist(), scores, weights, loss_weights.tolist() or None, summed)


def failed(error: Exception, client: ClientId = -1) -> Said:
    """What went wrong, at which client if at one. Where it cannot be pickled and made again, its name and message."""
    error.add_note("In a worker process:\n" + "".join(traceback.format_tb(error.__traceback__)).rstrip())
    try:
        data = pickle.dumps(error)
        if type(pickle.loads(data)) is not type(error) or str(pickle.loads(data)) != str(error):
            data = b""
    except Exception:  # the user's own class may do anything
        data = b""
    return _NUMBER.pack(Verb.FAILED, client), [
        data,
        type(error).__name__.encode(),
        str(error).encode(errors="backslashreplace"),
    ]


def read_failed(head: bytes, frames: Sequence[bytes]) -> tuple[ClientId, Exception]:
    """Inverse of `failed`."""
    client: int = _NUMBER.unpack(head)[1]
    data, name, message = frames
    if data:
        try:
            error: Exception = pickle.loads(data)
            return client, error
        except Exception:  # it could be made there, and cannot be here
            pass
    return client, type(name.decode(), (Exception,), {})(message.decode())


def _with_numbers(of: Verb, numbers: Sequence[int]) -> bytes:
    return bytes([of]) + np.array(numbers, dtype="<i8").tobytes()


def _numbers(head: bytes) -> list[int]:
    numbers: list[int] = np.frombuffer(head, dtype="<i8", offset=1).tolist()
    return numbers
