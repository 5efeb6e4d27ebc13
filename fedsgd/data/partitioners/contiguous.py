"""Partition into consecutive examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.config.component import PositiveInt
from fedsgd.data.base import Examples
from fedsgd.data.partitioners.base import Partitioner
from fedsgd.numerics.arrays import I64


@dataclass(frozen=True)
class Contiguous(Partitioner):
    """Consecutive examples in the dataset's order: client i has the i-th of N parts, whose sizes differ by at most one example.

    The partition does not depend on the seed. It gives each client one part of a text or of a series.

    Attributes:
        clients: N, number of clients.
    """

    name: ClassVar[str] = "contiguous"
    needs_labels: ClassVar[bool] = False

    clients: PositiveInt = 100

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        n = len(examples)
        return np.arange(n, dtype=np.int64) * self.clients // n
