"""Skewed class proportions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.component import Positive
from fedsgd.data.partitioners.base import I64, Partitioner


@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """Each class is divided over the clients in proportions drawn from Dirichlet(alpha).

    Yurochkin et al. 2019; Li et al. 2022 (NIID-Bench). A small alpha concentrates each class on few clients, a large one
    approaches IID in proportions; sizes differ between clients too.
    """

    name: ClassVar[str] = "dirichlet"

    alpha: Positive = 1.0

    def owners(self, labels: NDArray[Any], rng: np.random.Generator) -> I64:
        owner = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(self.clients, self.alpha))
            ends = np.rint(np.cumsum(shares) * len(members)).astype(np.int64)
            owner[members] = np.searchsorted(ends, np.arange(len(members)), side="right").clip(max=self.clients - 1)
        return owner
