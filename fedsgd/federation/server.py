"""The server's side of a round: what is sent, and what becomes of the replies.

P parameters, N clients in all, m of them in the cohort.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from fedsgd.compression import AggregationContext, ClientId, StateArrays, WeightedUpdate
from fedsgd.config.user_errors import wrap_user_errors
from fedsgd.errors import NonFiniteError, RunError, WireError
from fedsgd.federation.buffers import DecodedUpdate, average_buffers, encode_buffers_frame, split_buffers
from fedsgd.federation.client_state import NONE_ACKNOWLEDGED, AcknowledgedRounds
from fedsgd.federation.downlink import CatchUpPlanner, EncodedFrame, PublicModel, initial_public_model, next_public_model
from fedsgd.federation.plan import FederationPlan, Message, Reply, describe_non_finite
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.reductions import all_finite
from fedsgd.optim import compute_server_step
from fedsgd.system.profiling import timed
from fedsgd.wire import (
    ALL_CLIENTS,
    HEADER_OFFSETS,
    Frame,
    FrameKind,
    Header,
    Sections,
    decode_frame,
    encode_frame,
    frame_overhead,
    require_header,
)


@dataclass(frozen=True, eq=False)
class ServerState:
    """The server between two rounds. round: the one to come, from 1; weights: the model that its optimiser works on [P];
    public: the model that clients of that round will decode, and how it is sent; statistics: what they start their batch norm
    from [S], if it is averaged; beside: the BUFFERS and the REFERENCE frame, where there are such; velocity, uplink: what the
    optimiser and the scheme remember; acknowledged: the last round in which each client's reply was accepted; sent: the frames
    of this round that several clients share, by what they are."""

    round: int
    weights: F32
    public_model: PublicModel
    buffers: F32 | None = None
    extra_frames: tuple[EncodedFrame, ...] = ()
    optimizer_state: StateArrays = field(default_factory=dict)
    scheme_state: StateArrays = field(default_factory=dict)
    acknowledged_rounds: AcknowledgedRounds = NONE_ACKNOWLEDGED
    shared_frames: tuple[EncodedFrame, ...] = ()


class AggregatedReply(NamedTuple):
    """A reply that is part of the next model. frame: decoded; sections: those in it that are the scheme's; seconds: what
    decoding and adding these took."""

    frame: Frame
    sections: Sections
    seconds: float


def initial_server_state(plan: FederationPlan, weights: F32) -> ServerState:
    """The server before round 1, with initial weights [P]."""
    with wrap_user_errors("downlink.compressor", plan.downlink):
        public = initial_public_model(plan.downlink, weights, lambda round: plan.make_context(round, ALL_CLIENTS))
    initial = None if plan.buffers is None else plan.buffers.averaged
    return ServerState(1, weights, public, initial, () if initial is None else (encode_buffers_frame(1, initial),))


def broadcast(
    plan: FederationPlan, server: ServerState, cohort: Sequence[ClientId]
) -> tuple[dict[ClientId, Message], ServerState]:
    """(each client's message, the server): a TASK frame of its own and the frames that bring it to the present model."""
    known = {client: server.acknowledged_rounds.get(client) for client in cohort}
    return _messages_for(plan, server, {client: (round, round) for client, round in known.items()})


def rebroadcast(
    plan: FederationPlan, server: ServerState, resync_frames: Mapping[ClientId, Frame]
) -> tuple[dict[ClientId, Message], ServerState]:
    """The same for clients that answered with a RESYNC: from the model that each says it has, and with what it still knows of
    its replies."""
    known = {}
    for client, frame in resync_frames.items():
        accepted = server.acknowledged_rounds.get(client)
        known[client] = frame.header.base, accepted if accepted <= frame.header.acknowledged else 0
    return _messages_for(plan, server, known)


def _messages_for(
    plan: FederationPlan, server: ServerState, client_rounds: Mapping[ClientId, tuple[int, int]]
) -> tuple[dict[ClientId, Message], ServerState]:
    """known: the round of the model that each client holds at least, and that of its last reply that was accepted, 0 for
    none."""
    post = CatchUpPlanner(plan.downlink, server.public_model, lambda round: plan.make_context(round, ALL_CLIENTS))
    messages: dict[ClientId, Message] = {}
    sent = {id(frame): frame for frame in server.shared_frames}
    for client, (held, accepted) in client_rounds.items():
        with wrap_user_errors("downlink.compressor", plan.downlink, server.round):
            frames = post.plan_frames(plan.downlink.assumed_base_round(server.round, held))
        base = frames[0].decoded.header.base
        task = Header(FrameKind.TASK, server.round, base=base, acknowledged=accepted, client=client)
        messages[client] = (encode_frame(Frame(task)), *(frame.data for frame in (*frames, *server.extra_frames)))
        sent.update({id(frame): frame for frame in (*frames, *server.extra_frames)})
    return messages, replace(server, shared_frames=tuple(sent.values()))


@timed("aggregate")
def aggregate(
    plan: FederationPlan,
    server: ServerState,
    replies: Sequence[Reply],
    inclusion_probabilities: Mapping[ClientId, float] | None = None,
) -> tuple[ServerState, Mapping[ClientId, AggregatedReply]]:
    """(the server of the next round, what became of each client's reply).

    The replies are folded in ascending client order whatever order they came in, weighted by examples (for whose number the
    client's word is taken) or uniformly. chances: each one's probability of being among these replies, where the mean is to be
    corrected for it (Horvitz and Thompson 1952): then it is the mean over all clients that is estimated, without bias. A bad
    frame raises WireError, with its client, before anything has changed.

    Without any reply the model stays as it is, and so do the states of the scheme and the optimizer. A scheme that
    `steps_without_replies` folds nothing instead, and the optimizer steps with the update that `aggregate` returns.
    """
    ordered = sorted(replies, key=lambda reply: reply.client)
    if len({reply.client for reply in ordered}) != len(ordered):
        raise RunError(server.round, None, "two replies of one client")
    if not ordered and not plan.uplink.steps_without_replies:
        return _publish_next_round(plan, server, server.weights, np.zeros_like(server.weights)), {}
    opened = [decode_update(plan, reply, server.round) for reply in ordered]
    shares = _aggregation_weights(plan, server.round, [update.frame for update in opened], inclusion_probabilities)
    update, uplink, seconds = _aggregate_updates(plan, server, opened, _fednova_weights(plan, server.round, opened, shares))
    folded = {u.frame.header.client: AggregatedReply(u.frame, u.sections, s) for u, s in zip(opened, seconds, strict=True)}
    sent = [update.buffers for update in opened if update.buffers is not None]
    statistics = average_buffers(sent, shares) if sent else server.buffers
    weights, step, velocity = compute_server_step(
        plan.server_optimizer, server.weights, update, server.optimizer_state, server.round
    )
    if not np.isfinite(weights).all():
        raise NonFiniteError(server.round, None, f"after the server's step {describe_non_finite(weights, plan.layout)}")
    acknowledged = server.acknowledged_rounds.with_rounds([reply.client for reply in ordered], server.round)
    after = replace(server, buffers=statistics, optimizer_state=velocity, scheme_state=uplink, acknowledged_rounds=acknowledged)
    return _publish_next_round(plan, after, weights, step), folded


def advance_with_external_model(
    plan: FederationPlan, server: ServerState, weights: F32, accepted_clients: Sequence[ClientId]
) -> ServerState:
    """The server of the next round where something else than `aggregate` made its model of the replies, as somebody's own
    strategy does. weights: that model [P]; accepted: whose replies are in it. NonFiniteError if it is not finite."""
    if not all_finite(weights):
        raise NonFiniteError(server.round, None, f"after the server's step {describe_non_finite(weights, plan.layout)}")
    acknowledged = server.acknowledged_rounds.with_rounds(accepted_clients, server.round)
    return _publish_next_round(plan, replace(server, acknowledged_rounds=acknowledged), weights, weights - server.weights)


def _aggregate_updates(
    plan: FederationPlan, server: ServerState, updates: Sequence[DecodedUpdate], aggregation_weights: F64
) -> tuple[F32, StateArrays, list[float]]:
    """(the cohort's update [P], what the scheme remembers at the server, the seconds that each reply took)."""
    seconds: list[float] = []
    at: ClientId | None = None

    def iterate_timed() -> Iterator[WeightedUpdate]:
        nonlocal at
        for update, share in zip(updates, aggregation_weights, strict=True):
            at, begun = update.frame.header.client, time.perf_counter()
            yield WeightedUpdate(update.sections, float(share), plan.make_context(server.round, at))
            seconds.append(time.perf_counter() - begun)
        at = None

    gathering = AggregationContext(plan.seed, server.round, plan.layout, plan.n_clients)
    try:
        with (
            np.errstate(over="ignore", invalid="ignore"),  # finite replies may still add up to what is not, round after round
            wrap_user_errors("uplink.compressor", plan.uplink, server.round),
        ):
            update, uplink = plan.uplink.aggregate(server.scheme_state, iterate_timed(), gathering)
    except WireError as error:
        raise _add_location(error, server.round, at) from None
    if not all_finite(update):
        raise NonFiniteError(server.round, None, f"the cohort's update {describe_non_finite(update, plan.layout)}")
    return update, uplink, seconds


def _aggregation_weights(
    plan: FederationPlan, round: int, frames: Sequence[Frame], inclusion_probabilities: Mapping[ClientId, float] | None
) -> F64:
    """What each reply counts [m]. They add up to 1, but for chances."""
    if not frames:
        return np.zeros(0)
    examples = np.array([frame.header.examples for frame in frames], dtype=np.float64)
    counts = examples if plan.weighting == "examples" else np.ones(len(frames))
    if not counts.sum() > 0:
        raise RunError(round, None, "no client of the cohort has any examples: there is nothing to average")
    shares: F64 = counts / counts.sum()
    if inclusion_probabilities is not None:
        everybody = plan.n_examples if plan.weighting == "examples" else plan.n_clients
        shares = counts / np.array([inclusion_probabilities[frame.header.client] for frame in frames]) / everybody
    return shares


def _fednova_weights(plan: FederationPlan, round: int, updates: Sequence[DecodedUpdate], aggregation_weights: F64) -> F64:
    """What each update counts [m]: its share, or with FedNova by how far its steps go. Statistics do not grow with steps."""
    if not plan.uses_fednova or not updates:
        return aggregation_weights
    went = np.array([plan.local_training.fednova_normalizer(update.frame.header.examples, round) for update in updates])
    effective = float((aggregation_weights * went).sum() / aggregation_weights.sum())
    counts: F64 = np.divide(aggregation_weights * effective, went, out=np.zeros_like(aggregation_weights), where=went > 0)
    return counts


def _publish_next_round(plan: FederationPlan, server: ServerState, weights: F32, step: F32) -> ServerState:
    """The server of the coming round, with what its clients will get."""
    with wrap_user_errors("downlink.compressor", plan.downlink, server.round):
        weights, public = next_public_model(
            plan.downlink, server.public_model, weights, step, lambda round: plan.make_context(round, ALL_CLIENTS)
        )
    round, begun = server.round + 1, time.perf_counter()
    beside = [] if server.buffers is None else [encode_buffers_frame(round, server.buffers)]
    with wrap_user_errors("uplink.compressor", plan.uplink, server.round):
        sections = plan.uplink.encode_reference(server.scheme_state, plan.make_context(round, ALL_CLIENTS))
    if sections:
        frame = Frame(Header(FrameKind.REFERENCE, round, plan.uplink.codec), sections)
        beside.append(EncodedFrame(encode_frame(frame), frame, 0, time.perf_counter() - begun))
    return replace(server, round=round, weights=weights, public_model=public, extra_frames=tuple(beside), shared_frames=())


def decode_update(plan: FederationPlan, reply: Reply, round: int) -> DecodedUpdate:
    """What a reply says; WireError, with its client, if that is not an UPDATE of this round."""
    try:
        if len(reply.frames) != 1:
            raise WireError(0, f"{len(reply.frames)} frames, expected one UPDATE")
        frame = decode_frame(reply.frames[0], plan.max_update_bytes)
        codec, client = (plan.uplink.codec,), (reply.client,)
        require_header(
            frame.header, kind=(FrameKind.UPDATE,), codec=codec, round=(round,), base=(round,), client=client, acknowledged=(0,)
        )
        return split_buffers(frame, plan.buffers)
    except WireError as error:
        raise _add_location(error, round, reply.client) from None


def decode_resync(reply: Reply, round: int) -> Frame:
    """What a client that could not follow says; WireError if it cannot be read."""
    if len(reply.frames) != 1:
        raise WireError(0, f"{len(reply.frames)} frames, expected one RESYNC")
    frame = decode_frame(reply.frames[0], frame_overhead(0))
    require_header(frame.header, kind=(FrameKind.RESYNC,), codec=(0,), round=(round,), client=(reply.client,), examples=(0,))
    if frame.header.base >= round:
        raise WireError(HEADER_OFFSETS["base"], f"base is {frame.header.base}, expected a round before {round}")
    return frame


def _add_location(error: WireError, round: int, client: ClientId | None) -> WireError:
    """The same error with whose frame it is in front, where that is known."""
    where = f"round {round}: " if client is None else f"round {round}, client {client}: "
    return WireError(error.offset, error.cause, where, client)
