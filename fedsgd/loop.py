"""The loop over rounds: a Runtime carries the messages, an observer sees every frame that crossed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedsgd.compress import ClientId, Operator
from fedsgd.errors import FedsgdError, RunError, WireError
from fedsgd.layout import Layout
from fedsgd.rounds import Message, Plan, Reply, Server, aggregate, broadcast, sample_cohort
from fedsgd.wire import Kind, decode_frame


@dataclass(frozen=True, eq=False)
class Failure:
    """No answer from this client, and why."""

    client: ClientId
    error: Exception


Outcome = Reply | Failure


class Runtime(Protocol):
    """Carries frames between the server and its clients, and knows nothing of what is in them."""

    def clients(self) -> Sequence[ClientId]:
        """All clients there are, ascending."""

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[Outcome]:
        """Deliver each message; yield one outcome per client, in any order, within `timeout` seconds."""


@dataclass(frozen=True, eq=False)
class Crossing:
    """One frame that crossed the wire. kept: the number of coordinates it carried (0 for a TASK); decode_seconds: at the
    server, the time to decode and add it, at the client, to check and decode the message (on its MODEL frame)."""

    round: int
    client: ClientId
    direction: Literal["down", "up"]
    kind: Kind
    frame: bytes
    kept: int
    encode_seconds: float
    decode_seconds: float


Observer = Callable[[Crossing], None]


def run(
    plan: Plan, server: Server, runtime: Runtime, observer: Observer, timeout: float | None = None
) -> Iterator[tuple[Server, list[ClientId]]]:
    """Round after round without end: yields (the server after the round, the round's cohort). The caller decides when to stop.

    A client that fails ends the run with its error, after the frames that did cross have been shown.
    """
    clients = runtime.clients()
    while True:
        cohort = sample_cohort(plan, clients, server.round)
        messages, server = broadcast(plan, server, cohort)
        outcomes = {outcome.client: outcome for outcome in runtime.exchange(messages, timeout)}
        replies = [outcome for outcome in outcomes.values() if isinstance(outcome, Reply)]
        failures = [outcome for outcome in outcomes.values() if isinstance(outcome, Failure)]
        for crossing in _downlink(plan, server, messages, outcomes):
            observer(crossing)
        try:
            if failures:
                raise _stopped(server.round, min(failures, key=lambda failure: failure.client))
            following, seconds = aggregate(plan, server, replies)
        except FedsgdError:
            for crossing in _uplink(plan, server, replies, {}):
                observer(crossing)
            raise
        for crossing in _uplink(plan, server, replies, seconds):
            observer(crossing)
        server = following
        yield server, cohort


def _stopped(round: int, failure: Failure) -> RunError:
    """The failing client and round in front of whatever went wrong there: the user's module, loss or data, or our own."""
    if isinstance(failure.error, RunError):
        return failure.error
    error = RunError(round, failure.client, f"{type(failure.error).__name__}: {failure.error}")
    error.__cause__ = failure.error
    return error


def _downlink(
    plan: Plan, server: Server, messages: Mapping[ClientId, Message], outcomes: Mapping[ClientId, Outcome]
) -> Iterator[Crossing]:
    kept = _kept(plan.downlink, server.model, plan.layout)
    for client, (task, model) in messages.items():
        outcome = outcomes.get(client)
        seconds = outcome.decode_seconds if isinstance(outcome, Reply) else 0.0
        yield Crossing(server.round, client, "down", Kind.TASK, task, 0, 0.0, 0.0)
        yield Crossing(server.round, client, "down", Kind.MODEL, model, kept, server.encode_seconds, seconds)


def _uplink(plan: Plan, server: Server, replies: Sequence[Reply], seconds: Mapping[ClientId, float]) -> Iterator[Crossing]:
    for reply in sorted(replies, key=lambda r: r.client):
        decode = seconds.get(reply.client, 0.0)
        for frame in reply.frames:
            kept = _kept(plan.uplink.op, frame, plan.layout)
            yield Crossing(server.round, reply.client, "up", Kind.UPDATE, frame, kept, reply.encode_seconds, decode)


def _kept(compressor: Operator, frame: bytes, layout: Layout) -> int:
    """Coordinates in a frame that crossed; 0 in one that cannot be read, which is to be counted all the same."""
    try:
        return compressor.kept(decode_frame(frame).sections, layout)
    except WireError:
        return 0
