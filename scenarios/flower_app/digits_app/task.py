"""Model, data of each node, and training: plain PyTorch, independent of Flower."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def make_net() -> nn.Module:
    """Return a perceptron of 55,210 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))


def load_data(partition_id: int, num_partitions: int) -> tuple[TensorDataset, TensorDataset]:
    """Return the training and the test examples of a node."""
    x, y = load_digits(return_X_y=True)
    rows = np.array_split(np.random.default_rng(0).permutation(len(x)), num_partitions)[partition_id]
    data = torch.tensor(x[rows] / 16, dtype=torch.float32), torch.tensor(y[rows])
    cut = len(rows) * 4 // 5
    return TensorDataset(*(t[:cut] for t in data)), TensorDataset(*(t[cut:] for t in data))


def train(net: nn.Module, data: TensorDataset, epochs: int, lr: float) -> float:
    """Train the model and return the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(epochs):
        losses = []
        for x, y in DataLoader(data, batch_size=10, shuffle=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def test(net: nn.Module, data: TensorDataset) -> float:
    """Return the accuracy."""
    x, y = data.tensors
    return float((net(x).argmax(1) == y).float().mean())
