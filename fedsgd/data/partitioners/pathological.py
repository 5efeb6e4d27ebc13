"""Label skew: a fixed number of classes for each client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.config.component import NonNegativeFloat, NonNegativeInt, PositiveInt
from fedsgd.data.base import Examples
from fedsgd.data.partitioners.base import Partitioner, draw_log_normal_shares, split_proportionally
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I64


@dataclass(frozen=True)
class Pathological(Partitioner):
    """Partitioner that assigns `classes_per_client` classes to each client, and divides each class among its clients.

    Source: quantity-based label imbalance in Li et al. 2022. Classes are assigned in turn from random permutations, so that the
    numbers of clients of two classes differ by at most one. Unlike with "shards", a client's classes are distinct, and its
    number of examples depends on their sizes. A class with fewer examples than clients is missing at some of its clients.

    With `sigma` above 0, a class is divided in proportion to exp(sigma · z) with z ~ N(0, 1) for each of its clients, after
    each has got `min_examples` of the class. Li et al. 2020 ("FedProx", appendix C.1) divide MNIST so over 1,000 clients, with
    `min_examples` = 5 and `sigma` = 2 in their code, where client c has the digits c and c + 1 modulo 10.

    Attributes:
        clients: N, number of clients.
        classes_per_client: number of distinct classes that each client is assigned.
        sigma: standard deviation of the logarithm of a client's share of a class; 0 for equal shares.
        min_examples: examples of each of its classes that a client has at least.
    """

    name: ClassVar[str] = "pathological"

    clients: PositiveInt = 100
    classes_per_client: PositiveInt = 2
    sigma: NonNegativeFloat = 0.0
    min_examples: NonNegativeInt = 0

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        classes, labels = np.unique(examples.y, return_inverse=True)
        if self.classes_per_client > len(classes):
            got = f"data.partition.classes_per_client: got {self.classes_per_client}"
            raise DataError(f"{got}, expected at most {len(classes)}, the number of classes of the dataset")
        if self.clients * self.classes_per_client < len(classes):
            got = f"{self.clients} clients with {self.classes_per_client} classes each"
            raise DataError(f"data.partition.clients: got {got}, expected at least the {len(classes)} classes of the dataset")
        client_classes = self._assign_classes(len(classes), rng)
        assignment = np.empty(len(labels), dtype=np.int64)
        for label in range(len(classes)):
            clients = rng.permutation(np.flatnonzero((client_classes == label).any(axis=1)))
            rows = rng.permutation(np.flatnonzero(labels == label))
            if self.sigma or self.min_examples:
                assignment[rows] = self._divide_unevenly(clients, len(rows), rng)
            else:
                assignment[rows] = clients[np.arange(len(rows), dtype=np.int64) * len(clients) // len(rows)]
        return assignment

    def _divide_unevenly(self, clients: I64, n: int, rng: np.random.Generator) -> I64:
        """Return the client of each of a class's n examples: `min_examples` for each client, the rest in log-normal shares."""
        n_rest = n - self.min_examples * len(clients)
        if n_rest < 0:
            got = f"data.partition.min_examples: got {self.min_examples} for each of {len(clients)} clients of a class"
            raise DataError(f"{got}, expected at most {n // len(clients)}, because the class has {n} examples")
        shares = draw_log_normal_shares(len(clients), self.sigma, rng)
        return np.concatenate([np.repeat(clients, self.min_examples), clients[split_proportionally(shares, n_rest)]])

    def _assign_classes(self, n_classes: int, rng: np.random.Generator) -> I64:
        """Draw the classes of each client, [N, classes_per_client]."""
        client_classes = np.empty((self.clients, self.classes_per_client), dtype=np.int64)
        queue: list[int] = []
        for row in client_classes:
            labels, queue = queue[: self.classes_per_client], queue[self.classes_per_client :]
            if len(labels) < self.classes_per_client:
                permutation = [int(label) for label in rng.permutation(n_classes)]
                n_missing = self.classes_per_client - len(labels)
                additions = [label for label in permutation if label not in labels][:n_missing]
                queue = [label for label in permutation if label not in additions]
                labels += additions
            row[:] = labels
        return client_classes
