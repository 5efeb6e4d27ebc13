"""What the server and a node say to each other, beside the frames. Nothing that comes over a network is unpickled.

server  TRAIN    clients and their messages, as workers are told
node    first    which process answers, and how long it took
        REPLY    client, seconds, steps and what else an observer may know; frames: the reply's
        FAILED   client; frames: the kind of error, and what went wrong
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedsgd.compress import ClientId
from fedsgd.errors import NonFiniteError, RunError, WireError
from fedsgd.loop import Failure, Outcome
from fedsgd.rounds import Message, Reply
from fedsgd.runtime import parcel, protocol
from fedsgd.runtime.protocol import Said, Verb

_NODE = struct.Struct("<Qd")
_CLIENT = struct.Struct("<Bq")
_KINDS: Mapping[bytes, type[RunError]] = {b"": RunError, b"not finite": NonFiniteError}


@dataclass(frozen=True)
class Answered:
    """process: the id of the process that answered at the node; seconds: between its having the message and its answer, with
    what it took to get ready; outcomes: one for each client that it says anything of."""

    process: int
    seconds: float
    outcomes: tuple[Outcome, ...]


def request(messages: Mapping[ClientId, Message]) -> bytes:
    """The messages of a node's clients; a frame that several of them are sent is there once."""
    return parcel.packed([protocol.train(messages)])


def read_request(data: bytes) -> dict[ClientId, Message]:
    """Inverse of `request`; WireError for anything else."""
    try:
        ((head, frames),) = parcel.unpacked(data)
        if protocol.verb(head) is not Verb.TRAIN:
            raise ValueError("not a request")
        return protocol.read_train(head, frames)
    except (ValueError, IndexError) as error:
        raise error if isinstance(error, WireError) else WireError(0, "the message does not say what to train") from None


def answer(process: int, seconds: float, outcomes: Sequence[Outcome]) -> bytes:
    """What a node answers."""
    return parcel.packed([(_NODE.pack(process, seconds), ()), *map(_outcome, outcomes)])


def read_answer(data: bytes, round: int, asked: Collection[ClientId]) -> Answered:
    """Inverse of `answer`. asked: whom the node was asked for. WireError for anything else: then none of it is taken."""
    try:
        (head, _), *rest = parcel.unpacked(data)
        process, seconds = _NODE.unpack(head)
        if process >= 2**31 or not 0 <= seconds < math.inf:
            raise WireError(0, f"process {process} was at it for {seconds} s")
        outcomes = tuple(_read_outcome(of, frames, round) for of, frames in rest)
    except (ValueError, IndexError, struct.error) as error:
        raise error if isinstance(error, WireError) else WireError(0, "the answer is not one of a node") from None
    heard = [outcome.client for outcome in outcomes]
    if len(set(heard)) != len(heard) or not set(heard) <= set(asked):
        raise WireError(0, "the answer has two outcomes of a client, or one of a client that was not asked for")
    return Answered(process, seconds, outcomes)


def frame_bytes(data: bytes) -> int:
    """Of all frames in a request or an answer; one that several clients share is there once. A failure has none."""
    return sum(len(frame) for frame in _frames(data))


def _frames(data: bytes) -> Iterator[bytes]:
    for head, frames in parcel.unpacked(data):
        if head[0] != Verb.FAILED or len(head) != _CLIENT.size:
            yield from frames


def _sensible(reply: Reply, round: int) -> Reply:
    """The reply; WireError for figures beside its frames that cannot be. Nothing but the client's word stands for them."""
    seconds = reply.decode_seconds, reply.encode_seconds
    norms = [norm for norm in (reply.withheld, reply.withheld_if_lost) if not math.isnan(norm)]
    if not all(0 <= figure < math.inf for figure in (*seconds, *norms)):
        raise WireError(0, f"seconds {seconds} and norms {norms} of client {reply.client}, expected finite ones from 0 on")
    if not (0 <= reply.steps < 2**31 and -1 <= reply.missed < round and 0 <= reply.seen < 2**53):
        said = f"{reply.steps} steps on {reply.seen} examples and {reply.missed} missed rounds"
        raise WireError(0, f"{said} of client {reply.client} in round {round}")
    return reply


def _outcome(outcome: Outcome) -> Said:
    if isinstance(outcome, Reply):
        return protocol.reply(outcome)
    error = outcome.error
    kind, cause = b"", f"{type(error).__name__}: {error}"
    if isinstance(error, RunError):
        kind, cause = (b"not finite" if isinstance(error, NonFiniteError) else b""), error.cause
    return _CLIENT.pack(Verb.FAILED, outcome.client), [kind, cause.encode(errors="backslashreplace")]


def _read_outcome(head: bytes, frames: Sequence[bytes], round: int) -> Outcome:
    if protocol.verb(head) is Verb.REPLY:
        return _sensible(protocol.read_reply(head, frames), round)
    _, client = _CLIENT.unpack(head)
    kind, cause = frames
    made = _KINDS.get(kind, RunError)(round, client, cause.decode(errors="replace"))
    return Failure(client, made)
