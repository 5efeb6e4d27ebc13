"""One round: a `Runtime` carries the messages, and an observer is called for every frame that was sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fedsgd.compression import ClientId
from fedsgd.errors import FedsgdError, NonFiniteError, RunError, ScenarioError, WireError
from fedsgd.federation import AggregatedReply, FederationPlan, Message, Reply, ServerState, aggregate, broadcast, rebroadcast
from fedsgd.federation.server import decode_resync, decode_update
from fedsgd.sampling import Delivery, ParticipationModel, SampledCohort
from fedsgd.system.profiling import PhaseTimer
from fedsgd.wire import Frame, FrameKind, peek_kind


@dataclass(frozen=True, eq=False)
class ClientFailure:
    """Client without a valid reply.

    Attributes:
        client: client that was sent a message.
        error: cause of the failure.
    """

    client: ClientId
    error: Exception


ClientOutcome = Reply | ClientFailure
"""Outcome of a client in a round."""


class Runtime(Protocol):
    """Carrier of messages between the server and its clients, independent of the messages' content."""

    def list_clients(self) -> Sequence[ClientId]:
        """Return all clients that can be sent a message, ascending."""

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        """Deliver each message and yield one outcome for each client, in any order.

        Args:
            messages: message of each client.
            timeout: seconds after which a client without an outcome counts as failed; None for no limit.
        """


@dataclass(frozen=True, eq=False)
class FrameEvent:
    """One frame that was sent.

    Attributes:
        round: round of the frame.
        client: client that sends or receives the frame.
        direction: "down" from the server to the client, "up" from the client to the server.
        kind, frame: the frame's kind, and the frame's bytes.
        n_coordinates: coordinates of a MODEL or UPDATE frame; 0 for other kinds and for refused frames.
        encode_seconds: seconds that encoding took; 0 for TASK, RESYNC, and events of a shared frame after its first event.
        decode_seconds: on the uplink, seconds that the scheme took to decode and add the update. On the downlink, seconds that
            the client took to decode the whole message, in the event of the first MODEL frame alone.
        delivery: outcome of the delivery; "refused" for a frame that could not be read, or that a failed round had accepted;
            "diverged" for the empty frame of a client that sent nothing, because its update was not finite; "dropped" for the
            empty frame of a straggler that sent nothing.
        decoded: the decoded frame; None if the frame was not decoded.
        steps, examples_processed: of an UPDATE, local steps and examples in all their batches, as the client reports.
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
"""Function that is called for every frame that was sent."""


@dataclass(frozen=True, eq=False)
class RoundParticipants:
    """Participants of one round.

    Attributes:
        cohort: clients that were sent a message.
        accepted: clients whose update was aggregated, ascending.
        replies: all replies but RESYNC frames, ascending by client.
        failures: clients without a reply, or with an unreadable reply.
        diverged: clients of `failures` that were skipped because their update was not finite, ascending.
        dropped: stragglers that sent no update, ascending. They are not among `replies`.
    """

    cohort: tuple[ClientId, ...]
    accepted: tuple[ClientId, ...]
    replies: tuple[Reply, ...]
    failures: tuple[ClientFailure, ...]
    diverged: tuple[ClientId, ...] = ()
    dropped: tuple[ClientId, ...] = ()


@dataclass(eq=False)
class _ExchangeResult:
    """Result of sending messages once or twice. `runtime_error` is a violation of the runtime's contract."""

    server: ServerState
    messages: Mapping[ClientId, Message]
    outcomes: dict[ClientId, ClientOutcome]
    runtime_error: RunError | None
    resync_frames: dict[ClientId, Frame] = field(default_factory=dict)
    unreadable_replies: dict[ClientId, Reply] = field(default_factory=dict)

    @property
    def replies(self) -> list[Reply]:
        replies = (outcome for outcome in self.outcomes.values() if isinstance(outcome, Reply))
        return [reply for reply in replies if reply.client not in self.resync_frames]

    @property
    def failures(self) -> list[ClientFailure]:
        return [outcome for outcome in self.outcomes.values() if isinstance(outcome, ClientFailure)]


