"""Clients whose data are made from their number when they are asked for, and forgotten: any number of them costs nothing.

N clients, n examples each.
"""

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
"""Clients whose examples stand for all where a model is tried and an engine records its steps."""
MAX_MATERIALIZED_EXAMPLES = 10**6
"""Examples of many clients that are made and held at once, in every process that looks at them."""


@dataclass(frozen=True)
class ClientGenerator(DatasetSource, ABC):
    """A source of clients rather than of examples: N `clients` with `examples` each, and nothing to be split.

    Laws: a client's examples are a function of (the settings, the seed, its number) alone; nothing of size N is held. The test
    examples are those of `test_clients` further clients, which never train: numbers N, N + 1, ...
    """

    clients: PositiveInt = 1000
    examples: PositiveInt = 50
    test_clients: PositiveInt = 100

    @property
    @abstractmethod
    def n_classes(self) -> int | None:
        """The number of classes, or None where targets are not class labels."""

    @abstractmethod
    def examples_of(self, client: int, seed: int) -> Examples:
        """What this client has, [n, ...], without `rows`. client: any number from 0."""

    def sample_dataset(self, seed: int) -> Dataset:
        """What is known without making every client's data: a few clients' examples, and the test examples."""
        test = range(self.clients, self.clients + self.test_clients)
        few, tested = (
            _concatenate(self.examples_of(c, seed) for c in each) for each in (range(min(N_SAMPLE_CLIENTS, self.clients)), test)
        )
        return Dataset(few, tested, self.n_classes)

    def load(self, folder: Path | None) -> Dataset:
        """`sample_dataset` for the seed 0: a run makes the clients of its own seed."""
        return self.sample_dataset(0)


def generate_clients(generator: ClientGenerator, held_out: float, seed: int) -> tuple[Dataset, ClientData, ClientData | None]:
    """(a sample of the clients' examples and the test examples, what each trains on, what it is tested on). held_out: as for
    `partition_dataset`; with a share of 0 clients are tested on nothing (None)."""
    made, n_held_out = (
        GeneratedData(generator, seed, generator.clients),
        int(count_held_out(np.array([generator.examples]), held_out)[0]),
    )
    if not held_out:
        return generator.sample_dataset(seed), made, None
    return (
        generator.sample_dataset(seed),
        replace(made, end=generator.examples - n_held_out),
        replace(made, start=generator.examples - n_held_out),
    )


def count_held_out(sizes: I64, share: float) -> I64:
    """How many examples clients with so many each [m] hold out: the share, but at least one, and never all."""
    return np.where(sizes > 1, np.rint(share * sizes).clip(1, np.maximum(sizes - 1, 1)), 0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class GeneratedData(ClientData):
    """The first `clients` of a population. start, end: of each client's examples, shuffled by a stream of its own, those from
    `start` to before `end` (None: the last)."""

    generator: ClientGenerator
    seed: int
    clients: int
    start: int = 0
    end: int | None = None

    def __len__(self) -> int:
        return self.clients

    def examples_of(self, client: int) -> Examples:
        """One client's examples, made anew. IndexError if there is no such client."""
        if not 0 <= client < self.clients:
            raise IndexError(f"client {client} of {self.clients}")
        examples = self.generator.examples_of(client, self.seed)
        if self._examples_per_client == len(examples):
            return examples
        shuffled = derive_generator(self.seed, "held-out", client).permutation(len(examples))
        return examples.select(np.sort(shuffled[self.start : self.end]))

    def sizes_of(self, clients: Sequence[int]) -> I64:
        """How many examples each of these clients has: all have as many [len(clients)]."""
        return np.full(len(clients), self._examples_per_client, dtype=np.int64)

    def sizes(self) -> I64:
        """How many examples each client has [N]."""
        return np.full(self.clients, self._examples_per_client, dtype=np.int64)

    def distinct_sizes(self) -> tuple[I64, I64]:
        """(the one number of examples that clients have, N)."""
        return np.array([self._examples_per_client]), np.array([self.clients])

    def all_examples(self) -> Examples:
        """The examples of all clients, made once. DataError if there are more than `MAX_MATERIALIZED_EXAMPLES`."""
        return self._all_examples

    def limit_clients(self, max_clients: int) -> GeneratedData:
        """The first `max_clients` clients, and fewer where these would have more than `MAX_MATERIALIZED_EXAMPLES` examples."""
        return replace(
            self, clients=min(self.clients, max_clients, max(1, MAX_MATERIALIZED_EXAMPLES // max(self._examples_per_client, 1)))
        )

    @property
    def _examples_per_client(self) -> int:
        return len(range(self.generator.examples)[self.start : self.end])

    @cached_property
    def _all_examples(self) -> Examples:
        n = self.clients * self._examples_per_client
        if n > MAX_MATERIALIZED_EXAMPLES:
            raise DataError(
                f"{self.clients:,} clients with {self._examples_per_client:,} examples each would have to be made and held: "
                f"{n:,} examples, more than {MAX_MATERIALIZED_EXAMPLES:,}"
            )
        return _concatenate(self.examples_of(client) for client in range(self.clients))


def _concatenate(parts: Iterable[Examples]) -> Examples:
    xs: tuple[Any, ...]
    xs, ys = zip(*(examples.arrays() for examples in parts), strict=True)
    return Examples(np.concatenate(xs), np.concatenate(ys))
