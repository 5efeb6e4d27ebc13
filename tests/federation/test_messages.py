"""Messages decoded with `fedsgd/docs/reference/wire-format*.md` alone.

Whatever model a client has stored, the second decoder and fedsgd decode its message to the same bits, or both reject it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import NamedTuple, get_args

import numpy as np
import pytest

from fedsgd.aggregation import select_aggregator
from fedsgd.certification.operator_laws import example_layout
from fedsgd.compression import CodecContext, CompressionOperator, CompressionScheme, MemorylessScheme
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.eden import Eden
from fedsgd.compression.operators.natural import NaturalCompression
from fedsgd.compression.operators.per_layer import PerLayer
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.scheduled import Scheduled
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.cafe import CAFe
from fedsgd.compression.schemes.scaffold import Scaffold
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
from fedsgd.federation.client_state import NONE_ACKNOWLEDGED, ClientState, InMemoryModelCache, UncommittedState
from fedsgd.federation.downlink import ASSIGN_CODEC, DownlinkPolicy, ModelBroadcast
from fedsgd.federation.server import decode_resync, rebroadcast
from fedsgd.numerics.arrays import F32
from fedsgd.optim import SGD
from fedsgd.scenario.parsing import dump_table
from fedsgd.training import LocalTraining
from fedsgd.wire import Frame, FrameKind, Header, decode_frame, encode_frame
from tests.hostile.mutators import mutant
from tests.laws.members import name_of
from tests.wire import second_decoder
from tests.wire.second_client import Client as Known
from tests.wire.second_client import DecodedMessage as Opened
from tests.wire.second_client import RunSettings as Agreed
from tests.wire.second_client import decode_message as open_message

SIZE, CLIENT, ROUNDS, BUFFER_SIZE = 300, 2, 5, 6
POLICIES: tuple[DownlinkPolicy, ...] = get_args(DownlinkPolicy)
OPERATORS: tuple[CompressionOperator, ...] = (
    TopK(0.1, "ternary"), TopK(0.1, "2bit", chunk=64, scales="chunk"), TopK(1.0), RandK(0.3), Sign(), NaturalCompression(), Eden(), Dense("bfloat16"), PerLayer(RandK(0.5)),
    PerLayer(NaturalCompression()), PerLayer(TopK(0.2), biases=Sign()), Scheduled(TopK(0.02), (0.3, 0.1)),
)  # fmt: skip
UPLINKS: tuple[CompressionScheme, ...] = (MemorylessScheme(TopK(0.02)), CAFe(TopK(0.1)), Scaffold(TopK(0.05)))
NO_EXAMPLES = Examples(np.zeros((1, 1)), np.zeros(1))


class Case(NamedTuple):
    """Plan, server state of each round, and model that the clients of each round decode."""

    plan: FederationPlan
    servers: dict[int, ServerState]
    models: dict[int, F32]


def play_rounds(link: ModelBroadcast, uplink: CompressionScheme, n_buffers: int) -> Case:
    """Play rounds in which a few coordinates change, some of them back, and some to −0."""
    r = np.random.default_rng(7)
    buffer_plan = BufferPlan(r.random(n_buffers, dtype=np.float32), None, np.zeros(0, np.float32)) if n_buffers else None
    plan = FederationPlan(
        3,
        example_layout(SIZE),
        LocalTraining(SGD(), 1, None, None),
        uplink,
        link,
        SGD(lr=1.0),
        "uniform",
        10,
        2,
        buffers=buffer_plan,
        aggregator=select_aggregator(None, uplink),
    )
    weights = np.where(np.arange(SIZE) % 3, r.standard_normal(SIZE), -0.0).astype(np.float32)
    server = initial_server_state(plan, weights)
    servers, models = {1: server}, {1: server.public_model.weights}
    for round in range(1, ROUNDS):
        x = np.where(r.random(SIZE) < 0.03, r.standard_normal(SIZE), 0).astype(np.float32)
        server, _ = aggregate(plan, server, [encode_reply(plan, client, round, x) for client in (1, 4)])
        servers[round + 1], models[round + 1] = server, server.public_model.weights
    return Case(plan, servers, models)


def encode_reply(plan: FederationPlan, client: int, round: int, x: F32) -> Reply:
    """Return the reply of a client without state for the update x [P]."""
    sections = plan.uplink.send(x, {}, plan.make_context(round, client)).sections
    if plan.buffers is not None:
        sections = (*sections, encode_buffer_section(np.full(plan.buffers.n_averaged, client + round, np.float32)))
    header = Header(FrameKind.UPDATE, round, plan.uplink.codec, round, 0, client, 60)
    return Reply(client, (encode_frame(Frame(header, sections)),), 0.0, 0.0)


def cases() -> Iterator[tuple[str, ModelBroadcast, CompressionScheme, int]]:
    """Yield cases with every policy, every operator and every uplink."""
    for policy in POLICIES:
        for op in OPERATORS if policy in ("model", "unbiased") else OPERATORS[:1]:
            yield f"{policy}-{name_of(op)}", ModelBroadcast(policy, op), UPLINKS[0], 0
    for policy in ("model", "difference", "ef21-p"):
        yield policy, ModelBroadcast(policy), UPLINKS[1], BUFFER_SIZE
        yield policy, ModelBroadcast(policy, TopK(0.1)), UPLINKS[2], BUFFER_SIZE


CASES = {f"{name}-{uplink.name}": (link, uplink, n_buffers) for name, link, uplink, n_buffers in cases()}


def make_agreement(plan: FederationPlan) -> Agreed:
    shapes = dict(zip(plan.layout.names, plan.layout.shapes, strict=True))
    n_buffers = 0 if plan.buffers is None else plan.buffers.n_averaged
    link = plan.downlink
    return Agreed(plan.seed, shapes, link.policy, dump_table(link.operator), dump_table(plan.uplink), n_buffers)


def decode_with_fedsgd(case: Case, message: Message, model_round: int, reply_round: int) -> Opened | second_decoder.Header:
    """Return the message as fedsgd decodes it at a client with these rounds, 0 for none."""
    models = InMemoryModelCache()
    if model_round:
        models.put(model_round, case.models[model_round])
    uncommitted = UncommittedState(reply_round, {}, {}) if reply_round else None
    task = decode_task(
        case.plan, CLIENT, message, ClientState({}, uncommitted, model_round), NO_EXAMPLES, DownlinkCache(models)
    )
    if isinstance(task, ImmediateReply):
        header = decode_frame(task.reply.frames[0]).header
        return second_decoder.Header(
            header.kind, header.codec, header.round, header.base, header.acknowledged, header.client, header.examples
        )
    return Opened(task.downlink.weights, task.downlink.buffers, task.downlink.reference)


def decode_with_second_decoder(
    case: Case, message: Message, model_round: int, reply_round: int
) -> Opened | second_decoder.Header:
    return open_message(
        message, make_agreement(case.plan), Known(CLIENT, model_round, case.models.get(model_round), reply_round)
    )


def to_bytes(decoded: Opened | second_decoder.Header) -> tuple[object, ...]:
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in decoded)


def encode_message(case: Case, round: int, acknowledged_round: int) -> Message:
    """Return the message for a client whose last accepted reply is of round `acknowledged_round`, 0 for none."""
    server = replace(
        case.servers[round],
        acknowledged_rounds=NONE_ACKNOWLEDGED.with_rounds([CLIENT], acknowledged_round)
        if acknowledged_round
        else NONE_ACKNOWLEDGED,
    )
    return broadcast(case.plan, server, [CLIENT])[0][CLIENT]


@pytest.mark.sampled
@pytest.mark.parametrize("name", CASES)
def test_message_decodes_to_the_same_bits_from_any_stored_model(name: str) -> None:
    case = play_rounds(*CASES[name])
    patterns = Counter[str]()
    for round in range(2, ROUNDS + 1):
        for acknowledged_round in range(round):
            message = encode_message(case, round, acknowledged_round)
            frames = [decode_frame(frame).header for frame in message]
            patterns[
                f"{len([h for h in frames if h.kind == FrameKind.MODEL and h.base])} {max(h.codec for h in frames) == ASSIGN_CODEC}"
            ] += 1
            for model_round in range(round) if case.plan.downlink.clients_keep_model else (0,):
                decoded = decode_with_fedsgd(case, message, model_round, acknowledged_round)
                assert to_bytes(decoded) == to_bytes(decode_with_second_decoder(case, message, model_round, acknowledged_round))
                if isinstance(decoded, Opened):
                    assert decoded.model.tobytes() == case.models[round].tobytes()
                else:
                    assert frames[0].base > model_round == decoded.base
    if case.plan.downlink.policy not in ("model", "difference") and "top-k" in name:
        assert any(int(pattern.split()[0]) > 1 for pattern in patterns), patterns


@pytest.mark.parametrize("name", CASES)
def test_resync_is_answered_with_a_message_that_decodes(name: str) -> None:
    case = play_rounds(*CASES[name])
    server = replace(case.servers[ROUNDS], acknowledged_rounds=NONE_ACKNOWLEDGED.with_rounds([CLIENT], ROUNDS - 1))
    header = Header(FrameKind.RESYNC, ROUNDS, base=1, acknowledged=1, client=CLIENT)
    resync_frame = decode_resync(Reply(CLIENT, (encode_frame(Frame(header)),), 0.0, 0.0), ROUNDS)
    message = rebroadcast(case.plan, server, {CLIENT: resync_frame})[0][CLIENT]
    assert decode_frame(message[0]).header.acknowledged == 0
    decoded = decode_with_fedsgd(case, message, 1, 1)
    assert isinstance(decoded, Opened)
    assert to_bytes(decoded) == to_bytes(decode_with_second_decoder(case, message, 1, 1))


def test_client_with_lost_state_replies_resync_or_stops() -> None:
    case = play_rounds(ModelBroadcast("difference"), UPLINKS[0], 0)
    message = encode_message(case, ROUNDS, ROUNDS - 1)
    reply_header = decode_with_fedsgd(case, message, ROUNDS - 1, 1)
    assert reply_header == second_decoder.Header(second_decoder.RESYNC, 0, ROUNDS, 0, 0, CLIENT, 0)
    assert reply_header == decode_with_second_decoder(case, message, ROUNDS - 1, 1)
    case = play_rounds(ModelBroadcast("difference"), UPLINKS[2], 0)
    for decode in (decode_with_fedsgd, decode_with_second_decoder):
        with pytest.raises((RunError, ValueError), match=r"cannot be re(stored|placed)"):
            decode(case, encode_message(case, ROUNDS, ROUNDS - 1), ROUNDS - 1, 1)


@pytest.mark.parametrize("op", [PerLayer(NaturalCompression()), PerLayer(Sign()), NaturalCompression(), Sign()], ids=name_of)
def test_adding_an_update_rounds_once_and_keeps_signs_of_zeros(op: CompressionOperator) -> None:
    model = np.where(np.arange(SIZE) % 2, -0.0, 1 / 3).astype(np.float32)
    x = np.where(np.arange(SIZE) % 3, -0.0, 0.7 if isinstance(op, NaturalCompression) else 0.0).astype(np.float32)
    update = op.encode(x, CodecContext(0, 2, 3, example_layout(SIZE)))[1]
    expected = model + update.to_dense()
    update.add_to(model, 1.0)
    assert model.tobytes() == expected.tobytes()


def corrupt_message(r: Random, message: Message, size: int) -> Message:
    """Return a message with a missing or repeated frame, another order, a changed header, or changed bytes."""
    frames = list(message)
    position = r.randrange(len(frames))
    match r.randrange(8):
        case 0:
            del frames[position]
        case 1:
            frames.insert(r.randrange(len(frames) + 1), frames[position])
        case 2:
            r.shuffle(frames)
        case 3 | 4:
            frame = decode_frame(frames[position])
            field = r.choice(("kind", "codec", "round", "base", "acknowledged", "client", "examples"))
            value = (
                FrameKind(r.randrange(1, 7))
                if field == "kind"
                else r.choice((0, 1, 2, 3, 4, 5, 6, ASSIGN_CODEC, 2**32 - 1)) % (256 if field == "codec" else 2**32)
            )
            frames[position] = encode_frame(replace(frame, header=replace(frame.header, **{field: value})))
        case _:
            frames[position] = mutant(r, frames[position], message, size)
    return tuple(frames)


@pytest.mark.sampled
@pytest.mark.parametrize("name", CASES)
def test_corrupted_message_is_rejected_or_decoded_alike_by_both_decoders(name: str) -> None:
    case, r = play_rounds(*CASES[name]), Random(name)
    for _ in range(60):
        round = r.randrange(2, ROUNDS + 1)
        acknowledged_round = r.randrange(round)
        model_round = r.randrange(acknowledged_round, round) if case.plan.downlink.clients_keep_model else 0
        message = corrupt_message(r, encode_message(case, round, acknowledged_round), SIZE)
        try:
            expected = to_bytes(decode_with_fedsgd(case, message, model_round, acknowledged_round))
        except (WireError, RunError):
            with pytest.raises(ValueError, match=r".") as error_info:
                decode_with_second_decoder(case, message, model_round, acknowledged_round)
            assert error_info.type is ValueError
        else:
            assert to_bytes(decode_with_second_decoder(case, message, model_round, acknowledged_round)) == expected
