"""Partition of the training examples over clients.

A partitioner returns one client for each example, so no example can be at two clients. The number −1 marks an example without
a client.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedsgd.config.component import Component, PositiveInt, describe_value
from fedsgd.config.user_errors import make_component_error, wrap_user_errors
from fedsgd.data.base import Examples
from fedsgd.data.labels import suggest_label_conversion
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import F64, I64
from fedsgd.numerics.rng import derive_generator


@dataclass(frozen=True, eq=False)
class Partition:
    """Rows of each client's examples: client i has order[bounds[i] : bounds[i + 1]].

    `order` [m] has distinct rows, client after client. `bounds` [N + 1] ascends from 0 to m.

    >>> partition = Partition.from_assignment(np.array([1, 0, -1, 1]), clients=2)
    >>> [partition.rows(client).tolist() for client in range(2)]
    [[1], [0, 3]]
    """

    order: I64
    bounds: I64

    @staticmethod
    def from_assignment(assignment: I64, clients: int) -> Partition:
        """Build a partition from the client of each example [n], −1 for no client. A client's rows are in ascending order."""
        bounds = np.zeros(clients + 1, dtype=np.int64)
        np.cumsum(np.bincount(assignment[assignment >= 0], minlength=clients), out=bounds[1:])
        return Partition(np.argsort(assignment, kind="stable")[len(assignment) - bounds[-1] :], bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def rows(self, client: int) -> I64:
        """Return the rows of one client's examples."""
        return self.order[self.bounds[client] : self.bounds[client + 1]]

    def sizes(self) -> I64:
        """Return the number of examples of each client, [N]."""
        return np.diff(self.bounds)

    def client_per_entry(self) -> I64:
        """Return the client of each entry of `order`, [m]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.sizes())


@dataclass(frozen=True)
class Partitioner(Component, ABC):
    """Rule that assigns n examples to clients.

    Laws: every example has one client in [0, N), or no client if `covers_all_examples` is False. No client is empty.
    The partition depends only on the settings, the examples and the seed. A partitioner may reject a number of clients that
    does not fit. `fedsgd.testing.check_partitioner` checks the laws.

    Attributes:
        clients: N, number of clients; None, if a partitioner allows it: the number follows from the data.
    """

    needs_labels: ClassVar[bool] = True
    """True if the partition depends on class labels; the label −100, which the loss ignores, is divided like a class."""
    covers_all_examples: ClassVar[bool] = True
    """True if every example has a client."""

    clients: PositiveInt | None = None

    @abstractmethod
    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        """Return each example's client, [n] int64 in [0, N), or −1 for no client. `partition_examples` fills empty clients.

        Args:
            examples: n examples, without `rows`.
            rng: generator of the partition.
        """


def partition_examples(partitioner: Partitioner, examples: Examples, seed: int) -> Partition:
    """Partition examples, which have no `rows`, and give an example to each empty client.

    Raises:
        DataError: there are more clients than assigned examples, a client is not below N, or class labels are missing.
        ScenarioError: a user's partitioner returns an array of another type or shape.

    >>> from fedsgd.data.partitioners.iid import Iid
    >>> examples = Examples(np.zeros((7, 2)), np.arange(7))
    >>> partition_examples(Iid(clients=3), examples, seed=0).sizes().tolist()
    [3, 2, 2]
    """
    if partitioner.needs_labels and (examples.y.ndim != 1 or examples.y.dtype.kind not in "iub"):
        got = f"{examples.y.dtype} targets of shape {list(examples.y.shape)}"
        hint = f'{suggest_label_conversion(examples.y)}; "iid" accepts any targets'
        raise DataError(f'"{partitioner.name}" splits by class label, expected integers [n], got {got}{hint}')
    clients = partitioner.clients
    if clients is not None:
        require_enough_examples(clients, len(examples))
    assignment = _call_partitioner(partitioner, examples, seed)
    n_clients, n_assigned = int(assignment.max()) + 1, np.count_nonzero(assignment >= 0)
    if clients is None:
        clients = n_clients
    if not n_assigned or n_clients > clients or n_assigned < clients:
        problem = f"assigns {n_assigned} examples to {n_clients} clients, expected {clients} clients with an example each"
        raise DataError(f'"{partitioner.name}" {problem}')
    return Partition.from_assignment(_fill_empty_clients(assignment, clients), clients)


def _call_partitioner(partitioner: Partitioner, examples: Examples, seed: int) -> I64:
    """Return the client of each example, [n]. ScenarioError for a user's partitioner that returns anything else."""
    with wrap_user_errors("data.partition", partitioner):
        assignment: Any = partitioner.assign_clients(examples, derive_generator(seed, "partition"))
    n = len(examples)
    is_array = isinstance(assignment, np.ndarray)
    if not is_array or assignment.dtype.kind not in "iu" or assignment.shape != (n,):
        got = f"{assignment.dtype} of shape {list(assignment.shape)}" if is_array else describe_value(assignment)
        problem = f"assign_clients returned {got}, expected int64 of shape [{n}]: the client of each of {n:,} training examples"
        raise make_component_error("data.partition", partitioner, problem)
    clients = np.asarray(assignment, dtype=np.int64)
    if n and int(clients.min()) < -1:
        problem = f"assign_clients returned client {int(clients.min())}, expected numbers from 0 on, or −1 for no client"
        raise make_component_error("data.partition", partitioner, problem)
    return clients


def require_enough_examples(clients: int, n_examples: int) -> None:
    """Raise DataError if there are more clients than examples."""
    if clients > n_examples:
        count = f"{n_examples} example{'s' * (n_examples != 1)}"
        raise DataError(f"data.partition.clients: {clients} clients cannot share {count}: each client needs an example")


def split_proportionally(shares: F64, n: int) -> I64:
    """Return the client of each of n positions, ascending, in proportion to the clients' shares [N], which add up to 1.

    >>> split_proportionally(np.array([0.5, 0.25, 0.25]), 4).tolist()
    [0, 0, 1, 2]
    """
    if not abs(float(shares.sum()) - 1) < 1e-6:
        raise DataError(f"the clients' shares add up to {shares.sum():g}, not to 1: a setting exceeds the range of floats")
    ends = np.rint(np.cumsum(shares) * n).astype(np.int64)
    return np.searchsorted(ends, np.arange(n), side="right").clip(max=len(shares) - 1)


def draw_log_normal_shares(clients: int, sigma: float, rng: np.random.Generator) -> F64:
    """Draw shares [N] with the sum 1, in proportion to exp(sigma · z) with z ~ N(0, 1)."""
    with np.errstate(over="ignore"):  # an overflow shows in the sum of the shares
        exponents = sigma * rng.standard_normal(clients)
    weights = np.exp(np.maximum(exponents - exponents.max(), -60))  # e⁻⁶⁰ of the largest gives no example, but is above 0
    shares: F64 = weights / weights.sum()
    return shares


def _fill_empty_clients(assignment: I64, clients: int) -> I64:
    """Give each empty client, in ascending order, the last example of the client with most examples (the lowest of several)."""
    partition = Partition.from_assignment(assignment, clients)
    sizes = partition.sizes()
    empty_clients = np.flatnonzero(sizes == 0)
    if not len(empty_clients):
        return assignment
    assignment = assignment.copy()
    heap = [(-int(size), client) for client, size in enumerate(sizes) if size > 1]
    heapq.heapify(heap)
    for client in empty_clients:
        size, donor = heap[0]
        assignment[partition.order[partition.bounds[donor] - size - 1]] = client
        heapq.heapreplace(heap, (size + 1, donor))
    return assignment
