"""A dataset in the hands of its clients: what each trains on, and what each is tested on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsgd.data.base import Dataset, Examples
from fedsgd.data.partitioners import Partition, Partitioner, partition
from fedsgd.rng import stream


@dataclass(frozen=True, eq=False)
class ClientData:
    """Examples, and whose they are. Clients are numbered from 0."""

    examples: Examples
    partition: Partition

    def __len__(self) -> int:
        return len(self.partition)

    def of(self, client: int) -> Examples:
        """One client's examples, as rows of all."""
        return Examples(self.examples.x, self.examples.y, self.partition.rows(client))

    def all(self) -> Examples:
        """The examples of all clients, client after client."""
        return Examples(self.examples.x, self.examples.y, self.partition.order)


def deal(dataset: Dataset, partitioner: Partitioner, held_out: float, seed: int) -> tuple[ClientData, ClientData | None]:
    """(what each client trains on, what it is tested on).

    held_out: the share of each client's examples that is taken out of its training at random: at least one, and never all,
    so a client with a single example has no test examples. With a share of 0, clients are tested on the dataset's test
    examples of the same owners, if it names owners and the split keeps them together, else on nothing (None).
    """
    split = partition(partitioner, dataset.train, seed)
    if held_out:
        train, test = _hold_out(split, held_out, seed)
        return ClientData(dataset.train, train), ClientData(dataset.train, test)
    by_owner = _of_same_owners(dataset, split)
    return ClientData(dataset.train, split), None if by_owner is None else ClientData(dataset.test, by_owner)


def _hold_out(split: Partition, share: float, seed: int) -> tuple[Partition, Partition]:
    client, sizes = split.clients(), split.sizes()
    shuffled = np.lexsort((stream(seed, "held-out").random(len(client)), client))
    rank = np.arange(len(client)) - np.repeat(split.bounds[:-1], sizes)
    n_held_out = np.where(sizes > 1, np.rint(share * sizes).clip(1, np.maximum(sizes - 1, 1)), 0)
    held_out = np.zeros(len(client), dtype=bool)
    held_out[shuffled] = rank < n_held_out[client]
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
