"""The loop over rounds: a Runtime carries the messages, an observer sees every frame that crossed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fedsgd.compression import ClientId
from fedsgd.errors import FedsgdError, RunError, ScenarioError, WireError
from fedsgd.federation import AggregatedReply, FederationPlan, Message, Reply, ServerState, aggregate, broadcast, rebroadcast
from fedsgd.federation.server import decode_resync, decode_update
from fedsgd.sampling import Delivery, ParticipationModel, SampledCohort
from fedsgd.system.profiling import PhaseTimer
from fedsgd.wire import Frame, FrameKind, peek_kind


@dataclass(frozen=True, eq=False)
class ClientFailure:
    """No answer from this client, and why."""

    client: ClientId
    error: Exception


ClientOutcome = Reply | ClientFailure


class Runtime(Protocol):
    """Carries frames between the server and its clients, and knows nothing of what is in them."""

    def list_clients(self) -> Sequence[ClientId]:
        """All clients there are, ascending."""

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        """Deliver each message; yield one outcome per client, in any order, within `timeout` seconds."""


@dataclass(frozen=True, eq=False)
class FrameEvent:
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
    kind: FrameKind
    frame: bytes
    n_coordinates: int
    encode_seconds: float
    decode_seconds: float
    delivery: Delivery = "received"
    decoded: Frame | None = None
    steps: int = 0
    examples_processed: int = 0


FrameObserver = Callable[[FrameEvent], None]


@dataclass(frozen=True, eq=False)
class RoundParticipants:
    """Who was there in a round. cohort: who was sent a message; accepted: whose reply is in the model, ascending; replies: of
    all from whom one came, ascending; failures: who gave none, or none that could be read, and why."""

    cohort: tuple[ClientId, ...]
    accepted: tuple[ClientId, ...]
    replies: tuple[Reply, ...]
    failures: tuple[ClientFailure, ...]


@dataclass(eq=False)
class _ExchangeResult:
    """What came of one exchange. resyncs: who could not follow, and what they said; unread: what says that it is the same and
    cannot be read; broken: what the runtime did against its contract."""

    server: ServerState
    messages: Mapping[ClientId, Message]
    outcomes: dict[ClientId, ClientOutcome]
    runtime_error: RunError | None
    resync_frames: dict[ClientId, Frame] = field(default_factory=dict)
    unreadable_replies: dict[ClientId, Reply] = field(default_factory=dict)

    @property
    def replies(self) -> list[Reply]:
        return [o for o in self.outcomes.values() if isinstance(o, Reply) and o.client not in self.resync_frames]

    @property
    def failures(self) -> list[ClientFailure]:
        return [outcome for outcome in self.outcomes.values() if isinstance(outcome, ClientFailure)]


def run_rounds(
    plan: FederationPlan,
    server: ServerState,
    runtime: Runtime,
    participation: ParticipationModel,
    observer: FrameObserver,
    timeout: float | None = None,
    on_failure: Literal["stop", "continue"] = "stop",
) -> Iterator[tuple[ServerState, RoundParticipants]]:
    """Round after round without end: yields (the server after the round, who was there). The caller decides when to stop.

    A client that fails, or whose reply cannot be read, ends the run with its error, or counts as one whose reply never arrived
    (on_failure = "continue"). A runtime that breaks its own contract (it raises, or gives two outcomes for a client) ends it in
    any case, after the frames that did cross have been shown; and so does one of its processes that dies (ChildProcessError),
    which is no client's doing.
    """
    while True:
        drawn = participation.sample_round(server.round)
        exchanged = _exchange_with_resync(plan, server, runtime, drawn.cohort, observer, timeout)
        replies, failures = exchanged.replies, exchanged.failures
        fates = participation.delivery_of(server.round, {reply.client: reply.steps for reply in replies})
        accepted = [reply for reply in replies if fates[reply.client] == "received"]
        try:
            if exchanged.runtime_error is not None:
                raise exchanged.runtime_error
            fatal = [f for f in failures if on_failure == "stop" or isinstance(f.error, ChildProcessError)]
            if fatal:
                raise as_run_error(server.round, fatal[0])
            following, folded, refused = _aggregate_readable_replies(
                plan, exchanged.server, drawn, accepted, on_failure == "continue"
            )
        except FedsgdError:
            fates = {client: "refused" if fate == "received" else fate for client, fate in fates.items()}
            for crossing in _uplink_events(plan, server, replies, fates, {}):
                observer(crossing)
            raise
        failures += refused
        fates = {**fates, **dict.fromkeys((failure.client for failure in refused), "refused")}
        with PhaseTimer("ledger"):
            for crossing in _uplink_events(plan, server, replies, fates, folded):
                observer(crossing)
        server = following
        yield server, RoundParticipants(drawn.cohort, tuple(folded), tuple(replies), tuple(failures))


def _aggregate_readable_replies(
    plan: FederationPlan,
    server: ServerState,
    sampled_cohort: SampledCohort,
    accepted_replies: Sequence[Reply],
    skip_unreadable: bool,
) -> tuple[ServerState, Mapping[ClientId, AggregatedReply], list[ClientFailure]]:
    """(the server of the next round, what became of each reply, whose could not be read). forgiving: whether the round goes on
    without those; aggregating changes nothing, so it can begin again."""
    refused: list[ClientFailure] = []
    while True:
        left = [reply for reply in accepted_replies if reply.client not in {failure.client for failure in refused}]
        try:
            return (*aggregate(plan, server, left, _inclusion_probabilities(sampled_cohort, left)), refused)
        except WireError as error:
            if not skip_unreadable or error.client is None:
                raise
            refused.append(ClientFailure(error.client, error))


def _inclusion_probabilities(sampled_cohort: SampledCohort, accepted_replies: Sequence[Reply]) -> dict[ClientId, float] | None:
    """What the mean is to be corrected by: the chance of being drawn, times the share of the cohort whose replies were taken,
    which is the best guess at each one's chance of that."""
    if sampled_cohort.inclusion_probabilities is None:
        return None
    taken = len(accepted_replies) / max(1, len(sampled_cohort.cohort))
    chances = dict(zip(sampled_cohort.cohort, sampled_cohort.inclusion_probabilities.tolist(), strict=True))
    return {reply.client: chances[reply.client] * taken for reply in accepted_replies}


