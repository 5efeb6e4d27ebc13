"""Clients whose examples are generated on demand. Only `GeneratedData.all_examples` stores the examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

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
        examples: n, number of examples of each client, unless `sizes_of` gives other numbers.
        test_clients: number of further clients, N, N + 1, ..., which never train. Their examples are the test examples.
    """

    clients: PositiveInt = 1000
    examples: PositiveInt = 50
    test_clients: PositiveInt = 100

    @property
    @abstractmethod
    def n_classes(self) -> int | None:
        """Number of classes; None: the targets are not class labels."""

    @property
    def has_equal_sizes(self) -> bool:
        """True if all clients have `examples` examples."""
        return True

    def sizes_of(self, clients: I64, seed: int) -> I64:
        """Return the number of examples of some clients, [len(clients)] int64.

        A class with unequal sizes overrides this method and `has_equal_sizes`.

        Args:
            clients: numbers of the clients, any numbers from 0.
            seed: seed of the run.
        """
        return np.full(len(clients), self.examples, dtype=np.int64)

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
    check_held_out(clients.distinct_sizes()[0], generator.clients, held_out)
    train = replace(clients, held_out=held_out)
    return dataset, train, replace(train, part="test")


def check_held_out(sizes: I64, n_clients: int, share: float) -> None:
    """Raise DataError if a share of each client's examples holds out none; `sizes` has each size that clients have."""
    if not count_held_out(sizes, share).any():
        raise DataError(f"data.held_out: got {share:g}, expected 0: none of the {n_clients:,} clients has two examples")


def count_held_out(sizes: I64, share: float) -> I64:
    """Return each client's number of held-out examples, [m]: a `share` above 0, at least 1 and not all; 0 of one example."""
    return np.where(sizes > 1, np.rint(share * sizes).clip(1, np.maximum(sizes - 1, 1)), 0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class GeneratedData(ClientData):
    """Generated examples of the generator's first `clients` clients, or a part of each client's examples.

    A random order for (seed, client) has the examples of `part` "train" first, then those of "validation", then of "test".
    The share `held_out` is for testing, and the share `validation` of the rest is for validation.
    """

    generator: ClientGenerator
    seed: int
    clients: int
    held_out: float = 0.0
    validation: float = 0.0
    part: Literal["train", "validation", "test"] = "train"

    def __len__(self) -> int:
        return self.clients

    def examples_of(self, client: int) -> Examples:
        """Generate the examples of one client; raise IndexError if the client does not exist."""
        if not 0 <= client < self.clients:
            raise IndexError(f"client: got {client}, expected 0 to {self.clients - 1}")
        examples = self.generator.examples_of(client, self.seed)
        start, end = (int(bound[0]) for bound in self._find_bounds(np.array([len(examples)])))
        if end - start == len(examples):
            return examples
        order = derive_generator(self.seed, "held-out", client).permutation(len(examples))
        return examples.select(np.sort(order[start:end]))

    def _find_bounds(self, sizes: I64) -> tuple[I64, I64]:
        """Return first and end position of the part in the random order, for clients with `sizes` [m] examples in all."""
        n_rest = sizes - count_held_out(sizes, self.held_out) if self.held_out else sizes
        n_train = n_rest - np.rint(self.validation * n_rest).astype(np.int64)
        bounds = {"train": (np.zeros_like(sizes), n_train), "validation": (n_train, n_rest), "test": (n_rest, sizes)}
        return bounds[self.part]

    def sizes_of(self, clients: Sequence[int]) -> I64:
        start, end = self._find_bounds(self.generator.sizes_of(np.asarray(clients, dtype=np.int64), self.seed))
        return end - start

    def sizes(self) -> I64:
        return self.sizes_of(range(self.clients))

    def distinct_sizes(self) -> tuple[I64, I64]:
        if not self.generator.has_equal_sizes:
            return np.unique(self.sizes(), return_counts=True)
        return self.sizes_of([0]), np.array([self.clients])

    def all_examples(self) -> Examples:
        return self._all_examples

    def limit_clients(self, max_clients: int) -> GeneratedData:
        """Return the first `max_clients` clients, or fewer, at least one, for at most `MAX_MATERIALIZED_EXAMPLES` examples."""
        if self.generator.has_equal_sizes:
            affordable = MAX_MATERIALIZED_EXAMPLES // max(int(self.sizes_of([0])[0]), 1)
        else:
            totals = np.cumsum(self.sizes_of(range(min(self.clients, max_clients))))
            affordable = int(np.searchsorted(totals, MAX_MATERIALIZED_EXAMPLES, side="right"))
        return replace(self, clients=min(self.clients, max_clients, max(1, affordable)))

    @cached_property
    def _all_examples(self) -> Examples:
        sizes, counts = self.distinct_sizes()
        n = int(sizes @ counts)
        if n > MAX_MATERIALIZED_EXAMPLES:
            each = f" with {sizes[0]:,} each" if len(sizes) == 1 else ""
            problem = f"got {n:,} generated examples ({self.clients:,} clients{each})"
            raise DataError(f"{problem}, expected at most {MAX_MATERIALIZED_EXAMPLES:,} in memory")
        return _concatenate(self.examples_of(client) for client in range(self.clients))


def _concatenate(parts: Iterable[Examples]) -> Examples:
    xs: tuple[Any, ...]
    xs, ys = zip(*(examples.arrays() for examples in parts), strict=True)
    return Examples(np.concatenate(xs), np.concatenate(ys))
