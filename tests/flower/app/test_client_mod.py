"""Compression in somebody's Flower app: the strategy and the mod, over a grid in this process.

Messages go through Flower's own packing, so that what an app gets is what it would get over a network. "Training" adds a
fixed update. Where figures are to agree to the last bit, they are multiples of 2⁻¹⁰ and small: then float arithmetic is exact,
in whatever order.
"""

from __future__ import annotations

import importlib
import json
import logging
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    QFedAvg,
    Strategy,
)
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsgd.compression import CodecContext as Known
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import ModelError, NonFiniteError, ScenarioError, WireError
from fedsgd.federation import (
    ClientTask,
    DownlinkCache,
    advance_with_external_model,
    aggregate,
    broadcast,
    decode_task,
    encode_update,
    initial_server_state,
)
from fedsgd.federation.client_state import InMemoryClientStore, InMemoryModelCache
from fedsgd.flower import CompressedStrategy, compression_mod, tied_names
from fedsgd.flower.app.array_layout import build_array_layout
from fedsgd.flower.app.client_mod import _DUMMY_EXAMPLES
from fedsgd.flower.app.messages import decode_reply, decode_request, encode_uncompressed_reply, payload_bytes
from fedsgd.flower.app.settings import SETTINGS_VERSION, CompressionSettings, decode_settings
from fedsgd.flower.app.strategy import DEFAULT_EXACT_PATTERNS
from fedsgd.flower.records import MAX_CONFIG_VALUE_BYTES, RECORD_KEY, count_message_bytes, read_payload, write_payload
from fedsgd.optim import SGD
from fedsgd.runtime.stores.directory import FolderStore
from fedsgd.runtime.workers import protocol
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training import TrainingResult
from fedsgd.wire import Frame, FrameKind, Header, decode_frame, encode_frame, peek_kind
from tests.flower.example import APP, write_app
from tests.flower.grid import RUN, carried, identity

SHAPES = {"fc.weight": (20, 10), "fc.bias": (20,), "scale": ()}
SIZE = 221
NODES = (2**63 + 11, 7, 2**40, 5 * 2**50)
TOP_K = {"name": "top-k", "density": 0.05}


def model(seed: int = 0, **more: np.ndarray) -> ArrayRecord:
    """An app's arrays: multiples of 2⁻¹⁰."""
    rng = np.random.default_rng(seed)
    arrays = {name: (rng.integers(-999, 999, shape) / 1024).astype(np.float32) for name, shape in SHAPES.items()}
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in (arrays | more).items()})


def plain(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in arrays.items()}


def flat(arrays: ArrayRecord) -> np.ndarray:
    return np.concatenate([arrays[name].numpy().reshape(-1) for name in SHAPES])


def step(node: int, round: int) -> np.ndarray:
    """What a node's training adds in a round [P]."""
    rng = np.random.default_rng([node % 1000, round])
    return (rng.integers(-64, 64, SIZE) / 1024).astype(np.float32)