def run_round(
    plan: FederationPlan,
    server: ServerState,
    runtime: Runtime,
    participation: ParticipationModel,
    observer: FrameObserver,
    timeout: float | None = None,
    on_failure: Literal["stop", "continue"] = "stop",
    on_divergence: Literal["stop", "skip"] = "stop",
) -> tuple[ServerState, RoundParticipants]:
    """Run one round, and return the server's state before the next round, and the round's participants.

    Args:
        plan: settings of the federation.
        server: state of the server before the round.
        runtime: carrier of the messages.
        participation: model of the cohorts and of the deliveries.
        observer: function that is called for every frame that was sent, before any error is raised.
        timeout: seconds that the runtime waits for replies; None for no limit.
        on_failure: "stop" raises the failure of a client, or the error of an unreadable reply, as a FedsgdError. "continue"
            treats such a reply as lost. Errors of the runtime, of aggregation and of worker processes are always raised.
        on_divergence: "skip" treats a client whose update is not finite as a client that sends nothing; "stop" as `on_failure`.
    """
    sampled_cohort = participation.sample_round(server.round)
    exchange = _exchange_with_resync(plan, server, runtime, sampled_cohort.cohort, observer, timeout)
    replies, dropped_replies = _separate_dropped(plan, server.round, exchange.replies)
    failures = exchange.failures
    deliveries = participation.delivery_of(server.round, {reply.client: reply.steps for reply in replies})
    accepted_replies = [reply for reply in replies if deliveries[reply.client] == "received"]
    try:
        if exchange.runtime_error is not None:
            raise exchange.runtime_error
        diverged = [f.client for f in failures if on_divergence == "skip" and isinstance(f.error, NonFiniteError)]
        other_failures = [failure for failure in failures if failure.client not in diverged]
        fatal_failures = [f for f in other_failures if on_failure == "stop" or isinstance(f.error, ChildProcessError)]
        if fatal_failures:
            raise as_run_error(server.round, fatal_failures[0])
        next_server, aggregated_replies, unreadable_failures = _aggregate_readable_replies(
            plan, exchange.server, sampled_cohort, accepted_replies, on_failure == "continue"
        )
    except FedsgdError:
        deliveries = {client: "refused" if delivery == "received" else delivery for client, delivery in deliveries.items()}
        for event in _uplink_events(plan, server, replies, deliveries, {}):
            observer(event)
        raise
    failures += unreadable_failures
    deliveries = {**deliveries, **dict.fromkeys((failure.client for failure in unreadable_failures), "refused")}
    with PhaseTimer("ledger"):
        for event in _uplink_events(plan, server, replies, deliveries, aggregated_replies):
            observer(event)
        for event in _silent_events(server.round, diverged, dropped_replies):
            observer(event)
    dropped = tuple(reply.client for reply in dropped_replies)
    return next_server, RoundParticipants(
        sampled_cohort.cohort, tuple(aggregated_replies), tuple(replies), tuple(failures), tuple(diverged), dropped
    )


def _separate_dropped(plan: FederationPlan, round: int, replies: Sequence[Reply]) -> tuple[list[Reply], list[Reply]]:
    """Return the replies with frames, and the replies of dropped stragglers, which have none."""
    stragglers = plan.stragglers
    if stragglers is None:
        return list(replies), []
    dropped = {reply.client for reply in replies if not reply.frames and stragglers.is_dropped(round, reply.client)}
    return [r for r in replies if r.client not in dropped], [r for r in replies if r.client in dropped]


