"""Flower ClientApp with compressed messages."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils.data import TensorDataset

from digits_app.task import load_data, make_net, test, train
from fedsgd.flower import compression_mod

# Line 1 of 2 (without compression: ClientApp()). The settings arrive with the server's messages.
app = ClientApp(mods=[compression_mod()])


@app.train()
def train_here(message: Message, context: Context) -> Message:
    """Train the received model and return it."""
    net, data, _ = _load_node(message, context)
    loss = train(net, data, int(context.run_config["local-epochs"]), float(context.run_config["learning-rate"]))
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(data)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate_here(message: Message, context: Context) -> Message:
    """Test the received model on the node's test examples."""
    net, _, data = _load_node(message, context)
    metrics = MetricRecord({"accuracy": test(net, data), "num-examples": len(data)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _load_node(message: Message, context: Context) -> tuple[nn.Module, TensorDataset, TensorDataset]:
    net = make_net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net, *load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
