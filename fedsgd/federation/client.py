"""Client side of a round: decode the message, train, encode the update."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.compression import ClientId, EncodedUpdate, EntryPatch, StateArrays
from fedsgd.data import Examples
from fedsgd.errors import NonFiniteError, RunError, WireError
from fedsgd.federation.buffers import encode_buffer_section
from fedsgd.federation.client_state import (
    LOCAL,
    OPTIMIZER,
    SCHEME,
    ClientState,
    UncommittedState,
    entries_of,
    with_prefix,
)
from fedsgd.federation.downlink_cache import DecodedDownlink, DownlinkCache
from fedsgd.federation.plan import FederationPlan, Message, Reply, describe_non_finite
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.reductions import all_finite, patched_squared_norms, squared_norm
from fedsgd.numerics.vectors import is_finite, is_tensor, like_update, sum_squares, to_host
from fedsgd.system.profiling import PhaseTimer
from fedsgd.training import TrainingEngine, TrainingJob, TrainingResult
from fedsgd.wire import HEADER_OFFSETS, Frame, FrameKind, Header, decode_frame, encode_frame, frame_overhead, require_header


@dataclass(frozen=True, eq=False)
class ClientTask:
    """Decoded message of a client.

    Attributes:
        job: input of local training.
        state: the client's state after the acknowledgement: committed, without an uncommitted part.
        downlink: decoded frames that other clients of the round may share.
        previous_model_round: round of the model that the client had stored before this message; 0 for none.
        rounds_missed: rounds between the client's last reply and this round; −1 if the client has not replied before.
        decode_seconds: seconds that decoding the message took.
    """

    job: TrainingJob
    state: ClientState
    downlink: DecodedDownlink
    previous_model_round: int
    rounds_missed: int
    decode_seconds: float


@dataclass(frozen=True, eq=False)
class ImmediateReply:
    """Reply of a client that does not train.

    Attributes:
        reply: a RESYNC frame, the UPDATE frame with which the client answered the same message before, or no frame at all.
        state: the client's next state.
    """

    reply: Reply
    state: ClientState


def decode_task(
    plan: FederationPlan,
    client: ClientId,
    message: Message,
    state: ClientState,
    examples: Examples,
    downlink_cache: DownlinkCache | None = None,
) -> ClientTask | ImmediateReply:
    """Decode a message, and commit or roll back the state of the client's last reply: the first step of `client_update`.

    The result is a reply without training if the client lacks the base model or its state, or replied to this message before.
    So is the reply of a dropped straggler, which has no frame: its training is not simulated, because nothing depends on it. A
    damaged or outdated message raises a WireError. A lost state that the scheme mirrors at the server raises a RunError.

    Args:
        plan: settings of the federation.
        client: number of the client, from 0.
        message: frames that the client received.
        state: the client's stored state.
        examples: the client's training examples.
        downlink_cache: cache that the clients of one host share; None for a new cache.
    """
    start_time = time.perf_counter()
    downlink_cache = DownlinkCache() if downlink_cache is None else downlink_cache
    header = _decode_task_header(client, message, state.last_reply_round)
    seconds = time.perf_counter() - start_time
    if header.acknowledged > state.last_reply_round:
        return _reply_state_lost(plan, client, header, state)
    uncommitted_state = state.uncommitted_state
    rounds_missed = header.round - state.last_reply_round - 1 if state.last_reply_round else -1
    if uncommitted_state is not None and uncommitted_state.round == header.round:
        rounds_missed = uncommitted_state.rounds_missed
        if uncommitted_state.reply_frame is not None:
            return ImmediateReply(_repeat_reply(plan, client, uncommitted_state, len(examples), seconds), state)
    has_model = state.model_round <= header.round and downlink_cache.model_cache.has(state.model_round)
    model_round = state.model_round if has_model else 0
    if header.base > model_round:
        reply = _encode_resync(client, header.round, model_round, state.last_reply_round)
        return ImmediateReply(reply, replace(state, model_round=model_round))
    downlink = downlink_cache.decode(plan, header, message[1:], model_round)
    next_model_round = header.round if plan.downlink.clients_keep_model else 0
    if plan.stragglers is not None and plan.stragglers.is_dropped(header.round, client):
        reply = _drop_reply(plan, client, header.round, len(examples), seconds + downlink.decode_seconds)
        return ImmediateReply(reply, replace(state, model_round=next_model_round))
    next_state = ClientState(state.resolve(header.round, header.acknowledged), None, next_model_round)
    job = _build_job(plan, header.round, client, downlink, next_state.committed_state, examples)
    return ClientTask(job, next_state, downlink, state.model_round, rounds_missed, seconds + downlink.decode_seconds)


def _decode_task_header(client: ClientId, message: Message, last_reply_round: int) -> Header:
    """Decode the TASK frame of a message. Raise a WireError if the frame is for another client or outdated."""
    if len(message) < 2:
        raise WireError(0, f"the message has {len(message)} frames, expected at least a TASK and a MODEL")
    header = decode_frame(message[0], frame_overhead(0)).header
    if not header.round:
        raise WireError(HEADER_OFFSETS["round"], "round is 0, expected 1 or more")
    require_header(header, kind=(FrameKind.TASK,), codec=(0,), client=(client,), examples=(0,))
    if header.base >= header.round or header.acknowledged >= header.round:
        name = "base" if header.base >= header.round else "acknowledged"
        raise WireError(HEADER_OFFSETS[name], f"{name} is {getattr(header, name)}, expected a round before {header.round}")
    if header.round < last_reply_round:  # a delayed message, whose acknowledgement is outdated
        raise WireError(
            HEADER_OFFSETS["round"], f"round is {header.round}, but this client already replied in round {last_reply_round}"
        )
    return header


def _build_job(
    plan: FederationPlan, round: int, client: ClientId, downlink: DecodedDownlink, state: StateArrays, examples: Examples
) -> TrainingJob:
    """Return the input of local training. Parameters that never leave the client follow the parameters that are sent."""
    ctx = plan.make_context(round, client, downlink.reference)
    correction = plan.uplink.gradient_correction(entries_of(state, SCHEME), ctx)
    local_entries, weights, buffers = entries_of(state, LOCAL), downlink.weights, downlink.buffers
    if plan.buffers is not None:
        buffers = plan.buffers.join(buffers, local_entries.get("statistics"))
        local_parameters = local_entries.get("parameters", plan.buffers.local_parameters)
        if local_parameters.size:
            weights = np.concatenate([weights, local_parameters])
            correction = None if correction is None else np.concatenate([correction, np.zeros_like(local_parameters)])
    work, optimizer_state = plan.local_training_of(round, client).work, entries_of(state, OPTIMIZER)
    return TrainingJob(plan.seed, round, client, weights, examples, optimizer_state, correction, buffers, work)


def _reply_state_lost(plan: FederationPlan, client: ClientId, header: Header, state: ClientState) -> ImmediateReply:
    """Return a RESYNC and an empty state, for a client that lost its state or restored an older copy.

    An older copy is dropped too: its residual may be part of a reply that the server accepted later.
    """
    if plan.uplink.server_mirrors_clients:
        last_round = state.last_reply_round
        cause = f"the server accepted a reply of round {header.acknowledged}, this client's state ends at round {last_round}"
        explanation = f"{plan.uplink.name} stores a vector at each client, and at the server only the sum of these vectors"
        raise RunError(header.round, client, f"{cause}; {explanation}: the state of this client cannot be restored")
    return ImmediateReply(_encode_resync(client, header.round, 0, 0), ClientState())


def _repeat_reply(
    plan: FederationPlan, client: ClientId, uncommitted_state: UncommittedState, n_examples: int, decode_seconds: float
) -> Reply:
    """Return the reply that the client sent before in the round of its uncommitted state."""
    assert uncommitted_state.reply_frame is not None
    training = plan.local_training_of(uncommitted_state.round, client)
    return Reply(
        client,
        (uncommitted_state.reply_frame,),
        decode_seconds,
        0.0,
        training.n_steps(n_examples),
        uncommitted_state.residual_norm,
        uncommitted_state.residual_norm_if_lost,
        uncommitted_state.rounds_missed,
        training.n_examples_processed(n_examples),
    )


def _drop_reply(plan: FederationPlan, client: ClientId, round: int, n_examples: int, decode_seconds: float) -> Reply:
    """Return the reply of a straggler that sends no update, with the steps that it made until the end of the round."""
    training = plan.local_training_of(round, client)
    counts = {"steps": training.n_steps(n_examples), "examples_processed": training.n_examples_processed(n_examples)}
    return Reply(client, (), decode_seconds, 0.0, **counts)


def _encode_resync(client: ClientId, round: int, model_round: int, last_reply_round: int) -> Reply:
    header = Header(FrameKind.RESYNC, round, base=model_round, acknowledged=last_reply_round, client=client)
    return Reply(client, (encode_frame(Frame(header)),), 0.0, 0.0)


def _check_finite(plan: FederationPlan, round: int, result: TrainingResult) -> None:
    """Raise a NonFiniteError if an update or its buffers are not finite."""
    if not is_finite(result.update):
        cause = f"the update {describe_non_finite(to_host(result.update), plan.layout)}; is the learning rate too large?"
        raise NonFiniteError(round, result.client, cause)
    if result.buffers is not None and not all_finite(result.buffers):
        cause = f"the vector of the model's buffers {describe_non_finite(result.buffers, plan.layout)}"
        raise NonFiniteError(round, result.client, cause)


def encode_update(plan: FederationPlan, task: ClientTask, result: TrainingResult) -> tuple[Reply, ClientState]:
    """Return the reply with the compressed update, and the client's uncommitted state: the last step of `client_update`.

    Raise a NonFiniteError if the update, the buffers or the state are not finite.

    Args:
        plan: settings of the federation.
        task: the decoded task.
        result: result of the engine for `task.job`.
    """
    round, client = task.job.round, result.client
    if plan.hostile is not None and client in plan.hostile.clients(plan.seed, plan.n_clients):
        result = _replace_update(plan, round, result)
    _check_finite(plan, round, result)
    update = result.update[: plan.layout.size]
    start_time = time.perf_counter()
    entries = entries_of(task.state.committed_state, SCHEME)
    scheme_state = {name: like_update(value, update) for name, value in entries.items()}
    training = plan.local_training_of(round, client)
    learning_rate_sum = training.learning_rate_sum(result.n_examples, round) if training.uses_correction else 1.0
    ctx = plan.make_context(round, client, task.downlink.reference, learning_rate_sum)
    with np.errstate(over="ignore", invalid="ignore"), PhaseTimer("compress"):
        encoded = plan.uplink.send(update, scheme_state, ctx)
    local_entries = _local_state(plan, task.job, result)
    rollback_entries = ((name, patch.values) for name, patch in encoded.rollback.items() if patch is not None)
    next_entries = [*encoded.state.items(), *rollback_entries, *result.optimizer_state.items(), *local_entries.items()]
    norms, finite_arrays = _residual_norms(plan, encoded)
    for name, value in next_entries:
        if id(value) in finite_arrays:
            continue
        if not is_finite(value):
            cause = f"the client state entry {name} {describe_non_finite(to_host(value), plan.layout)}"
            raise NonFiniteError(round, client, cause)
    header = Header(FrameKind.UPDATE, round, plan.uplink.codec, base=round, client=client, examples=result.n_examples)
    sections = encoded.sections
    if plan.buffers is not None and plan.buffers.n_averaged:
        assert result.buffers is not None
        sections = (*sections, encode_buffer_section(result.buffers[: plan.buffers.n_averaged]))
    frame = encode_frame(Frame(header, sections))
    encode_seconds = time.perf_counter() - start_time
    state_if_accepted = {
        **with_prefix(SCHEME, encoded.state),
        **with_prefix(OPTIMIZER, result.optimizer_state),
        **with_prefix(LOCAL, local_entries),
    }
    rollback = with_prefix(SCHEME, encoded.rollback)
    seconds = task.decode_seconds, encode_seconds
    repeated_frame = frame if state_if_accepted else None
    uncommitted_state = UncommittedState(round, state_if_accepted, rollback, repeated_frame, *norms, task.rounds_missed)
    n_processed = training.n_examples_processed(result.n_examples)
    reply = Reply(client, (frame,), *seconds, result.n_steps, *norms, task.rounds_missed, n_processed)
    return reply, ClientState({}, uncommitted_state, task.state.model_round)


def _replace_update(plan: FederationPlan, round: int, result: TrainingResult) -> TrainingResult:
    """Return the result with a hostile client's update. Parameters that stay at the client are not changed."""
    assert plan.hostile is not None
    size = plan.layout.size
    with np.errstate(over="ignore"):  # _check_finite raises an error
        trained_update = to_host(result.update)
        update = plan.hostile.replace_update(trained_update[:size], plan.seed, round, result.client)
    return replace(result, update=np.concatenate([update, trained_update[size:]]))