@dataclass(eq=False)
class Node:
    """A SuperNode. got: the arrays that its app was given, by type of message; reply: what it says instead of training; own: what
    it trains from instead of what it was sent."""

    id: int
    number: int
    mods: list[Any] = field(default_factory=lambda: [compression_mod()])
    reply: Callable[[Message, ArrayRecord], RecordDict | Error] | None = None
    own: ArrayRecord | None = None
    examples: int = 10
    got: list[tuple[str, ArrayRecord, RecordDict]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forget()
        self.app = ClientApp(mods=self.mods)
        self.app.train()(self._train)
        self.app.evaluate()(self._evaluate)

    def forget(self) -> None:
        """As if the SuperNode was started again: its memory is empty."""
        self.context = Context(RUN, self.id, {"partition-id": self.number}, RecordDict(), {})

    def _train(self, message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"] if self.own is None else self.own
        self.got.append(("train", arrays, message.content))
        if self.reply is not None:
            return Message(self.reply(message, arrays), reply_to=message)
        round = message.content.config_records["config"]["server-round"]
        return Message(trained(arrays, step(self.number, int(round)), self.examples), reply_to=message)

    def _evaluate(self, message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        self.got.append(("evaluate", arrays, message.content))
        metrics = MetricRecord({"num-examples": 10, "sum": float(flat(arrays).sum())})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)


def trained(arrays: ArrayRecord, by: np.ndarray, examples: int = 10) -> RecordDict:
    """An app's reply."""
    out, at = {}, 0
    for name, value in plain(arrays).items():
        out[name] = value
        if name in SHAPES:
            out[name] = np.asarray(value + by[at : at + value.size].reshape(value.shape))
            at += value.size
    record = ArrayRecord({name: Array(value) for name, value in out.items()})
    return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": examples, "loss": 0.5})})


class Grid:
    """Carries messages to nodes of this process. sent: what went down and up, in order; lost: nodes whose replies never arrive;
    altered: what becomes of a reply on its way; weighed: what Flower would send of each message, in bytes."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.sent: list[tuple[str, int, RecordDict]] = []
        self.weighed: list[tuple[str, int]] = []
        self.lost: set[int] = set()
        self.altered: Callable[[int, RecordDict], RecordDict] = lambda node, content: content

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in list(messages):
            id = message.metadata.dst_node_id
            self.sent.append(("down", id, message.content))
            self.weighed.append(("down", count_message_bytes(message)))
            arrived = carried(message)
            try:
                reply = self.nodes[id].app(arrived, self.nodes[id].context)
            except Exception as error:
                reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=arrived)
            reply.metadata.__dict__["_src_node_id"] = id
            if reply.has_content():
                self.sent.append(("up", id, reply.content))
                reply.content = self.altered(id, reply.content)
            self.weighed.append(("up", count_message_bytes(reply)))
            if id not in self.lost:
                replies.append(carried(reply))
        return replies


def grid(mods: bool = True, nodes: Iterable[int] = NODES) -> Grid:
    return Grid([Node(id, i, [compression_mod()] if mods else []) for i, id in enumerate(nodes)])


def rounds(
    strategy: Strategy, over: Grid, arrays: ArrayRecord, n: int, first: int = 1, before: Callable[[int], None] | None = None
) -> Iterator[tuple[ArrayRecord, MetricRecord | None]]:
    """Flower's loop: (the model, the metrics) after each round."""
    for round in range(first, first + n):
        if before is not None:
            before(round)
        messages = strategy.configure_train(round, arrays, ConfigRecord(), over)
        made, metrics = strategy.aggregate_train(round, over.send_and_receive(messages))
        arrays = arrays if made is None else made
        yield arrays, metrics


pytestmark = pytest.mark.usefixtures("quick_collection")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where nodes keep what they remember."""
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    random.seed(0)  # Flower draws its cohorts from Python's global generator
    with identity(1):
        yield tmp_path / "state"


def losing(over: Grid, nodes: Iterable[int]) -> None:
    """From now on, the replies of these nodes never arrive."""
    over.lost = set(nodes)


def folder_of(place: Path, node: Node) -> Path:
    (folder,) = (place / f"run-{RUN}").glob(f"node-{node.number}-app-*")
    return folder


def frames_of(over: Grid) -> list[tuple[str, int, tuple[bytes, ...]]]:
    """All frames that crossed."""
    read = {
        "down": lambda content: decode_request(content).frames,
        "up": lambda content: tuple(next(protocol.unpack_packets(read_payload(content)))[1]),
    }
    return [(way, node, read[way](content)) for way, node, content in over.sent if RECORD_KEY in content]


# ------------------------------------------------------------------------------------------------------------------- parity


class Told(FedAvg):
    """FedAvg that says what it was told, by node, and what it made of it [P]; one of each a round."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.told: list[dict[int, np.ndarray]] = []
        self.made: list[np.ndarray | None] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.told.append({r.metadata.src_node_id: flat(r.content.array_records["arrays"]) for r in replies if r.has_content()})
        made, metrics = super().aggregate_train(server_round, replies)
        self.made.append(None if made is None else flat(made))
        return made, metrics


EXACT_SUMS = [
    ({"compressor": TOP_K, "error_feedback": "persist"}, None),
    ({"compressor": "dense"}, {"policy": "difference"}),
    ({"compressor": TOP_K, "error_feedback": "persist"}, {"policy": "difference"}),
    ({"compressor": TOP_K, "error_feedback": "persist"}, {"policy": "error-feedback", "compressor": TOP_K}),
    ({"compressor": TOP_K, "error_feedback": "persist"}, {"policy": "shift", "compressor": TOP_K}),
    ({"compressor": {"name": "dgc", "density": 0.05, "momentum": 0.5}}, {"policy": "difference"}),
]
ROUNDED = [
    ({"compressor": {"name": "qsgd"}, "seed": 3}, {"policy": "difference"}),
    ({"compressor": {"name": "eden"}, "seed": 3}, {"policy": "plain", "compressor": {"name": "rand-k", "density": 0.2}}),
    ({"compressor": {"name": "rand-k", "density": 0.1, "scaled": False}, "error_feedback": "decay"}, None),
    ({"compressor": {"name": "power-sgd", "rank": 1}}, {"policy": "error-feedback", "compressor": "sign"}),
    ({"compressor": "stc"}, {"policy": "shift", "compressor": "sign"}),
]


@pytest.mark.parametrize(
    ("settings", "downlink", "exact"), [(*case, True) for case in EXACT_SUMS] + [(*case, False) for case in ROUNDED]
)
def test_the_frames_and_the_model_are_those_of_our_own_rounds(
    settings: dict[str, Any], downlink: dict[str, Any] | None, exact: bool
) -> None:
    """Where sums are exact, our own `aggregate` leads to the same model. Else it is taken over from the strategy, and every
    frame in both directions is still the same."""
    inner, over = Told(), grid()
    strategy = CompressedStrategy(inner, downlink=downlink, **settings)
    after = list(rounds(strategy, over, model(), 5, before=lambda round: losing(over, NODES[:2] if round == 3 else ())))
    session = strategy._session
    assert session is not None

    plan, numbers = replace(session.plan, server_optimizer=SGD(lr=1.0)), session.client_ids
    server, store, shelf = (
        initial_server_state(plan, flat(model())),
        InMemoryClientStore(),
        {c: DownlinkCache(InMemoryModelCache()) for c in numbers.values()},
    )
    asked = iter(frames_of(over))
    for round, (arrays, _) in enumerate(after, 1):
        messages, server = broadcast(plan, server, list(numbers.values()))
        replies, nodes = [], {number: node for node, number in numbers.items()}
        for _ in nodes:
            way, node, frames = next(asked)
            client = numbers[node]
            assert (way, frames) == ("down", messages[client]), "the message"
            task = decode_task(plan, client, frames, store.load(client), _DUMMY_EXAMPLES, shelf[client])
            assert isinstance(task, ClientTask)
            w = task.downlink.weights
            x = (w + step(over.nodes[node].number, round)) - w
            reply, state = encode_update(plan, task, TrainingResult(client, x, 10, 1))
            shelf[client].model_cache.move_reference(store.load(client).model_round, state.model_round)
            store.save(client, state)
            assert next(asked) == ("up", node, reply.frames), "the reply"
            if not (round == 3 and node in NODES[:2]):
                replies.append(reply)
        if exact:
            server, _ = aggregate(plan, server, replies)
        else:
            server = advance_with_external_model(plan, server, inner.made[round - 1], [reply.client for reply in replies])
        assert np.array_equal(server.weights, flat(arrays)), "the model"


DENSE_BELOW = [
    FedAvg,
    FedAvgM,
    FedProx,
    FedAdam,
    FedYogi,
    FedMedian,
    lambda: FedTrimmedAvg(beta=0.25),
    lambda: Krum(num_malicious_nodes=1),
    lambda: QFedAvg(train_loss_key="loss", client_learning_rate=0.1),
    lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 0.5, 4),
    lambda: FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
]


@pytest.mark.parametrize("downlink", [None, {"policy": "difference"}], ids=["model", "difference"])
@pytest.mark.parametrize("inner", DENSE_BELOW, ids=lambda make: getattr(make, "__name__", "settings"))
def test_a_strategy_works_as_it_does_alone(inner: Callable[[], Strategy], downlink: dict[str, Any] | None) -> None:
    """Where nothing is lost. FedAdam and FedYogi return float64 where clients have float32, hence the tolerance."""
    alone, over = grid(mods=False), grid()
    expected = list(rounds(inner(), alone, model(), 4))
    random.seed(0)  # Krum breaks ties by the order of replies
    strategy = CompressedStrategy(inner(), "dense", downlink=downlink)
    for (arrays, metrics), (wanted, wanted_metrics) in zip(rounds(strategy, over, model(), 4), expected, strict=True):
        np.testing.assert_allclose(flat(arrays), flat(wanted), rtol=2e-6, atol=2e-7)
        assert metrics == wanted_metrics
        assert {name: array.dtype for name, array in arrays.items()} == {name: array.dtype for name, array in wanted.items()}
    assert not np.array_equal(flat(model()), flat(arrays))


@pytest.mark.parametrize("policy", ["error-feedback", "shift"])
def test_a_strategy_that_keeps_the_model_itself_goes_on_from_the_one_that_was_published(policy: str) -> None:
    """FedAvgM goes on from the record that it made. What the downlink holds back would come in a second time with each round,
    and grow, if that were not the model that clients have."""
    over = grid()
    strategy = CompressedStrategy(
        FedAvgM(server_momentum=0.5), "dense", downlink={"policy": policy, "compressor": {"name": "top-k", "density": 0.1}}
    )
    plain_strategy, alone = FedAvgM(server_momentum=0.5), grid(mods=False)
    n = 30
    list(rounds(strategy, over, model(), n))
    *_, (wanted, _) = rounds(plain_strategy, alone, model(), n)
    session = strategy._session
    assert session is not None
    public, residual = session.server.public_model.weights, session.server.public_model.residual
    held = session.server.weights - public if residual is None else residual
    np.testing.assert_allclose(public + held, flat(wanted), atol=1e-4)
    assert np.linalg.norm(held) < np.linalg.norm(flat(wanted) - flat(model()))


# -------------------------------------------------------------------------------------------------- what clients hold back


def residual_of(place: Path, node: Node) -> np.ndarray:
    """What a node holds back if its last reply was received [P]."""
    (client,) = [int(path.name.removeprefix("client-")) for path in folder_of(place, node).glob("client-*")]
    return FolderStore(folder_of(place, node)).load(client).state_if_accepted["scheme/residual"]


@pytest.mark.parametrize("trouble", ["nothing", "lost replies", "corrupted replies"])
def test_what_was_sent_and_what_is_held_back_add_up_to_the_updates(place: Path, trouble: str) -> None:
    inner, over = Told(), grid()
    strategy = CompressedStrategy(inner, TOP_K, error_feedback="persist")
    bad = {2: NODES[:2], 4: NODES[1:3], 5: NODES[1:3]}

    def before(round: int) -> None:
        now = bad.get(round, ())
        if trouble == "lost replies":
            losing(over, now)
        elif trouble == "corrupted replies":
            over.altered = lambda node, content: flipped(content, 60) if node in now else content

    model_before, sent = flat(model()), {node: np.zeros(SIZE) for node in NODES}
    for round, (arrays, _) in enumerate(rounds(strategy, over, model(), 7, before=before)):
        for node, local in inner.told[round].items():
            sent[node] += local - model_before
        model_before = flat(arrays)
    expected = 4 if trouble == "nothing" else 2
    assert [len(told) for told in inner.told] == [4, expected, 4, expected, expected, 4, 4]
    for node in over.nodes.values():
        updates = sum(step(node.number, round).astype(np.float64) for round in range(1, 8))
        held = residual_of(place, node)
        assert np.array_equal(sent[node.id] + held, updates)
        assert np.any(held)


def flipped(content: RecordDict, at: int) -> RecordDict:
    """A reply with one bit of ours turned over."""
    data = bytearray(read_payload(content))
    data[at] ^= 4
    return write_payload(RecordDict(dict(content)), bytes(data))


@pytest.mark.parametrize(
    ("inner", "reasons"),
    [
        (
            lambda: FedAvgM(fraction_train=0.5, server_momentum=0.9),
            "2 of 4 clients take part in a round and the server's optimizer",
        ),
        (lambda: FedAdam(), "the server's optimizer has a momentum of its own"),
        (lambda: FedAvg(), None),
    ],
)
def test_settings_that_a_compressor_is_not_made_for_are_logged_once(
    inner: Callable[[], Strategy], reasons: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = CompressedStrategy(inner(), {"name": "dgc", "density": 0.05, "momentum": 0.5}, downlink=FOLLOWING)
    list(rounds(strategy, grid(), model(), 3))
    found = [r.getMessage() for r in caplog.records if "compressor.momentum" in r.getMessage()]
    assert len(found) == (reasons is not None), found
    assert reasons is None or found[0].startswith(
        "fedsgd: compressor.momentum = 0.5: DGC corrects the momentum of one local step"
    )
    assert reasons is None or f", but {reasons}" in found[0]


def test_a_corrupted_reply_is_an_error_of_its_node(caplog: pytest.LogCaptureFixture) -> None:
    inner, over = Told(), grid()
    over.altered = lambda node, content: flipped(content, 60) if node == NODES[1] else content
    strategy = CompressedStrategy(inner, "dense")
    ((arrays, metrics),) = rounds(strategy, over, model(), 1)
    assert sorted(inner.told[0]) == sorted({*NODES} - {NODES[1]})
    assert metrics == {"loss": pytest.approx(0.5)}
    assert f"node {NODES[1]}: the reply is discarded" in caplog.text
    assert "checksum" in caplog.text
    assert f"Received error in reply from node {NODES[1]}: fedsgd: round 1, client" in caplog.text
    mean = np.mean([step(i, 1) for i in (0, 2, 3)], axis=0)
    np.testing.assert_allclose(flat(arrays), flat(model()) + mean, atol=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(["flip", "cut", "grow", "swap"]))
def test_no_bytes_of_a_node_stop_a_round(seed: int, how: str) -> None:
    """Whatever a node says in our record, the others' replies are aggregated."""
    rng = np.random.default_rng(seed)

    def altered(node: int, content: RecordDict) -> RecordDict:
        if node != NODES[0]:
            return content
        data = read_payload(content)
        at = int(rng.integers(0, len(data)))
        if how == "flip":
            return flipped(content, at)
        other = {"cut": data[:at], "grow": data[:at] + rng.bytes(9) + data[at:], "swap": data[at:] + data[:at]}[how]
        return write_payload(RecordDict(dict(content)), other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIdentity, "_run_id", seed)
        inner, over = Told(), grid()
        for node in over.nodes.values():
            node.context.run_id = seed
        over.altered = altered
        ((arrays, _),) = rounds(CompressedStrategy(inner, TOP_K), over, model(3, steps=np.int64(4)), 1)
    assert {*NODES[1:]} <= {*inner.told[0]}
    assert np.isfinite(flat(arrays)).all()


def with_update(content: RecordDict, x: np.ndarray) -> RecordDict:
    """A reply whose update is another one: a valid frame."""
    (key, (frame,)), aside = protocol.unpack_packets(read_payload(content))
    sections = Dense().encode(x.astype(np.float32), Known(0, 1, 0, build_array_layout(model(), ()).layout))[0]
    return write_payload(
        RecordDict(dict(content)),
        protocol.pack_packets([(key, (encode_frame(Frame(decode_frame(frame).header, sections)),)), aside]),
    )


def with_aside(content: RecordDict, **fields: Any) -> RecordDict:
    """A reply whose exact array says something else of itself."""
    said, (head, frames) = protocol.unpack_packets(read_payload(content))
    of = dict(zip(("name", "dtype", "shape", "stype"), json.loads(head)[0], strict=True)) | {"data": frames[0]} | fields
    told = json.dumps([[of["name"], of["dtype"], of["shape"], of["stype"]]]).encode()
    return write_payload(RecordDict(dict(content)), protocol.pack_packets([said, (told, [of["data"]])]))


def with_key(content: RecordDict, key: bytes) -> RecordDict:
    """A reply that says that it stands for another record."""
    (_, frames), aside = protocol.unpack_packets(read_payload(content))
    return write_payload(RecordDict(dict(content)), protocol.pack_packets([(key, frames), aside]))


HOSTILE: list[tuple[Callable[[RecordDict], RecordDict], str]] = [
    (lambda content: with_update(content, np.full(SIZE, 3e38)), "is outside float32's range"),
    (lambda content: with_aside(content, stype="pickle"), '"steps" is no array of numbers of shape (2,)'),
    (lambda content: with_aside(content, data=Array(np.array(["a", "b"])).data), '"steps" is no array of numbers'),
    (lambda content: with_aside(content, data=Array(np.zeros(10**4)).data), '"steps" is no array of numbers'),
    (lambda content: with_aside(content, data=b""), '"steps" is no array of numbers'),
    (lambda content: with_aside(content, name="step"), "got the exact arrays ['step'], expected ['steps']"),
    (lambda content: with_aside(content, shape=4), "cannot be read"),
    (lambda content: with_key(content, b"metrics"), 'the reply already has a record "metrics"'),
    (lambda content: with_key(content, b"\xff"), "the name of the record is no text"),
    (lambda content: write_payload(RecordDict(dict(content)), b""), "0 parts, expected 2"),
]


@pytest.mark.parametrize(("change", "said"), HOSTILE, ids=[said[:20] for _, said in HOSTILE])
def test_a_reply_that_would_break_the_strategy_is_left_out(
    change: Callable[[RecordDict], RecordDict], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    inner, over = Told(), grid()
    over.altered = lambda node, content: change(content) if node == NODES[0] else content
    given = model(0, steps=np.array([1, 2]), scale=np.array(3e38, dtype=np.float32))
    ((arrays, _),) = rounds(CompressedStrategy(inner, "dense"), over, given, 1)
    assert sorted(inner.told[0]) == sorted(NODES[1:])
    assert said in caplog.text
    assert np.isfinite(flat(arrays)).all()


def test_a_node_that_replies_twice_counts_once(caplog: pytest.LogCaptureFixture) -> None:
    inner, over = Told(), grid()
    strategy = CompressedStrategy(inner, "dense")
    replies = over.send_and_receive(strategy.configure_train(1, model(), ConfigRecord(), over))
    arrays, _ = strategy.aggregate_train(1, [*replies, carried(replies[0])])
    assert arrays is not None
    np.testing.assert_allclose(flat(arrays), flat(model()) + np.mean([step(i, 1) for i in range(4)], axis=0), atol=1e-6)
    assert "is discarded: the node already replied to this message" in caplog.text


# ------------------------------------------------------------------------------------------------------- nodes that forget


FOLLOWING = {"policy": "difference"}


def test_a_node_whose_disk_was_wiped_is_caught_up(place: Path) -> None:
    over = grid()
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=FOLLOWING)

    def before(round: int) -> None:
        if round == 3:
            shutil.rmtree(folder_of(place, over.nodes[NODES[2]]))

    after = list(rounds(strategy, over, model(), 4, before=before))
    kinds = [peek_kind(frames[0]) for way, node, frames in frames_of(over) if way == "up" and node == NODES[2]]
    assert kinds == [FrameKind.UPDATE, FrameKind.UPDATE, FrameKind.RESYNC, FrameKind.UPDATE, FrameKind.UPDATE]
    others = [peek_kind(frames[0]) for way, node, frames in frames_of(over) if way == "up" and node != NODES[2]]
    assert set(others) == {FrameKind.UPDATE}
    for node in over.nodes.values():
        assert len(node.got) == 4, "the app is asked once a round"
        for (_, got, _), (sent, _) in zip(node.got[1:], after, strict=False):
            assert np.array_equal(flat(got), flat(sent)), "all train from the same model"
    assert sum(t.down for t in strategy.traffic) == sum(
        payload_bytes(content) for way, _, content in over.sent if way == "down"
    )
    assert sum(t.up for t in strategy.traffic) == sum(payload_bytes(content) for way, _, content in over.sent if way == "up")


def test_a_node_that_can_never_follow_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    inner, over = Told(), grid()

    def lost(node: int, content: RecordDict) -> RecordDict:
        (key, _), _ = protocol.unpack_packets(read_payload(content))
        resync = encode_frame(Frame(Header(FrameKind.RESYNC, 1, client=[*strategy._session.client_ids].index(node))))
        return write_payload(RecordDict(), protocol.pack_packets([(key, (resync,)), (b"", ())])) if node == 7 else content

    over.altered = lost
    strategy = CompressedStrategy(inner, TOP_K)
    list(rounds(strategy, over, model(), 1))
    assert sorted(inner.told[0]) == sorted({*NODES} - {7})
    assert [node for way, node, _ in over.sent if way == "down"].count(7) == 2
    assert "the node requested another message twice" in caplog.text


def test_a_node_that_was_started_again_still_has_its_disk(place: Path) -> None:
    """With a key of its own Flower knows it again; its memory is empty."""
    inner, over = Told(), grid()
    strategy = CompressedStrategy(inner, TOP_K, error_feedback="persist", downlink=FOLLOWING)
    list(rounds(strategy, over, model(), 4, before=lambda round: over.nodes[NODES[0]].forget() if round == 3 else None))
    assert {peek_kind(frames[0]) for way, _, frames in frames_of(over) if way == "up"} == {FrameKind.UPDATE}
    held = residual_of(place, over.nodes[NODES[0]])
    total = sum(step(0, round).astype(np.float64) for round in range(1, 5))
    assert 0 < np.linalg.norm(held) < np.linalg.norm(total)
    untouched = grid()
    list(rounds(CompressedStrategy(Told(), TOP_K, error_feedback="persist", downlink=FOLLOWING), untouched, model(), 4))
    first, second = (
        [frames for way, node, frames in frames_of(g) if way == "up" and node == NODES[0]] for g in (over, untouched)
    )
    assert first == second


def test_two_federations_of_one_run_keep_apart(place: Path) -> None:
    """As if each was alone, although both are at the same nodes and begin at round 1."""
    settings: dict[str, Any] = {"compressor": TOP_K, "error_feedback": "persist", "downlink": FOLLOWING}
    alone = [list(rounds(CompressedStrategy(FedAvg(), **settings), grid(), model(seed), 4)) for seed in (1, 2)]
    shutil.rmtree(place)
    over = grid()
    both = [rounds(CompressedStrategy(FedAvg(), **settings), over, model(seed), 4) for seed in (1, 2)]
    for _ in range(4):
        for run, expected in zip(both, alone, strict=True):
            assert np.array_equal(flat(next(run)[0]), flat(expected.pop(0)[0]))


def test_a_message_that_comes_twice_is_answered_twice_and_trained_on_once() -> None:
    over = grid(nodes=NODES[:1])
    (node,) = over.nodes.values()
    strategy = CompressedStrategy(FedAvg(min_train_nodes=1, min_available_nodes=1), TOP_K, error_feedback="persist")
    (message,) = strategy.configure_train(1, model(), ConfigRecord(), over)
    first, second = (over.send_and_receive([carried(message)])[0] for _ in range(2))
    assert len(node.got) == 1
    assert first.content == second.content
    assert second.content.metric_records["metrics"]["loss"] == 0.5
    node.forget()
    (third,) = over.send_and_receive([carried(message)])
    assert third.content == first.content, "the reply is on the node's disk"
    assert len(node.got) == 1


# ------------------------------------------------------------------------------------------------------------- the arrays


def test_arrays_that_are_no_parameters_travel_bit_for_bit() -> None:
    beside: dict[str, Any] = {
        "bn.running_var": np.array([1e-30, 3.0], dtype=np.float32),
        "bn.num_batches_tracked": np.array(2**53 + 1),
        "table": np.array([[1 / 3], [np.pi]]),
        "flags": np.array([True, False]),
    }
    over = grid(nodes=NODES[:2])
    given = model(0, **beside)
    inner = Told()
    strategy = CompressedStrategy(inner, TOP_K, exact=(*DEFAULT_EXACT_PATTERNS, "table"))
    ((arrays, _),) = rounds(strategy, over, given, 1)
    for node in over.nodes.values():
        got = plain(node.got[0][1])
        assert list(got) == list(given), "in the order of the server"
        for name, value in beside.items():
            assert got[name].dtype == value.dtype
            assert got[name].tobytes() == value.tobytes()
    np.testing.assert_array_equal(arrays["bn.running_var"].numpy(), beside["bn.running_var"])
    np.testing.assert_array_equal(arrays["table"].numpy(), beside["table"])
    made = build_array_layout(given, ("*running_var", "table"))
    assert made is not None
    assert [path for path in given if path not in made.layout.names] == list(beside)


def test_arrays_that_the_caller_changed_are_what_clients_train_from() -> None:
    over = grid()
    lossy = {"policy": "error-feedback", "compressor": TOP_K}
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=lossy)
    list(rounds(strategy, over, model(), 2))
    changed = model(9)
    *_, (after, _) = rounds(strategy, over, changed, 2, first=3)
    for node in over.nodes.values():
        assert np.array_equal(flat(node.got[2][1]), flat(changed))
    assert not np.array_equal(flat(after), flat(changed))
    assert strategy.traffic[2].down > strategy.traffic[1].down


def test_a_round_that_nobody_ended_is_over_when_the_next_one_begins() -> None:
    over = grid()
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=FOLLOWING)
    over.send_and_receive(strategy.configure_train(1, model(), ConfigRecord(), over))
    list(rounds(strategy, over, model(), 2))
    assert [len(node.got) for node in over.nodes.values()] == [3] * 4
    assert {peek_kind(frames[0]) for way, _, frames in frames_of(over) if way == "up"} == {FrameKind.UPDATE}


