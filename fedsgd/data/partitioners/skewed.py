"""Label skew and quantity skew together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.config.component import PositiveFloat, PositiveInt
from fedsgd.data.base import Examples
from fedsgd.data.partitioners.base import Partitioner, draw_log_normal_shares, split_proportionally
from fedsgd.numerics.arrays import F64, I64

FITTING_ITERATIONS = 100


@dataclass(frozen=True)
class LabelAndQuantitySkew(Partitioner):
    """Sizes log-normal (sigma), and each client's mixture of classes drawn from Dirichlet(alpha), independently.

    With "dirichlet" alone, how skewed sizes are follows from alpha; here each is set by itself. Sizes and mixtures seldom
    add up to the examples there are of each class, so the table of clients × classes is scaled by rows and columns in turn
    until both fit (iterative proportional fitting, Deming and Stephan 1940); in the end the classes fit exactly.
    """

    name: ClassVar[str] = "skewed"

    clients: PositiveInt = 100
    alpha: PositiveFloat = 0.5
    sigma: PositiveFloat = 1.0

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        classes, labels = np.unique(examples.y, return_inverse=True)
        sizes = draw_log_normal_shares(self.clients, self.sigma, rng)
        mixtures = rng.dirichlet(np.full(len(classes), self.alpha), size=self.clients)
        shares = _fit_shares(mixtures, sizes, np.bincount(labels) / len(labels))
        owner = np.empty(len(labels), dtype=np.int64)
        for label in range(len(classes)):
            members = rng.permutation(np.flatnonzero(labels == label))
            owner[members] = split_proportionally(shares[:, label], len(members))
        return owner


def _fit_shares(mixtures: F64, sizes: F64, classes: F64) -> F64:
    """Each client's share of each class, columns adding up to 1 [N, C]: from the table nearest to mixtures · sizes whose
    columns add up to `classes` [C] and whose rows, nearly, to `sizes` [N]."""
    table = (mixtures + 1e-12) * sizes[:, None]  # so that no class is with nobody
    for _ in range(FITTING_ITERATIONS):
        table *= classes / table.sum(axis=0)
        table *= (sizes / table.sum(axis=1))[:, None]
    shares: F64 = table / table.sum(axis=0)
    return shares
