"""The client's side of a round: receive, train, send.

P parameters.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.compression import ClientId, EncodedUpdate, StateArrays
from fedsgd.data import Examples
from fedsgd.errors import NonFiniteError, RunError, WireError
from fedsgd.federation.buffers import decode_buffers_frame as statistics_of
from fedsgd.federation.buffers import encode_buffer_section
from fedsgd.federation.client_state import (
    LOCAL,
    ClientState,
    InMemoryModelCache,
    ModelCache,
    UncommittedState,
    entries_of,
    with_prefix,
)
from fedsgd.federation.downlink import apply_model_frames
from fedsgd.federation.plan import FederationPlan, Message, Reply, describe_non_finite
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.reductions import all_finite, squared_norm
from fedsgd.system.profiling import PhaseTimer
from fedsgd.training import TrainingEngine, TrainingJob, TrainingResult
from fedsgd.wire import (
    ALL_CLIENTS,
    HEADER_OFFSETS,
    MAX_SECTIONS,
    Frame,
    FrameKind,
    Header,
    decode_frame,
    encode_frame,
    frame_overhead,
    peek_kind,
    require_header,
)

SCHEME, OPTIMIZER = "scheme", "optimizer"
"""Whose a part of what a client remembers is: the compression scheme's, or the local optimiser's."""


@dataclass(frozen=True, eq=False)
class DecodedDownlink:
    """The frames that clients of a round share, decoded. weights: the model [P]; statistics: those of batch norm [S], if they
    are averaged; reference: what the scheme was told beside the model [P]; all are shared by who is handed this, and never
    written to. seconds: what decoding took, as it would take each client that has a processor of its own."""

    weights: F32
    buffers: F32 | None
    reference: F32 | None
    decode_seconds: float


class DownlinkCache:
    """What the clients of one host need not have once each: the models that they hold, and the shared frames of a round,
    decoded. models: where the models are."""

    def __init__(self, model_cache: ModelCache | None = None) -> None:
        self.model_cache = InMemoryModelCache() if model_cache is None else model_cache
        self._round = 0
        self._entries: dict[tuple[int, int, bytes], tuple[Message, DecodedDownlink]] = {}
        self._shared_model: F32 | None = None

    def decode(self, plan: FederationPlan, header: Header, frames: Message, model_round: int) -> DecodedDownlink:
        """The model and the reference after these frames, at a client that holds the model of round `held`."""
        if header.round != self._round:
            self._round, self._entries, self._shared_model = header.round, {}, None
        known = model_round if header.base else 0  # the whole model is the same for everybody
        key = known, sum(map(len, frames)), frames[0][: frame_overhead(0)]
        same, opened = self._entries.get(key, ((), None))
        if opened is None or same != frames:
            opened = self._decode_frames(plan, header, frames, known)
            self._entries[key] = frames, opened
        return opened

    def _decode_frames(self, plan: FederationPlan, header: Header, frames: Message, model_round: int) -> DecodedDownlink:
        begun = time.perf_counter()
        models, beside = _split_frames(plan, frames)
        before = self.model_cache.get(model_round) if model_round else None
        at, context = (header.round, header.base), lambda round: plan.make_context(round, ALL_CLIENTS)
        weights = apply_model_frames(plan.downlink, models, at, (model_round, before), context)
        statistics = None
        if FrameKind.BUFFERS in beside and plan.buffers is not None:
            statistics = statistics_of(beside[FrameKind.BUFFERS], plan.buffers, header.round)
        reference = (
            _decode_reference(plan, beside[FrameKind.REFERENCE], header.round) if FrameKind.REFERENCE in beside else None
        )
        seconds = time.perf_counter() - begun
        if plan.downlink.clients_keep_model:
            weights = self._deduplicate_model(header.round, weights, plan.downlink.history_rounds)
        return DecodedDownlink(weights, statistics, reference, seconds)

    def _deduplicate_model(self, round: int, weights: F32, history_rounds: int | None) -> F32:
        """The one copy of this round's model that the host's clients share: whatever way it came, its bits are the same."""
        if self._shared_model is None:
            self._shared_model = self.model_cache.put(round, weights, 0 if history_rounds is None else round - history_rounds)
        if not np.array_equal(self._shared_model.view(np.uint32), weights.view(np.uint32)):
            raise RunError(round, None, "two clients that followed the downlink by different ways decoded different models")
        return self._shared_model


@dataclass(frozen=True, eq=False)
class ClientTask:
    """A message, opened. work: what there is to train; state: the client's, settled by what the server acknowledged; opened:
    what other clients of the round may have been sent too; held: the round of the model that the client kept before, 0 for
    none; missed: rounds since it last took part, −1 for the first time; decode_seconds: what opening it all takes."""

    job: TrainingJob
    state: ClientState
    downlink: DecodedDownlink
    previous_model_round: int
    rounds_missed: int
    decode_seconds: float


@dataclass(frozen=True, eq=False)
class ImmediateReply:
    """A client that has nothing to train. reply: what it says to the server, that it cannot follow, or what it said to the same
    message before; state: what it keeps."""

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
    """Open a message: the first of a client's three steps. shelf: what other clients of the same host have decoded before."""
    begun = time.perf_counter()
    downlink_cache = DownlinkCache() if downlink_cache is None else downlink_cache
    if len(message) < 2:
        raise WireError(0, f"a message of {len(message)} frames, expected TASK and MODEL, and REFERENCE of some schemes")
    header = decode_frame(message[0], frame_overhead(0)).header
    if not header.round:
        raise WireError(HEADER_OFFSETS["round"], "round is 0, expected one from 1 on")
    require_header(header, kind=(FrameKind.TASK,), codec=(0,), client=(client,), examples=(0,))
    if header.base >= header.round or header.acknowledged >= header.round:
        name = "base" if header.base >= header.round else "acknowledged"
        raise WireError(HEADER_OFFSETS[name], f"{name} is {getattr(header, name)}, expected a round before {header.round}")
    if header.round < state.last_reply_round:  # it comes late: what it says of earlier replies is no longer so
        raise WireError(
            HEADER_OFFSETS["round"], f"round is {header.round}, this client replied in round {state.last_reply_round} already"
        )
    seconds = time.perf_counter() - begun
    if header.acknowledged > state.last_reply_round:
        return _reply_state_lost(plan, client, header, state)
    if (
        state.uncommitted_state is not None
        and state.uncommitted_state.round == header.round
        and state.uncommitted_state.reply_frame is not None
    ):
        steps, seen = plan.local_training.n_steps(len(examples)), plan.local_training.n_examples_processed(len(examples))
        return ImmediateReply(
            Reply(client, (state.uncommitted_state.reply_frame,), seconds, 0.0, steps, examples_processed=seen), state
        )
    held = state.model_round if state.model_round <= header.round and downlink_cache.model_cache.has(state.model_round) else 0
    if header.base > held:
        return ImmediateReply(
            _encode_resync(client, header.round, held, state.last_reply_round), replace(state, model_round=held)
        )
    opened = downlink_cache.decode(plan, header, message[1:], held)
    settled = ClientState(
        state.resolve(header.round, header.acknowledged), None, header.round if plan.downlink.clients_keep_model else 0
    )
    work = _build_job(plan, header.round, client, opened, settled.committed_state, examples)
    missed = header.round - state.last_reply_round - 1 if state.last_reply_round else -1
    return ClientTask(work, settled, opened, state.model_round, missed, seconds + opened.decode_seconds)


