"""The loop over rounds: a Runtime carries the messages, an observer sees every frame that crossed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fedsgd.compress import ClientId
from fedsgd.errors import FedsgdError, RunError, ScenarioError, WireError
from fedsgd.participation import Attendance, Drawn, Fate
from fedsgd.profiling import Within
from fedsgd.rounds import Folded, Message, Plan, Reply, Server, again, aggregate, broadcast
from fedsgd.rounds.server import open_resync, open_update
from fedsgd.wire import Frame, Kind, kind_of


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
    REFERENCE, a RESYNC, and what could not be read); fate: whether it arrived and was taken ("refused": it could not be read);
    opened: what it decodes to, where that is known already.

    encode_seconds: a frame that clients share is encoded once, and that time stands where it crossed first. decode_seconds: at
    the server, the time to decode and add it; at the client, to check and decode the message (on its first MODEL frame). steps,
    seen: of an UPDATE, the local steps behind it, and the examples that they took in, by its client's word.
    """

    round: int
    client: ClientId
    direction: Literal["down", "up"]
    kind: Kind
    frame: bytes
    kept: int
    encode_seconds: float
    decode_seconds: float
    fate: Fate = "received"
    opened: Frame | None = None
    steps: int = 0
    seen: int = 0


Observer = Callable[[Crossing], None]


@dataclass(frozen=True, eq=False)
class Attended:
    """Who was there in a round. cohort: who was sent a message; accepted: whose reply is in the model, ascending; replies: of
    all from whom one came, ascending; failures: who gave none, or none that could be read, and why."""

    cohort: tuple[ClientId, ...]
    accepted: tuple[ClientId, ...]
    replies: tuple[Reply, ...]
    failures: tuple[Failure, ...]


@dataclass(eq=False)
class _Exchanged:
    """What came of one exchange. resyncs: who could not follow, and what they said; unread: what says that it is the same and
    cannot be read; broken: what the runtime did against its contract."""

    server: Server
    messages: Mapping[ClientId, Message]
    outcomes: dict[ClientId, Outcome]
    broken: RunError | None
    resyncs: dict[ClientId, Frame] = field(default_factory=dict)
    unread: dict[ClientId, Reply] = field(default_factory=dict)

    @property
    def replies(self) -> list[Reply]:
        return [o for o in self.outcomes.values() if isinstance(o, Reply) and o.client not in self.resyncs]

    @property
    def failures(self) -> list[Failure]:
        return [outcome for outcome in self.outcomes.values() if isinstance(outcome, Failure)]


def run(
    plan: Plan,
    server: Server,
    runtime: Runtime,
    attendance: Attendance,
    observer: Observer,
    timeout: float | None = None,
    on_failure: Literal["stop", "continue"] = "stop",
) -> Iterator[tuple[Server, Attended]]:
    """Round after round without end: yields (the server after the round, who was there). The caller decides when to stop.

    A client that fails, or whose reply cannot be read, ends the run with its error, or counts as one whose reply never arrived
    (on_failure = "continue"). A runtime that breaks its own contract (it raises, or gives two outcomes for a client) ends it in
    any case, after the frames that did cross have been shown; and so does one of its processes that dies (ChildProcessError),
    which is no client's doing.
    """
    while True:
        drawn = attendance.invited(server.round)
        exchanged = _exchanges(plan, server, runtime, drawn.cohort, observer, timeout)
        replies, failures = exchanged.replies, exchanged.failures
        fates = attendance.fates(server.round, {reply.client: reply.steps for reply in replies})
        accepted = [reply for reply in replies if fates[reply.client] == "received"]
        try:
            if exchanged.broken is not None:
                raise exchanged.broken
            fatal = [f for f in failures if on_failure == "stop" or isinstance(f.error, ChildProcessError)]
            if fatal:
                raise as_error(server.round, fatal[0])
            following, folded, refused = _aggregated(plan, exchanged.server, drawn, accepted, on_failure == "continue")
        except FedsgdError:
            fates = {client: "refused" if fate == "received" else fate for client, fate in fates.items()}
            for crossing in _uplink(plan, server, replies, fates, {}):
                observer(crossing)
            raise
        failures += refused
        fates = {**fates, **dict.fromkeys((failure.client for failure in refused), "refused")}
        with Within("ledger"):
            for crossing in _uplink(plan, server, replies, fates, folded):
                observer(crossing)
        server = following
        yield server, Attended(drawn.cohort, tuple(folded), tuple(replies), tuple(failures))


def _aggregated(
    plan: Plan, server: Server, drawn: Drawn, accepted: Sequence[Reply], forgiving: bool
) -> tuple[Server, Mapping[ClientId, Folded], list[Failure]]:
    """(the server of the next round, what became of each reply, whose could not be read). forgiving: whether the round goes on
    without those; aggregating changes nothing, so it can begin again."""
    refused: list[Failure] = []
    while True:
        left = [reply for reply in accepted if reply.client not in {failure.client for failure in refused}]
        try:
            return (*aggregate(plan, server, left, _chances(drawn, left)), refused)
        except WireError as error:
            if not forgiving or error.client is None:
                raise
            refused.append(Failure(error.client, error))


def _chances(drawn: Drawn, accepted: Sequence[Reply]) -> dict[ClientId, float] | None:
    """What the mean is to be corrected by: the chance of being drawn, times the share of the cohort whose replies were taken,
    which is the best guess at each one's chance of that."""
    if drawn.chances is None:
        return None
    taken = len(accepted) / max(1, len(drawn.cohort))
    chances = dict(zip(drawn.cohort, drawn.chances.tolist(), strict=True))
    return {reply.client: chances[reply.client] * taken for reply in accepted}


