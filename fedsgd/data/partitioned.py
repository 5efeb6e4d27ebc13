"""A dataset dealt to its clients: what each trains on, and what each is tested on."""

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
    """Examples that lie in memory, and whose they are."""

    examples: Examples
    partition: Partition

    def __len__(self) -> int:
        return len(self.partition)

    def examples_of(self, client: int) -> Examples:
        """One client's examples, as rows of all."""
        return Examples(self.examples.x, self.examples.y, self.partition.rows(client))

    def sizes_of(self, clients: Sequence[int]) -> I64:
        """How many examples each of these clients has [len(clients)]."""
        chosen, bounds = np.asarray(clients, dtype=np.int64), self.partition.bounds
        sizes: I64 = bounds[chosen + 1] - bounds[chosen]
        return sizes

    def sizes(self) -> I64:
        """How many examples each client has [N]."""
        return self.partition.sizes()

    def distinct_sizes(self) -> tuple[I64, I64]:
        """(the numbers of examples that clients have, ascending, how many clients have each)."""
        return np.unique(self.partition.sizes(), return_counts=True)

    def all_examples(self) -> Examples:
        """The examples of all clients, client after client, as rows of all."""
        return Examples(self.examples.x, self.examples.y, self.partition.order)

    def limit_clients(self, max_clients: int) -> PartitionedData:
        """All of them: they have their examples."""
        return self

    def filter_clients(self, predicate: Callable[[int], bool]) -> PartitionedData:
        """The same for clients of which this is true; of the others there is nothing left."""
        rows = [self.partition.rows(client) if predicate(client) else self.partition.order[:0] for client in range(len(self))]
        x, y = Examples(self.examples.x, self.examples.y, np.concatenate(rows)).arrays()
        bounds = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return PartitionedData(Examples(x, y), Partition(np.arange(len(y), dtype=np.int64), bounds))


def partition_dataset(
    dataset: Dataset, partitioner: Partitioner, held_out: float, seed: int
) -> tuple[PartitionedData, PartitionedData | None]:
    """(what each client trains on, what it is tested on).

    held_out: the share of each client's examples that is taken out of its training at random: at least one, and never all,
    so a client with a single example has no test examples. With a share of 0, clients are tested on the dataset's test
    examples of the same owners, if it names owners and the split keeps them together, else on nothing (None).
    """
    split = partition_examples(partitioner, dataset.train, seed)
    if held_out:
        train, test = _hold_out_examples(split, held_out, seed)
        return PartitionedData(dataset.train, train), PartitionedData(dataset.train, test)
    by_owner = _match_test_writers(dataset, split)
    return PartitionedData(dataset.train, split), None if by_owner is None else PartitionedData(dataset.test, by_owner)


def _hold_out_examples(partition: Partition, share: float, seed: int) -> tuple[Partition, Partition]:
    client, sizes = partition.client_per_entry(), partition.sizes()
    shuffled = np.lexsort((derive_generator(seed, "held-out").random(len(client)), client))
    rank = np.arange(len(client)) - np.repeat(partition.bounds[:-1], sizes)
    held_out = np.zeros(len(client), dtype=bool)
    held_out[shuffled] = rank < count_held_out(sizes, share)[client]
    kept, out = (
        Partition(partition.order[chosen], np.searchsorted(client[chosen], np.arange(len(partition) + 1)))
        for chosen in (~held_out, held_out)
    )
    return kept, out


def _match_test_writers(dataset: Dataset, partition: Partition) -> Partition | None:
    """Test examples to the client that has their owner's training examples; None if there are no owners, or if one's training
    examples are with several clients."""
    if dataset.train.writer is None or dataset.test.writer is None:
        return None
    names, number = np.unique(np.concatenate([dataset.train.writer, dataset.test.writer]), return_inverse=True)
    trained, tested = number[: len(dataset.train)][partition.order], number[len(dataset.train) :]
    client_of_owner = np.full(len(names), -1, dtype=np.int64)
    client_of_owner[trained] = partition.client_per_entry()
    if (client_of_owner[trained] != partition.client_per_entry()).any():
        return None
    return Partition.from_assignment(client_of_owner[tested], len(partition))