def _build_job(
    plan: FederationPlan, round: int, client: ClientId, downlink: DecodedDownlink, state: StateArrays, examples: Examples
) -> TrainingJob:
    """What there is to train: with the parameters that never leave the client behind those that do."""
    correction = plan.uplink.gradient_correction(
        entries_of(state, SCHEME), plan.make_context(round, client, downlink.reference)
    )
    own, weights, statistics = entries_of(state, LOCAL), downlink.weights, downlink.buffers
    if plan.buffers is not None:
        statistics = plan.buffers.join(statistics, own.get("statistics"))
        local = own.get("parameters", plan.buffers.local_parameters)
        if local.size:
            weights = np.concatenate([weights, local])
            correction = None if correction is None else np.concatenate([correction, np.zeros_like(local)])
    return TrainingJob(plan.seed, round, client, weights, examples, entries_of(state, OPTIMIZER), correction, statistics)


def _reply_state_lost(plan: FederationPlan, client: ClientId, header: Header, state: ClientState) -> ImmediateReply:
    """A client whose reply of a later round was accepted than it knows of: it lost its state, or was restored from an older
    copy, and what that holds back may have been delivered since. So all of it goes."""
    if plan.uplink.server_mirrors_clients:
        last = state.last_reply_round
        cause = f"the server accepted a reply of round {header.acknowledged}, this client's state ends at round {last}"
        mirror = f"{plan.uplink.name} keeps the same estimate at client and server, and the server only the sum of all clients'"
        raise RunError(header.round, client, f"{cause}; {mirror}: what this client had cannot be restored")
    return ImmediateReply(_encode_resync(client, header.round, 0, 0), ClientState())


