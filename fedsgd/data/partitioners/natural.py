"""As the data were made: an owner's examples stay together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.config.component import PositiveInt
from fedsgd.data.base import Examples
from fedsgd.data.partitioners.base import Partitioner
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I64


@dataclass(frozen=True)
class NaturalPartition(Partitioner):
    """By owner: a client for each writer, speaker or user of the data; or whole owners dealt to `clients` clients.

    Needs data that say whose each example is, as "shakespeare" does. Without `clients`, clients are the owners in
    ascending order. With it, owners are shuffled and dealt in turn, so clients have equal numbers of owners, to within one.
    """

    name: ClassVar[str] = "natural"
    needs_labels: ClassVar[bool] = False

    clients: PositiveInt | None = None

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        if examples.writer is None:
            raise DataError('"natural" splits by owner, and these data do not say whose each example is')
        names, owner = np.unique(examples.writer, return_inverse=True)
        if self.clients is None:
            return owner.astype(np.int64)
        if self.clients > len(names):
            raise DataError(f"{self.clients} clients cannot share {len(names)} owners: at most one client an owner")
        client_of_owner = rng.permutation(np.arange(len(names), dtype=np.int64) % self.clients)
        return client_of_owner[owner]
