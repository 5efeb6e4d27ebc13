"""Partition without skew: equal distributions and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.config.component import PositiveInt
from fedsgd.data.base import Examples
from fedsgd.data.partitioners.base import Partitioner
from fedsgd.numerics.arrays import I64


@dataclass(frozen=True)
class Iid(Partitioner):
    """Examples are shuffled and assigned in turn: equal distributions, and sizes that differ by at most one example.

    Attributes:
        clients: N, number of clients.
    """

    name: ClassVar[str] = "iid"
    needs_labels: ClassVar[bool] = False

    clients: PositiveInt = 100

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        return rng.permutation(np.arange(len(examples), dtype=np.int64) % self.clients)
