"""Flower app with client and server as in Flower's template quickstart-pytorch, with the model and arrays of the work.

The driver in flower.py copies this file into the folder of an app. The `evaluate_fn` hook of the template reads the clock after
each round and does not evaluate.
"""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.bench.peers.work import Clock, build, client_part, finish, read_work

Loader = DataLoader[tuple[torch.Tensor, ...]]

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the model of the message on the client's examples and reply with the trained model and its loss."""
    folder = Path(str(context.run_config["folder"]))
    work = read_work(folder)
    model = build(work.model)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    examples = TensorDataset(*client_part(work, int(context.node_config["partition-id"])))
    loader = DataLoader(examples, batch_size=work.batch_size, shuffle=True)
    loss = train_model(model, loader, work.epochs, float(message.content["config"]["lr"]))
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(examples)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


def train_model(model: nn.Module, loader: Loader, epochs: int, lr: float) -> float:
    """Train with plain SGD and return the mean loss of the batches."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    total = 0.0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(loader))


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds, evaluate the model and write the report."""
    folder = Path(str(context.run_config["folder"]))
    work, clock = read_work(folder), Clock()
    model = build(work.model)

    def record_end(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round:
            clock.stamp()
        return None

    strategy = FedAvg(fraction_train=work.cohort / work.clients, fraction_evaluate=0.0, min_available_nodes=work.clients)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=work.rounds,
        train_config=ConfigRecord({"lr": work.lr}),
        evaluate_fn=record_end,
    )
    model.load_state_dict(result.arrays.to_torch_state_dict())
    finish(folder, work, clock, model)
