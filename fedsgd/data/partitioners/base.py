"""How training examples are dealt to clients. n examples, N clients.

A partitioner answers one question: whose is each example? Its answer is one client per example, so a split cannot give an
example twice, and loses none unless the answer is "nobody's".
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
    """Client i has the examples order[bounds[i] : bounds[i + 1]]. order: distinct rows; bounds: [N + 1], ascending from 0."""

    order: I64
    bounds: I64

    @staticmethod
    def from_assignment(assignment: I64, clients: int) -> Partition:
        """From the client of each example [n], or −1 for nobody; each client's examples are in ascending order."""
        bounds = np.zeros(clients + 1, dtype=np.int64)
        np.cumsum(np.bincount(assignment[assignment >= 0], minlength=clients), out=bounds[1:])
        return Partition(np.argsort(assignment, kind="stable")[len(assignment) - bounds[-1] :], bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def rows(self, client: int) -> I64:
        """The examples of one client."""
        return self.order[self.bounds[client] : self.bounds[client + 1]]

    def sizes(self) -> I64:
        """How many examples each client has [N]."""
        return np.diff(self.bounds)

    def client_per_entry(self) -> I64:
        """The client of each entry of `order`."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.sizes())


@dataclass(frozen=True)
class Partitioner(Component, ABC):
    """A way to deal n examples to clients. clients: N; None, where a partitioner allows it: as many as it finds in the data.

    Laws: every example has one owner in [0, N), or, with a partitioner that says so, none; no client is left empty; the result
    depends on the examples and the seed alone.
    """

    needs_labels: ClassVar[bool] = True
    """True if the split looks at class labels; if not, any targets will do. Examples whose label the loss ignores (-100) are a
    group of their own, divided as a class is."""

    clients: PositiveInt | None = None

    @abstractmethod
    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        """The client of each of the n examples, [n] in [0, N), or −1 for nobody's. May leave clients empty."""


def partition_examples(partitioner: Partitioner, examples: Examples, seed: int) -> Partition:
    """The split of these examples (with no `rows`); clients left empty are repaired.

    DataError if there are more clients than examples, or no class labels where the partitioner needs them.
    """
    if partitioner.needs_labels and (examples.y.ndim != 1 or examples.y.dtype.kind not in "iub"):
        got = f"{examples.y.dtype} targets of shape {list(examples.y.shape)}"
        hint = f'{suggest_label_conversion(examples.y)}; "iid" splits anything'
        raise DataError(f'"{partitioner.name}" splits by class label, expected integers [n], got {got}{hint}')
    clients = partitioner.clients
    if clients is not None:
        require_enough_examples(clients, len(examples))
    owner = _call_partitioner(partitioner, examples, seed)
    found, n_dealt = int(owner.max()) + 1, np.count_nonzero(owner >= 0)
    if clients is None:
        clients = found
    if not n_dealt or found > clients or n_dealt < clients:
        wanted = f"there are to be {clients}, and each must get an example"
        raise DataError(f'"{partitioner.name}" deals {n_dealt} examples to {found} clients; {wanted}')
    return Partition.from_assignment(_fill_empty_clients(owner, clients), clients)


def _call_partitioner(partitioner: Partitioner, examples: Examples, seed: int) -> I64:
    """Return the client of each example [n]; ScenarioError for a partitioner of the user's own that breaks its contract."""
    with wrap_user_errors("data.partition", partitioner):
        owner: Any = partitioner.assign_clients(examples, derive_generator(seed, "partition"))
    n = len(examples)
    if not isinstance(owner, np.ndarray) or owner.dtype.kind not in "iu" or owner.shape != (n,):
        got = f"{owner.dtype} of shape {list(owner.shape)}" if isinstance(owner, np.ndarray) else describe_value(owner)
        problem = f"owners returned {got}, expected int64 of shape [{n}]: the client of each of {n:,} training examples"
        raise make_component_error("data.partition", partitioner, problem)
    return owner.astype(np.int64, copy=False)


def require_enough_examples(clients: int, n_examples: int) -> None:
    """DataError unless so many clients can have an example each."""
    if clients > n_examples:
        shared = f"{n_examples} example{'s' * (n_examples != 1)}"
        raise DataError(f"data.partition.clients: {clients} clients cannot share {shared}: at most one client an example")


def split_proportionally(shares: F64, n: int) -> I64:
    """The client of each of n places in a row, cut in proportion to `compute_class_distributions` [N], which add up to 1;
    returns [n], ascending."""
    if not abs(float(shares.sum()) - 1) < 1e-6:
        raise DataError(f"the clients' shares add up to {shares.sum():g}, not to 1: a setting is beyond what floats can hold")
    ends = np.rint(np.cumsum(shares) * n).astype(np.int64)
    return np.searchsorted(ends, np.arange(n), side="right").clip(max=len(shares) - 1)


def draw_log_normal_shares(clients: int, sigma: float, rng: np.random.Generator) -> F64:
    """Shares [N] that add up to 1, in proportion to exp(sigma · a standard normal)."""
    with np.errstate(over="ignore"):  # the sum of shares tells
        exponents = sigma * rng.standard_normal(clients)
    weights = np.exp(np.maximum(exponents - exponents.max(), -60))  # e⁻⁶⁰ of the largest is no example, but not yet 0
    shares: F64 = weights / weights.sum()
    return shares


def _fill_empty_clients(assignment: I64, clients: int) -> I64:
    """Give each empty client, in ascending order, the last example of the client that has most (the lowest of equals)."""
    split = Partition.from_assignment(assignment, clients)
    sizes = split.sizes()
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return assignment
    assignment = assignment.copy()
    heap = [(-int(size), client) for client, size in enumerate(sizes) if size > 1]
    heapq.heapify(heap)
    for client in empty:
        size, donor = heap[0]
        assignment[split.order[split.bounds[donor] - size - 1]] = client
        heapq.heapreplace(heap, (size + 1, donor))
    return assignment