def test_the_rounding_of_a_mean_is_not_sent() -> None:
    """With unequal weights Flower's mean of equal numbers is not that number. Nobody changed these coordinates."""
    over = grid()
    for i, node in enumerate(over.nodes.values()):
        node.examples = 7 + 3 * i
    inner = Told()
    strategy = CompressedStrategy(inner, {"name": "top-k", "density": 0.02}, error_feedback="persist", downlink=FOLLOWING)
    before = flat(model())
    for round, (arrays, _) in enumerate(rounds(strategy, over, model(), 3)):
        touched = np.any([local != before for local in inner.told[round].values()], axis=0)
        assert touched.sum() <= 4 * 4
        assert np.array_equal(flat(arrays)[~touched], before[~touched])
        assert np.array_equal(flat(arrays)[touched], inner.made[round][touched])
        noise = inner.made[round][~touched] != before[~touched]
        assert noise.mean() > 0.1, "Flower's own mean"
        before = flat(arrays)
    assert strategy.traffic[-1].down < 4 * 450


@pytest.mark.parametrize("mods", [True, False], ids=["compressed", "plain"])
def test_the_smallest_change_of_a_client_is_no_rounding(mods: bool) -> None:
    over, given = grid(mods), model()
    changed = ArrayRecord({name: Array(np.asarray(np.nextafter(value, np.float32(2)))) for name, value in plain(given).items()})
    for node in over.nodes.values():
        node.own = None if mods else given
        node.reply = lambda message, arrays: RecordDict(
            {"arrays": changed.copy(), "metrics": MetricRecord({"num-examples": 8})}
        )
    ((arrays, _),) = rounds(CompressedStrategy(FedAvg(), "dense"), over, given, 1)
    assert np.array_equal(flat(arrays), flat(changed))


