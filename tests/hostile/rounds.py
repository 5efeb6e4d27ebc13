"""The ends of a round as targets: an update and a RESYNC at the server, and each frame of a message at a client."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.certification.operator_laws import example_layout
from fedsgd.compression import CompressionOperator, CompressionScheme, MemorylessScheme
from fedsgd.compression.operators.eden import Eden
from fedsgd.compression.operators.natural import NaturalCompression
from fedsgd.compression.operators.per_layer import PerLayer
from fedsgd.compression.operators.sparsifier import encode_sparse
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.cafe import CAFe
from fedsgd.compression.schemes.ef21 import EF21
from fedsgd.compression.schemes.fetch_sgd import FetchSGD
from fedsgd.compression.schemes.power_sgd import PowerSGD
from fedsgd.compression.schemes.scaffold import Scaffold
from fedsgd.compression.schemes.stc import STC
from fedsgd.data import Examples
from fedsgd.errors import RunError, WireError
from fedsgd.federation import (
    BufferPlan,
    DownlinkCache,
    FederationPlan,
    ImmediateReply,
    Message,
    Reply,
    ServerState,
    aggregate,
    broadcast,
    decode_task,
    initial_server_state,
)
from fedsgd.federation.buffers import encode_buffer_section
from fedsgd.federation.client_state import ClientState, InMemoryModelCache
from fedsgd.federation.downlink import ASSIGN_CODEC, ModelBroadcast
from fedsgd.federation.server import decode_resync, rebroadcast
from fedsgd.numerics.arrays import F32
from fedsgd.optim import SGD
from fedsgd.training import LocalTraining
from fedsgd.wire import ALL_CLIENTS, Frame, FrameKind, Header, decode_frame, encode_frame
from tests.hostile.basis import CLIENT, ROUND, Target, require, vectors
from tests.laws.members import name_of

UPLINKS: tuple[CompressionScheme, ...] = (
    *(MemorylessScheme(TopK(0.1)), EF21(TopK(0.5)), STC(0.1), CAFe(TopK(0.1)), FetchSGD(0.5), PowerSGD()),
    *(Scaffold(TopK(0.1)), Scaffold(PerLayer(TopK(0.1)), "bfloat16")),
)
DIFFERENCES: tuple[CompressionOperator, ...] = (TopK(0.1, "ternary"), Eden(), PerLayer(NaturalCompression()))
STATISTICS = 5
WHOLE = ModelBroadcast()
NO_EXAMPLES = Examples(np.zeros((1, 1)), np.zeros(1))


@cache
def opened_server(
    uplink: CompressionScheme, size: int, link: ModelBroadcast = WHOLE, statistics: int = 0
) -> tuple[FederationPlan, ServerState, Reply]:
    """A server in round 3, and a good reply of client 1."""
    norm = BufferPlan(np.ones(statistics, np.float32), None, np.zeros(0, np.float32)) if statistics else None
    recipe = LocalTraining(SGD(), 1, None, None)
    plan = FederationPlan(0, example_layout(size), recipe, uplink, link, SGD(lr=1.0), "examples", 10, 2, buffers=norm)
    x = next(vectors(size))
    server = initial_server_state(plan, x)
    for round in range(1, ROUND):
        server, _ = aggregate(plan, server, [reply_of(plan, 1, round, x)])
    return plan, server, reply_of(plan, 1, ROUND, x)


def reply_of(plan: FederationPlan, client: int, round: int, x: F32) -> Reply:
    """What a client that remembers nothing sends for the update x."""
    header = Header(FrameKind.UPDATE, round, plan.uplink.codec, round, 0, client, 60)
    sections = plan.uplink.send(x, {}, plan.make_context(round, client)).sections
    if plan.buffers is not None:
        sections = (*sections, encode_buffer_section(np.arange(plan.buffers.n_averaged, dtype=np.float32)))
    return Reply(client, (encode_frame(Frame(header, sections)),), 0.0, 0.0)


def remembered(server: ServerState) -> list[bytes]:
    """All that a server knows, to see that it stays so."""
    public, statistics = server.public_model, () if server.buffers is None else (server.buffers,)
    arrays = (server.weights, public.weights, *server.scheme_state.values(), *server.optimizer_state.values(), *statistics)
    return [array.tobytes() for array in arrays]


# ----------------------------------------------------------------------------------------------------------------- the server


def _open_reply(uplink: CompressionScheme, size: int, statistics: int, data: bytes) -> NDArray[Any]:
    plan, server, good = opened_server(uplink, size, statistics=statistics)
    before = remembered(server)
    try:
        after, _ = aggregate(plan, server, [good, Reply(CLIENT, (data,), 0.0, 0.0)])
    finally:
        require(remembered(server) == before and server.round == ROUND, "the server was written to")
    require(bool(np.isfinite(after.weights).all()), "a weight that is not finite")
    if after.buffers is None:
        return after.weights
    require(after.buffers.shape == (statistics,) and bool(np.isfinite(after.buffers).all()), "statistics that are not")
    return np.concatenate([after.weights, after.buffers])


def _update_target(uplink: CompressionScheme, statistics: int, size: int) -> Target:
    plan = opened_server(uplink, size, statistics=statistics)[0]
    frames = tuple(reply_of(plan, CLIENT, ROUND, x).frames[0] for x in vectors(size))
    name = f"UPDATE {'and statistics ' if statistics else ''}{name_of(uplink)}"
    return Target(name, size, frames, partial(_open_reply, uplink, size, statistics))


def _open_resync(link: ModelBroadcast, size: int, data: bytes) -> NDArray[Any]:
    plan, server, _ = opened_server(UPLINKS[0], size, link)
    before = remembered(server)
    asked = decode_resync(Reply(CLIENT, (data,), 0.0, 0.0), ROUND)
    messages, after = rebroadcast(plan, server, {CLIENT: asked})
    require(remembered(server) == before == remembered(after) and after.round == ROUND, "the server was written to")
    message = messages[CLIENT]
    base = decode_frame(message[0]).header.base
    require(base <= asked.header.base < ROUND, f"a message from round {base} for a client at {asked.header.base}")
    return np.frombuffer(b"".join(message), dtype=np.uint8)


def _resync_target(link: ModelBroadcast, size: int) -> Target:
    said = [(base, known) for base in range(ROUND) for known in (0, 1, 2**32 - 1)]
    frames = [encode_frame(Frame(Header(FrameKind.RESYNC, ROUND, 0, base, known, CLIENT))) for base, known in said]
    return Target(f"RESYNC {link.policy}", size, tuple(frames), partial(_open_resync, link, size))


# ------------------------------------------------------------------------------------------------------------------ the client


def _open_message(plan: FederationPlan, message: Message, place: int, held: int, data: bytes) -> NDArray[Any]:
    """At a client that holds the model of round `model_round`, 0 for none."""
    models, own = InMemoryModelCache(), next(vectors(plan.layout.size))
    before = own.tobytes()
    if held:
        models.put(held, own)
    done = False
    try:
        frames = (*message[:place], data, *message[place + 1 :])
        task = decode_task(plan, CLIENT, frames, ClientState(model_round=held), NO_EXAMPLES, DownlinkCache(models))
        done = True
    except RunError as error:
        if "the server accepted a reply" in error.cause:  # a sound frame of a server that remembers another client than this
            raise WireError(0, error.cause) from None
        raise
    finally:
        require(own.tobytes() == before, "the model that the client holds was written to")
        require(done or not models.has(ROUND), "a model was kept from a message that was refused")
    if isinstance(task, ImmediateReply):  # a sound frame of a server that takes this client for another
        raise WireError(0, "the client asks for another message")
    require(task.job.round >= 1, f"training in round {task.job.round}")
    found = [task.job.weights, task.downlink.reference, task.job.buffers]
    sizes = [plan.layout.size, plan.layout.size, 0 if plan.buffers is None else plan.buffers.n_averaged]
    for vector, size in zip(found, sizes, strict=True):
        require(vector is None or (vector.shape == (size,) and bool(np.isfinite(vector).all())), "a vector that is not one")
    return np.concatenate([vector for vector in found if vector is not None])


def _message_target(uplink: CompressionScheme, statistics: int, place: int, size: int) -> Target:
    """A frame of a message with the whole model."""
    plan, server, _ = opened_server(uplink, size, statistics=statistics)
    message = broadcast(plan, server, [CLIENT])[0][CLIENT]
    kind = FrameKind(decode_frame(message[place]).header.kind).name
    return Target(f"{kind} {uplink.name}", size, (message[place],), partial(_open_message, plan, message, place, 0))


def _difference_target(op: CompressionOperator | None, place: int, size: int) -> Target:
    """A frame of a message from round 1: that of round 2, or that of round 3. op: what made them; None: the values of one in three
    coordinates, which are assigned."""
    link = ModelBroadcast("difference") if op is None else ModelBroadcast("error-feedback", op)
    plan = opened_server(UPLINKS[0], size, link)[0]
    task = encode_frame(Frame(Header(FrameKind.TASK, ROUND, 0, 1, 0, CLIENT)))
    ways = []
    for x in vectors(size):
        frames = [task]
        for round in (ROUND - 1, ROUND):
            ctx, some = plan.make_context(round, ALL_CLIENTS), np.arange(0, size, 3)
            sections = encode_sparse(some, x[some], "float32", ctx)[0] if op is None else op.encode(x, ctx)[0]
            codec = ASSIGN_CODEC if op is None else op.codec
            frames.append(encode_frame(Frame(Header(FrameKind.MODEL, round, codec, round - 1), sections)))
        ways.append(tuple(frames))
    name = f"difference {'of changes' if op is None else op.name} {place}"
    return Target(name, size, tuple(way[place] for way in ways), partial(_open_message, plan, ways[0], place, 1))


@cache
def round_targets() -> tuple[Callable[[int], Target], ...]:
    """Each is made for a size."""
    makers: list[Callable[[int], Target]] = [partial(_update_target, uplink, 0) for uplink in UPLINKS]
    makers += [partial(_update_target, uplink, STATISTICS) for uplink in (UPLINKS[0], UPLINKS[6])]
    makers += [partial(_resync_target, ModelBroadcast(policy)) for policy in ("model", "difference")]
    makers += [partial(_resync_target, ModelBroadcast("error-feedback", TopK(0.1, "ternary")))]
    makers += [partial(_message_target, CAFe(TopK(0.1)), STATISTICS, place) for place in range(4)]
    makers += [partial(_message_target, Scaffold(TopK(0.1)), 0, 2)]
    makers += [partial(_difference_target, op, place) for op in (None, *DIFFERENCES) for place in (0, 1, 2)]
    return tuple(makers)
