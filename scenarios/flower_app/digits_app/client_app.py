"""What runs on each node."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils.data import TensorDataset

from digits_app.task import load_data, make_net, test, train
from fedsgd.flower import compression_mod

# Line 1 of 2 (without compression: ClientApp()). It has no settings, they come with the messages of the server.
app = ClientApp(mods=[compression_mod()])


@app.train()
def train_here(message: Message, context: Context) -> Message:
    """Train the model that came, and send what became of it."""
    net, data, _ = _opened(message, context)
    loss = train(net, data, int(context.run_config["local-epochs"]), float(context.run_config["learning-rate"]))
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(data)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate_here(message: Message, context: Context) -> Message:
    """Test the model that came on what this node holds out."""
    net, _, data = _opened(message, context)
    metrics = MetricRecord({"accuracy": test(net, data), "num-examples": len(data)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _opened(message: Message, context: Context) -> tuple[nn.Module, TensorDataset, TensorDataset]:
    net = make_net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net, *load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
