"""Label skew and quantity skew, set independently."""

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
    """Partitioner with independent quantity skew (log-normal sizes) and label skew (Dirichlet class mixtures).

    The partitioner "dirichlet" couples size skew to alpha. The drawn sizes and mixtures seldom add up to the examples of each
    class. So the table of clients × classes is scaled by rows and columns in turn (iterative proportional fitting, Deming and
    Stephan 1940). Class sums then match exactly, client sums approximately.

    Attributes:
        clients: N, number of clients.
        alpha: concentration of the mixtures. A small value gives each client few classes.
        sigma: standard deviation of the sizes' logarithm.
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
        assignment = np.empty(len(labels), dtype=np.int64)
        for label in range(len(classes)):
            rows = rng.permutation(np.flatnonzero(labels == label))
            assignment[rows] = split_proportionally(shares[:, label], len(rows))
        return assignment


def _fit_shares(mixtures: F64, sizes: F64, classes: F64) -> F64:
    """Return each client's share of each class, [N, K]; the shares of a class add up to 1.

    The shares belong to the table nearest to mixtures · sizes with column sums `classes` [K] and, nearly, row sums `sizes` [N].
    """
    table = (mixtures + 1e-12) * sizes[:, None]  # above 0, so that each class has a client
    for _ in range(FITTING_ITERATIONS):
        table *= classes / table.sum(axis=0)
        table *= (sizes / table.sum(axis=1))[:, None]
    shares: F64 = table / table.sum(axis=0)
    return shares