def _silent_events(round: int, diverged: Sequence[ClientId], dropped_replies: Sequence[Reply]) -> Iterator[FrameEvent]:
    """Yield an event with an empty frame for each client that sent nothing."""
    for client in diverged:
        yield FrameEvent(round, client, "up", FrameKind.UPDATE, b"", 0, 0.0, 0.0, "diverged")
    for reply in dropped_replies:
        counts = reply.steps, reply.examples_processed
        yield FrameEvent(round, reply.client, "up", FrameKind.UPDATE, b"", 0, 0.0, 0.0, "dropped", None, *counts)


def _aggregate_readable_replies(
    plan: FederationPlan,
    server: ServerState,
    sampled_cohort: SampledCohort,
    accepted_replies: Sequence[Reply],
    skip_unreadable: bool,
) -> tuple[ServerState, Mapping[ClientId, AggregatedReply], list[ClientFailure]]:
    """Return the next server state, the aggregated replies, and the failures.

    If `skip_unreadable`, a reply that cannot be read becomes a failure, and the aggregation starts again without the reply.
    """
    failures: list[ClientFailure] = []
    while True:
        readable_replies = [reply for reply in accepted_replies if reply.client not in {failure.client for failure in failures}]
        probabilities = _inclusion_probabilities(sampled_cohort, readable_replies)
        try:
            return *aggregate(plan, server, readable_replies, probabilities), failures
        except WireError as error:
            if not skip_unreadable or error.client is None:
                raise
            failures.append(ClientFailure(error.client, error))


def _inclusion_probabilities(sampled_cohort: SampledCohort, accepted_replies: Sequence[Reply]) -> dict[ClientId, float] | None:
    """Return the probability that each accepted reply is aggregated; None if the sampler gives no inclusion probabilities.

    The probability that a sampled client is accepted is estimated by the share of the cohort that was accepted.
    """
    if sampled_cohort.inclusion_probabilities is None:
        return None
    accepted_share = len(accepted_replies) / max(1, len(sampled_cohort.cohort))
    probabilities = dict(zip(sampled_cohort.cohort, sampled_cohort.inclusion_probabilities.tolist(), strict=True))
    return {reply.client: probabilities[reply.client] * accepted_share for reply in accepted_replies}


def _exchange_with_resync(
    plan: FederationPlan,
    server: ServerState,
    runtime: Runtime,
    cohort: Sequence[ClientId],
    observer: FrameObserver,
    timeout: float | None,
) -> _ExchangeResult:
    """Send the messages of a round, and a second message to each client that replied with a RESYNC frame."""
    messages, sending_server = broadcast(plan, server, cohort)
    first_result = _exchange_once(server.round, messages, sending_server, runtime, timeout)
    with PhaseTimer("ledger"):
        _emit_downlink_events(first_result, observer)
    if not first_result.resync_frames or first_result.runtime_error is not None:
        return first_result
    messages, sending_server = rebroadcast(plan, sending_server, first_result.resync_frames)
    second_result = _exchange_once(server.round, messages, sending_server, runtime, timeout)
    with PhaseTimer("ledger"):
        _emit_downlink_events(second_result, observer)
    problem = "the client replied RESYNC to a second message"
    failures = {c: ClientFailure(c, RunError(server.round, c, problem)) for c in second_result.resync_frames}
    outcomes = {**first_result.outcomes, **second_result.outcomes, **failures}
    return _ExchangeResult(sending_server, first_result.messages, dict(sorted(outcomes.items())), second_result.runtime_error)


