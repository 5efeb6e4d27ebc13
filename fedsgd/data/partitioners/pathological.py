"""So many classes a client and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.config.component import PositiveInt
from fedsgd.data.base import Examples
from fedsgd.data.partitioners.base import Partitioner
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I64


@dataclass(frozen=True)
class Pathological(Partitioner):
    """Exactly `classes_per_client` classes for each client; a class is divided evenly over those that have it.

    Classes are dealt like cards, from one shuffled deck of all classes after the other, so each class is with as many clients
    as any other, to within one. Unlike "shards", a client never gets one class twice, and sizes follow from the classes. A
    class with fewer examples than clients that should have it stays away from some.
    """

    name: ClassVar[str] = "pathological"

    clients: PositiveInt = 100
    classes_per_client: PositiveInt = 2

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        classes, labels = np.unique(examples.y, return_inverse=True)
        if self.classes_per_client > len(classes):
            raise DataError(f"{self.classes_per_client} classes a client, but the data have {len(classes)}")
        if self.clients * self.classes_per_client < len(classes):
            room = f"{self.clients} clients × {self.classes_per_client} classes"
            raise DataError(f"{room} cannot hold the {len(classes)} classes of the data")
        hands = self._assign_classes(len(classes), rng)
        owner = np.empty(len(labels), dtype=np.int64)
        for label in range(len(classes)):
            holders = rng.permutation(np.flatnonzero((hands == label).any(axis=1)))
            members = rng.permutation(np.flatnonzero(labels == label))
            owner[members] = holders[np.arange(len(members), dtype=np.int64) * len(holders) // len(members)]
        return owner

    def _assign_classes(self, classes: int, rng: np.random.Generator) -> I64:
        """The classes of each client [N, classes_per_client]."""
        hands = np.empty((self.clients, self.classes_per_client), dtype=np.int64)
        deck: list[int] = []
        for hand in hands:
            dealt, deck = deck[: self.classes_per_client], deck[self.classes_per_client :]
            if len(dealt) < self.classes_per_client:
                fresh = [int(label) for label in rng.permutation(classes)]
                more = [label for label in fresh if label not in dealt][: self.classes_per_client - len(dealt)]
                deck = [label for label in fresh if label not in more]
                dealt += more
            hand[:] = dealt
        return hands
