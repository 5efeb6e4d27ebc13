"""Clients of very different sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.arrays import I64
from fedsgd.component import Count, Positive
from fedsgd.data.base import Examples
from fedsgd.data.partitioners.base import Partitioner, cut, log_normal_shares


@dataclass(frozen=True)
class Quantity(Partitioner):
    """The same distribution for every client, sizes log-normal: in proportion to exp(sigma · N(0, 1)).

    Quantity skew (Kairouz et al. 2021, section 3.1; Li et al. 2022). With sigma = 1 two thirds of the clients are within a
    factor e of the median.
    """

    name: ClassVar[str] = "quantity"
    by_class: ClassVar[bool] = False

    clients: Count = 100
    sigma: Positive = 1.0

    def owners(self, examples: Examples, rng: np.random.Generator) -> I64:
        return rng.permutation(cut(log_normal_shares(self.clients, self.sigma, rng), len(examples)))