def _local_state(plan: FederationPlan, job: TrainingJob, result: TrainingResult) -> StateArrays:
    """Return the part of the model that stays at the client. It does not depend on the acknowledgement of the reply."""
    entries: dict[str, NDArray[Any]] = {}
    size = plan.layout.size
    if plan.buffers is not None and plan.buffers.local_parameters.size:
        entries["parameters"] = job.weights[size:] + to_host(result.update[size:])
    if plan.buffers is not None and plan.buffers.local is not None:
        assert result.buffers is not None
        entries["statistics"] = result.buffers[plan.buffers.n_averaged :].copy()
    return entries


def _residual_norms(plan: FederationPlan, encoded_update: EncodedUpdate) -> tuple[tuple[float, float], tuple[int, ...]]:
    """Return the residual's norms for an accepted and for a lost reply, and the ids of arrays that the norms show to be finite.

    The norms are NaN if the scheme has no residual. The sum of squares of float32 numbers is finite if the numbers are.
    """
    residual = plan.uplink.residual(encoded_update.state)
    if residual is None:
        return (math.nan, math.nan), ()
    (patch,) = (encoded_update.rollback.get(name) for name, value in encoded_update.state.items() if value is residual)
    if patch is None:
        norm = math.sqrt(sum_squares(residual))
        return (norm, norm), ()
    accepted, replaced, added = _patched_squared_norms(residual, patch)
    norms = math.sqrt(accepted), math.sqrt(max(0.0, accepted - replaced) + added)
    has_finite_norms = math.isfinite(accepted) and math.isfinite(added)
    return norms, (id(residual), id(patch.values)) if has_finite_norms else ()


