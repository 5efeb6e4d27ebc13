"""ClientApps without and with compression, each without and with Flower's clipping."""

from __future__ import annotations

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.clientapp.typing import Mod

from fedsgd.flower import compression_mod

from .data import load_examples
from .shapes import SHAPES


def make_app(mods: list[Mod], train_mods: list[Mod]) -> ClientApp:
    """Return the app of a node, with mods for all its messages and mods for its training."""
    app = ClientApp(mods=mods)

    @app.train(mods=train_mods)
    def train(message: Message, context: Context) -> Message:
        """Train the received model."""
        model = SHAPES[str(context.run_config["shape"])].load_model()
        partition, partitions = context.node_config["partition-id"], context.node_config["num-partitions"]
        examples, _ = load_examples(partition, partitions)
        seed = 1000 * int(message.content["config"]["server-round"]) + partition
        arrays = model.train(message.content["arrays"], examples, context.state, seed)
        metrics = MetricRecord({"num-examples": len(examples.y)})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluate the received model."""
        model = SHAPES[str(context.run_config["shape"])].load_model()
        _, examples = load_examples(context.node_config["partition-id"], context.node_config["num-partitions"])
        accuracy = model.accuracy(message.content["arrays"], examples, context.state)
        metrics = MetricRecord({"accuracy": accuracy, "num-examples": len(examples.y)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


plain = make_app([], [])
compressed = make_app([compression_mod()], [])
plain_clipping = make_app([], [fixedclipping_mod])
compressed_clipping = make_app([compression_mod()], [fixedclipping_mod])