def test_what_a_strategy_moves_by_itself_is_sent() -> None:
    """A step of the server's own momentum is no rounding, where no client has changed anything."""
    over = grid()
    strategy = CompressedStrategy(FedAvgM(server_momentum=0.9), {"name": "top-k", "density": 0.02}, downlink=FOLLOWING)
    alone = grid(mods=False)
    for node in alone.nodes.values():  # the same updates, without any compression
        node.reply = lambda message, arrays, node=node: trained(
            arrays, top(step(node.number, int(message.content["config"]["server-round"])))
        )
    after, expected = (list(rounds(s, g, model(), 4)) for s, g in ((strategy, over), (FedAvgM(server_momentum=0.9), alone)))
    for (arrays, _), (wanted, _) in zip(after, expected, strict=True):
        np.testing.assert_allclose(flat(arrays), flat(wanted), rtol=2e-6, atol=2e-7)


def top(x: np.ndarray, k: int = 4) -> np.ndarray:
    """The k largest, of equals the first [P]."""
    out = np.zeros_like(x)
    chosen = np.argsort(-np.abs(x), kind="stable")[:k]
    out[chosen] = x[chosen]
    return out


def test_without_any_reply_the_model_stays() -> None:
    over = grid()
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=FOLLOWING)
    given = model()
    after = list(rounds(strategy, over, given, 3, before=lambda round: losing(over, NODES if round == 1 else ())))
    assert after[0][0] is given
    assert not np.array_equal(flat(after[2][0]), flat(given))
    assert [len(node.got) for node in over.nodes.values()] == [3] * 4