def _patched_squared_norms(residual: F32, patch: EntryPatch) -> tuple[float, float, float]:
    """Return the squared norms of a residual, of the part that a patch replaces, and of the patch."""
    if patch.indices is None:
        squared_norm_of_residual = sum_squares(residual)
        return squared_norm_of_residual, squared_norm_of_residual, sum_squares(patch.values)
    if is_tensor(residual):
        values = residual[patch.indices]
        return sum_squares(residual), sum_squares(values), sum_squares(patch.values)
    if residual.dtype == patch.values.dtype == np.float32:
        sums = patched_squared_norms(residual, patch.indices, patch.values)
        if not math.isnan(sums[0]):
            return sums
    return squared_norm(residual), squared_norm(residual[patch.indices]), squared_norm(patch.values)


def client_update(
    plan: FederationPlan,
    engine: TrainingEngine,
    client: ClientId,
    message: Message,
    state: ClientState,
    examples: Examples,
    downlink_cache: DownlinkCache | None = None,
) -> tuple[Reply, ClientState]:
    """Decode a message, train, and encode the update of one client. Return its reply and its next state.

    `decode_task` and `encode_update` name the errors.

    Args:
        plan: settings of the federation.
        engine: engine of local training.
        client: number of the client, from 0.
        message: frames that the client received.
        state: the client's stored state.
        examples: the client's training examples.
        downlink_cache: cache that the clients of one host share; None for a new cache.
    """
    task = decode_task(plan, client, message, state, examples, downlink_cache)
    if isinstance(task, ImmediateReply):
        return task.reply, task.state
    (result,) = engine.train([task.job])
    return encode_update(plan, task, result)
