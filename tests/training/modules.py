"""Modules for the tests of captured and stacked engines."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from fedsgd.data import Dataset, Examples


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


class Counting(Branching):
    """Module that changes a Python attribute, which a recording does not repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * self.calls


class Alternating(Counting):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * (1 + self.calls % 2)


def make_images(n: int = 40, shape: tuple[int, ...] = (28, 28)) -> Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.random((n, *shape), np.float32), rng.integers(0, 10, n)
    return Dataset(Examples(x, y), Examples(x[:2], y[:2]), 10)
