"""Natural partition: the examples of an owner stay together."""

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
    """By owner: one client for each owner (writer, speaker or user), or several whole owners for each client.

    The dataset must have owners, as "shakespeare" has.

    Attributes:
        clients: N; owners are shuffled and assigned in turn. None: the clients are the owners, in ascending order.
    """

    name: ClassVar[str] = "natural"
    needs_labels: ClassVar[bool] = False

    clients: PositiveInt | None = None

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        if examples.writer is None:
            raise DataError('"natural" splits by owner, and the dataset has no owners')
        owners, owner_index = np.unique(examples.writer, return_inverse=True)
        if self.clients is None:
            return owner_index.astype(np.int64)
        if self.clients > len(owners):
            raise DataError(f"{self.clients} clients cannot share {len(owners)} owners: each client needs an owner")
        client_of_owner = rng.permutation(np.arange(len(owners), dtype=np.int64) % self.clients)
        return client_of_owner[owner_index]
