"""Server side of a round: broadcast the model, aggregate the replies."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from fedsgd.aggregation import AggregationContext, WeightedUpdate
from fedsgd.aggregation.result_check import check_result
from fedsgd.aggregation.server_step import compute_server_step
from fedsgd.aggregation.weighting import compute_weights, normalize_by_progress
from fedsgd.compression import ClientId, StateArrays
from fedsgd.config.registry import is_builtin
from fedsgd.config.user_errors import wrap_user_errors
from fedsgd.errors import NonFiniteError, RunError, WireError
from fedsgd.federation.buffers import DecodedUpdate, average_buffers, encode_buffers_frame, split_buffers
from fedsgd.federation.client_state import NONE_ACKNOWLEDGED, AcknowledgedRounds
from fedsgd.federation.downlink import CatchUpPlanner, EncodedFrame, PublicModel, initial_public_model, next_public_model
from fedsgd.federation.plan import FederationPlan, Message, Reply, describe_non_finite
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.reductions import all_finite
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
    """State of the server between two rounds.

    Attributes:
        round: the next round, from 1.
        weights: [P] float32, model that the server's optimizer steps.
        public_model: model that the clients of the next round decode, and the model's frames.
        buffers: [S'] float32, buffers that clients start from; None if there are none.
        extra_frames: BUFFERS and REFERENCE frames of the next round; empty if there are none.
        optimizer_state, aggregator_state: states of the server's optimizer, and of the aggregator.
        acknowledged_rounds: last round in which each client's reply was aggregated.
        shared_frames: frames of the next round that clients share and that were sent already.
    """

    round: int
    weights: F32
    public_model: PublicModel
    buffers: F32 | None = None
    extra_frames: tuple[EncodedFrame, ...] = ()
    optimizer_state: StateArrays = field(default_factory=dict)
    aggregator_state: StateArrays = field(default_factory=dict)
    acknowledged_rounds: AcknowledgedRounds = NONE_ACKNOWLEDGED
    shared_frames: tuple[EncodedFrame, ...] = ()


class AggregatedReply(NamedTuple):
    """Reply that was aggregated.

    Attributes:
        frame, sections: the decoded UPDATE frame, and the scheme's sections in the frame.
        seconds: seconds that the scheme took to decode and add the update.
    """

    frame: Frame
    sections: Sections
    seconds: float


def initial_server_state(plan: FederationPlan, weights: F32) -> ServerState:
    """Return the server's state before round 1.

    Args:
        plan: settings of the federation.
        weights: [P] float32, initial model.
    """
    with wrap_user_errors("downlink.compressor", plan.downlink):
        public_model = initial_public_model(plan.downlink, weights, lambda round: plan.make_context(round, ALL_CLIENTS))
    buffers = None if plan.buffers is None else plan.buffers.averaged
    extra_frames = () if buffers is None else (encode_buffers_frame(1, buffers),)
    aggregator_state = plan.aggregator.init_state(plan.layout)
    return ServerState(1, weights, public_model, buffers, extra_frames, aggregator_state=aggregator_state)


def broadcast(
    plan: FederationPlan, server: ServerState, cohort: Sequence[ClientId]
) -> tuple[dict[ClientId, Message], ServerState]:
    """Return the message of each client, and the server's state with the frames that were sent.

    A message has a TASK frame, and frames that bring the client to the current model.

    Args:
        plan: settings of the federation.
        server: state of the server.
        cohort: clients of the round.
    """
    acknowledged_rounds = {client: server.acknowledged_rounds.get(client) for client in cohort}
    return _encode_messages(plan, server, {client: (round, round) for client, round in acknowledged_rounds.items()})


def rebroadcast(
    plan: FederationPlan, server: ServerState, resync_frames: Mapping[ClientId, Frame]
) -> tuple[dict[ClientId, Message], ServerState]:
    """Return a second message for each client that replied with a RESYNC frame, and the server's state, as `broadcast` does.

    The frames start from the model that the client reports. A reply later than the client's state is not acknowledged.

    Args:
        plan: settings of the federation.
        server: state that `broadcast` returned.
        resync_frames: client → decoded RESYNC frame of the client.
    """
    client_rounds = {}
    for client, frame in resync_frames.items():
        acknowledged_round = server.acknowledged_rounds.get(client)
        client_rounds[client] = frame.header.base, acknowledged_round if acknowledged_round <= frame.header.acknowledged else 0
    return _encode_messages(plan, server, client_rounds)


def _encode_messages(
    plan: FederationPlan, server: ServerState, client_rounds: Mapping[ClientId, tuple[int, int]]
) -> tuple[dict[ClientId, Message], ServerState]:
    """Return the messages of a round, and the server's state with the frames that were sent.

    `client_rounds` maps each client to (round of the client's stored model or an earlier round, round of the client's last
    accepted reply). A round of 0 stands for no model and for no reply.
    """
    context = partial(plan.make_context, client=ALL_CLIENTS)
    planner = CatchUpPlanner(plan.downlink, server.public_model, context, server.shared_frames)
    messages: dict[ClientId, Message] = {}
    shared_frames = {id(frame): frame for frame in server.shared_frames}
    for client, (model_round, acknowledged_round) in client_rounds.items():
        with wrap_user_errors("downlink.compressor", plan.downlink, server.round):
            frames = planner.plan_frames(plan.downlink.assumed_base_round(server.round, model_round))
        base = frames[0].decoded.header.base
        task = Header(FrameKind.TASK, server.round, base=base, acknowledged=acknowledged_round, client=client)
        messages[client] = (encode_frame(Frame(task)), *(frame.data for frame in (*frames, *server.extra_frames)))
        shared_frames.update({id(frame): frame for frame in (*frames, *server.extra_frames)})
    return messages, replace(server, shared_frames=tuple(shared_frames.values()))


@timed("aggregate")
def aggregate(
    plan: FederationPlan,
    server: ServerState,
    replies: Sequence[Reply],
    inclusion_probabilities: Mapping[ClientId, float] | None = None,
) -> tuple[ServerState, Mapping[ClientId, AggregatedReply]]:
    """Aggregate the replies of a round and step the model.

        w_{t+1} = step(w_t, Δ_t), Δ_t = aggregator(p_i, Δ_i)

    With the weighted mean, Δ_t = Σ_i p_i Δ_i, this is algorithm 1 of McMahan et al. 2017, with the server optimizers of Reddi
    et al. 2021, algorithm 2. Weights p_i are in proportion to the examples that client i reports, or uniform;
    `aggregation.weighting` has their corrections. Replies are aggregated in ascending order of clients.

    Without replies the model and the states of aggregator and optimizer do not change. An aggregator with
    `steps_without_replies` aggregates an empty cohort instead, and the optimizer steps with the result.

    Args:
        plan: settings of the federation.
        server: state of the server.
        replies: accepted replies, in any order.
        inclusion_probabilities: client → probability that the client's reply is among `replies`; None for no correction.

    Returns:
        The server's state of the next round, and the decoded reply of each client.

    Raises:
        WireError: a frame is damaged; the error names the client.
        NonFiniteError: the aggregate or the new model is not finite.
        RunError: a client has two replies, or no client of the cohort has examples.
    """
    sorted_replies = sorted(replies, key=lambda reply: reply.client)
    if len({reply.client for reply in sorted_replies}) != len(sorted_replies):
        raise RunError(server.round, None, "the cohort has two replies of one client")
    if not sorted_replies and not plan.aggregator.steps_without_replies:
        step = np.zeros_like(server.weights) if plan.downlink.uses_server_step else None
        return _publish_next_round(plan, server, server.weights, step), {}
    decoded_updates = [decode_update(plan, reply, server.round) for reply in sorted_replies]
    frames = [update.frame for update in decoded_updates]
    aggregation_weights = _aggregation_weights(plan, server.round, frames, inclusion_probabilities)
    update_weights = _fednova_weights(plan, server.round, decoded_updates, aggregation_weights)
    update, aggregator_state, seconds = _aggregate_updates(plan, server, decoded_updates, update_weights)
    aggregated_replies = {
        decoded.frame.header.client: AggregatedReply(decoded.frame, decoded.sections, reply_seconds)
        for decoded, reply_seconds in zip(decoded_updates, seconds, strict=True)
    }
    client_buffers = [update.buffers for update in decoded_updates if update.buffers is not None]
    buffers = average_buffers(client_buffers, aggregation_weights) if client_buffers else server.buffers
    with wrap_user_errors("server.optimizer", plan.server_optimizer, server.round):
        weights, step, optimizer_state = compute_server_step(
            plan.server_optimizer,
            server.weights,
            update,
            server.optimizer_state,
            server.round,
            overwrite_update=_is_temporary(plan, update, (server.aggregator_state, aggregator_state)),
            needs_step=plan.downlink.uses_server_step,
        )
    del update
    if not all_finite(weights):
        raise NonFiniteError(server.round, None, f"after the server's step {describe_non_finite(weights, plan.layout)}")
    acknowledged_rounds = server.acknowledged_rounds.with_rounds([reply.client for reply in sorted_replies], server.round)
    next_state = replace(
        server,
        buffers=buffers,
        optimizer_state=optimizer_state,
        aggregator_state=aggregator_state,
        acknowledged_rounds=acknowledged_rounds,
    )
    return _publish_next_round(plan, next_state, weights, step), aggregated_replies


def advance_with_external_model(
    plan: FederationPlan, server: ServerState, weights: F32, accepted_clients: Sequence[ClientId]
) -> ServerState:
    """Return the next server state for a model that was computed outside `aggregate`, for example by a user's Flower strategy.

    Args:
        plan: settings of the federation.
        server: state of the server.
        weights: [P] float32, the new model. A model that is not finite raises a NonFiniteError.
        accepted_clients: clients whose replies the model includes.
    """
    if not all_finite(weights):
        raise NonFiniteError(server.round, None, f"after the server's step {describe_non_finite(weights, plan.layout)}")
    acknowledged_rounds = server.acknowledged_rounds.with_rounds(accepted_clients, server.round)
    next_state = replace(server, acknowledged_rounds=acknowledged_rounds)
    step = weights - server.weights if plan.downlink.uses_server_step else None
    return _publish_next_round(plan, next_state, weights, step)


def _is_temporary(plan: FederationPlan, update: F32, states: Sequence[StateArrays]) -> bool:
    """Return whether an aggregate may be overwritten: neither a state of the aggregator nor a user's class refers to it."""
    if not is_builtin(type(plan.aggregator)) or not update.flags.writeable:
        return False
    return not any(np.may_share_memory(update, array) for state in states for array in state.values())


def _aggregate_updates(
    plan: FederationPlan, server: ServerState, updates: Sequence[DecodedUpdate], aggregation_weights: F64
) -> tuple[F32, StateArrays, list[float]]:
    """Return the aggregated update [P], the aggregator's next state, and the seconds of each reply."""
    seconds: list[float] = []
    client: ClientId | None = None

    def iterate_timed() -> Iterator[WeightedUpdate]:
        nonlocal client
        for update, weight in zip(updates, aggregation_weights, strict=True):
            client, start_time = update.frame.header.client, time.perf_counter()
            yield WeightedUpdate(update.sections, float(weight), plan.make_context(server.round, client))
            seconds.append(time.perf_counter() - start_time)
        client = None

    ctx = AggregationContext(plan.seed, server.round, plan.layout, plan.n_clients, plan.uplink)
    try:
        with (
            np.errstate(over="ignore", invalid="ignore"),  # sums of finite replies may overflow
            wrap_user_errors("server.aggregator", plan.aggregator, server.round),
            wrap_user_errors("uplink.compressor", plan.uplink, server.round),
        ):
            result = plan.aggregator.aggregate(server.aggregator_state, iterate_timed(), ctx)
    except WireError as error:
        raise _add_location(error, server.round, client) from None
    update, aggregator_state = check_result(plan.aggregator, result, plan.layout.size, server.round)
    if not all_finite(update):
        raise NonFiniteError(server.round, None, f"the cohort's update {describe_non_finite(update, plan.layout)}")
    return update, aggregator_state, seconds


def _aggregation_weights(
    plan: FederationPlan, round: int, frames: Sequence[Frame], inclusion_probabilities: Mapping[ClientId, float] | None
) -> F64:
    """Return the replies' aggregation weights, [len(frames)] float64. Their sum is 1 without inclusion probabilities."""
    if not frames:
        return np.zeros(0)
    counts = [frame.header.examples if plan.weighting == "examples" else 1 for frame in frames]
    if not any(counts):
        raise RunError(round, None, "no client of the cohort has any examples, so there is nothing to average")
    if inclusion_probabilities is None:
        return compute_weights(counts)
    total = plan.n_examples if plan.weighting == "examples" else plan.n_clients
    return compute_weights(counts, [inclusion_probabilities[frame.header.client] for frame in frames], total)


def _fednova_weights(plan: FederationPlan, round: int, updates: Sequence[DecodedUpdate], aggregation_weights: F64) -> F64:
    """Return the weight of each update, [len(updates)] float64: FedNova's, if the plan uses it.

    Buffers do not grow with the number of steps, so the weight of a client's buffers is always p_i.
    """
    if not plan.uses_fednova or not updates:
        return aggregation_weights
    headers = [update.frame.header for update in updates]
    trainings = [plan.local_training_of(round, header.client) for header in headers]
    normalizers = [
        training.fednova_normalizer(header.examples, round) for training, header in zip(trainings, headers, strict=True)
    ]
    return normalize_by_progress(aggregation_weights, np.array(normalizers))


def _publish_next_round(plan: FederationPlan, server: ServerState, weights: F32, step: F32 | None) -> ServerState:
    """Return the next round's server state, with the frames that all clients of the round are sent."""
    with wrap_user_errors("downlink.compressor", plan.downlink, server.round):
        weights, public_model = next_public_model(
            plan.downlink, server.public_model, weights, step, lambda round: plan.make_context(round, ALL_CLIENTS)
        )
    round, start_time = server.round + 1, time.perf_counter()
    extra_frames = [] if server.buffers is None else [encode_buffers_frame(round, server.buffers)]
    with wrap_user_errors("uplink.compressor", plan.uplink, server.round):
        sections = plan.uplink.encode_reference(server.aggregator_state, plan.make_context(round, ALL_CLIENTS))
    if sections:
        frame = Frame(Header(FrameKind.REFERENCE, round, plan.uplink.codec), sections)
        extra_frames.append(EncodedFrame(encode_frame(frame), frame, 0, time.perf_counter() - start_time))
    return replace(
        server, round=round, weights=weights, public_model=public_model, extra_frames=tuple(extra_frames), shared_frames=()
    )


def decode_update(plan: FederationPlan, reply: Reply, round: int) -> DecodedUpdate:
    """Decode a reply's UPDATE frame. Raise a WireError that names the client unless the reply is one valid frame of the round.

    Args:
        plan: settings of the federation.
        reply: reply of a client.
        round: round in which the reply was sent.
    """
    try:
        if len(reply.frames) != 1:
            raise WireError(0, f"the reply has {len(reply.frames)} frames, expected one UPDATE")
        frame = decode_frame(reply.frames[0], plan.max_update_bytes)
        codec, client = (plan.uplink.codec,), (reply.client,)
        require_header(
            frame.header, kind=(FrameKind.UPDATE,), codec=codec, round=(round,), base=(round,), client=client, acknowledged=(0,)
        )
        return split_buffers(frame, plan.buffers)
    except WireError as error:
        raise _add_location(error, round, reply.client) from None


def decode_resync(reply: Reply, round: int) -> Frame:
    """Decode a reply's RESYNC frame. Raise a WireError unless the reply is one valid RESYNC frame of the round.

    Args:
        reply: reply of a client that could not decode its message.
        round: round in which the reply was sent.
    """
    if len(reply.frames) != 1:
        raise WireError(0, f"the reply has {len(reply.frames)} frames, expected one RESYNC")
    frame = decode_frame(reply.frames[0], frame_overhead(0))
    require_header(frame.header, kind=(FrameKind.RESYNC,), codec=(0,), round=(round,), client=(reply.client,), examples=(0,))
    if frame.header.base >= round:
        raise WireError(HEADER_OFFSETS["base"], f"base is {frame.header.base}, expected a round before {round}")
    return frame


def _add_location(error: WireError, round: int, client: ClientId | None) -> WireError:
    """Return the error with the round and the client (None if unknown) at the beginning of the message."""
    location = f"round {round}: " if client is None else f"round {round}, client {client}: "
    return WireError(error.offset, error.cause, location, client)