def _exchange_with_resync(
    plan: FederationPlan,
    server: ServerState,
    runtime: Runtime,
    cohort: Sequence[ClientId],
    observer: FrameObserver,
    timeout: float | None,
) -> _ExchangeResult:
    """The outcomes of all clients; who could not follow the first message has had a second one."""
    messages, sending = broadcast(plan, server, cohort)
    first = _exchange_once(server.round, messages, sending, runtime, timeout)
    with PhaseTimer("ledger"):
        _emit_downlink_events(first, observer)
    if not first.resync_frames or first.runtime_error is not None:
        return first
    messages, sending = rebroadcast(plan, sending, first.resync_frames)
    second = _exchange_once(server.round, messages, sending, runtime, timeout)
    with PhaseTimer("ledger"):
        _emit_downlink_events(second, observer)
    lost = [ClientFailure(c, RunError(server.round, c, "it asked for another message twice")) for c in second.resync_frames]
    both = {**first.outcomes, **second.outcomes, **{failure.client: failure for failure in lost}}
    return _ExchangeResult(sending, first.messages, dict(sorted(both.items())), second.runtime_error)


def _exchange_once(
    round: int, messages: Mapping[ClientId, Message], server: ServerState, runtime: Runtime, timeout: float | None
) -> _ExchangeResult:
    """One outcome for each message, ascending by client; a client of which nothing was heard has failed."""
    outcomes: dict[ClientId, ClientOutcome] = {}
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
    silent = {client: ClientFailure(client, TimeoutError("no reply")) for client in messages if client not in outcomes}
    exchanged = _ExchangeResult(server, messages, dict(sorted({**outcomes, **silent}.items())), broken)
    for reply in exchanged.replies:
        if reply.frames and peek_kind(reply.frames[0]) == FrameKind.RESYNC:
            try:
                exchanged.resync_frames[reply.client] = decode_resync(reply, round)
            except FedsgdError as error:
                exchanged.outcomes[reply.client] = ClientFailure(reply.client, error)
                exchanged.unreadable_replies[reply.client] = reply
    return exchanged


