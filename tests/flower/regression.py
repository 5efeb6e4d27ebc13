"""Linear regression with 129 parameters on the data of seven nodes, over a grid in this process."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy

from fedsgd.flower import compression_mod
from tests.flower.grid import InProcessGrid

WIDTH = 128
NODES = 7


@dataclass(eq=False)
class Grid(InProcessGrid):
    """Grid with Flower's `send_and_receive`.

    Attributes:
        timeouts: timeout of each call, in seconds.
        contents: contents of all messages.
    """

    timeouts: list[float | None] = field(default_factory=list)
    contents: list[RecordDict] = field(default_factory=list)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        self.timeouts.append(timeout)
        self.contents += [message.content for message in messages]
        return self.pull_messages([id for id in self.push_messages(messages) if id is not None])


def make_examples(partition: int, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs [n, 128] and targets [n] of a node."""
    rng = np.random.default_rng(100 + partition)
    inputs = rng.normal(size=(n, WIDTH))
    return inputs, inputs @ np.random.default_rng(7).normal(size=WIDTH) + 0.1 * rng.normal(size=n)


def make_app(mods: list[Any], train_mods: list[Any]) -> ClientApp:
    """Return an app that fits a linear model by five steps of gradient descent."""
    app = ClientApp(mods=mods)

    @app.train(mods=train_mods)
    def train(message: Message, context: Context) -> Message:
        record = message.content.array_records["arrays"]
        weights, bias = (record[name].numpy().astype(np.float64) for name in ("w", "b"))
        inputs, targets = make_examples(int(context.node_config["partition-id"]))
        for _ in range(5):
            error = inputs @ weights + bias[0] - targets
            weights, bias = weights - 0.1 * inputs.T @ error / len(targets), bias - 0.1 * error.mean()
        trained = {"w": Array(weights.astype(np.float32)), "b": Array(bias.astype(np.float32))}
        arrays = ArrayRecord({name: trained.get(name, array) for name, array in record.items()})
        metrics = MetricRecord({"num-examples": len(targets), "loss": float((error**2).mean())})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        inputs, targets = make_examples(int(context.node_config["partition-id"]))
        error = inputs @ message.content["arrays"]["w"].numpy() + message.content["arrays"]["b"].numpy()[0] - targets
        metrics = MetricRecord({"num-examples": len(targets), "mse": float((error**2).mean())})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def make_zeros() -> ArrayRecord:
    """Return the initial model."""
    return ArrayRecord({"w": Array(np.zeros(WIDTH, np.float32)), "b": Array(np.zeros(1, np.float32))})


def make_grid(mods: Sequence[Any] | None = None, train_mods: Sequence[Any] = (), nodes: int = NODES) -> Grid:
    """Return a grid of nodes with these mods, by default with `compression_mod` only."""
    random.seed(0)
    app = make_app([compression_mod()] if mods is None else [*mods], [*train_mods])
    return Grid(app, InProcessGrid.of(app, nodes).nodes)


def measure_final_mse(
    strategy: Strategy, mods: Sequence[Any] | None = None, train_mods: Sequence[Any] = (), rounds: int = 6
) -> float:
    """Return the mean squared error after the last round."""
    result = strategy.start(make_grid(mods, train_mods), make_zeros(), num_rounds=rounds)
    error = result.evaluate_metrics_clientapp[rounds]["mse"]
    assert isinstance(error, float)
    return error