def _encode_resync(client: ClientId, round: int, model_round: int, last_reply_round: int) -> Reply:
    header = Header(FrameKind.RESYNC, round, base=model_round, acknowledged=last_reply_round, client=client)
    return Reply(client, (encode_frame(Frame(header)),), 0.0, 0.0)


def encode_update(plan: FederationPlan, task: ClientTask, result: TrainingResult) -> tuple[Reply, ClientState]:
    """(the reply, the state pending its acknowledgement). NonFiniteError if the update, or what is to be remembered, is not
    finite."""
    round, client = task.job.round, result.client
    if not all_finite(result.update):
        cause = f"the update {describe_non_finite(result.update, plan.layout)}; is the step size too large?"
        raise NonFiniteError(round, client, cause)
    if result.buffers is not None and not all_finite(result.buffers):
        raise NonFiniteError(
            round, client, f"the vector of the module's buffers {describe_non_finite(result.buffers, plan.layout)}"
        )
    update = result.update[: plan.layout.size]
    begun = time.perf_counter()
    before = entries_of(task.state.committed_state, SCHEME)
    travelled = plan.local_training.learning_rate_sum(result.n_examples, round) if plan.local_training.uses_correction else 1.0
    ctx = plan.make_context(round, client, task.downlink.reference, travelled)
    with np.errstate(over="ignore", invalid="ignore"), PhaseTimer("compress"):
        sent = plan.uplink.send(update, before, ctx)
    own = _local_state(plan, task.job, result)
    undone = ((name, patch.values) for name, patch in sent.rollback.items() if patch is not None)
    remembered = [*sent.state.items(), *undone, *result.optimizer_state.items(), *own.items()]
    for name, value in remembered:
        if not (all_finite(value) if value.dtype == np.float32 else np.isfinite(value).all()):
            raise NonFiniteError(round, client, f"what the client remembers ({name}) {describe_non_finite(value, plan.layout)}")
    header = Header(FrameKind.UPDATE, round, plan.uplink.codec, base=round, client=client, examples=result.n_examples)
    sections = sent.sections
    if plan.buffers is not None and plan.buffers.n_averaged:
        assert result.buffers is not None
        sections = (*sections, encode_buffer_section(result.buffers[: plan.buffers.n_averaged]))
    frame = encode_frame(Frame(header, sections))
    seconds = time.perf_counter() - begun
    after = {**with_prefix(SCHEME, sent.state), **with_prefix(OPTIMIZER, result.optimizer_state), **with_prefix(LOCAL, own)}
    pending = UncommittedState(round, after, with_prefix(SCHEME, sent.rollback), frame if after else None)
    seen = plan.local_training.n_examples_processed(result.n_examples)
    reply = Reply(
        client, (frame,), task.decode_seconds, seconds, result.n_steps, *_residual_norms(plan, sent), task.rounds_missed, seen
    )
    return reply, ClientState({}, pending, task.state.model_round)


