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

from fedsgd.arrays import F32
from fedsgd.clients import OWN, ClientState, MemoryModels, Models, Pending, part_of, with_part
from fedsgd.compress import ClientId, Sent, State
from fedsgd.data import Examples
from fedsgd.downlink import follow
from fedsgd.engine import Engine, Local, Work
from fedsgd.errors import NonFiniteError, RunError, WireError
from fedsgd.profiling import Within
from fedsgd.rounds.plan import Message, Plan, Reply, first_bad
from fedsgd.rounds.statistics import opened as statistics_of
from fedsgd.rounds.statistics import section_of
from fedsgd.vectors import all_finite, energy
from fedsgd.wire import (
    ALL,
    HEADER_OFFSETS,
    MAX_SECTIONS,
    Frame,
    Header,
    Kind,
    decode_frame,
    encode_frame,
    expect,
    kind_of,
    overhead,
)

SCHEME, OPTIMIZER = "scheme", "optimizer"
"""Whose a part of what a client remembers is: the compression scheme's, or the local optimiser's."""


@dataclass(frozen=True, eq=False)
class Opened:
    """The frames that clients of a round share, decoded. weights: the model [P]; statistics: those of batch norm [S], if they
    are averaged; reference: what the scheme was told beside the model [P]; all are shared by who is handed this, and never
    written to. seconds: what decoding took, as it would take each client that has a processor of its own."""

    weights: F32
    statistics: F32 | None
    reference: F32 | None
    seconds: float


class Shelf:
    """What the clients of one host need not have once each: the models that they hold, and the shared frames of a round,
    decoded. models: where the models are."""

    def __init__(self, models: Models | None = None) -> None:
        self.models = MemoryModels() if models is None else models
        self._round = 0
        self._opened: dict[tuple[int, int, bytes], tuple[Message, Opened]] = {}
        self._model: F32 | None = None

    def open(self, plan: Plan, task: Header, frames: Message, held: int) -> Opened:
        """The model and the reference after these frames, at a client that holds the model of round `held`."""
        if task.round != self._round:
            self._round, self._opened, self._model = task.round, {}, None
        known = held if task.base else 0  # the whole model is the same for everybody
        key = known, sum(map(len, frames)), frames[0][: overhead(0)]
        same, opened = self._opened.get(key, ((), None))
        if opened is None or same != frames:
            opened = self._decoded(plan, task, frames, known)
            self._opened[key] = frames, opened
        return opened

    def _decoded(self, plan: Plan, task: Header, frames: Message, held: int) -> Opened:
        begun = time.perf_counter()
        models, beside = _sorted(plan, frames)
        before = self.models.get(held) if held else None
        at, context = (task.round, task.base), lambda round: plan.context(round, ALL)
        weights = follow(plan.downlink, models, at, (held, before), context)
        statistics = None
        if Kind.BUFFERS in beside and plan.buffers is not None:
            statistics = statistics_of(beside[Kind.BUFFERS], plan.buffers, task.round)
        reference = _reference(plan, beside[Kind.REFERENCE], task.round) if Kind.REFERENCE in beside else None
        seconds = time.perf_counter() - begun
        if plan.downlink.needs_held:
            weights = self._kept(task.round, weights, plan.downlink.remember)
        return Opened(weights, statistics, reference, seconds)

    def _kept(self, round: int, weights: F32, remember: int | None) -> F32:
        """The one copy of this round's model that the host's clients share: whatever way it came, its bits are the same."""
        if self._model is None:
            self._model = self.models.keep(round, weights, 0 if remember is None else round - remember)
        if not np.array_equal(self._model.view(np.uint32), weights.view(np.uint32)):
            raise RunError(round, None, "two clients that followed the downlink by different ways decoded different models")
        return self._model


@dataclass(frozen=True, eq=False)
class Task:
    """A message, opened. work: what there is to train; state: the client's, settled by what the server acknowledged; opened:
    what other clients of the round may have been sent too; held: the round of the model that the client kept before, 0 for
    none; missed: rounds since it last took part, −1 for the first time; decode_seconds: what opening it all takes."""

    work: Work
    state: ClientState
    opened: Opened
    held: int
    missed: int
    decode_seconds: float


@dataclass(frozen=True, eq=False)
class Answer:
    """A client that has nothing to train. reply: what it says to the server, that it cannot follow, or what it said to the same
    message before; state: what it keeps."""

    reply: Reply
    state: ClientState


