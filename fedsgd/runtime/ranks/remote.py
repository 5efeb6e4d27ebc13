"""Messages between the server and the leaders of other machines, which may be of another kind of processor.

server  TRAIN, EVALUATE   as for workers, see `fedsgd.runtime.workers.protocol`
        LOAD              client
        SAVE              client; frames: parts of the state
        HAS_MODEL         round
        GET_MODEL         round
        PUT_MODEL         round; frames: the model
        END               the run is over
leader  ANSWER            numbers of frames; frames: heads and frames of a worker's answers, or the parts of a state, or the
                          model, or an empty frame for "yes"

No message is pickled: an error crosses as the name of its class and its text.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from fedsgd.compression import ClientId
from fedsgd.errors import (
    DataError,
    LawError,
    ModelError,
    NonFiniteError,
    OutputError,
    RunError,
    ScenarioError,
    WireError,
)
from fedsgd.federation import Message
from fedsgd.federation.client_state import ClientState
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome
from fedsgd.numerics.arrays import F32
from fedsgd.runtime.ranks.channel import GlooChannel
from fedsgd.runtime.ranks.machine import MachineStorage
from fedsgd.runtime.stores.shared import deserialize_state, serialize_state
from fedsgd.runtime.workers import protocol
from fedsgd.runtime.workers.pool import WorkerPool
from fedsgd.runtime.workers.protocol import MessageType, Packet
from fedsgd.runtime.workers.shared_memory import align_up
from fedsgd.training import EvaluationResult


class RequestType(IntEnum):
    """First byte of a head that workers do not know."""

    LOAD = 65
    SAVE = 66
    GET_MODEL = 67
    HAS_MODEL = 68
    PUT_MODEL = 69
    ANSWER = 70


_NUMBER = struct.Struct("<Bq")
_ANSWER = bytes([RequestType.ANSWER])
_PORTABLE_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *(RunError, NonFiniteError, WireError, ScenarioError, DataError, ModelError, LawError, OutputError),
        *(ChildProcessError, MemoryError, TimeoutError),
    )
}


class RemoteMachine:
    """The server's view of another machine.

    Args:
        channel: channel to the machine's leader.
        metrics: names of the task's metrics.
    """

    def __init__(self, channel: GlooChannel, metrics: Sequence[str]) -> None:
        self._channel = channel
        self._metrics = metrics
        self._saved_rounds: set[int] = set()

    def begin_training(self, messages: Mapping[ClientId, Message]) -> None:
        """Send the messages of the machine's clients; `iterate_outcomes` must follow."""
        self._channel.send(*protocol.encode_train_request(messages))

    def iterate_outcomes(self) -> Iterator[ClientOutcome]:
        """Yield the outcomes of the clients, once all are there."""
        for packet in self._receive_packets():
            yield _decode_portable_outcome(*packet)

    def begin_evaluation(self, set_index: int, start: int, stop: int, model: Sequence[bytes]) -> None:
        """Send a part of an evaluation; `finish_evaluation` must follow."""
        self._channel.send(*protocol.encode_evaluation_request(set_index, start, stop, model))

    def finish_evaluation(self) -> EvaluationResult:
        """Return the result of the part, or raise its error."""
        (packet,) = self._receive_packets()
        if protocol.message_type(packet[0]) is MessageType.FAILED:
            raise _decode_portable_failure(*packet).error
        return protocol.decode_evaluation(*packet, self._metrics)

    def load(self, client: ClientId) -> ClientState:
        """Return the state of a client."""
        return deserialize_state(np.frombuffer(bytearray(b"".join(self._request(RequestType.LOAD, client))), dtype=np.uint8))

    def save(self, client: ClientId, state: ClientState) -> None:
        """Store the state of a client that has none, and record the model that the client keeps."""
        self._saved_rounds.add(state.model_round)
        self._request(RequestType.SAVE, client, [pad_part(part) for part in serialize_state(state)])

    def has_model(self, round: int) -> bool:
        """Return whether the machine has the model of a round."""
        return bool(self._request(RequestType.HAS_MODEL, round))

    def get_model(self, round: int) -> F32:
        """Return the model of a round, [P], which the machine has."""
        return np.frombuffer(self._request(RequestType.GET_MODEL, round)[0], dtype="<f4").astype(np.float32)

    def put_model(self, round: int, model: F32) -> None:
        """Store the model of a round, [P], if a saved state of a client refers to it."""
        if round not in self._saved_rounds:
            return
        self._request(RequestType.PUT_MODEL, round, [model.astype("<f4", copy=False).tobytes()])

    def end(self) -> None:
        """Tell the leader that the run is over."""
        self._channel.send(*protocol.END)

    def _request(self, kind: RequestType, number: int, frames: Sequence[bytes] = ()) -> Sequence[bytes]:
        self._channel.send(_NUMBER.pack(kind, number), frames)
        return self._channel.receive()[1]

    def _receive_packets(self) -> Iterator[Packet]:
        head, frames = self._channel.receive()
        position = 0
        for n_frames in np.frombuffer(head, dtype="<i8", offset=1).tolist():
            yield frames[position], frames[position + 1 : position + n_frames]
            position += n_frames