def as_run_error(round: int, failure: ClientFailure) -> FedsgdError:
    """The failing client and round in front of whatever went wrong there: the user's module, loss or data, or our own."""
    if isinstance(failure.error, RunError) or (isinstance(failure.error, WireError) and failure.error.client is not None):
        return failure.error
    kind = "" if isinstance(failure.error, ScenarioError) else f"{type(failure.error).__name__}: "  # has the key in front
    error = RunError(round, failure.client, f"{kind}{failure.error}")
    error.__cause__ = failure.error
    return error


def _emit_downlink_events(result: _ExchangeResult, observer: FrameObserver) -> None:
    """The frames that went down in an exchange, and the RESYNC frames that came up."""
    server = result.server
    made = {id(encoded.data): encoded for encoded in server.shared_frames}
    untold = {key for key, encoded in made.items() if encoded.decoded.header.round == server.round}
    for client, (task, *shared) in result.messages.items():
        outcome = result.outcomes.get(client)
        decode_seconds = outcome.decode_seconds if isinstance(outcome, Reply) else 0.0
        observer(FrameEvent(server.round, client, "down", FrameKind.TASK, task, 0, 0.0, 0.0))
        for frame in shared:
            encoded = made[id(frame)]
            seconds = encoded.encode_seconds if id(frame) in untold else 0.0
            untold.discard(id(frame))
            kind = encoded.decoded.header.kind
            observer(
                FrameEvent(
                    server.round,
                    client,
                    "down",
                    kind,
                    frame,
                    encoded.n_coordinates,
                    seconds,
                    decode_seconds,
                    decoded=encoded.decoded,
                )
            )
            decode_seconds = 0.0
    for client, opened in result.resync_frames.items():
        reply = result.outcomes[client]
        assert isinstance(reply, Reply)
        observer(FrameEvent(server.round, client, "up", FrameKind.RESYNC, reply.frames[0], 0, 0.0, 0.0, decoded=opened))
    for client, reply in result.unreadable_replies.items():
        for frame in reply.frames:
            observer(FrameEvent(server.round, client, "up", FrameKind.RESYNC, frame, 0, 0.0, 0.0, "refused"))


def _uplink_events(
    plan: FederationPlan,
    server: ServerState,
    replies: Sequence[Reply],
    deliveries: Mapping[ClientId, Delivery],
    aggregated_replies: Mapping[ClientId, AggregatedReply],
) -> Iterator[FrameEvent]:
    """What the clients sent. What was refused cannot be relied on, but it did cross."""
    for reply in replies:
        fate = deliveries[reply.client]
        for frame in reply.frames:
            kept, decode_seconds, opened = 0, 0.0, None
            if fate == "received":
                opened, sections, decode_seconds = aggregated_replies[reply.client]
                kept = plan.uplink.n_coordinates(sections, plan.make_context(server.round, reply.client))
            elif fate != "refused":
                with suppress(WireError):  # nobody has looked at it
                    sections = decode_update(plan, reply, server.round).sections
                    kept = plan.uplink.n_coordinates(sections, plan.make_context(server.round, reply.client))
            seconds, work = (reply.encode_seconds, decode_seconds), (reply.steps, reply.examples_processed)
            yield FrameEvent(server.round, reply.client, "up", FrameKind.UPDATE, frame, kept, *seconds, fate, opened, *work)