def _exchanges(
    plan: Plan, server: Server, runtime: Runtime, cohort: Sequence[ClientId], observer: Observer, timeout: float | None
) -> _Exchanged:
    """The outcomes of all clients; who could not follow the first message has had a second one."""
    messages, sending = broadcast(plan, server, cohort)
    first = _exchange(server.round, messages, sending, runtime, timeout)
    with Within("ledger"):
        _show(first, observer)
    if not first.resyncs or first.broken is not None:
        return first
    messages, sending = again(plan, sending, first.resyncs)
    second = _exchange(server.round, messages, sending, runtime, timeout)
    with Within("ledger"):
        _show(second, observer)
    lost = [Failure(c, RunError(server.round, c, "it asked for another message twice")) for c in second.resyncs]
    both = {**first.outcomes, **second.outcomes, **{failure.client: failure for failure in lost}}
    return _Exchanged(sending, first.messages, dict(sorted(both.items())), second.broken)


def _exchange(
    round: int, messages: Mapping[ClientId, Message], server: Server, runtime: Runtime, timeout: float | None
) -> _Exchanged:
    """One outcome for each message, ascending by client; a client of which nothing was heard has failed."""
    outcomes: dict[ClientId, Outcome] = {}
    broken: RunError | None = None
    try:
        for outcome in runtime.exchange(messages, timeout) if messages else ():
            if outcome.client not in messages or outcome.client in outcomes:
                problem = "a second outcome" if outcome.client in outcomes else "an outcome though it was sent nothing"
                broken = RunError(round, outcome.client, f"the runtime gave {problem}")
                break
            outcomes[outcome.client] = outcome
    except Exception as error:
        broken = RunError(round, None, f"the runtime failed: {type(error).__name__}: {error}")
        broken.__cause__ = error
    silent = {client: Failure(client, TimeoutError("no reply")) for client in messages if client not in outcomes}
    exchanged = _Exchanged(server, messages, dict(sorted({**outcomes, **silent}.items())), broken)
    for reply in exchanged.replies:
        if reply.frames and kind_of(reply.frames[0]) == Kind.RESYNC:
            try:
                exchanged.resyncs[reply.client] = open_resync(reply, round)
            except FedsgdError as error:
                exchanged.outcomes[reply.client] = Failure(reply.client, error)
                exchanged.unread[reply.client] = reply
    return exchanged


def as_error(round: int, failure: Failure) -> FedsgdError:
    """The failing client and round in front of whatever went wrong there: the user's module, loss or data, or our own."""
    if isinstance(failure.error, RunError) or (isinstance(failure.error, WireError) and failure.error.client is not None):
        return failure.error
    kind = "" if isinstance(failure.error, ScenarioError) else f"{type(failure.error).__name__}: "  # has the key in front
    error = RunError(round, failure.client, f"{kind}{failure.error}")
    error.__cause__ = failure.error
    return error


def _show(exchanged: _Exchanged, observer: Observer) -> None:
    """The frames that went down in an exchange, and the RESYNC frames that came up."""
    server = exchanged.server
    made = {id(encoded.data): encoded for encoded in server.sent}
    untold = {key for key, encoded in made.items() if encoded.opened.header.round == server.round}
    for client, (task, *shared) in exchanged.messages.items():
        outcome = exchanged.outcomes.get(client)
        decode_seconds = outcome.decode_seconds if isinstance(outcome, Reply) else 0.0
        observer(Crossing(server.round, client, "down", Kind.TASK, task, 0, 0.0, 0.0))
        for frame in shared:
            encoded = made[id(frame)]
            seconds = encoded.seconds if id(frame) in untold else 0.0
            untold.discard(id(frame))
            kind = encoded.opened.header.kind
            observer(
                Crossing(
                    server.round, client, "down", kind, frame, encoded.kept, seconds, decode_seconds, opened=encoded.opened
                )
            )
            decode_seconds = 0.0
    for client, opened in exchanged.resyncs.items():
        reply = exchanged.outcomes[client]
        assert isinstance(reply, Reply)
        observer(Crossing(server.round, client, "up", Kind.RESYNC, reply.frames[0], 0, 0.0, 0.0, opened=opened))
    for client, reply in exchanged.unread.items():
        for frame in reply.frames:
            observer(Crossing(server.round, client, "up", Kind.RESYNC, frame, 0, 0.0, 0.0, "refused"))


def _uplink(
    plan: Plan,
    server: Server,
    replies: Sequence[Reply],
    fates: Mapping[ClientId, Fate],
    folded: Mapping[ClientId, Folded],
) -> Iterator[Crossing]:
    """What the clients sent. What was refused cannot be relied on, but it did cross."""
    for reply in replies:
        fate = fates[reply.client]
        for frame in reply.frames:
            kept, decode_seconds, opened = 0, 0.0, None
            if fate == "received":
                opened, sections, decode_seconds = folded[reply.client]
                kept = plan.uplink.kept(sections, plan.context(server.round, reply.client))
            elif fate != "refused":
                with suppress(WireError):  # nobody has looked at it
                    sections = open_update(plan, reply, server.round).sections
                    kept = plan.uplink.kept(sections, plan.context(server.round, reply.client))
            seconds, work = (reply.encode_seconds, decode_seconds), (reply.steps, reply.seen)
            yield Crossing(server.round, reply.client, "up", Kind.UPDATE, frame, kept, *seconds, fate, opened, *work)