def receive(
    plan: Plan, client: ClientId, message: Message, state: ClientState, examples: Examples, shelf: Shelf | None = None
) -> Task | Answer:
    """Open a message: the first of a client's three steps. shelf: what other clients of the same host have decoded before."""
    begun = time.perf_counter()
    shelf = Shelf() if shelf is None else shelf
    if len(message) < 2:
        raise WireError(0, f"a message of {len(message)} frames, expected TASK and MODEL, and REFERENCE of some schemes")
    header = decode_frame(message[0], overhead(0)).header
    if not header.round:
        raise WireError(HEADER_OFFSETS["round"], "round is 0, expected one from 1 on")
    expect(header, kind=(Kind.TASK,), codec=(0,), client=(client,), examples=(0,))
    if header.base >= header.round or header.acknowledged >= header.round:
        name = "base" if header.base >= header.round else "acknowledged"
        raise WireError(HEADER_OFFSETS[name], f"{name} is {getattr(header, name)}, expected a round before {header.round}")
    if header.round < state.known:  # it comes late: what it says of earlier replies is no longer so
        raise WireError(HEADER_OFFSETS["round"], f"round is {header.round}, this client replied in round {state.known} already")
    seconds = time.perf_counter() - begun
    if header.acknowledged > state.known:
        return _forgotten(plan, client, header, state)
    if state.pending is not None and state.pending.round == header.round and state.pending.reply is not None:
        steps, seen = plan.recipe.n_steps(len(examples)), plan.recipe.n_seen(len(examples))
        return Answer(Reply(client, (state.pending.reply,), seconds, 0.0, steps, seen=seen), state)
    held = state.held if state.held <= header.round and shelf.models.has(state.held) else 0
    if header.base > held:
        return Answer(_resync(client, header.round, held, state.known), replace(state, held=held))
    opened = shelf.open(plan, header, message[1:], held)
    settled = ClientState(
        state.settle(header.round, header.acknowledged), None, header.round if plan.downlink.needs_held else 0
    )
    work = _work(plan, header.round, client, opened, settled.memory, examples)
    missed = header.round - state.known - 1 if state.known else -1
    return Task(work, settled, opened, state.held, missed, seconds + opened.seconds)


def _work(plan: Plan, round: int, client: ClientId, opened: Opened, memory: State, examples: Examples) -> Work:
    """What there is to train: with the parameters that never leave the client behind those that do."""
    correction = plan.uplink.correction(part_of(memory, SCHEME), plan.context(round, client, opened.reference))
    own, weights, statistics = part_of(memory, OWN), opened.weights, opened.statistics
    if plan.buffers is not None:
        statistics = plan.buffers.joined(statistics, own.get("statistics"))
        local = own.get("parameters", plan.buffers.parameters)
        if local.size:
            weights = np.concatenate([weights, local])
            correction = None if correction is None else np.concatenate([correction, np.zeros_like(local)])
    return Work(plan.seed, round, client, weights, examples, part_of(memory, OPTIMIZER), correction, statistics)


def _forgotten(plan: Plan, client: ClientId, header: Header, state: ClientState) -> Answer:
    """A client whose reply of a later round was accepted than it knows of: it lost its state, or was restored from an older
    copy, and what that holds back may have been delivered since. So all of it goes."""
    if plan.uplink.mirrored:
        cause = f"the server accepted a reply of round {header.acknowledged}, this client's state ends at round {state.known}"
        mirror = f"{plan.uplink.name} keeps the same estimate at client and server, and the server only the sum of all clients'"
        raise RunError(header.round, client, f"{cause}; {mirror}: what this client had cannot be restored")
    return Answer(_resync(client, header.round, 0, 0), ClientState())


def _resync(client: ClientId, round: int, held: int, known: int) -> Reply:
    header = Header(Kind.RESYNC, round, base=held, acknowledged=known, client=client)
    return Reply(client, (encode_frame(Frame(header)),), 0.0, 0.0)


