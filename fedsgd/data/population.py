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

from fedsgd.arrays import I64
from fedsgd.component import Count
from fedsgd.data.base import ClientData, Dataset, Examples, Source
from fedsgd.errors import DataError
from fedsgd.rng import stream

SAMPLED = 8
"""Clients whose examples stand for all where a model is tried and an engine records its steps."""
MOST_TOGETHER = 10**6
"""Examples of many clients that are made and held at once, in every process that looks at them."""


@dataclass(frozen=True)
class Population(Source, ABC):
    """A source of clients rather than of examples: N `clients` with `examples` each, and nothing to be split.

    Laws: a client's examples are a function of (the settings, the seed, its number) alone; nothing of size N is held. The test
    examples are those of `test_clients` further clients, which never train: numbers N, N + 1, ...
    """

    clients: Count = 1000
    examples: Count = 50
    test_clients: Count = 100

    @property
    @abstractmethod
    def n_classes(self) -> int | None:
        """The number of classes, or None where targets are not class labels."""

    @abstractmethod
    def examples_of(self, client: int, seed: int) -> Examples:
        """What this client has, [n, ...], without `rows`. client: any number from 0."""

    def dataset(self, seed: int) -> Dataset:
        """What is known without making every client's data: a few clients' examples, and the test examples."""
        test = range(self.clients, self.clients + self.test_clients)
        few, tested = (_joined(self.examples_of(c, seed) for c in each) for each in (range(min(SAMPLED, self.clients)), test))
        return Dataset(few, tested, self.n_classes)

    def load(self, folder: Path | None) -> Dataset:
        """`dataset` for the seed 0: a run makes the clients of its own seed."""
        return self.dataset(0)


def populated(source: Population, held_out: float, seed: int) -> tuple[Dataset, ClientData, ClientData | None]:
    """(a sample of the clients' examples and the test examples, what each trains on, what it is tested on). held_out: as for
    `deal`; with a share of 0 clients are tested on nothing (None)."""
    made, n_held_out = Made(source, seed, source.clients), int(held_out_sizes(np.array([source.examples]), held_out)[0])
    if not held_out:
        return source.dataset(seed), made, None
    return (
        source.dataset(seed),
        replace(made, end=source.examples - n_held_out),
        replace(made, start=source.examples - n_held_out),
    )


def held_out_sizes(sizes: I64, share: float) -> I64:
    """How many examples clients with so many each [m] hold out: the share, but at least one, and never all."""
    return np.where(sizes > 1, np.rint(share * sizes).clip(1, np.maximum(sizes - 1, 1)), 0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Made(ClientData):
    """The first `clients` of a population. start, end: of each client's examples, shuffled by a stream of its own, those from
    `start` to before `end` (None: the last)."""

    source: Population
    seed: int
    clients: int
    start: int = 0
    end: int | None = None

    def __len__(self) -> int:
        return self.clients

    def of(self, client: int) -> Examples:
        """One client's examples, made anew. IndexError if there is no such client."""
        if not 0 <= client < self.clients:
            raise IndexError(f"client {client} of {self.clients}")
        examples = self.source.examples_of(client, self.seed)
        if self._each == len(examples):
            return examples
        shuffled = stream(self.seed, "held-out", client).permutation(len(examples))
        return examples.take(np.sort(shuffled[self.start : self.end]))

    def sizes_of(self, clients: Sequence[int]) -> I64:
        """How many examples each of these clients has: all have as many [len(clients)]."""
        return np.full(len(clients), self._each, dtype=np.int64)

    def sizes(self) -> I64:
        """How many examples each client has [N]."""
        return np.full(self.clients, self._each, dtype=np.int64)

    def distinct_sizes(self) -> tuple[I64, I64]:
        """(the one number of examples that clients have, N)."""
        return np.array([self._each]), np.array([self.clients])

    def all(self) -> Examples:
        """The examples of all clients, made once. DataError if there are more than `MOST_TOGETHER`."""
        return self._all

    def first(self, most: int) -> Made:
        """The first `most` clients, and fewer where these would have more than `MOST_TOGETHER` examples."""
        return replace(self, clients=min(self.clients, most, max(1, MOST_TOGETHER // max(self._each, 1))))

    @property
    def _each(self) -> int:
        return len(range(self.source.examples)[self.start : self.end])

    @cached_property
    def _all(self) -> Examples:
        n = self.clients * self._each
        if n > MOST_TOGETHER:
            raise DataError(
                f"{self.clients:,} clients with {self._each:,} examples each would have to be made and held: "
                f"{n:,} examples, more than {MOST_TOGETHER:,}"
            )
        return _joined(self.of(client) for client in range(self.clients))


def _joined(several: Iterable[Examples]) -> Examples:
    xs: tuple[Any, ...]
    xs, ys = zip(*(examples.gather() for examples in several), strict=True)
    return Examples(np.concatenate(xs), np.concatenate(ys))
