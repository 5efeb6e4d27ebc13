"""A partitioner: client sizes by Zipf's law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.config.component import NonNegativeFloat, PositiveInt
from fedsgd.data import Examples, Partitioner
from fedsgd.data.partitioners.base import split_proportionally
from fedsgd.numerics.arrays import I64


@dataclass(frozen=True)
class Zipf(Partitioner):
    """Shuffled examples, with client sizes in proportion to 1, 1/2ˢ, 1/3ˢ, ...

    Attributes:
        clients: N, number of clients.
        exponent: s; 0 gives clients of equal sizes.
    """

    name: ClassVar[str] = "zipf"
    needs_labels: ClassVar[bool] = False

    clients: PositiveInt = 100
    exponent: NonNegativeFloat = 1.0

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        shares = np.arange(1, self.clients + 1, dtype=np.float64) ** -self.exponent
        assignment = split_proportionally(shares / shares.sum(), len(examples))
        return rng.permutation(assignment)
