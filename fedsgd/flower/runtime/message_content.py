"""Packets of the messages between the server and a node. Nothing that comes over a network is unpickled.

server  TRAIN    clients and their messages, encoded as for workers
node    first    id of the process that replies, and the seconds that it took
        REPLY    client, seconds, steps and the other measurements of a reply; frames of the reply
        FAILED   client; as frames, the kind and the cause of the error
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

CLASSES_KEY, SCENARIO_ERROR_KEY = "classes", "is-scenario-error"
"""Keys of the set-up message: identities of the server's user classes; and of its reply: True for a ScenarioError."""
_NODE_STRUCT = struct.Struct("<Qd")
_CLIENT_STRUCT = struct.Struct("<Bq")
_ERROR_KINDS: Mapping[bytes, type[RunError]] = {b"": RunError, b"not finite": NonFiniteError}


@dataclass(frozen=True)
class NodeReply:
    """Decoded reply of a node.

    Attributes:
        process: id of the node's process that replied.
        seconds: time from the process's receipt of the message to its reply, with the time to load the scenario.
        outcomes: outcome of each client in the reply.
    """

    process: int
    seconds: float
    outcomes: tuple[ClientOutcome, ...]


def encode_request(messages: Mapping[ClientId, Message]) -> bytes:
    """Encode the messages of a node's clients. A frame that several clients receive is stored once."""
    return protocol.pack_packets([protocol.encode_train_request(messages)])


def decode_request(data: bytes) -> dict[ClientId, Message]:
    """Decode the output of `encode_request`. WireError if the data is not a training request."""
    try:
        ((head, frames),) = protocol.unpack_packets(data)
        if protocol.message_type(head) is not MessageType.TRAIN:
            raise ValueError("not a training request")
        return protocol.decode_train_request(head, frames)
    except (ValueError, IndexError) as error:
        raise error if isinstance(error, WireError) else WireError(0, "the message is not a training request") from None


def encode_reply(process: int, seconds: float, outcomes: Sequence[ClientOutcome]) -> bytes:
    """Encode the reply of a node: the id of its process, its seconds, and the outcomes of its clients."""
    return protocol.pack_packets([(_NODE_STRUCT.pack(process, seconds), ()), *map(_encode_outcome, outcomes)])


def decode_reply(data: bytes, round: int, clients: Collection[ClientId]) -> NodeReply:
    """Decode the output of `encode_reply` for a request to `clients` in this round. WireError if any part is invalid."""
    try:
        (head, _), *rest = protocol.unpack_packets(data)
        process, seconds = _NODE_STRUCT.unpack(head)
        if process >= 2**31 or not 0 <= seconds < math.inf:
            raise WireError(0, f"process {process} reports {seconds} s, expected an id below 2^31 and a time from 0 s on")
        outcomes = tuple(_decode_outcome(outcome_head, frames, round) for outcome_head, frames in rest)
    except (ValueError, IndexError, struct.error) as error:
        raise error if isinstance(error, WireError) else WireError(0, "the data is not the reply of a node") from None
    reply_clients = [outcome.client for outcome in outcomes]
    if len(set(reply_clients)) != len(reply_clients) or not set(reply_clients) <= set(clients):
        raise WireError(0, "the reply has two outcomes of a client, or an outcome of a client without a message")
    return NodeReply(process, seconds, outcomes)


def count_frame_bytes(data: bytes) -> int:
    """Return the bytes of all frames in a request or reply. A frame that clients share counts once; a failure has no frames."""
    return sum(len(frame) for frame in _iterate_frames(data))


def _iterate_frames(data: bytes) -> Iterator[bytes]:
    for head, frames in protocol.unpack_packets(data):
        if head[0] != MessageType.FAILED or len(head) != _CLIENT_STRUCT.size:
            yield from frames


def _validate_reply(reply: Reply, round: int) -> Reply:
    """Return the reply. WireError if a measurement is out of range. Only the client can compute the measurements."""
    seconds = reply.decode_seconds, reply.encode_seconds
    norms = [norm for norm in (reply.residual_norm, reply.residual_norm_if_lost) if not math.isnan(norm)]
    if not all(0 <= figure < math.inf for figure in (*seconds, *norms)):
        raise WireError(0, f"seconds {seconds} and norms {norms} of client {reply.client}, expected finite numbers from 0 on")
    if not (0 <= reply.steps < 2**31 and -1 <= reply.rounds_missed < round and 0 <= reply.examples_processed < 2**53):
        counts = f"{reply.steps} steps on {reply.examples_processed} examples and {reply.rounds_missed} missed rounds"
        raise WireError(0, f"client {reply.client} reports {counts} in round {round}")
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
    error = _ERROR_KINDS.get(kind, RunError)(round, client, cause.decode(errors="replace"))
    return ClientFailure(client, error)
