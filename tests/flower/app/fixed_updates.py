"""A Flower app whose training adds fixed updates, on nodes and a grid in this process.

Messages are packed and unpacked by Flower, so an app gets what it would get over a network. Values are small multiples of 2⁻¹⁰:
their sums are exact in float32 in any order, and tests can compare them bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fedsgd.flower import CompressedStrategy, compression_mod
from fedsgd.flower.app.messages import decode_request
from fedsgd.flower.records import RECORD_KEY, count_message_bytes, read_payload, write_payload
from fedsgd.runtime.workers import protocol
from tests.flower.grid import RUN, transfer_message

SHAPES = {"fc.weight": (20, 10), "fc.bias": (20,), "scale": ()}
SIZE = 221
NODES = (2**63 + 11, 7, 2**40, 5 * 2**50)
TOP_K = {"name": "top-k", "density": 0.05}
RAND_K = {"name": "rand-k", "density": 0.05}
DIFFERENCE = {"policy": "difference"}

EXACT_SETTINGS = [
    ({"compressor": TOP_K, "error_feedback": "persist"}, None),
    ({"compressor": "dense"}, DIFFERENCE),
    ({"compressor": TOP_K, "error_feedback": "persist"}, DIFFERENCE),
    ({"compressor": TOP_K, "error_feedback": "persist"}, {"policy": "error-feedback", "compressor": TOP_K}),
    ({"compressor": TOP_K, "error_feedback": "persist"}, {"policy": "shift", "compressor": TOP_K}),
    ({"compressor": {"name": "dgc", "density": 0.05, "momentum": 0.5}}, DIFFERENCE),
]
"""Arguments of `CompressedStrategy` and its downlink, with which all sums are exact."""
ROUNDED_SETTINGS = [
    ({"compressor": {"name": "qsgd"}, "seed": 3}, DIFFERENCE),
    ({"compressor": {"name": "eden"}, "seed": 3}, {"policy": "plain", "compressor": {"name": "rand-k", "density": 0.2}}),
    ({"compressor": {"name": "rand-k", "density": 0.1, "scaled": False}, "error_feedback": "decay"}, None),
    ({"compressor": {"name": "power-sgd", "rank": 1}}, {"policy": "error-feedback", "compressor": "sign"}),
    ({"compressor": "stc"}, {"policy": "shift", "compressor": "sign"}),
]
"""Arguments of `CompressedStrategy` and its downlink, with which sums are rounded."""

SETTINGS: dict[str, Any] = {"compressor": TOP_K, "error_feedback": "persist", "downlink": DIFFERENCE}
"""Arguments of `CompressedStrategy` with which clients store a residual and the model."""
TABLE = (np.random.default_rng(5).integers(-999, 999, (30, 8)) / 1024).astype(np.float32)
TIED_VALUES = {"e": TABLE, "mid": TABLE[:3] * 2, "o": TABLE}
"""Model with one tensor under the names "e" and "o"."""


def make_record(values: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in values.items()})


def make_model(seed: int = 0, **additional: np.ndarray) -> ArrayRecord:
    """Return an app's arrays, multiples of 2⁻¹⁰, with additional or replaced arrays."""
    rng = np.random.default_rng(seed)
    arrays = {name: (rng.integers(-999, 999, shape) / 1024).astype(np.float32) for name, shape in SHAPES.items()}
    return make_record(arrays | additional)


def to_numpy(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in arrays.items()}


def flatten(arrays: ArrayRecord) -> np.ndarray:
    """Return the vector [P] of a model."""
    return np.concatenate([arrays[name].numpy().reshape(-1) for name in SHAPES])


def fixed_update(node: int, round: int) -> np.ndarray:
    """Return the update [P] of a node's training in a round."""
    rng = np.random.default_rng([node % 1000, round])
    return (rng.integers(-64, 64, SIZE) / 1024).astype(np.float32)


