"""Clients whose examples are generated on demand. Only `GeneratedData.all_examples` stores the examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedsgd.config.component import PositiveInt
from fedsgd.data.base import ClientData, Dataset, DatasetSource, Examples
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I64
from fedsgd.numerics.rng import derive_generator

N_SAMPLE_CLIENTS = 8
"""Maximum number of training clients in the sample dataset, on which the model is checked and the engine records its steps."""
MAX_MATERIALIZED_EXAMPLES = 10**6
"""Maximum number of examples that `GeneratedData.all_examples` generates and stores."""


@dataclass(frozen=True)
class ClientGenerator(DatasetSource, ABC):
    """Source that generates the examples of each client, so that no dataset is partitioned.

    Laws: a client's examples depend on the settings, the seed and the client's number only. No object of size N is stored.

    Attributes:
        clients: N, number of clients.
        examples: n, number of examples of each client.
        test_clients: number of further clients, N, N + 1, ..., which never train. Their examples are the test examples.
    """

    clients: PositiveInt = 1000
    examples: PositiveInt = 50
    test_clients: PositiveInt = 100

    @property
    @abstractmethod
    def n_classes(self) -> int | None:
        """Number of classes; None: the targets are not class labels."""

    @abstractmethod
    def examples_of(self, client: int, seed: int) -> Examples:
        """Generate the examples of a client: x [n, ...] and y [n, ...], with `rows` = None.

        Args:
            client: number of the client, any number from 0.
            seed: seed of the run.
        """

    def sample_dataset(self, seed: int) -> Dataset:
        """Return a dataset: the first `N_SAMPLE_CLIENTS` clients' examples for training, all test clients' for testing.

        Args:
            seed: seed of the run.
        """
        sample_clients = range(min(N_SAMPLE_CLIENTS, self.clients))
        test_clients = range(self.clients, self.clients + self.test_clients)
        train, test = (
            _concatenate(self.examples_of(client, seed) for client in clients) for clients in (sample_clients, test_clients)
        )
        return Dataset(train, test, self.n_classes)

    def load(self, folder: Path | None) -> Dataset:
        """Return the sample dataset for seed 0, without reading `folder`; runs use their own seed."""
        return self.sample_dataset(0)


def generate_clients(generator: ClientGenerator, held_out: float, seed: int) -> tuple[Dataset, ClientData, ClientData | None]:
    """Return (the sample dataset, the clients' training examples, the clients' held-out examples or None).

    `held_out` is the share of each client's examples that is held out for testing, as in `partition_dataset`.
    """
    dataset, clients = generator.sample_dataset(seed), GeneratedData(generator, seed, generator.clients)
    if not held_out:
        return dataset, clients, None
    n_train = generator.examples - int(count_held_out(np.array([generator.examples]), held_out)[0])
    return dataset, replace(clients, end=n_train), replace(clients, start=n_train)


def count_held_out(sizes: I64, share: float) -> I64:
    """Return each client's number of held-out examples, [m]: a `share` above 0, at least 1 and not all; 0 of one example."""
    return np.where(sizes > 1, np.rint(share * sizes).clip(1, np.maximum(sizes - 1, 1)), 0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class GeneratedData(ClientData):
    """Generated examples of the generator's first `clients` clients, or a part of each client's examples.

    The part is order[start:end], sorted, of a random order for (seed, client). `end` = None: to the last example.
    """

    generator: ClientGenerator
    seed: int
    clients: int
    start: int = 0
    end: int | None = None

    def __len__(self) -> int:
        return self.clients

    def examples_of(self, client: int) -> Examples:
        """Generate the examples of one client; raise IndexError if the client does not exist."""
        if not 0 <= client < self.clients:
            raise IndexError(f"client: got {client}, expected 0 to {self.clients - 1}")
        examples = self.generator.examples_of(client, self.seed)
        if self._examples_per_client == len(examples):
            return examples
        order = derive_generator(self.seed, "held-out", client).permutation(len(examples))
        return examples.select(np.sort(order[self.start : self.end]))

    def sizes_of(self, clients: Sequence[int]) -> I64:
        return np.full(len(clients), self._examples_per_client, dtype=np.int64)

    def sizes(self) -> I64:
        return np.full(self.clients, self._examples_per_client, dtype=np.int64)

    def distinct_sizes(self) -> tuple[I64, I64]:
        return np.array([self._examples_per_client]), np.array([self.clients])

    def all_examples(self) -> Examples:
        return self._all_examples

    def limit_clients(self, max_clients: int) -> GeneratedData:
        """Return the first `max_clients` clients, or fewer, at least one, for at most `MAX_MATERIALIZED_EXAMPLES` examples."""
        affordable = max(1, MAX_MATERIALIZED_EXAMPLES // max(self._examples_per_client, 1))
        return replace(self, clients=min(self.clients, max_clients, affordable))

    @property
    def _examples_per_client(self) -> int:
        return len(range(self.generator.examples)[self.start : self.end])

    @cached_property
    def _all_examples(self) -> Examples:
        n = self.clients * self._examples_per_client
        if n > MAX_MATERIALIZED_EXAMPLES:
            raise DataError(
                f"got {n:,} generated examples ({self.clients:,} clients with {self._examples_per_client:,} each), "
                f"expected at most {MAX_MATERIALIZED_EXAMPLES:,} in memory"
            )
        return _concatenate(self.examples_of(client) for client in range(self.clients))


def _concatenate(parts: Iterable[Examples]) -> Examples:
    xs: tuple[Any, ...]
    xs, ys = zip(*(examples.arrays() for examples in parts), strict=True)
    return Examples(np.concatenate(xs), np.concatenate(ys))
