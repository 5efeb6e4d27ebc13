"""Skewed class proportions."""

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

    Yurochkin et al. 2019; Li et al. 2022 (NIID-Bench). A small alpha concentrates each class on few clients, a large one
    approaches IID in proportions; sizes differ between clients too.
    """

    name: ClassVar[str] = "dirichlet"

    clients: PositiveInt = 100
    alpha: PositiveFloat = 1.0

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        labels = examples.y
        owner = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(self.clients, self.alpha))
            owner[members] = split_proportionally(shares, len(members))
        return owner
