"""Quantity skew: log-normal numbers of examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.config.component import PositiveFloat, PositiveInt
from fedsgd.data.base import Examples
from fedsgd.data.partitioners.base import Partitioner, draw_log_normal_shares, split_proportionally
from fedsgd.numerics.arrays import I64


@dataclass(frozen=True)
class QuantitySkew(Partitioner):
    """Equal distributions, and log-normal sizes in proportion to exp(sigma · z) with z ~ N(0, 1).

    Source: quantity skew in Kairouz et al. 2021, section 3.1; Li et al. 2022.

    Attributes:
        clients: N, number of clients.
        sigma: standard deviation of the sizes' logarithm; with 1, two thirds of the sizes are within a factor e of the median.
    """

    name: ClassVar[str] = "quantity"
    needs_labels: ClassVar[bool] = False

    clients: PositiveInt = 100
    sigma: PositiveFloat = 1.0

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        return rng.permutation(split_proportionally(draw_log_normal_shares(self.clients, self.sigma, rng), len(examples)))
