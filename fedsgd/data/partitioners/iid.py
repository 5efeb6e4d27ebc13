"""The same distribution for every client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.data.partitioners.base import I64, Partitioner


@dataclass(frozen=True)
class Iid(Partitioner):
    """Shuffle and deal: every client the same distribution, sizes equal to within one example."""

    name: ClassVar[str] = "iid"
    by_class: ClassVar[bool] = False

    def owners(self, labels: NDArray[Any], rng: np.random.Generator) -> I64:
        return rng.permutation(np.arange(len(labels), dtype=np.int64) % self.clients)