def test_a_strategy_that_makes_another_model_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    class Growing(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            made, metrics = super().aggregate_train(server_round, replies)
            assert made is not None
            made["more"] = Array(np.zeros(3, dtype=np.float32))
            return made, metrics

    over = grid()
    strategy = CompressedStrategy(Growing(), TOP_K)
    ((arrays, _),) = rounds(strategy, over, model(), 1)
    assert "more" in arrays
    assert 'got an array "more", which the model does not have' in caplog.text
    ((arrays, _),) = rounds(strategy, over, arrays, 1, first=2)
    assert list(over.nodes[7].got[1][1]) == [*SHAPES, "more"]


def test_a_large_record_is_an_array(place: Path) -> None:
    big = np.arange(MAX_CONFIG_VALUE_BYTES // 4 + 1, dtype=np.float32) / 1024
    over = grid(nodes=NODES[:2])
    ((arrays, _),) = rounds(CompressedStrategy(FedAvg(), TOP_K), over, model(0, big=big), 1)
    assert isinstance(over.sent[0][2][RECORD_KEY], ArrayRecord)
    assert isinstance(over.sent[1][2][RECORD_KEY], ConfigRecord)
    np.testing.assert_array_equal(arrays["big"].numpy(), big)


# -------------------------------------------------------------------------------------------------- the strategy's own loop


def test_flowers_own_loop_runs_it_and_the_bytes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    over, given = grid(), model()
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=FOLLOWING)
    with caplog.at_level(logging.INFO, "flwr"):
        result = strategy.start(over, given, num_rounds=3)
    assert len(result.train_metrics_clientapp) == len(result.evaluate_metrics_clientapp) == 3
    seen = [arrays for kind, arrays, _ in over.nodes[7].got if kind == "evaluate"]
    assert np.array_equal(flat(seen[-1]), flat(result.arrays)), "clients are tested with the model that there is"
    assert result.evaluate_metrics_clientapp[3]["sum"] == pytest.approx(float(flat(result.arrays).sum()))

    rows = strategy.traffic
    assert [(row.round, row.what, row.nodes) for row in rows] == [
        (r, what, 4) for r in (1, 2, 3) for what in ("train", "evaluate")
    ]
    each = sum(len(array.data) for array in given.values())
    assert all(0 < row.plain_down - 4 * each < 4 * 1700 for row in rows), "names and metadata"
    assert all(0 < row.plain_up - (4 * each if row.what == "train" else 0) < 4 * 1700 for row in rows)
    records = {"up": 0, "down": 0}
    for way, _, content in over.sent:
        for name in (RECORD_KEY, "fedsgd-task"):
            record = content.get(name)
            records[way] += sum(map(len, record.values())) if isinstance(record, ConfigRecord) else 0
    assert records == {"up": sum(row.up for row in rows), "down": sum(row.down for row in rows)}
    assert rows[0].down > rows[2].down, "a difference is less than the model"
    row = rows[2]
    ratios = row.compression_ratios
    plain_up, plain_down, up, down = row.plain_up, row.plain_down, row.message_up, row.message_down
    assert list(ratios.values()) == [plain_up / up, plain_down / down, (plain_up + plain_down) / (up + down)]
    crossed = f"in Flower's messages {up:,} up, {down:,} down; compression ratio {ratios['bidirectional_ratio']:.1f} both ways"
    assert f"fedsgd: round 2: {row.up:,} bytes up, {row.down:,} down; {crossed}\n" in caplog.text
    assert f"fedsgd: round 2, evaluation: 0 bytes up, {rows[3].down:,} down; in Flower's messages" in caplog.text
    assert "Uplink: TopK(" in caplog.text


def test_what_several_nodes_are_sent_is_one_object() -> None:
    """So Flower stores it once."""
    over = grid()
    list(rounds(CompressedStrategy(FedAvg(), TOP_K, downlink=FOLLOWING), over, model(), 2))
    down = [content for way, _, content in over.sent if way == "down"]
    for round in (down[:4], down[4:]):
        assert len({id(content[RECORD_KEY]) for content in round}) == 1
        assert len({content["fedsgd-task"].object_id for content in round}) == 4
        assert all("arrays" not in content and "config" in content for content in round)


def test_a_node_without_the_model_is_caught_up_before_it_evaluates(place: Path) -> None:
    over = grid()
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=FOLLOWING)
    *_, (arrays, _) = rounds(strategy, over, model(), 2)
    shutil.rmtree(folder_of(place, over.nodes[7]))
    before = {node: folder_of(place, over.nodes[node]) for node in NODES if node != 7}
    held = {node: sorted((p.name, p.read_bytes()) for p in folder.glob("client-*")) for node, folder in before.items()}
    messages = strategy.configure_evaluate(2, arrays, ConfigRecord(), over)
    metrics = strategy.aggregate_evaluate(2, over.send_and_receive(messages))
    assert metrics is not None
    assert all(
        kind == "evaluate" and np.array_equal(flat(got), flat(arrays))
        for kind, got, _ in (n.got[-1] for n in over.nodes.values())
    )
    ups = [peek_kind(frames[0]) for way, _, frames in frames_of(over)[-3:] if way == "up"]
    assert ups == [FrameKind.RESYNC]
    for node, folder in before.items():
        assert sorted((p.name, p.read_bytes()) for p in folder.glob("client-*")) == held[node], "an evaluation leaves no trace"
    list(rounds(strategy, over, arrays, 1, first=3))


def test_an_evaluation_of_other_arrays_is_the_inner_strategys_own() -> None:
    over = grid()
    strategy = CompressedStrategy(FedAvg(), TOP_K)
    list(rounds(strategy, over, model(), 1))
    other = model(5)
    messages = list(strategy.configure_evaluate(1, other, ConfigRecord(), over))
    assert all(message.content.array_records["arrays"] == other for message in messages)
    strategy.aggregate_evaluate(1, over.send_and_receive(messages))
    assert np.array_equal(flat(over.nodes[7].got[-1][1]), flat(other))
    assert [(row.what, row.down, row.compression_ratios["bidirectional_ratio"]) for row in strategy.traffic[1:]] == [
        ("evaluate", 0, 1.0)
    ]