def _local_state(plan: FederationPlan, job: TrainingJob, result: TrainingResult) -> StateArrays:
    """What of the model stays with the client. It stays as training left it whether or not the server hears of it."""
    own: dict[str, NDArray[Any]] = {}
    size = plan.layout.size
    if plan.buffers is not None and plan.buffers.local_parameters.size:
        own["parameters"] = job.weights[size:] + result.update[size:]
    if plan.buffers is not None and plan.buffers.local is not None:
        assert result.buffers is not None
        own["statistics"] = result.buffers[plan.buffers.n_averaged :].copy()
    return own


def _residual_norms(plan: FederationPlan, encoded_update: EncodedUpdate) -> tuple[float, float]:
    """Of what the client holds back, if the reply is accepted and if it is not; NaN where its scheme holds nothing back."""
    held = plan.uplink.residual(encoded_update.state)
    if held is None:
        return math.nan, math.nan
    received = squared_norm(held)
    (undo,) = (encoded_update.rollback.get(name) for name, value in encoded_update.state.items() if value is held)
    if undo is None:
        return math.sqrt(received), math.sqrt(received)
    replaced = received if undo.indices is None else squared_norm(held[undo.indices])
    return math.sqrt(received), math.sqrt(max(0.0, received - replaced) + squared_norm(undo.values))


def client_update(
    plan: FederationPlan,
    engine: TrainingEngine,
    client: ClientId,
    message: Message,
    state: ClientState,
    examples: Examples,
    downlink_cache: DownlinkCache | None = None,
) -> tuple[Reply, ClientState]:
    """receive, train, send for one client."""
    task = decode_task(plan, client, message, state, examples, downlink_cache)
    if isinstance(task, ImmediateReply):
        return task.reply, task.state
    (local,) = engine.train([task.job])
    return encode_update(plan, task, local)


def _split_frames(plan: FederationPlan, frames: Message) -> tuple[Message, dict[int, bytes]]:
    """(the MODEL frames, those beside them by kind); WireError unless they come in their order, and all that must be there."""
    kinds = [peek_kind(frame) for frame in frames]
    beside = {
        kind: frame for kind, frame in zip(kinds, frames, strict=True) if kind in (FrameKind.BUFFERS, FrameKind.REFERENCE)
    }
    models = frames[: len(frames) - len(beside)]
    if kinds[len(models) :] != sorted(beside, reverse=True):
        raise WireError(0, "the message has frames behind the MODEL that are not one BUFFERS and one REFERENCE at most")
    if (FrameKind.BUFFERS in beside) != (plan.buffers is not None and plan.buffers.n_averaged > 0):
        raise WireError(0, f"the message has {'a' if FrameKind.BUFFERS in beside else 'no'} BUFFERS frame")
    return models, beside


def _decode_reference(plan: FederationPlan, frame: bytes, round: int) -> F32 | None:
    decoded = decode_frame(frame, frame_overhead(MAX_SECTIONS) + plan.uplink.max_reference_bytes(plan.layout))
    fixed = {"base": (0,), "client": (ALL_CLIENTS,), "acknowledged": (0,), "examples": (0,)}
    require_header(decoded.header, kind=(FrameKind.REFERENCE,), codec=(plan.uplink.codec,), round=(round,), **fixed)
    return plan.uplink.decode_reference(decoded.sections, plan.make_context(round, ALL_CLIENTS))
