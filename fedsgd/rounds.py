"""One round of federated learning as functions over values: no socket, no file, no process.

    broadcast(plan, server, cohort)          -> a message of frames for each client of the cohort
    receive · engine.train · send            =  client_update: message in, reply out, on the client's side
    aggregate(plan, server, replies)         -> the next server

FedAvg is these three in a loop (`fedsgd.loop`); FedSGD is FedAvg with one step a round.

P parameters, N clients in all, m of them in the cohort.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32
from fedsgd.clients import ClientState, Pending
from fedsgd.compress import ClientId, Compressor, Context, Gathering, Operator, Received, Scheme, State, Weighting
from fedsgd.data import Examples
from fedsgd.engine import Engine, Local, Recipe, Work
from fedsgd.errors import NonFiniteError, RunError, WireError
from fedsgd.layout import Layout
from fedsgd.optim import Optimizer, server_step
from fedsgd.profiling import Within, phased
from fedsgd.rng import stream
from fedsgd.vectors import all_finite
from fedsgd.wire import ALL, HEADER_OFFSETS, MAX_SECTIONS, Frame, Header, Kind, decode_frame, encode_frame, overhead

Message = tuple[bytes, ...]
"""The frames of one client in one direction: TASK, MODEL and perhaps REFERENCE down, UPDATE up."""


@dataclass(frozen=True)
class Plan:
    """What server and clients agree on before the first round. clients: N; cohort: m."""

    seed: int
    layout: Layout
    recipe: Recipe
    uplink: Scheme
    downlink: Operator
    optimizer: Optimizer
    weighting: Weighting
    clients: int
    cohort: int

    def context(self, round: int, client: ClientId, reference: F32 | None = None) -> Context:
        """What both ends of a frame know without being told."""
        return Context(self.seed, round, client, self.layout, reference, self.cohort)

    def max_frame(self, compressor: Compressor) -> int:
        """The longest valid frame of this compressor: nothing longer is looked at."""
        return overhead(MAX_SECTIONS) + compressor.max_bytes(self.layout)


@dataclass(frozen=True, eq=False)
class Server:
    """The server between two rounds. round: the one to come, from 1; weights: the exact model [P]; shared: the MODEL frame, and
    the REFERENCE frame of a scheme that has one, as every client of that round will get them; velocity, uplink: what the
    optimiser and the scheme remember; acknowledged: the last round in which each client's reply was accepted."""

    round: int
    weights: F32
    shared: Message
    encode_seconds: float
    velocity: State = field(default_factory=dict)
    uplink: State = field(default_factory=dict)
    acknowledged: Mapping[ClientId, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reply:
    """A client's answer: its frames, and what decoding the message and encoding the answer took."""

    client: ClientId
    frames: Message
    decode_seconds: float
    encode_seconds: float


class Folded(NamedTuple):
    """A reply that is part of the next model. frame: decoded; seconds: what decoding and adding its sections took."""

    frame: Frame
    seconds: float


# ---------------------------------------------------------------------------------------------------------- the server's side


def start(plan: Plan, weights: F32) -> Server:
    """The server before round 1, with initial weights [P]."""
    return _publish(plan, Server(1, weights, (), 0.0))


def _publish(plan: Plan, server: Server) -> Server:
    """Encode what all clients of the coming round will get."""
    begun, ctx = time.perf_counter(), plan.context(server.round, ALL)
    sections, _ = plan.downlink.encode(server.weights, ctx)
    shared = [encode_frame(Frame(Header(Kind.MODEL, server.round, plan.downlink.codec), sections))]
    beside = plan.uplink.downlink(server.uplink, ctx)
    if beside:
        shared.append(encode_frame(Frame(Header(Kind.REFERENCE, server.round, plan.uplink.codec), beside)))
    return replace(server, shared=tuple(shared), encode_seconds=time.perf_counter() - begun)


def decoded_model(plan: Plan, server: Server) -> F32:
    """The model as clients of the coming round decode it [P]: what they train from, and what accuracy is measured on."""
    return _decode_model(plan, server.shared[0], server.round)


def sample_cohort(plan: Plan, clients: Sequence[ClientId], round: int) -> list[ClientId]:
    """m distinct clients, uniformly, ascending; a function of (seed, round)."""
    chosen = stream(plan.seed, "cohort", round).choice(len(clients), size=plan.cohort, replace=False)
    return sorted(clients[i] for i in chosen)


def broadcast(plan: Plan, server: Server, cohort: Sequence[ClientId]) -> tuple[dict[ClientId, Message], Server]:
    """(each client's message, the server): a TASK frame of its own and the frames that are shared."""
    messages: dict[ClientId, Message] = {}
    for client in cohort:
        header = Header(Kind.TASK, server.round, acknowledged=server.acknowledged.get(client, 0), client=client)
        messages[client] = (encode_frame(Frame(header)), *server.shared)
    return messages, server


@phased("aggregate")
def aggregate(plan: Plan, server: Server, replies: Sequence[Reply]) -> tuple[Server, Mapping[ClientId, Folded]]:
    """(the server of the next round, what became of each client's reply).

    The replies are folded in ascending client order whatever order they came in, weighted by examples (for whose number the
    client's word is taken) or uniformly. A bad frame raises WireError, with its client, before anything has changed.
    """
    ordered = sorted(replies, key=lambda reply: reply.client)
    if len({reply.client for reply in ordered}) != len(ordered):
        raise RunError(server.round, None, "two replies of one client")
    frames = [_open_update(plan, reply, server.round) for reply in ordered]
    shares = np.array([f.header.examples if plan.weighting == "examples" else 1 for f in frames], dtype=np.float64)
    if not shares.sum() > 0:
        raise RunError(server.round, None, "no client of the cohort has any examples: there is nothing to average")
    folded: dict[ClientId, Folded] = {}
    at: ClientId | None = None

    def timed() -> Iterator[Received]:
        nonlocal at
        for frame, share in zip(frames, shares / shares.sum(), strict=True):
            at, begun = frame.header.client, time.perf_counter()
            yield Received(frame.sections, float(share), plan.context(server.round, at))
            folded[at] = Folded(frame, time.perf_counter() - begun)
        at = None

    gathering = Gathering(plan.seed, server.round, plan.layout, plan.clients)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # finite replies may still add up to what is not, round after round
            update, uplink = plan.uplink.fold(server.uplink, timed(), gathering)
    except WireError as error:
        raise _placed(error, server.round, at) from None
    if not all_finite(update):
        raise NonFiniteError(server.round, None, f"the cohort's update {_first_bad(update, plan.layout)}")
    weights, velocity = server_step(plan.optimizer, server.weights, update, server.velocity, server.round)
    if not np.isfinite(weights).all():
        raise NonFiniteError(server.round, None, f"after the server's step {_first_bad(weights, plan.layout)}")
    acknowledged = {**server.acknowledged, **dict.fromkeys((reply.client for reply in ordered), server.round)}
    following = replace(
        server, round=server.round + 1, weights=weights, velocity=velocity, uplink=uplink, acknowledged=acknowledged
    )
    return _publish(plan, following), folded


def _open_update(plan: Plan, reply: Reply, round: int) -> Frame:
    try:
        if len(reply.frames) != 1:
            raise WireError(0, f"{len(reply.frames)} frames, expected one UPDATE")
        frame = decode_frame(reply.frames[0], plan.max_frame(plan.uplink))
        _expect(frame.header, Kind.UPDATE, round, reply.client, plan.uplink.codec, base=round)
    except WireError as error:
        raise _placed(error, round, reply.client) from None
    return frame


def _placed(error: WireError, round: int, client: ClientId | None) -> WireError:
    """The same error with whose frame it is in front, where that is known."""
    return WireError(error.offset, error.cause, f"round {round}: " if client is None else f"round {round}, client {client}: ")


def _expect(header: Header, kind: Kind, round: int, client: ClientId, codec: int, base: int = 0) -> None:
    """WireError unless the header says what it must."""
    wanted = {
        "kind": (header.kind, kind),
        "codec": (header.codec, codec),
        "round": (header.round, round),
        "base": (header.base, base),
        "client": (header.client, client),
        "acknowledged": (header.acknowledged, header.acknowledged if kind is Kind.TASK else 0),
        "examples": (header.examples, header.examples if kind is Kind.UPDATE else 0),
    }
    for name, (got, expected) in wanted.items():
        if got != expected:
            raise WireError(HEADER_OFFSETS[name], f"{name} is {got!s}, expected {expected!s}")


# ---------------------------------------------------------------------------------------------------------- the client's side


@dataclass(frozen=True, eq=False)
class Opened:
    """The frames that the clients of a round share, decoded. weights: the model [P]; reference: what the scheme was told beside
    it [P]; both are shared by all who are handed this, and never written to. seconds: what decoding took, as it would take each
    client that has a processor of its own."""

    round: int
    frames: Message
    weights: F32
    reference: F32 | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Task:
    """A message, opened. work: what there is to train; state: the client's, settled by what the server acknowledged; shared:
    what other clients of the round were sent too; decode_seconds: what opening it all takes."""

    work: Work
    state: ClientState
    shared: Opened
    decode_seconds: float


def receive(
    plan: Plan, client: ClientId, message: Message, state: ClientState, examples: Examples, last: Opened | None = None
) -> Task:
    """Open a message: the first of a client's three steps.

    last: the `shared` of a message that was opened before, perhaps another client's: the same frames are not decoded again.
    """
    begun = time.perf_counter()
    if len(message) not in (2, 3):
        raise WireError(0, f"a message of {len(message)} frames, expected TASK and MODEL, and REFERENCE of some schemes")
    header = decode_frame(message[0], overhead(0)).header
    if not header.round:
        raise WireError(HEADER_OFFSETS["round"], "round is 0, expected one from 1 on")
    _expect(header, Kind.TASK, header.round, client, 0)
    seconds = time.perf_counter() - begun
    if last is None or (last.round, last.frames) != (header.round, message[1:]):
        last = _open_shared(plan, message[1:], header.round)
    try:
        settled = ClientState(state.settle(header.round, header.acknowledged))
    except ValueError as error:
        raise RunError(header.round, client, str(error)) from None
    return Task(Work(plan.seed, header.round, client, last.weights, examples), settled, last, seconds + last.seconds)


def _open_shared(plan: Plan, frames: Message, round: int) -> Opened:
    begun = time.perf_counter()
    weights, reference = _decode_model(plan, frames[0], round), _decode_reference(plan, frames[1:], round)
    return Opened(round, frames, weights, reference, time.perf_counter() - begun)


def send(plan: Plan, task: Task, local: Local) -> tuple[Reply, ClientState]:
    """(the reply, the state pending its acknowledgement). NonFiniteError if the update, or what is to be remembered, is not
    finite."""
    round, client = task.work.round, local.client
    if not all_finite(local.update):
        cause = f"the update {_first_bad(local.update, plan.layout)}; is the step size too large?"
        raise NonFiniteError(round, client, cause)
    begun = time.perf_counter()
    with np.errstate(over="ignore", invalid="ignore"), Within("compress"):
        sent = plan.uplink.send(local.update, task.state.scheme, plan.context(round, client, task.shared.reference))
    remembered = [*sent.state.items(), *((name, patch.values) for name, patch in sent.undo.items() if patch is not None)]
    for name, value in remembered:
        if not (all_finite(value) if value.dtype == np.float32 else np.isfinite(value).all()):
            raise NonFiniteError(round, client, f"what the client remembers ({name}) {_first_bad(value, plan.layout)}")
    header = Header(Kind.UPDATE, round, plan.uplink.codec, base=round, client=client, examples=local.examples)
    frame = encode_frame(Frame(header, sent.sections))
    seconds = time.perf_counter() - begun
    pending = replace(task.state, pending=Pending(round, sent.state, sent.undo))
    return Reply(client, (frame,), task.decode_seconds, seconds), pending


def client_update(
    plan: Plan, engine: Engine, client: ClientId, message: Message, state: ClientState, examples: Examples
) -> tuple[Reply, ClientState]:
    """receive, train, send for one client."""
    task = receive(plan, client, message, state, examples)
    (local,) = engine.train([task.work])
    return send(plan, task, local)


def _decode_model(plan: Plan, frame: bytes, round: int) -> F32:
    decoded = decode_frame(frame, plan.max_frame(plan.downlink))
    _expect(decoded.header, Kind.MODEL, round, ALL, plan.downlink.codec)
    return plan.downlink.decode(decoded.sections, plan.context(round, ALL)).to_dense()


def _decode_reference(plan: Plan, frames: Message, round: int) -> F32 | None:
    if not frames:
        return None
    decoded = decode_frame(frames[0], overhead(MAX_SECTIONS) + plan.uplink.max_downlink(plan.layout))
    _expect(decoded.header, Kind.REFERENCE, round, ALL, plan.uplink.codec)
    return plan.uplink.read_downlink(decoded.sections, plan.context(round, ALL))


def _first_bad(vector: NDArray[Any], layout: Layout) -> str:
    """Where it first is not finite; named by the tensor if it is a vector over the parameters."""
    bad = np.flatnonzero(~np.isfinite(vector))
    where = layout.locate(int(bad[0])) if vector.shape == (layout.size,) else f"[{int(bad[0])}]"
    return f"is not finite in {len(bad)} of {vector.size} coordinates, first {vector.flat[bad[0]]} at {where}"
