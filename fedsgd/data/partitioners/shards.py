"""Label skew: a fixed number of shards of the sorted examples for each client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.config.component import ClosedFraction, PositiveInt
from fedsgd.data.base import Examples
from fedsgd.data.partitioners.base import Partitioner
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I64


@dataclass(frozen=True)
class Shards(Partitioner):
    """Partitioner that gives each client random shards of the examples sorted by label.

    Source: McMahan et al. 2017, section 3. With two shards most clients have two classes. Examples of one class are shuffled
    before they are cut. Shard sizes differ by at most one example. `iid_share` makes the clients similar to that degree
    (Karimireddy et al. 2020, SCAFFOLD, section 7.1).

    Attributes:
        clients: N, number of clients.
        shards_per_client: number of shards of each client.
        iid_share: share of random examples that are assigned to the clients in turn, before the others are sorted.
    """

    name: ClassVar[str] = "shards"

    clients: PositiveInt = 100
    shards_per_client: PositiveInt = 2
    iid_share: ClosedFraction = 0.0

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        labels = examples.y
        n_iid = round(self.iid_share * len(labels))
        n, shards = len(labels) - n_iid, self.clients * self.shards_per_client
        if shards > n:
            raise DataError(
                f"{self.clients} clients × {self.shards_per_client} shards are {shards} shards, but there are {n} examples"
                + f" without those of iid_share = {self.iid_share:g}" * (n_iid > 0)
            )
        order = rng.permutation(len(labels))
        assignment = np.empty(len(labels), dtype=np.int64)
        assignment[order[n:]] = np.arange(n_iid) % self.clients
        order = order[:n]
        rows_by_label = order[np.argsort(labels[order], kind="stable")]
        client_of_shard = rng.permutation(np.arange(shards, dtype=np.int64) // self.shards_per_client)
        assignment[rows_by_label] = client_of_shard[np.arange(n, dtype=np.int64) * shards // n]
        return assignment
