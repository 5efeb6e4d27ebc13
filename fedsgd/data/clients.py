"""A dataset dealt to its clients: what each trains on, and what each is tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedsgd.arrays import I64
from fedsgd.data.base import ClientData, Dataset, Examples
from fedsgd.data.partitioners import Partition, Partitioner, partition
from fedsgd.data.population import held_out_sizes
from fedsgd.rng import stream


@dataclass(frozen=True, eq=False)
class Dealt(ClientData):
    """Examples that lie in memory, and whose they are."""

    examples: Examples
    partition: Partition

    def __len__(self) -> int:
        return len(self.partition)

    def of(self, client: int) -> Examples:
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

    def all(self) -> Examples:
        """The examples of all clients, client after client, as rows of all."""
        return Examples(self.examples.x, self.examples.y, self.partition.order)

    def first(self, most: int) -> Dealt:
        """All of them: they have their examples."""
        return self

    def only(self, is_one: Callable[[int], bool]) -> Dealt:
        """The same for clients of which this is true; of the others there is nothing left."""
        rows = [self.partition.rows(client) if is_one(client) else self.partition.order[:0] for client in range(len(self))]
        x, y = Examples(self.examples.x, self.examples.y, np.concatenate(rows)).gather()
        bounds = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return Dealt(Examples(x, y), Partition(np.arange(len(y), dtype=np.int64), bounds))


def deal(dataset: Dataset, partitioner: Partitioner, held_out: float, seed: int) -> tuple[Dealt, Dealt | None]:
    """(what each client trains on, what it is tested on).

    held_out: the share of each client's examples that is taken out of its training at random: at least one, and never all,
    so a client with a single example has no test examples. With a share of 0, clients are tested on the dataset's test
    examples of the same owners, if it names owners and the split keeps them together, else on nothing (None).
    """
    split = partition(partitioner, dataset.train, seed)
    if held_out:
        train, test = _hold_out(split, held_out, seed)
        return Dealt(dataset.train, train), Dealt(dataset.train, test)
    by_owner = _of_same_owners(dataset, split)
    return Dealt(dataset.train, split), None if by_owner is None else Dealt(dataset.test, by_owner)


def _hold_out(split: Partition, share: float, seed: int) -> tuple[Partition, Partition]:
    client, sizes = split.clients(), split.sizes()
    shuffled = np.lexsort((stream(seed, "held-out").random(len(client)), client))
    rank = np.arange(len(client)) - np.repeat(split.bounds[:-1], sizes)
    held_out = np.zeros(len(client), dtype=bool)
    held_out[shuffled] = rank < held_out_sizes(sizes, share)[client]
    kept, out = (
        Partition(split.order[chosen], np.searchsorted(client[chosen], np.arange(len(split) + 1)))
        for chosen in (~held_out, held_out)
    )
    return kept, out


def _of_same_owners(dataset: Dataset, split: Partition) -> Partition | None:
    """Test examples to the client that has their owner's training examples; None if there are no owners, or if one's training
    examples are with several clients."""
    if dataset.train.owner is None or dataset.test.owner is None:
        return None
    names, number = np.unique(np.concatenate([dataset.train.owner, dataset.test.owner]), return_inverse=True)
    trained, tested = number[: len(dataset.train)][split.order], number[len(dataset.train) :]
    client_of_owner = np.full(len(names), -1, dtype=np.int64)
    client_of_owner[trained] = split.clients()
    if (client_of_owner[trained] != split.clients()).any():
        return None
    return Partition.of_owners(client_of_owner[tested], len(split))
