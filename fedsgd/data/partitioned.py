"""Partitioned datasets: each client's training and test examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedsgd.data.base import ClientData, Dataset, Examples
from fedsgd.data.generated import check_held_out, count_held_out
from fedsgd.data.partitioners import Partition, Partitioner, partition_examples
from fedsgd.numerics.arrays import I64
from fedsgd.numerics.rng import derive_generator


@dataclass(frozen=True, eq=False)
class PartitionedData(ClientData):
    """Examples of all clients in memory, and the partition of their rows over the clients."""

    examples: Examples
    partition: Partition

    def __len__(self) -> int:
        return len(self.partition)

    def examples_of(self, client: int) -> Examples:
        return Examples(self.examples.x, self.examples.y, self.partition.rows(client))

    def sizes_of(self, clients: Sequence[int]) -> I64:
        indices, bounds = np.asarray(clients, dtype=np.int64), self.partition.bounds
        sizes: I64 = bounds[indices + 1] - bounds[indices]
        return sizes

    def sizes(self) -> I64:
        return self.partition.sizes()

    def distinct_sizes(self) -> tuple[I64, I64]:
        return np.unique(self.partition.sizes(), return_counts=True)

    def all_examples(self) -> Examples:
        return Examples(self.examples.x, self.examples.y, self.partition.order)

    def limit_clients(self, max_clients: int) -> PartitionedData:
        return self

    def filter_clients(self, predicate: Callable[[int], bool]) -> PartitionedData:
        """Return a copy in which clients rejected by `predicate` have no examples."""
        rows = [self.partition.rows(client) if predicate(client) else self.partition.order[:0] for client in range(len(self))]
        x, y = Examples(self.examples.x, self.examples.y, np.concatenate(rows)).arrays()
        bounds = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return PartitionedData(Examples(x, y), Partition(np.arange(len(y), dtype=np.int64), bounds))


def partition_dataset(
    dataset: Dataset, partitioner: Partitioner, held_out: float, seed: int
) -> tuple[PartitionedData, PartitionedData | None]:
    """Return (training examples, test examples) of the clients.

    The share `held_out` of each client's examples is drawn at random for testing: at least one example and not all, but none of
    a client with one example. For a share of 0, a client gets the test examples of its owners. If there are no owners, or if
    several clients share an owner, the test examples are None. DataError if no client has two examples.
    """
    partition = partition_examples(partitioner, dataset.train, seed)
    if held_out:
        check_held_out(partition.sizes(), len(partition), held_out)
        n_held_out = count_held_out(partition.sizes(), held_out)
        train, test = hold_out_examples(partition, n_held_out, derive_generator(seed, "held-out"))
        return PartitionedData(dataset.train, train), PartitionedData(dataset.train, test)
    by_owner = _match_test_writers(dataset, partition)
    return PartitionedData(dataset.train, partition), None if by_owner is None else PartitionedData(dataset.test, by_owner)


def hold_out_examples(partition: Partition, counts: I64, rng: np.random.Generator) -> tuple[Partition, Partition]:
    """Return (partition of the other examples, partition of the examples that are held out), in the order of `partition`.

    Args:
        partition: examples of N clients.
        counts: [N] int64, number of examples of each client that are held out.
        rng: generator that draws these examples.
    """
    client, sizes = partition.client_per_entry(), partition.sizes()
    permutation = np.lexsort((rng.random(len(client)), client))
    rank = np.arange(len(client)) - np.repeat(partition.bounds[:-1], sizes)
    held_out = np.zeros(len(client), dtype=bool)
    held_out[permutation] = rank < counts[client]
    train, test = (
        Partition(partition.order[mask], np.searchsorted(client[mask], np.arange(len(partition) + 1)))
        for mask in (~held_out, held_out)
    )
    return train, test


def _match_test_writers(dataset: Dataset, partition: Partition) -> Partition | None:
    """Assign each test example to its owner's client; return None without owners, or if several clients share an owner."""
    if dataset.train.writer is None or dataset.test.writer is None:
        return None
    owners, index = np.unique(np.concatenate([dataset.train.writer, dataset.test.writer]), return_inverse=True)
    train_owners, test_owners = index[: len(dataset.train)][partition.order], index[len(dataset.train) :]
    client_of_owner = np.full(len(owners), -1, dtype=np.int64)
    client_of_owner[train_owners] = partition.client_per_entry()
    if (client_of_owner[train_owners] != partition.client_per_entry()).any():
        return None
    return Partition.from_assignment(client_of_owner[test_owners], len(partition))
