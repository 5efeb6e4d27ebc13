"""The same distribution for every client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.arrays import I64
from fedsgd.component import Count
from fedsgd.data.base import Examples
from fedsgd.data.partitioners.base import Partitioner


@dataclass(frozen=True)
class Iid(Partitioner):
    """Shuffle and deal: every client the same distribution, sizes equal to within one example."""

    name: ClassVar[str] = "iid"
    by_class: ClassVar[bool] = False

    clients: Count = 100

    def owners(self, examples: Examples, rng: np.random.Generator) -> I64:
        return rng.permutation(np.arange(len(examples), dtype=np.int64) % self.clients)
