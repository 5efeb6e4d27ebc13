"""Label skew: classes divided in Dirichlet proportions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.config.component import PositiveFloat, PositiveInt
from fedsgd.data.base import Examples
from fedsgd.data.partitioners.base import Partitioner, split_proportionally
from fedsgd.numerics.arrays import I64


@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """Each class is divided over the clients in proportions drawn from Dirichlet(alpha).

    For each class, q ~ Dirichlet(alpha, ..., alpha) and client i gets a share q_i of the class's examples. So the clients'
    numbers of examples differ too. Source: Yurochkin et al. 2019; Li et al. 2022 (NIID-Bench).

    Attributes:
        clients: N, number of clients.
        alpha: concentration. A small value gives each class to few clients; a large value approaches equal proportions.
    """

    name: ClassVar[str] = "dirichlet"

    clients: PositiveInt = 100
    alpha: PositiveFloat = 1.0

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        labels = examples.y
        assignment = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(self.clients, self.alpha))
            assignment[rows] = split_proportionally(shares, len(rows))
        return assignment
