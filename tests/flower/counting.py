"""A grid in this process that counts the bytes of Flower's objects independently of fedsgd, and an app to run on it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from tests.flower.grid import RUN, InProcessGrid, identity

SHAPES = {"w": (30, 20), "b": (20,)}


def object_bytes(message: Message) -> int:
    """Return the bytes of a message's objects, by Flower's own functions."""
    return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())


@dataclass(eq=False)
class CountingGrid(InProcessGrid):
    """Grid that counts the bytes of messages and replies.

    Attributes:
        message_bytes: bytes of each message's objects, by (type of message, direction).
        before: function of the grid, called before messages are sent.
    """

    message_bytes: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    before: Callable[[CountingGrid], None] = lambda grid: None

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies."""
        messages = list(messages)
        self.before(self)
        ids = self.push_messages(messages)
        return self.pull_messages([id for id in ids if id is not None])

    def sum_of(self, phase: str, direction: str) -> int:
        """Return the bytes of one type of messages in one direction."""
        return sum(self.message_bytes.get((phase, direction), []))

    def _push(self, message: Message) -> str | None:
        message.metadata.__dict__["_message_id"] = message.object_id
        phase, node_id = message.metadata.message_type, message.metadata.dst_node_id
        message_id = super()._push(message)
        if message_id is not None:
            self.message_bytes.setdefault((phase, "down"), []).append(object_bytes(message))
        reply = self._replies.get(message_id or "")
        if reply is not None and node_id in self.unavailable_nodes:  # the SuperLink itself creates this error
            reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        elif reply is not None:
            self.message_bytes.setdefault((phase, "up"), []).append(object_bytes(reply))
        return message_id

    def _reply(self, node_id: int, message: Message) -> Message:
        if node_id in self.unavailable_nodes:
            return Message(Error(5, "Error: Node Unavailable"), reply_to=message)
        node = self.nodes[node_id]
        config = {"partition-id": node.partition, "num-partitions": node.nodes}
        context = Context(RUN, node_id, config, node.state, dict(node.settings))
        try:
            reply = self.app(message, context)
        except Exception as error:
            reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        node.state = context.state
        return reply if reply.has_error() else Message(self.alter_reply(node_id, reply.content), reply_to=message)


ReplyChange = Callable[[int, RecordDict], RecordDict]


def make_app(
    mods: list[Any],
    change: ReplyChange | None = None,
    train_mods: list[Any] | None = None,
    before_training: Callable[[int], None] | None = None,
) -> ClientApp:
    """Return an app that adds random numbers to the model.

    Args:
        mods: mods of the app.
        change: function of the node's number and the content of its reply to a train message; it returns the content to send.
        train_mods: mods of the train handler.
        before_training: function of the node's number, called before training.
    """
    app = ClientApp(mods=mods)

    @app.train(mods=train_mods)
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if before_training is not None:
            before_training(number)
        rng = np.random.default_rng([number, int(message.content["config"]["server-round"])])
        arrays = {
            name: array.numpy() + rng.normal(size=array.shape).astype(np.float32)
            for name, array in message.content["arrays"].items()
        }
        record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
        content = RecordDict(
            {"arrays": record, "metrics": MetricRecord({"num-examples": 10 + number, "loss": float(rng.random())})}
        )
        return Message(content if change is None else change(number, content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        total = sum(float(np.abs(array.numpy()).sum()) for array in message.content["arrays"].values())
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 10, "sum": total})}), reply_to=message)

    return app


def model_arrays() -> ArrayRecord:
    """Return the initial model."""
    rng = np.random.default_rng(1)
    return ArrayRecord({name: Array(rng.normal(size=shape).astype(np.float32)) for name, shape in SHAPES.items()})


def start(
    app: ClientApp,
    strategy: Strategy,
    rounds: int = 2,
    nodes: int = 3,
    prepare: Callable[[CountingGrid], None] | None = None,
    **settings: Any,
) -> CountingGrid:
    """Run a strategy over nodes of this process, and return the grid.

    Args:
        app: app of all nodes.
        strategy: strategy to start.
        rounds: number of rounds.
        nodes: number of nodes.
        prepare: function that changes the grid before the run.
        settings: other arguments of `Strategy.start`.
    """
    random.seed(0)  # Flower draws its cohorts from Python's global generator
    grid = CountingGrid(app, InProcessGrid.of(app, nodes).nodes)
    if prepare is not None:
        prepare(grid)
    config = ConfigRecord({"learning-rate": 0.1, "name": "a run"})
    with identity(SUPERLINK_NODE_ID):
        strategy.start(grid, model_arrays(), num_rounds=rounds, train_config=config, **settings)
    return grid


def fed_avg(**settings: Any) -> FedAvg:
    """Return a FedAvg that accepts any number of nodes."""
    return FedAvg(**{"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1, **settings})
