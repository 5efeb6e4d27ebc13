"""The loop over rounds: a Runtime carries the messages, an observer sees every frame that crossed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedsgd.compress import ClientId
from fedsgd.errors import FedsgdError, RunError
from fedsgd.profiling import Within
from fedsgd.rounds import Folded, Message, Plan, Reply, Server, aggregate, broadcast, sample_cohort
from fedsgd.wire import ALL, Frame, Kind, decode_frame


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
    """One frame that crossed the wire. kept: the number of coordinates of a model or an update that it carried (0 for a TASK, a
    REFERENCE, and what was refused); opened: what it decodes to, where that is known already.

    encode_seconds: the shared frames are encoded once, and that time stands on the first client's MODEL. decode_seconds: at the
    server, the time to decode and add it; at the client, to check and decode the message (on its MODEL frame).
    """

    round: int
    client: ClientId
    direction: Literal["down", "up"]
    kind: Kind
    frame: bytes
    kept: int
    encode_seconds: float
    decode_seconds: float
    opened: Frame | None = None


Observer = Callable[[Crossing], None]


def run(
    plan: Plan, server: Server, runtime: Runtime, observer: Observer, timeout: float | None = None
) -> Iterator[tuple[Server, list[ClientId]]]:
    """Round after round without end: yields (the server after the round, the round's cohort). The caller decides when to stop.

    A client that fails ends the run with its error, and so does a runtime that breaks its own contract (it raises, or gives two
    outcomes for a client), after the frames that did cross have been shown.
    """
    clients = runtime.clients()
    while True:
        cohort = sample_cohort(plan, clients, server.round)
        messages, server = broadcast(plan, server, cohort)
        outcomes, broken = _collect(server.round, messages, runtime, timeout)
        replies = [outcome for outcome in outcomes.values() if isinstance(outcome, Reply)]
        failures = [outcome for outcome in outcomes.values() if isinstance(outcome, Failure)]
        with Within("ledger"):
            for crossing in _downlink(plan, server, messages, outcomes):
                observer(crossing)
        try:
            if broken is not None:
                raise broken
            if failures:
                raise _stopped(server.round, failures[0])
            following, folded = aggregate(plan, server, replies)
        except FedsgdError:
            for crossing in _uplink(plan, server, replies, None):
                observer(crossing)
            raise
        with Within("ledger"):
            for crossing in _uplink(plan, server, replies, folded):
                observer(crossing)
        server = following
        yield server, cohort


def _collect(
    round: int, messages: Mapping[ClientId, Message], runtime: Runtime, timeout: float | None
) -> tuple[dict[ClientId, Outcome], RunError | None]:
    """(one outcome for each message, ascending by client, what the runtime did against its contract); a client of which nothing
    was heard has failed."""
    outcomes: dict[ClientId, Outcome] = {}
    broken: RunError | None = None
    try:
        for outcome in runtime.exchange(messages, timeout):
            if outcome.client not in messages or outcome.client in outcomes:
                problem = "a second outcome" if outcome.client in outcomes else "an outcome though it was sent nothing"
                broken = RunError(round, outcome.client, f"the runtime gave {problem}")
                break
            outcomes[outcome.client] = outcome
    except Exception as error:
        broken = RunError(round, None, f"the runtime failed: {type(error).__name__}: {error}")
        broken.__cause__ = error
    silent = {client: Failure(client, TimeoutError("no reply")) for client in messages if client not in outcomes}
    return dict(sorted({**outcomes, **silent}.items())), broken


def _stopped(round: int, failure: Failure) -> FedsgdError:
    """The failing client and round in front of whatever went wrong there: the user's module, loss or data, or our own."""
    if isinstance(failure.error, RunError):
        return failure.error
    error = RunError(round, failure.client, f"{type(failure.error).__name__}: {failure.error}")
    error.__cause__ = failure.error
    return error


def _downlink(
    plan: Plan, server: Server, messages: Mapping[ClientId, Message], outcomes: Mapping[ClientId, Outcome]
) -> Iterator[Crossing]:
    opened = decode_frame(server.shared[0])
    kept = plan.downlink.kept(opened.sections, plan.context(server.round, ALL))
    encode_seconds = server.encode_seconds
    for client, (task, model, *reference) in messages.items():
        outcome = outcomes.get(client)
        decode_seconds = outcome.decode_seconds if isinstance(outcome, Reply) else 0.0
        yield Crossing(server.round, client, "down", Kind.TASK, task, 0, 0.0, 0.0)
        yield Crossing(server.round, client, "down", Kind.MODEL, model, kept, encode_seconds, decode_seconds, opened)
        for frame in reference:
            yield Crossing(server.round, client, "down", Kind.REFERENCE, frame, 0, 0.0, 0.0)
        encode_seconds = 0.0


def _uplink(
    plan: Plan, server: Server, replies: Sequence[Reply], folded: Mapping[ClientId, Folded] | None
) -> Iterator[Crossing]:
    """folded None: the replies were not folded, so nothing in them can be relied on, but they did cross."""
    for reply in replies:
        for frame in reply.frames:
            kept, decode_seconds, opened = 0, 0.0, None
            if folded is not None:
                opened, decode_seconds = folded[reply.client]
                kept = plan.uplink.kept(opened.sections, plan.context(server.round, reply.client))
            encode_seconds = reply.encode_seconds
            yield Crossing(server.round, reply.client, "up", Kind.UPDATE, frame, kept, encode_seconds, decode_seconds, opened)