def _exchange_once(
    round: int, messages: Mapping[ClientId, Message], server: ServerState, runtime: Runtime, timeout: float | None
) -> _ExchangeResult:
    """Send messages and return one outcome for each, ascending by client. A client without an outcome has failed."""
    outcomes: dict[ClientId, ClientOutcome] = {}
    runtime_error: RunError | None = None
    try:
        for outcome in runtime.exchange(messages, timeout) if messages else ():
            if outcome.client not in messages or outcome.client in outcomes:
                problem = "a second outcome" if outcome.client in outcomes else "an outcome for a client that was sent nothing"
                runtime_error = RunError(round, outcome.client, f"the runtime gave {problem}")
                break
            outcomes[outcome.client] = outcome
    except Exception as error:
        runtime_error = RunError(round, None, f"the runtime failed: {type(error).__name__}: {error}")
        runtime_error.__cause__ = error
    failures = {client: ClientFailure(client, TimeoutError("no reply")) for client in messages if client not in outcomes}
    result = _ExchangeResult(server, messages, dict(sorted({**outcomes, **failures}.items())), runtime_error)
    for reply in result.replies:
        if reply.frames and peek_kind(reply.frames[0]) == FrameKind.RESYNC:
            try:
                result.resync_frames[reply.client] = decode_resync(reply, round)
            except FedsgdError as error:
                result.outcomes[reply.client] = ClientFailure(reply.client, error)
                result.unreadable_replies[reply.client] = reply
    return result


def as_run_error(round: int, failure: ClientFailure) -> FedsgdError:
    """Return a client's failure as an error that names round and client.

    Args:
        round: round of the failure.
        failure: failure of a client, caused by user code or by this package.
    """
    if isinstance(failure.error, RunError) or (isinstance(failure.error, WireError) and failure.error.client is not None):
        return failure.error
    # The message of a ScenarioError begins with the key.
    prefix = "" if isinstance(failure.error, ScenarioError) else f"{type(failure.error).__name__}: "
    error = RunError(round, failure.client, f"{prefix}{failure.error}")
    error.__cause__ = failure.error
    return error


def _emit_downlink_events(result: _ExchangeResult, observer: FrameObserver) -> None:
    """Call the observer for the frames of an exchange: all downlink frames, and the RESYNC frames of the uplink."""
    server = result.server
    frames_by_id = {id(encoded.data): encoded for encoded in server.shared_frames}
    unreported_ids = {key for key, encoded in frames_by_id.items() if encoded.decoded.header.round == server.round}
    for client, (task, *shared_frames) in result.messages.items():
        outcome = result.outcomes.get(client)
        decode_seconds = outcome.decode_seconds if isinstance(outcome, Reply) else 0.0
        observer(FrameEvent(server.round, client, "down", FrameKind.TASK, task, 0, 0.0, 0.0))
        for frame in shared_frames:
            encoded = frames_by_id[id(frame)]
            seconds = encoded.encode_seconds if id(frame) in unreported_ids else 0.0
            unreported_ids.discard(id(frame))
            kind, times = encoded.decoded.header.kind, (seconds, decode_seconds)
            observer(
                FrameEvent(server.round, client, "down", kind, frame, encoded.n_coordinates, *times, decoded=encoded.decoded)
            )
            decode_seconds = 0.0
    for client, resync_frame in result.resync_frames.items():
        reply = result.outcomes[client]
        assert isinstance(reply, Reply)
        observer(FrameEvent(server.round, client, "up", FrameKind.RESYNC, reply.frames[0], 0, 0.0, 0.0, decoded=resync_frame))
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
    """Yield the events of the clients' replies, refused replies included, because these were sent as well."""
    for reply in replies:
        delivery = deliveries[reply.client]
        for frame in reply.frames:
            n_coordinates, decode_seconds, decoded = 0, 0.0, None
            if delivery == "received":
                decoded, sections, decode_seconds = aggregated_replies[reply.client]
                n_coordinates = plan.uplink.n_coordinates(sections, plan.make_context(server.round, reply.client))
            elif delivery != "refused":
                with suppress(WireError):  # the frame has not been decoded yet
                    sections = decode_update(plan, reply, server.round).sections
                    n_coordinates = plan.uplink.n_coordinates(sections, plan.make_context(server.round, reply.client))
            seconds, counts = (reply.encode_seconds, decode_seconds), (reply.steps, reply.examples_processed)
            source = server.round, reply.client
            yield FrameEvent(*source, "up", FrameKind.UPDATE, frame, n_coordinates, *seconds, delivery, decoded, *counts)