def send(plan: Plan, task: Task, local: Local) -> tuple[Reply, ClientState]:
    """(the reply, the state pending its acknowledgement). NonFiniteError if the update, or what is to be remembered, is not
    finite."""
    round, client = task.work.round, local.client
    if not all_finite(local.update):
        cause = f"the update {first_bad(local.update, plan.layout)}; is the step size too large?"
        raise NonFiniteError(round, client, cause)
    if local.buffers is not None and not all_finite(local.buffers):
        raise NonFiniteError(round, client, f"the vector of the module's buffers {first_bad(local.buffers, plan.layout)}")
    update = local.update[: plan.layout.size]
    begun = time.perf_counter()
    before = part_of(task.state.memory, SCHEME)
    travelled = plan.recipe.travelled(local.examples, round) if plan.recipe.corrected else 1.0
    ctx = plan.context(round, client, task.opened.reference, travelled)
    with np.errstate(over="ignore", invalid="ignore"), Within("compress"):
        sent = plan.uplink.send(update, before, ctx)
    own = _own(plan, task.work, local)
    undone = ((name, patch.values) for name, patch in sent.undo.items() if patch is not None)
    remembered = [*sent.state.items(), *undone, *local.memory.items(), *own.items()]
    for name, value in remembered:
        if not (all_finite(value) if value.dtype == np.float32 else np.isfinite(value).all()):
            raise NonFiniteError(round, client, f"what the client remembers ({name}) {first_bad(value, plan.layout)}")
    header = Header(Kind.UPDATE, round, plan.uplink.codec, base=round, client=client, examples=local.examples)
    sections = sent.sections
    if plan.buffers is not None and plan.buffers.n_sent:
        assert local.buffers is not None
        sections = (*sections, section_of(local.buffers[: plan.buffers.n_sent]))
    frame = encode_frame(Frame(header, sections))
    seconds = time.perf_counter() - begun
    after = {**with_part(SCHEME, sent.state), **with_part(OPTIMIZER, local.memory), **with_part(OWN, own)}
    pending = Pending(round, after, with_part(SCHEME, sent.undo), frame if after else None)
    seen = plan.recipe.n_seen(local.examples)
    reply = Reply(client, (frame,), task.decode_seconds, seconds, local.steps, *_norms(plan, sent), task.missed, seen)
    return reply, ClientState({}, pending, task.state.held)


def _own(plan: Plan, work: Work, local: Local) -> State:
    """What of the model stays with the client. It stays as training left it whether or not the server hears of it."""
    own: dict[str, NDArray[Any]] = {}
    size = plan.layout.size
    if plan.buffers is not None and plan.buffers.parameters.size:
        own["parameters"] = work.weights[size:] + local.update[size:]
    if plan.buffers is not None and plan.buffers.local is not None:
        assert local.buffers is not None
        own["statistics"] = local.buffers[plan.buffers.n_sent :].copy()
    return own


def _norms(plan: Plan, sent: Sent) -> tuple[float, float]:
    """Of what the client holds back, if the reply is accepted and if it is not; NaN where its scheme holds nothing back."""
    held = plan.uplink.held_back(sent.state)
    if held is None:
        return math.nan, math.nan
    received = energy(held)
    (undo,) = (sent.undo.get(name) for name, value in sent.state.items() if value is held)
    if undo is None:
        return math.sqrt(received), math.sqrt(received)
    replaced = received if undo.indices is None else energy(held[undo.indices])
    return math.sqrt(received), math.sqrt(max(0.0, received - replaced) + energy(undo.values))


def client_update(
    plan: Plan,
    engine: Engine,
    client: ClientId,
    message: Message,
    state: ClientState,
    examples: Examples,
    shelf: Shelf | None = None,
) -> tuple[Reply, ClientState]:
    """receive, train, send for one client."""
    task = receive(plan, client, message, state, examples, shelf)
    if isinstance(task, Answer):
        return task.reply, task.state
    (local,) = engine.train([task.work])
    return send(plan, task, local)


def _sorted(plan: Plan, frames: Message) -> tuple[Message, dict[int, bytes]]:
    """(the MODEL frames, those beside them by kind); WireError unless they come in their order, and all that must be there."""
    kinds = [kind_of(frame) for frame in frames]
    beside = {kind: frame for kind, frame in zip(kinds, frames, strict=True) if kind in (Kind.BUFFERS, Kind.REFERENCE)}
    models = frames[: len(frames) - len(beside)]
    if kinds[len(models) :] != sorted(beside, reverse=True):
        raise WireError(0, "the message has frames behind the MODEL that are not one BUFFERS and one REFERENCE at most")
    if (Kind.BUFFERS in beside) != (plan.buffers is not None and plan.buffers.n_sent > 0):
        raise WireError(0, f"the message has {'a' if Kind.BUFFERS in beside else 'no'} BUFFERS frame")
    return models, beside


def _reference(plan: Plan, frame: bytes, round: int) -> F32 | None:
    decoded = decode_frame(frame, overhead(MAX_SECTIONS) + plan.uplink.max_downlink(plan.layout))
    fixed = {"base": (0,), "client": (ALL,), "acknowledged": (0,), "examples": (0,)}
    expect(decoded.header, kind=(Kind.REFERENCE,), codec=(plan.uplink.codec,), round=(round,), **fixed)
    return plan.uplink.read_downlink(decoded.sections, plan.context(round, ALL))
