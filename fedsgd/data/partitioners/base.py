"""How training examples are dealt to clients. n examples, N clients.

A partitioner answers one question: whose is each example? Its answer is one client per example, so a split can neither lose
an example nor give it twice.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.component import Component, Count
from fedsgd.errors import DataError
from fedsgd.rng import stream

I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Partition:
    """Client i has the examples order[bounds[i] : bounds[i + 1]]. order: [n], a permutation; bounds: [N + 1], ascending."""

    order: I64
    bounds: I64

    @staticmethod
    def of_owners(owner: I64, clients: int) -> Partition:
        """From the client of each example [n]; each client's examples are in ascending order."""
        bounds = np.zeros(clients + 1, dtype=np.int64)
        np.cumsum(np.bincount(owner, minlength=clients), out=bounds[1:])
        return Partition(np.argsort(owner, kind="stable"), bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def rows(self, client: int) -> I64:
        """The examples of one client."""
        return self.order[self.bounds[client] : self.bounds[client + 1]]

    def sizes(self) -> I64:
        """How many examples each client has [N]."""
        return np.diff(self.bounds)


@dataclass(frozen=True)
class Partitioner(Component, ABC):
    """A way to deal n labelled examples to `clients` clients.

    Laws: every example has one owner in [0, clients); no client is left empty; the result depends on the labels and the seed
    alone.
    """

    by_class: ClassVar[bool] = True
    """Whether the split looks at class labels; if not, any targets will do."""

    clients: Count = 100

    @abstractmethod
    def owners(self, labels: NDArray[Any], rng: np.random.Generator) -> I64:
        """The client of each example. labels: [n]; returns [n] in [0, clients). May leave clients empty."""


def partition(partitioner: Partitioner, labels: NDArray[Any], seed: int) -> Partition:
    """The split of the examples with these labels [n]; clients left empty are repaired.

    DataError if there are more clients than examples, or no class labels where the partitioner needs them.
    """
    if partitioner.by_class and (labels.ndim != 1 or labels.dtype.kind not in "iub"):
        got = f"{labels.dtype} targets of shape {list(labels.shape)}"
        raise DataError(f'"{partitioner.name}" splits by class label, expected integers [n], got {got}; "iid" splits anything')
    if partitioner.clients > len(labels):
        raise DataError(f"{partitioner.clients} clients cannot share {len(labels)} examples: at most one client an example")
    owner = partitioner.owners(labels, stream(seed, "partition"))
    return Partition.of_owners(_repair(owner, partitioner.clients), partitioner.clients)


def _repair(owner: I64, clients: int) -> I64:
    """Give each empty client, in ascending order, the last example of the client that has most (the lowest of equals)."""
    split = Partition.of_owners(owner, clients)
    sizes = split.sizes()
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return owner
    owner = owner.copy()
    heap = [(-int(size), client) for client, size in enumerate(sizes) if size > 1]
    heapq.heapify(heap)
    for client in empty:
        size, donor = heap[0]
        owner[split.order[split.bounds[donor] - size - 1]] = client
        heapq.heapreplace(heap, (size + 1, donor))
    return owner