@dataclass(eq=False)
class Node:
    """A SuperNode.

    Attributes:
        id: Flower's id.
        number: number of the node's partition.
        mods: mods of the ClientApp.
        reply: function that returns a reply's content or error for a message and its arrays; None to train.
        initial_arrays: arrays to train instead of the received arrays; None to train the received arrays.
        examples: number of training examples in the metrics.
        received: type of message, arrays and content of each message that the app received.
    """

    id: int
    number: int
    mods: list[Any] = field(default_factory=lambda: [compression_mod()])
    reply: Callable[[Message, ArrayRecord], RecordDict | Error] | None = None
    initial_arrays: ArrayRecord | None = None
    examples: int = 10
    received: list[tuple[str, ArrayRecord, RecordDict]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()
        self.app = ClientApp(mods=self.mods)
        self.app.train()(self._train)
        self.app.evaluate()(self._evaluate)

    def restart(self) -> None:
        """Clear the node's memory, as a new start of the SuperNode does."""
        self.context = Context(RUN, self.id, {"partition-id": self.number}, RecordDict(), {})

    def _train(self, message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"] if self.initial_arrays is None else self.initial_arrays
        self.received.append(("train", arrays, message.content))
        if self.reply is not None:
            return Message(self.reply(message, arrays), reply_to=message)
        round = message.content.config_records["config"]["server-round"]
        return Message(apply_update(arrays, fixed_update(self.number, int(round)), self.examples), reply_to=message)

    def _evaluate(self, message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        self.received.append(("evaluate", arrays, message.content))
        metrics = MetricRecord({"num-examples": 10, "sum": float(flatten(arrays).sum())})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)


def apply_update(arrays: ArrayRecord, update: np.ndarray, examples: int = 10) -> RecordDict:
    """Return the content of an app's reply after an update [P]."""
    values, start = {}, 0
    for name, value in to_numpy(arrays).items():
        values[name] = value
        if name in SHAPES:
            values[name] = np.asarray(value + update[start : start + value.size].reshape(value.shape))
            start += value.size
    return RecordDict({"arrays": make_record(values), "metrics": MetricRecord({"num-examples": examples, "loss": 0.5})})


class RecordingGrid:
    """Grid of nodes in this process that records all messages.

    Attributes:
        nodes: nodes by Flower's id.
        contents: direction ("down" or "up"), node and content of each message and reply, in order.
        message_sizes: direction and bytes of each message and reply, as Flower would send them.
        lost_nodes: nodes whose replies never arrive.
        alter_reply: function of a node and its reply's content that returns the content that arrives.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.contents: list[tuple[str, int, RecordDict]] = []
        self.message_sizes: list[tuple[str, int]] = []
        self.lost_nodes: set[int] = set()
        self.alter_reply: Callable[[int, RecordDict], RecordDict] = lambda node, content: content

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in list(messages):
            id = message.metadata.dst_node_id
            self.contents.append(("down", id, message.content))
            self.message_sizes.append(("down", count_message_bytes(message)))
            received = transfer_message(message)
            try:
                reply = self.nodes[id].app(received, self.nodes[id].context)
            except Exception as error:
                reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=received)
            reply.metadata.__dict__["_src_node_id"] = id
            if reply.has_content():
                self.contents.append(("up", id, reply.content))
                reply.content = self.alter_reply(id, reply.content)
            self.message_sizes.append(("up", count_message_bytes(reply)))
            if id not in self.lost_nodes:
                replies.append(transfer_message(reply))
        return replies


def make_grid(mods: bool = True, nodes: Iterable[int] = NODES) -> RecordingGrid:
    """Return a grid of nodes with `compression_mod`, or without it."""
    return RecordingGrid([Node(id, i, [compression_mod()] if mods else []) for i, id in enumerate(nodes)])


def create_strategy(**settings: Any) -> CompressedStrategy:
    """Return a strategy that accepts one node, with `SETTINGS` and these settings."""
    inner = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    return CompressedStrategy(inner, **{**SETTINGS, **settings})


def run_rounds(
    strategy: Strategy,
    grid: RecordingGrid,
    arrays: ArrayRecord,
    n: int,
    first: int = 1,
    before: Callable[[int], None] | None = None,
) -> Iterator[tuple[ArrayRecord, MetricRecord | None]]:
    """Run n rounds of training as Flower's loop does, and yield the model and the metrics after each.

    Args:
        strategy: strategy to run.
        grid: grid of the nodes.
        arrays: initial model.
        n: number of rounds.
        first: number of the first round.
        before: function of the round's number, called before the round.
    """
    for round in range(first, first + n):
        if before is not None:
            before(round)
        messages = strategy.configure_train(round, arrays, ConfigRecord(), grid)
        aggregate, metrics = strategy.aggregate_train(round, grid.send_and_receive(messages))
        arrays = arrays if aggregate is None else aggregate
        yield arrays, metrics


class RecordingFedAvg(FedAvg):
    """FedAvg that records each round.

    Attributes:
        replies: vectors [P] of the replies, by node, for each round.
        models: aggregated model [P] of each round; None without replies.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.replies: list[dict[int, np.ndarray]] = []
        self.models: list[np.ndarray | None] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.replies.append(
            {r.metadata.src_node_id: flatten(r.content.array_records["arrays"]) for r in replies if r.has_content()}
        )
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.models.append(None if arrays is None else flatten(arrays))
        return arrays, metrics


def lose_replies(grid: RecordingGrid, nodes: Iterable[int]) -> None:
    """Lose all later replies of these nodes, and of no other nodes."""
    grid.lost_nodes = set(nodes)


def find_client_folder(state_root: Path, node: Node) -> Path:
    """Return the folder of a node's client state."""
    (folder,) = (state_root / f"run-{RUN}").glob(f"node-{node.id}-app-*")
    return folder


def list_frames(grid: RecordingGrid) -> list[tuple[str, int, tuple[bytes, ...]]]:
    """Return direction, node and frames of each compressed message and reply."""
    decode = {
        "down": lambda content: decode_request(content).frames,
        "up": lambda content: tuple(next(protocol.unpack_packets(read_payload(content)))[1]),
    }
    return [
        (direction, node, decode[direction](content)) for direction, node, content in grid.contents if RECORD_KEY in content
    ]


def flip_bit(content: RecordDict, position: int) -> RecordDict:
    """Return a content with one bit of fedsgd's record flipped."""
    data = bytearray(read_payload(content))
    data[position] ^= 4
    return write_payload(RecordDict(dict(content)), bytes(data))