def test_mods_behind_ours_see_arrays() -> None:
    seen: list[list[str]] = []

    def looking(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        seen.append([*message.content, *reply.content])
        return reply

    over = Grid([Node(id, i, [compression_mod(), looking]) for i, id in enumerate(NODES)])
    list(rounds(CompressedStrategy(FedAvg(), TOP_K), over, model(), 1))
    assert [sorted(names) for names in seen] == [["arrays", "arrays", "config", "metrics"]] * 4


# ------------------------------------------------------------------------------------------------------------------ errors


REFUSED = [
    ({"compressor": "topk"}, 'compressor.name: got "topk", did you mean "top-k"?'),
    ({"compressor": {"name": "top-k", "densty": 0.1}}, 'compressor.densty: unknown key, did you mean "density"?'),
    ({"compressor": {"name": "top-k", "density": 2.0}}, "compressor.density: expected a number above 0 and at most 1, got 2.0"),
    ({"compressor": "cafe"}, 'compressor.name: got "cafe", which decodes the updates of the whole cohort at once'),
    ({"compressor": "scafold"}, 'compressor.name: got "scafold", expected one of: "count-sketch", "dense", "dgc"'),
    ({"compressor": "scaffold"}, 'expected one of: "count-sketch", "dense", "dgc"'),
    ({"compressor": "ef21"}, 'compressor.name: got "ef21"'),
    ({"compressor": "fetch-sgd"}, 'compressor.name: got "fetch-sgd"'),
    ({"error_feedback": "always"}, 'error_feedback: got "always", expected one of'),
    ({"compressor": "rand-k", "error_feedback": "persist"}, "error_feedback: "),
    ({"downlink": {"policy": "differences"}}, 'downlink.policy: got "differences", did you mean "difference"?'),
    ({"downlink": {"policy": "model", "compressor": "top-k"}}, 'downlink.compressor.name: got "top-k", expected "dense"'),
    ({"downlink": "differences"}, 'downlink.policy: got "differences", did you mean "difference"?'),
    ({"downlink": {"polcy": "model"}}, 'downlink.polcy: unknown key, did you mean "policy"?'),
    ({"seed": -1}, "seed: got -1, expected a whole number of at least 0"),
    ({"exact": "*bn*"}, 'exact: got "*bn*", expected a list of patterns'),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_settings_that_are_wrong_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        CompressedStrategy(FedAvg(), **settings)
    assert said in str(caught.value)


def test_a_downlink_may_be_the_name_of_a_policy() -> None:
    tables = [CompressedStrategy(FedAvg(), downlink=given)._link_settings for given in ("difference", {"policy": "difference"})]
    assert tables[0] == tables[1]


def test_a_compressor_may_be_an_object() -> None:
    strategy = CompressedStrategy(FedAvg(), TopK(density=0.25))
    assert strategy._link_settings[0].compressor == TopK(density=0.25)

    class Mine(TopK):
        pass

    with pytest.raises(ScenarioError, match="expected a compressor that clients can create from its name"):
        CompressedStrategy(FedAvg(), Mine())


def test_a_class_is_no_strategy() -> None:
    with pytest.raises(ScenarioError, match=r"inner: got <class .*FedAvg.*>, expected a strategy"):
        CompressedStrategy(FedAvg)


def test_a_setting_that_does_not_fit_the_model_is_named() -> None:
    strategy = CompressedStrategy(FedAvg(), {"name": "per-layer", "rules": [{"pattern": "nowhere*", "op": "dense"}]})
    with pytest.raises(ScenarioError, match=r"^compressor\.rules"):
        list(rounds(strategy, grid(), model(), 1))


def test_a_node_without_the_mod_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    over = grid()
    over.nodes[7] = Node(7, 1, [])
    inner = Told()
    list(rounds(CompressedStrategy(inner, TOP_K, error_feedback="persist"), over, model(), 2))
    assert [sorted(told) for told in inner.told] == [sorted({*NODES} - {7})] * 2
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "node 7: the ClientApp failed outside compression_mod() (KeyError: 'arrays')" in warning
    assert "expected ClientApp(mods=[compression_mod(), ...])" in warning


def test_plain_arrays_are_taken_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """From an app without the mod that has arrays of its own."""
    over = grid()
    over.nodes[7] = Node(7, 1, [])
    over.nodes[7].own = model(4)
    inner = Told()
    list(rounds(CompressedStrategy(inner, TOP_K, error_feedback="persist"), over, model(), 2))
    assert np.array_equal(inner.told[1][7], flat(model(4)) + step(1, 2))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "node 7: the reply has uncompressed arrays, which the strategy uses" in warning


def test_a_reply_that_is_not_finite_is_an_error_of_its_node(caplog: pytest.LogCaptureFixture) -> None:
    over = grid()
    broken = Array(np.array(np.nan, dtype=np.float32))
    metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
    over.nodes[7].reply = lambda message, arrays: RecordDict(
        {"arrays": ArrayRecord({**arrays, "scale": broken}), "metrics": metrics}
    )
    inner = Told()
    list(rounds(CompressedStrategy(inner, TOP_K), over, model(), 1))
    assert sorted(inner.told[0]) == sorted({*NODES} - {7})
    assert "is not finite in 1 of 221 coordinates" in caplog.text


def test_what_is_not_ours_passes_untouched() -> None:
    mod = compression_mod()
    context = Context(1, 1, {}, RecordDict(), {})
    message = Message(RecordDict({"arrays": model()}), 7, "train")
    assert mod(message, context, lambda m, c: m) is message
    over = grid()
    over.nodes[7].reply = lambda message, arrays: Error(2, "mine")
    over.nodes[NODES[0]].reply = lambda message, arrays: RecordDict({"metrics": MetricRecord({"num-examples": 1})})
    messages = CompressedStrategy(FedAvg(), TOP_K).configure_train(1, model(), ConfigRecord(), over)
    replies = {reply.metadata.src_node_id: reply for reply in over.send_and_receive(messages)}
    assert replies[7].error.reason == "compression_mod(): mine"
    assert list(replies[NODES[0]].content) == ["metrics"]


def test_a_model_that_is_not_finite_ends_the_run() -> None:
    class Broken(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            return model(0, scale=np.array(np.inf, dtype=np.float32)), None

    with pytest.raises(NonFiniteError, match="round 1, server: after the server's step is not finite in 1"):
        list(rounds(CompressedStrategy(Broken()), grid(), model(), 1))


def test_settings_of_another_release_are_refused() -> None:
    strategy = CompressedStrategy(FedAvg(), TOP_K)
    terms = CompressionSettings(*strategy._link_settings, build_array_layout(model(), ()))
    assert decode_settings(terms.encode()) == terms
    for data in (b"", b"x" * 50, terms.encode()[:-9]):
        with pytest.raises(WireError, match="cannot be read"):
            decode_settings(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsgd.flower.app.settings.SETTINGS_VERSION", SETTINGS_VERSION + 1)
        later = terms.encode()
    with pytest.raises(WireError, match="different releases"):
        decode_settings(later)


def test_a_node_imports_no_more_than_it_needs() -> None:
    """A ClientApp is a new process for each message."""
    heavy = {"torch", "numba", "pyarrow", "sklearn", "matplotlib", "ray"}
    code = f"import sys, fedsgd.flower; fedsgd.flower.compression_mod(); print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------ the example's two lines


def test_the_example_has_two_lines_of_ours(tmp_path: Path) -> None:
    changed = []
    for path in (write_app(tmp_path / "app", compressed=False) / "digits_app").glob("*.py"):
        was = (APP / "digits_app" / path.name).read_text().splitlines()
        changed += [line for line in was if line not in path.read_text().splitlines() and "import" not in line]
    assert len(changed) == 2
    assert {line.split("(")[0].strip() for line in changed} == {"app = ClientApp", "strategy = CompressedStrategy"}


def test_the_example_trains_with_and_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; what crosses is what would cross a network."""
    config = {"num-server-rounds": 4, "min-nodes": 4, "local-epochs": 2, "learning-rate": 0.1}
    crossed, accuracy = {}, {}
    for compressed in (False, True):
        monkeypatch.syspath_prepend(str(write_app(tmp_path / f"app-{compressed}", compressed)))
        for name in [name for name in sys.modules if name.startswith("digits_app")]:
            monkeypatch.delitem(sys.modules, name)
        client, server = (importlib.import_module(f"digits_app.{side}_app").app for side in ("client", "server"))
        over = grid()
        for node in over.nodes.values():
            node.app = client
            node.context = Context(RUN, node.id, {"partition-id": node.number, "num-partitions": 4}, RecordDict(), dict(config))
        with use_single_thread(), isolate_generators(0):
            server(over, Context(RUN, 1, {}, RecordDict(), dict(config)))
        crossed[compressed] = {way: sum(n for w, n in over.weighed if w == way) for way in ("up", "down")}
        metrics = [content.metric_records["metrics"] for way, _, content in over.sent if way == "up"]
        last = [float(m["accuracy"]) for m in metrics if "accuracy" in m][-4:]
        accuracy[compressed] = np.mean(last)
    assert min(accuracy.values()) > 0.7
    assert crossed[False]["up"] > 30 * crossed[True]["up"]
    assert crossed[False]["down"] > 3 * crossed[True]["down"]


# ------------------------------------------------------------------------------------------------ tensors with several names


RAND_K = {"name": "rand-k", "density": 0.05}
TABLE = (np.random.default_rng(5).integers(-999, 999, (30, 8)) / 1024).astype(np.float32)
ZEROS = np.zeros(8, dtype=np.float32)
App = Callable[[Message, ArrayRecord], RecordDict]


def record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def app_with(*tensors: tuple[str, ...], still: Iterable[str] = ()) -> App:
    """An app that adds a random update to each tensor of its module. tensors: groups of names that are one tensor each; as in
    PyTorch, the value of the last name is loaded last. still: names that it does not train."""
    first = {name: group[0] for group in tensors for name in group}
    last = {name: group[-1] for group in tensors for name in group}

    def reply(message: Message, arrays: ArrayRecord) -> RecordDict:
        round, out = int(message.content.config_records["config"]["server-round"]), {}
        for name, value in plain(arrays).items():
            seed = [message.metadata.dst_node_id % 1000, round, *first.get(name, name).encode()]
            loaded = plain(arrays)[last.get(name, name)]
            step = np.random.default_rng(seed).integers(-64, 64, loaded.shape) / 1024
            out[name] = (loaded + (0 if name in still else step)).astype(np.float32).reshape(value.shape)
        return RecordDict({"arrays": record(out), "metrics": MetricRecord({"num-examples": 10})})

    return reply


def grid_of(app: App, n: int = 3) -> Grid:
    over = grid(nodes=NODES[:n])
    for node in over.nodes.values():
        node.reply = app
    return over


def values_after(
    strategy: CompressedStrategy, over: Grid, given: Mapping[str, np.ndarray], n: int
) -> list[dict[str, np.ndarray]]:
    """The arrays after each of n rounds."""
    return [{k: v.copy() for k, v in plain(arrays).items()} for arrays, _ in rounds(strategy, over, record(given), n)]


def uncompressed(over: Grid) -> list[bool]:
    """For each reply, True if it has the arrays themselves."""
    return ["arrays" in content for way, _, content in over.sent if way == "up"]


TWO = {"e": TABLE, "mid": TABLE[:3] * 2, "o": TABLE}
ONE = {name: value for name, value in TWO.items() if name != "o"}


@pytest.mark.parametrize(
    ("compressor", "downlink", "inner"),
    [
        (RAND_K, None, FedAvg),
        (RAND_K, {"policy": "difference"}, FedAdam),
        ("qsgd", {"policy": "error-feedback", "compressor": TOP_K}, FedMedian),
        ("sign", {"policy": "plain", "compressor": RAND_K}, FedAvgM),
    ],
)
def test_tied_weights_of_six_rounds_equal_those_under_one_name(
    place: Path, compressor: Any, downlink: Any, inner: Callable[[], Strategy]
) -> None:
    two, one = (CompressedStrategy(inner(), compressor, downlink=downlink) for _ in range(2))
    over, over_one = grid_of(app_with(("e", "o"))), grid_of(app_with())
    tied = values_after(two, over, TWO, 6)
    shutil.rmtree(place)
    random.seed(0)  # the order of the cohort
    single = values_after(one, over_one, ONE, 6)
    for with_two, with_one in zip(tied, single, strict=True):
        assert with_two["e"].tobytes() == with_two["o"].tobytes() == with_one["e"].tobytes()
        assert with_two["mid"].tobytes() == with_one["mid"].tobytes()
    assert not np.array_equal(tied[-1]["e"], TABLE)
    assert frames_of(over) == frames_of(over_one), "each tensor is sent once"
    for row, single_row in zip(two.traffic, one.traffic, strict=True):
        assert row.up == single_row.up
        assert 0 < row.down - single_row.down < 3 * 40, "one more name in the terms"
        for direction in ("plain_up", "plain_down"):
            assert abs(getattr(row, direction) - getattr(single_row, direction)) < 3 * 100, "Flower sends equal arrays once"


def test_a_tied_tensor_with_another_shape_under_its_second_name_stays_one() -> None:
    over = grid_of(app_with(("e", "o")))
    after = values_after(CompressedStrategy(FedAvg(), RAND_K), over, {**TWO, "o": TABLE.reshape(-1)}, 4)
    assert all(values["e"].tobytes() == values["o"].tobytes() and values["o"].shape == (240,) for values in after)
    assert uncompressed(over) == [False] * 12


def test_three_names_of_which_two_are_one_tensor_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    over = grid_of(app_with(("a", "c")))
    strategy = CompressedStrategy(FedAvg(), RAND_K)
    after = values_after(strategy, over, {"a": TABLE, "b": TABLE, "c": TABLE}, 4)
    assert all(values["a"].tobytes() == values["c"].tobytes() for values in after)
    assert not np.array_equal(after[-1]["a"], after[-1]["b"])
    assert strategy._session is not None
    assert strategy._session.array_layout.tied_groups == (("a", "c"),)
    assert '"a" and "b" (and 1 more) were assumed to be one tensor and differ in a reply' in caplog.text


@pytest.mark.parametrize("tied", [None, []])
def test_a_model_that_is_not_finite_when_ties_change_ends_the_run(tied: Any) -> None:
    class Broken(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            made, metrics = super().aggregate_train(server_round, replies)
            return record({**plain(made), "mid": TWO["mid"] * np.float32(np.inf)}), metrics

    over = grid_of(app_with() if tied is None else app_with(("e", "o")))
    with pytest.raises(NonFiniteError, match=r"round 1, server: .* not finite"):
        list(rounds(CompressedStrategy(Broken(), RAND_K, tied=tied), over, record(TWO), 1))


def test_clients_are_tested_with_the_same_model_where_ties_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.flower.app.test_client_mod.flat", lambda arrays: arrays["e"].numpy())
    over = grid_of(app_with())
    strategy = CompressedStrategy(FedAvg(), RAND_K, downlink=FOLLOWING)
    result = strategy.start(over, record(TWO), num_rounds=3)
    for node in over.nodes.values():
        seen = [plain(arrays) for kind, arrays, _ in node.got if kind == "evaluate"]
        assert [(len(seen)), *(seen[-1][name].tobytes() for name in TWO)] == [
            3,
            *(v.tobytes() for v in plain(result.arrays).values()),
        ]
    assert [(row.what, row.round) for row in strategy.traffic] == [(w, r) for r in (1, 2, 3) for w in ("train", "evaluate")]


def test_layers_that_begin_equal_are_separate_from_the_first_reply_on(caplog: pytest.LogCaptureFixture) -> None:
    """As the layers of torch.nn.TransformerEncoder are, or a teacher and its student."""
    given = {"layers.0.w": TABLE, "layers.0.b": ZEROS, "layers.1.w": TABLE, "layers.1.b": ZEROS}
    over, alone = grid_of(app_with()), grid_of(app_with())
    for node in alone.nodes.values():
        node.app = Node(node.id, node.number, [], app_with()).app
    strategy = CompressedStrategy(FedAvg(), "dense")
    after = values_after(strategy, over, given, 3)
    expected = [{k: v.copy() for k, v in plain(arrays).items()} for arrays, _ in rounds(FedAvg(), alone, record(given), 3)]
    for values, wanted in zip(after, expected, strict=True):
        for name, value in values.items():
            np.testing.assert_allclose(value, wanted[name], atol=1e-6)
    assert uncompressed(over) == [True] * 3 + [False] * 6
    assert '"layers.0.w" and "layers.1.w" were assumed to be one tensor and differ in a reply' in caplog.text
    assert "tied=tied_names(module)" in caplog.text
    arrays = 3 * sum(len(Array(value).data) for value in given.values())
    row = strategy.traffic[0]
    assert row.up < 600
    assert arrays < row.plain_up < row.message_up < row.plain_up + 2000, "arrays that travel uncompressed are counted"


def test_layers_that_begin_equal_are_compressed_at_once_if_the_caller_says_so() -> None:
    over = grid_of(app_with())
    strategy = CompressedStrategy(FedAvg(), RAND_K, tied=[])
    values_after(strategy, over, {"a.w": TABLE, "b.w": TABLE}, 3)
    assert uncompressed(over) == [False] * 9


def test_arrays_that_are_equal_by_chance_are_not_tied() -> None:
    """The frames are those of arrays that begin with other values."""
    biases = {"a.bias": ZEROS, "b.bias": ZEROS, "a.scale": ZEROS + 1, "b.scale": ZEROS + 1, "w": TABLE}
    over = grid_of(app_with())
    strategy = CompressedStrategy(FedAvg(), "dense")
    after = values_after(strategy, over, biases, 4)
    assert strategy._session is not None
    assert strategy._session.array_layout.layout.names == tuple(biases)
    assert uncompressed(over) == [False] * 12
    steps = sum(np.mean([_step_of(node, round, "b.bias") for node in NODES[:3]], axis=0) for round in range(1, 5))
    np.testing.assert_allclose(after[-1]["b.bias"], steps, atol=1e-6)
    assert not np.array_equal(after[-1]["a.bias"], after[-1]["b.bias"])


def _step_of(node: int, round: int, name: str) -> np.ndarray:
    return np.random.default_rng([node % 1000, round, *name.encode()]).integers(-64, 64, ZEROS.shape) / 1024


def test_a_tied_bias_that_begins_with_zeros_is_found_in_the_first_reply(caplog: pytest.LogCaptureFixture) -> None:
    """A module under two names: its weights are known from the start."""
    given = {"a.w": TABLE, "a.b": ZEROS, "a.s": np.float32(1), "b.w": TABLE, "b.b": ZEROS, "b.s": np.float32(1)}
    over = grid_of(app_with(("a.w", "b.w"), ("a.b", "b.b"), ("a.s", "b.s")))
    strategy = CompressedStrategy(FedAvg(), RAND_K)
    after = values_after(strategy, over, given, 6)
    for values in after:
        assert all(values[f"a.{part}"].tobytes() == values[f"b.{part}"].tobytes() for part in "wbs")
    assert uncompressed(over) == [True] * 3 + [False] * 15
    assert '"a.b" and "b.b" (and 1 more) were assumed to be two tensors and are one tensor in a reply' in caplog.text
    assert strategy._session is not None
    assert strategy._session.array_layout.layout.names == ("a.w", "a.b", "a.s")


def test_ties_that_the_caller_names_hold_from_the_first_round() -> None:
    given = {"a.w": TABLE, "a.b": ZEROS, "b.w": TABLE, "b.b": ZEROS}
    over = grid_of(app_with(("a.w", "b.w"), ("a.b", "b.b")))
    strategy = CompressedStrategy(FedAvg(), RAND_K, tied=[["b.b", "a.b"], ("a.w", "b.w")])
    after = values_after(strategy, over, given, 5)
    assert all(values[f"a.{part}"].tobytes() == values[f"b.{part}"].tobytes() for values in after for part in "wb")
    assert uncompressed(over) == [False] * 15


def test_a_tied_tensor_that_the_caller_denies_is_found_in_the_replies() -> None:
    """The values are those of the app's module in every round, whatever the server assumes."""
    over = grid_of(app_with(("e", "o")))
    after = values_after(CompressedStrategy(FedAvg(), RAND_K, tied=[]), over, TWO, 5)
    assert all(values["e"].tobytes() == values["o"].tobytes() for values in after)
    assert uncompressed(over) == [True] * 3 + [False] * 12


def test_a_tied_tensor_that_no_client_trains_stays_equal_under_every_compressor() -> None:
    given = {"a": TABLE, "b": TABLE, "w": TABLE * 3}
    over = grid_of(app_with(("a", "b"), still=("a", "b")))
    after = values_after(CompressedStrategy(FedAvg(), "sign"), over, given, 4)
    assert all(values["a"].tobytes() == values["b"].tobytes() for values in after)


def test_nodes_that_disagree_on_a_tie_reply_uncompressed_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    over = grid_of(app_with(("e", "o")))
    over.nodes[7].reply = app_with()
    after = values_after(CompressedStrategy(FedAvg(), "dense"), over, TWO, 4)
    alone = grid_of(app_with(("e", "o")))
    for node in alone.nodes.values():
        node.app = Node(node.id, node.number, [], app_with() if node.id == 7 else app_with(("e", "o"))).app
    for values, (wanted, _) in zip(after, rounds(FedAvg(), alone, record(TWO), 4), strict=True):
        for name in TWO:
            np.testing.assert_allclose(values[name], wanted[name].numpy(), atol=1e-6)
    ups = [(node == 7, "arrays" in content) for way, node, content in over.sent if way == "up"]
    assert sorted(ups[:3]) == [(False, False), (False, False), (True, True)], "the node whose names are separate"
    assert sorted(ups[3:]) == [(False, True)] * 6 + [(True, False)] * 3, "the nodes whose names are not"
    assert "reply uncompressed: the tied names of other nodes differ" in caplog.text


def test_arrays_that_the_caller_makes_differ_under_two_names_are_sent_as_they_are() -> None:
    over = grid_of(app_with())
    strategy = CompressedStrategy(FedAvg(), "dense")
    session = strategy._get_session(record(TWO))
    assert session.array_layout.tied_groups == (("e", "o"),)
    other = record({**TWO, "o": TABLE * 2})
    assert not session.matches(other)
    list(rounds(strategy, over, other, 1))
    for node in over.nodes.values():
        got = plain(node.got[0][1])
        assert np.array_equal(got["e"], TABLE)
        assert np.array_equal(got["o"], TABLE * 2)


def test_a_strategy_that_gives_tied_copies_other_values_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """As noise for differential privacy does. A module of PyTorch would train from the copy that it loads last."""

    class Noisy(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            made, metrics = super().aggregate_train(server_round, replies)
            assert made is not None
            return record({name: value + i for i, (name, value) in enumerate(plain(made).items())}), metrics

    over = grid_of(app_with(("e", "o")))
    (after,) = values_after(CompressedStrategy(Noisy(), "dense"), over, TWO, 1)
    mean = np.mean(
        [np.random.default_rng([n % 1000, 1, *b"e"]).integers(-64, 64, TABLE.shape) / 1024 for n in NODES[:3]], axis=0
    )
    np.testing.assert_allclose(after["o"], TABLE + mean + 2, atol=1e-6)
    assert after["e"].tobytes() == after["o"].tobytes()
    assert '"e" and "o" are one tensor, but the strategy returned different values' in caplog.text


@pytest.mark.parametrize(
    ("other", "said"), [(TABLE.T.copy(), '"e" is the transpose of "o"'), (TABLE[4:19].copy(), '"o" is a part of "e"')]
)
def test_a_view_of_another_parameter_is_refused_in_one_line(
    other: np.ndarray, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    def reply(message: Message, arrays: ArrayRecord) -> RecordDict:
        table = plain(arrays)["e"] + np.float32(0.5)
        view = table.T.copy() if other.shape == TABLE.T.shape else table[4:19]
        return RecordDict({"arrays": record({"e": table, "o": view, "w": TABLE}), "metrics": MetricRecord({"num-examples": 1})})

    given = {"e": TABLE, "o": other, "w": TABLE * 2}
    over = grid_of(reply)
    values_after(CompressedStrategy(FedAvg(), RAND_K), over, given, 1)
    assert (
        f"ClientAppError'>:<'compression_mod(): in the reply, {said}; compression would make the two arrays differ: put both names into"
        in caplog.text
    )
    assert uncompressed(over) == []

    over = grid_of(reply)
    strategy = CompressedStrategy(FedAvg(), RAND_K, exact=["e", "o"])
    *_, after = values_after(strategy, over, given, 3)
    np.testing.assert_allclose(after["e"], TABLE + 1.5, atol=1e-6)
    np.testing.assert_allclose(after["o"], other + 1.5, atol=1e-6)


def test_a_tied_tensor_that_is_exact_under_one_name_is_exact_under_both() -> None:
    over = grid_of(app_with(("e", "o")))
    after = values_after(CompressedStrategy(FedAvg(), RAND_K, exact=["e"]), over, TWO, 4)
    for round, values in enumerate(after):
        steps = sum(
            np.mean(
                [np.random.default_rng([n % 1000, r, *b"e"]).integers(-64, 64, TABLE.shape) / 1024 for n in NODES[:3]], axis=0
            )
            for r in range(1, round + 2)
        )
        np.testing.assert_allclose(values["o"], TABLE + steps, atol=1e-6)
        assert values["e"].tobytes() == values["o"].tobytes()
    assert uncompressed(over) == [True] * 3 + [False] * 9


def test_exact_arrays_with_equal_bytes_are_sent_once() -> None:
    def bytes_down(**more: Any) -> int:
        over = grid(nodes=NODES[:2])
        strategy = CompressedStrategy(FedAvg(), TOP_K, exact=[*"abc"])
        list(rounds(strategy, over, model(0, **more), 1))
        for node in over.nodes.values():
            for name, value in more.items():
                assert plain(node.got[0][1])[name].tobytes() == value.tobytes()
        return strategy.traffic[0].down

    wide = np.arange(500) / 3
    once, twice = bytes_down(a=wide), bytes_down(a=wide, b=wide.copy(), c=np.array([7]))
    assert twice - once < 2 * (len(Array(np.array([7])).data) + 200)


def test_a_reply_that_claims_a_false_tie_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    claims = {
        b'[["e", "mid"]]': "it reports as tied names",
        b'[["e", 3]]': "contain something other than text",
        b"[4]": "cannot be read",
        b"": "cannot be read",
    }
    for claim, said in claims.items():
        data = protocol.pack_packets([(b"arrays", ()), (claim, ())])
        over = grid_of(app_with())
        over.altered = lambda node, content, data=data: write_payload(RecordDict(dict(content)), data) if node == 7 else content
        strategy = CompressedStrategy(FedAvg(), "dense", tied=[])
        list(rounds(strategy, over, record(ONE), 1))
        assert strategy._session is not None
        assert strategy._session.array_layout.tied_groups == ()
        assert "the reply has neither an update nor a record" in caplog.text
        reply = Message(RecordDict({"arrays": record(ONE)}), 7, "train")
        reply.metadata.__dict__["_src_node_id"] = 7
        reply.content = write_payload(reply.content, data)
        with pytest.raises(WireError, match=said):
            strategy._session.decompress_reply(reply)
    answer = write_payload(RecordDict(), encode_uncompressed_reply("arrays", (("a", "b"),)))
    assert decode_reply(answer, strategy._session.array_layout).frames == ()


REFUSED_TIES = [
    ("e", "tied: got 'e', expected groups"),
    (["e", "o"], "tied: got 'e', expected groups of two or more names"),
    ([("e",)], r"tied: got \('e',\), expected groups of two or more names"),
    ([("e", "o"), ("o", "mid")], 'tied: got "o" in two groups'),
    ([("e", "oo")], 'tied: got "oo", which the model does not have, did you mean "o"'),
    ([("e", "mid")], 'tied: got "e" and "mid", whose initial values differ'),
]


@pytest.mark.parametrize(("tied", "said"), REFUSED_TIES, ids=[said[:30] for _, said in REFUSED_TIES])
def test_ties_that_cannot_be_are_refused_in_one_line(tied: Any, said: str) -> None:
    with pytest.raises(ScenarioError, match=said) as caught:
        list(rounds(CompressedStrategy(FedAvg(), RAND_K, tied=tied), grid_of(app_with()), record(TWO), 1))
    assert "\n" not in str(caught.value)


def test_settings_with_ties_are_read_back_and_bad_ones_refused() -> None:
    terms = CompressionSettings(
        *CompressedStrategy(FedAvg(), TOP_K)._link_settings, build_array_layout(record(TWO), (), (("e", "o"),))
    )
    assert decode_settings(terms.encode()) == terms
    assert terms.array_layout.layout.names == ("e", "mid")
    for group in ([0, 9], [0, 1], [0, 0], [[0], [1]]):
        said = json.loads(zlib.decompress(terms.encode()))
        said["model"][3] = [group]
        with pytest.raises(WireError):
            decode_settings(zlib.compress(json.dumps(said).encode()))


def test_tied_names_of_a_module_are_those_of_one_tensor() -> None:
    shared, norm = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
    net = torch.nn.Sequential(shared, norm, torch.nn.ReLU(), shared, norm, torch.nn.Linear(4, 4))
    names = {frozenset(group) for group in tied_names(net)}
    parts = {"0": ("weight", "bias"), "1": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert names == {frozenset((f"{at}.{part}", f"{int(at) + 3}.{part}")) for at, of in parts.items() for part in of}
    assert tied_names(torch.nn.TransformerEncoderLayer(8, 2, 16)) == []
    given = ArrayRecord(net.state_dict())
    session = CompressedStrategy(FedAvg(), TOP_K, tied=tied_names(net))._get_session(given)
    assert session.array_layout.layout.names == ("0.weight", "0.bias", "1.weight", "1.bias", "5.weight", "5.bias")


@pytest.mark.parametrize("view", [lambda w: w[:2], lambda w: w.t(), lambda w: w[:, 1]])
def test_tied_names_of_overlapping_parameters_are_refused(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    net = torch.nn.Linear(4, 4, bias=False)
    net.other = torch.nn.Parameter(view(net.weight.detach()))
    with pytest.raises(ModelError, match="share memory with different views"):
        tied_names(net)


def test_an_embedding_that_is_the_output_layer_too_is_one_tensor_over_five_rounds() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50, bias=False)
            self.o.weight = self.e.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.o(self.e(x))
            return out

    def train(message: Message, arrays: ArrayRecord) -> RecordDict:
        net = Tied()
        net.load_state_dict(arrays.to_torch_state_dict())
        x = torch.randint(0, 50, (64,), generator=torch.Generator().manual_seed(message.metadata.dst_node_id % 1000))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for part in x.split(16):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(part), (part + 1) % 50).backward()
            optimizer.step()
        return RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": 64})})

    with use_single_thread(), isolate_generators(0):
        given = {name: value.numpy() for name, value in Tied().state_dict().items()}
        over, exact = grid_of(train), grid_of(train)
        after = values_after(CompressedStrategy(FedAvg(), RAND_K), over, given, 5)
        (dense,) = values_after(CompressedStrategy(FedAvg(), "dense"), exact, given, 1)
    assert all(values["e.weight"].tobytes() == values["o.weight"].tobytes() for values in after)
    assert not np.array_equal(after[-1]["e.weight"], given["e.weight"])
    replies = [plain(train(Message(RecordDict(), node, "train"), record(given))["arrays"])["e.weight"] for node in NODES[:3]]
    np.testing.assert_allclose(dense["o.weight"], np.mean(replies, axis=0), atol=1e-6)
