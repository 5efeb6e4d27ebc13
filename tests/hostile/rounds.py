"""Targets of a round: an UPDATE and a RESYNC at the server, and each frame of a message at a client."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.aggregation import select_aggregator
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
WHOLE_MODEL = ModelBroadcast()
NO_EXAMPLES = Examples(np.zeros((1, 1)), np.zeros(1))


@cache
def build_server(
    uplink: CompressionScheme, size: int, downlink: ModelBroadcast = WHOLE_MODEL, statistics: int = 0
) -> tuple[FederationPlan, ServerState, Reply]:
    """Build a server in round 3, and a valid reply of client 1."""
    norm = BufferPlan(np.ones(statistics, np.float32), None, np.zeros(0, np.float32)) if statistics else None
    recipe = LocalTraining(SGD(), 1, None, None)
    layout, aggregator = example_layout(size), select_aggregator(None, uplink)
    plan = FederationPlan(
        0, layout, recipe, uplink, downlink, SGD(lr=1.0), "examples", 10, 2, buffers=norm, aggregator=aggregator
    )
    x = next(vectors(size))
    server = initial_server_state(plan, x)
    for round in range(1, ROUND):
        server, _ = aggregate(plan, server, [encode_reply(plan, 1, round, x)])
    return plan, server, encode_reply(plan, 1, ROUND, x)


def encode_reply(plan: FederationPlan, client: int, round: int, x: F32) -> Reply:
    """Encode the reply of a client without state, with the update x."""
    header = Header(FrameKind.UPDATE, round, plan.uplink.codec, round, 0, client, 60)
    sections = plan.uplink.send(x, {}, plan.make_context(round, client)).sections
    if plan.buffers is not None:
        sections = (*sections, encode_buffer_section(np.arange(plan.buffers.n_averaged, dtype=np.float32)))
    return Reply(client, (encode_frame(Frame(header, sections)),), 0.0, 0.0)


def copy_state(server: ServerState) -> list[bytes]:
    """Copy all arrays of a server as bytes, to check that they do not change."""
    public, statistics = server.public_model, () if server.buffers is None else (server.buffers,)
    arrays = (server.weights, public.weights, *server.aggregator_state.values(), *server.optimizer_state.values(), *statistics)
    return [array.tobytes() for array in arrays]


# ----------------------------------------------------------------------------------------------------------------- the server


def _decode_reply(uplink: CompressionScheme, size: int, statistics: int, data: bytes) -> NDArray[Any]:
    plan, server, reply = build_server(uplink, size, statistics=statistics)
    state = copy_state(server)
    try:
        next_server, _ = aggregate(plan, server, [reply, Reply(CLIENT, (data,), 0.0, 0.0)])
    finally:
        require(copy_state(server) == state and server.round == ROUND, "the server's state has changed")
    require(bool(np.isfinite(next_server.weights).all()), "a weight is not finite")
    buffers = next_server.buffers
    if buffers is None:
        return next_server.weights
    require(buffers.shape == (statistics,) and bool(np.isfinite(buffers).all()), "statistics are not finite")
    return np.concatenate([next_server.weights, buffers])


def _update_target(uplink: CompressionScheme, statistics: int, size: int) -> Target:
    plan = build_server(uplink, size, statistics=statistics)[0]
    frames = tuple(encode_reply(plan, CLIENT, ROUND, x).frames[0] for x in vectors(size))
    name = f"UPDATE {'and statistics ' if statistics else ''}{name_of(uplink)}"
    return Target(name, size, frames, partial(_decode_reply, uplink, size, statistics))


def _decode_resync(downlink: ModelBroadcast, size: int, data: bytes) -> NDArray[Any]:
    plan, server, _ = build_server(UPLINKS[0], size, downlink)
    state = copy_state(server)
    resync = decode_resync(Reply(CLIENT, (data,), 0.0, 0.0), ROUND)
    messages, next_server = rebroadcast(plan, server, {CLIENT: resync})
    is_unchanged = copy_state(server) == state == copy_state(next_server) and next_server.round == ROUND
    require(is_unchanged, "the server's state has changed")
    message = messages[CLIENT]
    base = decode_frame(message[0]).header.base
    require(base <= resync.header.base < ROUND, f"a message from round {base} for a client at {resync.header.base}")
    return np.frombuffer(b"".join(message), dtype=np.uint8)


def _resync_target(downlink: ModelBroadcast, size: int) -> Target:
    fields = [(base, acknowledged) for base in range(ROUND) for acknowledged in (0, 1, 2**32 - 1)]
    frames = [
        encode_frame(Frame(Header(FrameKind.RESYNC, ROUND, 0, base, acknowledged, CLIENT))) for base, acknowledged in fields
    ]
    return Target(f"RESYNC {downlink.policy}", size, tuple(frames), partial(_decode_resync, downlink, size))


# ------------------------------------------------------------------------------------------------------------------ the client


def _decode_message(plan: FederationPlan, message: Message, index: int, model_round: int, data: bytes) -> NDArray[Any]:
    """Decode a message with another frame at a client that has the model of `model_round`, 0 for none."""
    models, model = InMemoryModelCache(), next(vectors(plan.layout.size))
    original = model.tobytes()
    if model_round:
        models.put(model_round, model)
    is_accepted = False
    try:
        frames = (*message[:index], data, *message[index + 1 :])
        task = decode_task(plan, CLIENT, frames, ClientState(model_round=model_round), NO_EXAMPLES, DownlinkCache(models))
        is_accepted = True
    except RunError as error:
        if "the server accepted a reply" in error.cause:  # a valid frame that does not fit the client's state
            raise WireError(0, error.cause) from None
        raise
    finally:
        require(model.tobytes() == original, "the client's model has changed")
        require(is_accepted or not models.has(ROUND), "the client stored a model of a rejected message")
    if isinstance(task, ImmediateReply):  # a valid frame that does not fit the client's state
        raise WireError(0, "the client requests a second message")
    require(task.job.round >= 1, f"training in round {task.job.round}")
    arrays = [task.job.weights, task.downlink.reference, task.job.buffers]
    sizes = [plan.layout.size, plan.layout.size, 0 if plan.buffers is None else plan.buffers.n_averaged]
    for array, size in zip(arrays, sizes, strict=True):
        require(
            array is None or (array.shape == (size,) and bool(np.isfinite(array).all())),
            "an array of another size, or not finite",
        )
    return np.concatenate([array for array in arrays if array is not None])


def _message_target(uplink: CompressionScheme, statistics: int, index: int, size: int) -> Target:
    """Return the target of one frame of a message with the whole model."""
    plan, server, _ = build_server(uplink, size, statistics=statistics)
    message = broadcast(plan, server, [CLIENT])[0][CLIENT]
    kind = FrameKind(decode_frame(message[index]).header.kind).name
    return Target(f"{kind} {uplink.name}", size, (message[index],), partial(_decode_message, plan, message, index, 0))


def _difference_target(op: CompressionOperator | None, index: int, size: int) -> Target:
    """Return the target of one frame of a message with the differences of rounds 2 and 3.

    Args:
        op: operator of the differences; None: new values of every third coordinate.
        index: index of the frame.
        size: P.
    """
    downlink = ModelBroadcast("difference") if op is None else ModelBroadcast("error-feedback", op)
    plan = build_server(UPLINKS[0], size, downlink)[0]
    task = encode_frame(Frame(Header(FrameKind.TASK, ROUND, 0, 1, 0, CLIENT)))
    messages = []
    for x in vectors(size):
        frames = [task]
        for round in (ROUND - 1, ROUND):
            ctx, positions = plan.make_context(round, ALL_CLIENTS), np.arange(0, size, 3)
            sections = encode_sparse(positions, x[positions], "float32", ctx)[0] if op is None else op.encode(x, ctx)[0]
            codec = ASSIGN_CODEC if op is None else op.codec
            frames.append(encode_frame(Frame(Header(FrameKind.MODEL, round, codec, round - 1), sections)))
        messages.append(tuple(frames))
    name = f"difference {'of changes' if op is None else op.name} {index}"
    return Target(
        name, size, tuple(message[index] for message in messages), partial(_decode_message, plan, messages[0], index, 1)
    )


@cache
def round_targets() -> tuple[Callable[[int], Target], ...]:
    """Return the functions that build a target for a size."""
    builders: list[Callable[[int], Target]] = [partial(_update_target, uplink, 0) for uplink in UPLINKS]
    builders += [partial(_update_target, uplink, STATISTICS) for uplink in (UPLINKS[0], UPLINKS[6])]
    builders += [partial(_resync_target, ModelBroadcast(policy)) for policy in ("model", "difference")]
    builders += [partial(_resync_target, ModelBroadcast("error-feedback", TopK(0.1, "ternary")))]
    builders += [partial(_message_target, CAFe(TopK(0.1)), STATISTICS, index) for index in range(4)]
    builders += [partial(_message_target, Scaffold(TopK(0.1)), 0, 2)]
    builders += [partial(_difference_target, op, index) for op in (None, *DIFFERENCES) for index in (0, 1, 2)]
    return tuple(builders)
