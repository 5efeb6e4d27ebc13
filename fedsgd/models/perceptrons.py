"""Fully connected networks: softmax regression, MLPs of any shape, McMahan et al.'s 2NN."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedsgd.config.component import PositiveInt
from fedsgd.models.base import Model

if TYPE_CHECKING:
    from torch import nn


def _build_perceptron(shape: tuple[int, ...], hidden: tuple[int, ...], classes: int) -> nn.Module:
    from torch import nn

    widths = [int(np.prod(shape)), *hidden, classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Softmax(Model):
    """Softmax regression: one linear layer."""

    name: ClassVar[str] = "softmax"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return _build_perceptron(shape, (), classes)


@dataclass(frozen=True)
class Mlp(Model):
    """Fully connected layers with ReLU between them.

    Attributes:
        hidden: widths of the hidden layers.

    >>> Mlp(hidden=(32,)).build((8, 8), 10)[1:]
    Sequential(
      (1): Linear(in_features=64, out_features=32, bias=True)
      (2): ReLU()
      (3): Linear(in_features=32, out_features=10, bias=True)
    )
    """

    name: ClassVar[str] = "mlp"

    hidden: tuple[PositiveInt, ...] = field(default=(64,), metadata={"example": "[200, 200]"})

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return _build_perceptron(shape, self.hidden, classes)


@dataclass(frozen=True)
class TwoNN(Model):
    """McMahan et al.'s 2NN: two hidden layers of 200 units with ReLU; 199,210 parameters on MNIST."""

    name: ClassVar[str] = "2nn"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return _build_perceptron(shape, (200, 200), classes)
