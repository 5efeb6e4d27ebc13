"""Messages by fedsgd/wire/FORMAT.md alone: whatever a client holds, the second decoder makes the same of its message as fedsgd does,
and refuses what fedsgd refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import NamedTuple, get_args

import numpy as np
import pytest

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
from tests.wire.second_client import Agreed, Known, Opened, open_message

SIZE, CLIENT, ROUNDS, STATISTICS = 300, 2, 5, 6
POLICIES: tuple[DownlinkPolicy, ...] = get_args(DownlinkPolicy)
OPERATORS: tuple[CompressionOperator, ...] = (
    TopK(0.1, "ternary"), TopK(1.0), RandK(0.3), Sign(), NaturalCompression(), Eden(), Dense("bfloat16"), PerLayer(RandK(0.5)),
    PerLayer(NaturalCompression()), PerLayer(TopK(0.2), biases=Sign()), Scheduled(TopK(0.02), (0.3, 0.1)),
)  # fmt: skip
UPLINKS: tuple[CompressionScheme, ...] = (MemorylessScheme(TopK(0.02)), CAFe(TopK(0.1)), Scaffold(TopK(0.05)))
NO_EXAMPLES = Examples(np.zeros((1, 1)), np.zeros(1))


class Case(NamedTuple):
    """A plan, the server of each round, and the model that clients of that round have."""

    plan: FederationPlan
    servers: dict[int, ServerState]
    models: dict[int, F32]


def played(link: ModelBroadcast, uplink: CompressionScheme, statistics: int) -> Case:
    """Rounds in which a few coordinates move, some of them back, and some to −0."""
    r = np.random.default_rng(7)
    norm = BufferPlan(r.random(statistics, dtype=np.float32), None, np.zeros(0, np.float32)) if statistics else None
    plan = FederationPlan(
        3, example_layout(SIZE), LocalTraining(SGD(), 1, None, None), uplink, link, SGD(lr=1.0), "uniform", 10, 2, buffers=norm
    )
    weights = np.where(np.arange(SIZE) % 3, r.standard_normal(SIZE), -0.0).astype(np.float32)
    server = initial_server_state(plan, weights)
    servers, models = {1: server}, {1: server.public_model.weights}
    for round in range(1, ROUNDS):
        x = np.where(r.random(SIZE) < 0.03, r.standard_normal(SIZE), 0).astype(np.float32)
        server, _ = aggregate(plan, server, [reply_of(plan, client, round, x) for client in (1, 4)])
        servers[round + 1], models[round + 1] = server, server.public_model.weights
    return Case(plan, servers, models)


def reply_of(plan: FederationPlan, client: int, round: int, x: F32) -> Reply:
    """What a client that remembers nothing sends for the update x."""
    sections = plan.uplink.send(x, {}, plan.make_context(round, client)).sections
    if plan.buffers is not None:
        sections = (*sections, encode_buffer_section(np.full(plan.buffers.n_averaged, client + round, np.float32)))
    header = Header(FrameKind.UPDATE, round, plan.uplink.codec, round, 0, client, 60)
    return Reply(client, (encode_frame(Frame(header, sections)),), 0.0, 0.0)


def cases() -> Iterator[tuple[str, ModelBroadcast, CompressionScheme, int]]:
    """Every policy, every operator, every uplink."""
    for policy in POLICIES:
        for op in OPERATORS if policy in ("model", "plain") else OPERATORS[:1]:
            yield f"{policy}-{name_of(op)}", ModelBroadcast(policy, op), UPLINKS[0], 0
    for policy in ("model", "difference", "shift"):
        yield policy, ModelBroadcast(policy), UPLINKS[1], STATISTICS
        yield policy, ModelBroadcast(policy, TopK(0.1)), UPLINKS[2], STATISTICS


CASES = {f"{name}-{uplink.name}": (link, uplink, statistics) for name, link, uplink, statistics in cases()}


def agreed(plan: FederationPlan) -> Agreed:
    shapes = dict(zip(plan.layout.names, plan.layout.shapes, strict=True))
    statistics = 0 if plan.buffers is None else plan.buffers.n_averaged
    link = plan.downlink
    return Agreed(plan.seed, shapes, link.policy, dump_table(link.operator), dump_table(plan.uplink), statistics)


def first_opened(case: Case, message: Message, held: int, replied: int) -> Opened | second_decoder.Header:
    """What fedsgd makes of a message."""
    models = InMemoryModelCache()
    if held:
        models.put(held, case.models[held])
    pending = UncommittedState(replied, {}, {}) if replied else None
    task = decode_task(case.plan, CLIENT, message, ClientState({}, pending, held), NO_EXAMPLES, DownlinkCache(models))
    if isinstance(task, ImmediateReply):
        h = decode_frame(task.reply.frames[0]).header
        return second_decoder.Header(h.kind, h.codec, h.round, h.base, h.acknowledged, h.client, h.examples)
    return Opened(task.downlink.weights, task.downlink.buffers, task.downlink.reference)


def second_opened(case: Case, message: Message, held: int, replied: int) -> Opened | second_decoder.Header:
    return open_message(message, agreed(case.plan), Known(CLIENT, held, case.models.get(held), replied))


def bits(found: Opened | second_decoder.Header) -> tuple[object, ...]:
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in found)


def message_of(case: Case, round: int, known: int) -> Message:
    """For a client whose reply of round `known` was the last to be accepted."""
    server = replace(
        case.servers[round], acknowledged_rounds=NONE_ACKNOWLEDGED.with_rounds([CLIENT], known) if known else NONE_ACKNOWLEDGED
    )
    return broadcast(case.plan, server, [CLIENT])[0][CLIENT]


@pytest.mark.parametrize("name", CASES)
def test_a_message_is_followed_from_any_model_to_the_same_bits(name: str) -> None:
    case = played(*CASES[name])
    seen = Counter[str]()
    for round in range(2, ROUNDS + 1):
        for known in range(round):
            message = message_of(case, round, known)
            frames = [decode_frame(frame).header for frame in message]
            seen[
                f"{len([h for h in frames if h.kind == FrameKind.MODEL and h.base])} {max(h.codec for h in frames) == ASSIGN_CODEC}"
            ] += 1
            for held in range(round) if case.plan.downlink.clients_keep_model else (0,):
                first = first_opened(case, message, held, known)
                assert bits(first) == bits(second_opened(case, message, held, known))
                if isinstance(first, Opened):
                    assert first.model.tobytes() == case.models[round].tobytes()
                else:
                    assert frames[0].base > held == first.base
    if case.plan.downlink.policy not in ("model", "difference") and "top-k" in name:
        assert any(int(ways.split()[0]) > 1 for ways in seen), seen


@pytest.mark.parametrize("name", CASES)
def test_who_asks_again_is_sent_what_it_can_follow(name: str) -> None:
    case = played(*CASES[name])
    server = replace(case.servers[ROUNDS], acknowledged_rounds=NONE_ACKNOWLEDGED.with_rounds([CLIENT], ROUNDS - 1))
    header = Header(FrameKind.RESYNC, ROUNDS, base=1, acknowledged=1, client=CLIENT)
    opened = decode_resync(Reply(CLIENT, (encode_frame(Frame(header)),), 0.0, 0.0), ROUNDS)
    message = rebroadcast(case.plan, server, {CLIENT: opened})[0][CLIENT]
    assert decode_frame(message[0]).header.acknowledged == 0
    first = first_opened(case, message, 1, 1)
    assert isinstance(first, Opened)
    assert bits(first) == bits(second_opened(case, message, 1, 1))


def test_a_client_that_lost_its_state_forgets_or_stops() -> None:
    case = played(ModelBroadcast("difference"), UPLINKS[0], 0)
    message = message_of(case, ROUNDS, ROUNDS - 1)
    first = first_opened(case, message, ROUNDS - 1, 1)
    assert first == second_decoder.Header(second_decoder.RESYNC, 0, ROUNDS, 0, 0, CLIENT, 0)
    assert first == second_opened(case, message, ROUNDS - 1, 1)
    case = played(ModelBroadcast("difference"), UPLINKS[2], 0)
    for opened in (first_opened, second_opened):
        with pytest.raises((RunError, ValueError), match=r"cannot be re(stored|placed)"):
            opened(case, message_of(case, ROUNDS, ROUNDS - 1), ROUNDS - 1, 1)


@pytest.mark.parametrize("op", [PerLayer(NaturalCompression()), PerLayer(Sign()), NaturalCompression(), Sign()], ids=name_of)
def test_what_is_added_is_rounded_once_and_zeros_keep_their_signs(op: CompressionOperator) -> None:
    model = np.where(np.arange(SIZE) % 2, -0.0, 1 / 3).astype(np.float32)
    x = np.where(np.arange(SIZE) % 3, -0.0, 0.7 if isinstance(op, NaturalCompression) else 0.0).astype(np.float32)
    update = op.encode(x, CodecContext(0, 2, 3, example_layout(SIZE)))[1]
    expected = model + update.to_dense()
    update.add_to(model, 1.0)
    assert model.tobytes() == expected.tobytes()


def mangled(r: Random, message: Message, size: int) -> Message:
    """Frames left out, doubled, in another order, with another header, or with other bytes."""
    frames = list(message)
    at = r.randrange(len(frames))
    match r.randrange(8):
        case 0:
            del frames[at]
        case 1:
            frames.insert(r.randrange(len(frames) + 1), frames[at])
        case 2:
            r.shuffle(frames)
        case 3 | 4:
            frame = decode_frame(frames[at])
            field = r.choice(("kind", "codec", "round", "base", "acknowledged", "client", "examples"))
            value = (
                FrameKind(r.randrange(1, 7))
                if field == "kind"
                else r.choice((0, 1, 2, 3, 4, 5, 6, ASSIGN_CODEC, 2**32 - 1)) % (256 if field == "codec" else 2**32)
            )
            frames[at] = encode_frame(replace(frame, header=replace(frame.header, **{field: value})))
        case _:
            frames[at] = mutant(r, frames[at], message, size)
    return tuple(frames)


@pytest.mark.parametrize("name", CASES)
def test_both_refuse_the_same_message_or_make_the_same_of_it(name: str) -> None:
    case, r = played(*CASES[name]), Random(name)
    for _ in range(60):
        round = r.randrange(2, ROUNDS + 1)
        known = r.randrange(round)
        held = r.randrange(known, round) if case.plan.downlink.clients_keep_model else 0
        message = mangled(r, message_of(case, round, known), SIZE)
        try:
            expected = bits(first_opened(case, message, held, known))
        except (WireError, RunError):
            with pytest.raises(ValueError, match=r".") as refused:
                second_opened(case, message, held, known)
            assert refused.type is ValueError
        else:
            assert bits(second_opened(case, message, held, known)) == expected