class MachineServer:
    """Leader of a machine without the server, which answers the server's messages.

    Args:
        channel: channel to the server.
        pool: ranks of the machine.
        storage: states and models of the machine's clients.
    """

    def __init__(self, channel: GlooChannel, pool: WorkerPool, storage: MachineStorage) -> None:
        self._channel = channel
        self._pool = pool
        self._storage = storage

    def serve(self) -> None:
        """Answer messages until the server says that the run is over; ConnectionError if the server ends before."""
        while True:
            head, frames = self._channel.receive()
            if head[0] == MessageType.END:
                return
            if head[0] == MessageType.TRAIN:
                outcomes = self._pool.exchange(protocol.decode_train_request(head, frames), None)
                self._send_packets([_encode_portable_outcome(outcome) for outcome in outcomes])
            elif head[0] == MessageType.EVALUATE:
                self._send_packets([self._evaluate(head, frames)])
            else:
                self._channel.send(_ANSWER, self._access_storage(head, frames))

    def _send_packets(self, packets: Sequence[Packet]) -> None:
        lengths = np.array([1 + len(frames) for _, frames in packets], dtype="<i8")
        self._channel.send(_ANSWER + lengths.tobytes(), [part for head, frames in packets for part in (head, *frames)])

    def _access_storage(self, head: bytes, frames: Sequence[bytes]) -> Sequence[bytes]:
        kind, number = _NUMBER.unpack(head)
        if kind == RequestType.LOAD:
            return [pad_part(part) for part in serialize_state(self._storage.store.load(number))]
        if kind == RequestType.SAVE:
            state = deserialize_state(np.frombuffer(bytearray(b"".join(frames)), dtype=np.uint8))
            self._storage.store.save(number, state)
            self._storage.models.move_reference(0, state.model_round)
        elif kind == RequestType.HAS_MODEL:
            return [b""] if self._storage.models.has(number) else []
        elif kind == RequestType.GET_MODEL:
            return [self._storage.models.get(number).astype("<f4", copy=False).tobytes()]
        elif kind == RequestType.PUT_MODEL:
            self._storage.models.put(number, np.frombuffer(frames[0], dtype="<f4").astype(np.float32))
        return []

    def _evaluate(self, head: bytes, frames: Sequence[bytes]) -> Packet:
        try:
            return protocol.encode_evaluation(self._pool.evaluate_range(*protocol.decode_evaluation_request(head, frames)))
        except Exception as error:  # the user's module, loss or metrics
            return _encode_portable_failure(ClientFailure(-1, error))


def pad_part(part: bytes | memoryview) -> bytes:
    """Return a part of a state, padded to the alignment of the parts."""
    return bytes(part) + bytes(align_up(len(part)) - len(part))


def _encode_portable_outcome(outcome: ClientOutcome) -> Packet:
    return _encode_portable_failure(outcome) if isinstance(outcome, ClientFailure) else protocol.encode_reply(outcome)


def _encode_portable_failure(failure: ClientFailure) -> Packet:
    return _NUMBER.pack(MessageType.FAILED, failure.client), [json.dumps(describe_error(failure.error)).encode()]


def _decode_portable_outcome(head: bytes, frames: Sequence[bytes]) -> ClientOutcome:
    if protocol.message_type(head) is MessageType.REPLY:
        return protocol.decode_reply(head, frames)
    return _decode_portable_failure(head, frames)


def _decode_portable_failure(head: bytes, frames: Sequence[bytes]) -> ClientFailure:
    client: int = _NUMBER.unpack(head)[1]
    return ClientFailure(client, restore_error(json.loads(frames[0])))


def describe_error(error: Exception) -> list[Any]:
    """Return the name of an error's class and the arguments of its constructor, as JSON has them."""
    name = type(error).__name__
    if isinstance(error, RunError):
        return [name, error.round, error.client, error.cause]
    if isinstance(error, WireError):
        return [name, error.offset, error.cause, error.location, error.client]
    return [name, str(error)]


def restore_error(description: Sequence[Any]) -> Exception:
    """Return the error of `describe_error`; an error of an unknown class becomes one of a new class with this name.

    >>> restore_error(describe_error(NonFiniteError(2, 5, "the update is not finite")))
    NonFiniteError('round 2, client 5: the update is not finite')
    >>> restore_error(["UserError", "wrong"])
    UserError('wrong')
    """
    name, *arguments = description
    kind = _PORTABLE_ERRORS.get(name) or type(name, (Exception,), {})
    error: Exception = kind(*arguments)
    return error
