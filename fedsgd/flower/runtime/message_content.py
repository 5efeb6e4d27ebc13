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

from fedsgd.compression import ClientId
from fedsgd.errors import NonFiniteError, RunError, WireError
from fedsgd.federation import Message, Reply
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome
from fedsgd.runtime.workers import protocol
from fedsgd.runtime.workers.protocol import MessageType, Packet

_NODE_STRUCT = struct.Struct("<Qd")
_CLIENT_STRUCT = struct.Struct("<Bq")
_ERROR_KINDS: Mapping[bytes, type[RunError]] = {b"": RunError, b"not finite": NonFiniteError}


@dataclass(frozen=True)
class NodeReply:
    """process: the id of the process that answered at the node; seconds: between its having the message and its answer, with
    what it took to get ready; outcomes: one for each client that it says anything of."""

    process: int
    seconds: float
    outcomes: tuple[ClientOutcome, ...]


def encode_request(messages: Mapping[ClientId, Message]) -> bytes:
    """The messages of a node's clients; a frame that several of them are sent is there once."""
    return protocol.pack_packets([protocol.encode_train_request(messages)])


def decode_request(data: bytes) -> dict[ClientId, Message]:
    """Inverse of `encode_request`; WireError for anything else."""
    try:
        ((head, frames),) = protocol.unpack_packets(data)
        if protocol.message_type(head) is not MessageType.TRAIN:
            raise ValueError("not a request")
        return protocol.decode_train_request(head, frames)
    except (ValueError, IndexError) as error:
        raise error if isinstance(error, WireError) else WireError(0, "the message does not say what to train") from None


def encode_reply(process: int, seconds: float, outcomes: Sequence[ClientOutcome]) -> bytes:
    """What a node answers."""
    return protocol.pack_packets([(_NODE_STRUCT.pack(process, seconds), ()), *map(_encode_outcome, outcomes)])


def decode_reply(data: bytes, round: int, clients: Collection[ClientId]) -> NodeReply:
    """Inverse of `encode_reply`. asked: whom the node was asked for. WireError for anything else: then none of it is taken."""
    try:
        (head, _), *rest = protocol.unpack_packets(data)
        process, seconds = _NODE_STRUCT.unpack(head)
        if process >= 2**31 or not 0 <= seconds < math.inf:
            raise WireError(0, f"process {process} was at it for {seconds} s")
        outcomes = tuple(_decode_outcome(of, frames, round) for of, frames in rest)
    except (ValueError, IndexError, struct.error) as error:
        raise error if isinstance(error, WireError) else WireError(0, "the answer is not one of a node") from None
    heard = [outcome.client for outcome in outcomes]
    if len(set(heard)) != len(heard) or not set(heard) <= set(clients):
        raise WireError(0, "the answer has two outcomes of a client, or one of a client that was not asked for")
    return NodeReply(process, seconds, outcomes)


def count_frame_bytes(data: bytes) -> int:
    """Of all frames in a request or an answer; one that several clients share is there once. A failure has none."""
    return sum(len(frame) for frame in _iterate_frames(data))


def _iterate_frames(data: bytes) -> Iterator[bytes]:
    for head, frames in protocol.unpack_packets(data):
        if head[0] != MessageType.FAILED or len(head) != _CLIENT_STRUCT.size:
            yield from frames


def _validate_reply(reply: Reply, round: int) -> Reply:
    """The reply; WireError for figures beside its frames that cannot be. Nothing but the client's word stands for them."""
    seconds = reply.decode_seconds, reply.encode_seconds
    norms = [norm for norm in (reply.residual_norm, reply.residual_norm_if_lost) if not math.isnan(norm)]
    if not all(0 <= figure < math.inf for figure in (*seconds, *norms)):
        raise WireError(0, f"seconds {seconds} and norms {norms} of client {reply.client}, expected finite ones from 0 on")
    if not (0 <= reply.steps < 2**31 and -1 <= reply.rounds_missed < round and 0 <= reply.examples_processed < 2**53):
        said = f"{reply.steps} steps on {reply.examples_processed} examples and {reply.rounds_missed} missed rounds"
        raise WireError(0, f"{said} of client {reply.client} in round {round}")
    return reply


def _encode_outcome(outcome: ClientOutcome) -> Packet:
    if isinstance(outcome, Reply):
        return protocol.encode_reply(outcome)
    error = outcome.error
    kind, cause = b"", f"{type(error).__name__}: {error}"
    if isinstance(error, RunError):
        kind, cause = (b"not finite" if isinstance(error, NonFiniteError) else b""), error.cause
    return _CLIENT_STRUCT.pack(MessageType.FAILED, outcome.client), [kind, cause.encode(errors="backslashreplace")]


def _decode_outcome(head: bytes, frames: Sequence[bytes], round: int) -> ClientOutcome:
    if protocol.message_type(head) is MessageType.REPLY:
        return _validate_reply(protocol.decode_reply(head, frames), round)
    _, client = _CLIENT_STRUCT.unpack(head)
    kind, cause = frames
    made = _ERROR_KINDS.get(kind, RunError)(round, client, cause.decode(errors="replace"))
    return ClientFailure(client, made)
