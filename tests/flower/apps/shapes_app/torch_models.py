"""PyTorch models: a plain network, and causal attention over the rows of a digit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor, nn

from .data import CLASSES, PIXELS, Examples

SIDE = 8
WIDTH = 48
EPOCHS = 2
BATCH = 20


class RowAttention(nn.Module):
    """Attention of each row of a digit to the rows above it. The mask is a buffer of 0 and -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(SIDE, WIDTH), nn.Parameter(torch.randn(SIDE, WIDTH) * 0.1)
        self.project, self.mix, self.head = (
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(SIDE * WIDTH, CLASSES),
        )
        self.register_buffer("mask", torch.full((SIDE, SIDE), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of digits [n, 64]."""
        rows = self.embed(x.reshape(-1, SIDE, SIDE)) + self.position
        query, key, value = self.project(rows).chunk(3, dim=-1)
        attention = (query @ key.transpose(1, 2) / WIDTH**0.5 + self.mask).softmax(-1)
        return self.head(torch.relu(rows + self.mix(attention @ value)).flatten(1))


def make_perceptron() -> nn.Module:
    """Return a network 64-200-200-10 with 55,210 parameters."""
    return nn.Sequential(nn.Linear(PIXELS, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, CLASSES))


class TorchModel:
    """PyTorch model that is trained with SGD."""

    def __init__(self, create: Callable[[], nn.Module], learning_rate: float) -> None:
        self.create, self.learning_rate = create, learning_rate

    def initial(self) -> ArrayRecord:
        """Return the arrays before training."""
        torch.manual_seed(0)
        return ArrayRecord(self.create().state_dict())

    def train(self, arrays: ArrayRecord, examples: Examples, state: RecordDict, seed: int) -> ArrayRecord:
        """Return the arrays after some local epochs of SGD."""
        net = self._load(arrays)
        optimizer = torch.optim.SGD(net.parameters(), lr=self.learning_rate, momentum=0.5)
        x, y = torch.tensor(examples.x, dtype=torch.float32), torch.tensor(examples.y)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(y), generator=generator).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
        return ArrayRecord(net.state_dict())

    @torch.no_grad()
    def accuracy(self, arrays: ArrayRecord, examples: Examples, state: RecordDict) -> float:
        """Return the accuracy of the arrays on examples."""
        scores = self._load(arrays)(torch.tensor(examples.x, dtype=torch.float32))
        return float((scores.argmax(1) == torch.tensor(examples.y)).float().mean())

    def _load(self, arrays: ArrayRecord) -> nn.Module:
        net = self.create()
        net.load_state_dict(arrays.to_torch_state_dict())
        return net


perceptron = TorchModel(make_perceptron, 0.1)
attention = TorchModel(RowAttention, 0.1)
