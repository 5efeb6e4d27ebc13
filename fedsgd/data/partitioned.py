"""Partitioned datasets: each client's training and test examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedsgd.data.base import ClientData, Dataset, Examples
from fedsgd.data.generated import count_held_out
from fedsgd.data.partitioners import Partition, Partitioner, partition_examples
from fedsgd.numerics.arrays import I64
from fedsgd.numerics.rng import derive_generator


@dataclass(frozen=True, eq=False)
class PartitionedData(ClientData):
    """Examples in memory and their partition over clients.

    Attributes:
        examples: examples of all clients.
        partition: rows of `examples` that each client has.
    """

    examples: Examples
    partition: Partition

    def __len__(self) -> int:
        return len(self.partition)

    def examples_of(self, client: int) -> Examples:
        """Return the examples of one client, as rows of `examples`."""
        return Examples(self.examples.x, self.examples.y, self.partition.rows(client))

    def sizes_of(self, clients: Sequence[int]) -> I64:
        """Return the number of examples of each of these clients, [len(clients)]."""
        indices, bounds = np.asarray(clients, dtype=np.int64), self.partition.bounds
        sizes: I64 = bounds[indices + 1] - bounds[indices]
        return sizes

    def sizes(self) -> I64:
        """Return the number of examples of each client, [N]."""
        return self.partition.sizes()

    def distinct_sizes(self) -> tuple[I64, I64]:
        """Return the distinct client sizes, ascending, and the number of clients of each size."""
        return np.unique(self.partition.sizes(), return_counts=True)

    def all_examples(self) -> Examples:
        """Return the examples of all clients, client after client, as rows of `examples`."""
        return Examples(self.examples.x, self.examples.y, self.partition.order)

    def limit_clients(self, max_clients: int) -> PartitionedData:
        """Return the object itself: all examples are in memory already."""
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
    """Partition the training examples and assign test examples to the clients.

    Args:
        dataset: dataset to partition.
        partitioner: rule of the partition.
        held_out: share of each client's examples that are held out of training at random: at least one example and not all,
            but none of a client with one example.
        seed: seed of the run.

    Returns:
        (training examples, test examples) of each client. For a share of 0, a client gets the test examples of the owners
        of its training examples; None without owners, or if several clients share an owner.
    """
    partition = partition_examples(partitioner, dataset.train, seed)
    if held_out:
        train, test = _hold_out_examples(partition, held_out, seed)
        return PartitionedData(dataset.train, train), PartitionedData(dataset.train, test)
    by_owner = _match_test_writers(dataset, partition)
    return PartitionedData(dataset.train, partition), None if by_owner is None else PartitionedData(dataset.test, by_owner)


def _hold_out_examples(partition: Partition, share: float, seed: int) -> tuple[Partition, Partition]:
    client, sizes = partition.client_per_entry(), partition.sizes()
    shuffled = np.lexsort((derive_generator(seed, "held-out").random(len(client)), client))
    rank = np.arange(len(client)) - np.repeat(partition.bounds[:-1], sizes)
    held_out = np.zeros(len(client), dtype=bool)
    held_out[shuffled] = rank < count_held_out(sizes, share)[client]
    train, test = (
        Partition(partition.order[mask], np.searchsorted(client[mask], np.arange(len(partition) + 1)))
        for mask in (~held_out, held_out)
    )
    return train, test


def _match_test_writers(dataset: Dataset, partition: Partition) -> Partition | None:
    """Assign each test example to the client that has its owner's training examples.

    Return None if there are no owners, or if the training examples of an owner are at several clients.
    """
    if dataset.train.writer is None or dataset.test.writer is None:
        return None
    owners, index = np.unique(np.concatenate([dataset.train.writer, dataset.test.writer]), return_inverse=True)
    train_owners, test_owners = index[: len(dataset.train)][partition.order], index[len(dataset.train) :]
    client_of_owner = np.full(len(owners), -1, dtype=np.int64)
    client_of_owner[train_owners] = partition.client_per_entry()
    if (client_of_owner[train_owners] != partition.client_per_entry()).any():
        return None
    return Partition.from_assignment(client_of_owner[test_owners], len(partition))
