"""Base class of rules that need all decoded updates of a round at once, in bounded memory.

A rule that compares the updates coordinate by coordinate needs C values of each coordinate. C · P numbers may not fit into
memory, so the coordinates are visited in blocks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedsgd.aggregation.base import AggregationContext, AggregationResult, Aggregator, WeightedUpdate
from fedsgd.compression import StateArrays
from fedsgd.compression.updates import DenseUpdate, SparseUpdate, Update
from fedsgd.numerics.arrays import F32, F64, I64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import squared_norm

MAX_BLOCK_BYTES = 256 * 2**20
"""Maximum size of a block and of the stored updates, bytes."""


class Block(NamedTuple):
    """Values of some coordinates in all updates.

    Attributes:
        positions: [width] int64, or a slice of coordinates.
        values: [C, width] float32, one row an update; 0 where an update did not send a coordinate.
    """

    positions: I64 | slice
    values: F32


class DecodedCohort:
    """Updates of a round, decoded once if they fit into a block, else as often as they are used.

    If all updates are sparse, coordinates that no client sent are in no block.

    Args:
        updates: updates of the cohort, iterated over once.
        ctx: context of the round.
        max_bytes: maximum size of a block, and of the stored updates.
    """

    def __init__(self, updates: Iterable[WeightedUpdate], ctx: AggregationContext, max_bytes: int = MAX_BLOCK_BYTES) -> None:
        self._updates: list[WeightedUpdate] = []
        self._ctx = ctx
        self._max_bytes = max_bytes
        self._stored: list[SparseUpdate | DenseUpdate] = []
        n_bytes = 0
        for update in updates:  # decodes every update here, so that a malformed one is reported with its client
            decoded = _plain_form(ctx.decode(update))
            self._updates.append(update)
            n_bytes += decoded.values.nbytes + (decoded.indices.nbytes if isinstance(decoded, SparseUpdate) else 0)
            if n_bytes <= max_bytes:
                self._stored.append(decoded)
            else:
                self._stored.clear()
        self._is_stored = n_bytes <= max_bytes

    def __len__(self) -> int:
        return len(self._updates)

    @property
    def size(self) -> int:
        """P."""
        return self._ctx.layout.size

    @property
    def weights(self) -> F64:
        """Aggregation weights [C]."""
        return np.array([update.weight for update in self._updates], dtype=np.float64)

    def decoded(self) -> Iterator[SparseUpdate | DenseUpdate]:
        """Yield the decoded updates in order."""
        if self._is_stored:
            yield from self._stored
        else:
            yield from (_plain_form(self._ctx.decode(update)) for update in self._updates)

    def blocks(self) -> Iterator[Block]:
        """Yield all coordinates, ascending, as blocks of at most `max_bytes`."""
        width = max(1, self._max_bytes // (4 * max(1, len(self))))
        sparse_updates = [update for update in self._stored if isinstance(update, SparseUpdate)]
        if self._is_stored and len(sparse_updates) == len(self):
            positions = np.unique(np.concatenate([np.zeros(0, np.int64), *(update.indices for update in sparse_updates)]))
            for start in range(0, len(positions), width):
                yield _gather(sparse_updates, positions[start : start + width])
        else:
            for start in range(0, self.size, width):
                part = slice(start, min(start + width, self.size))
                values = np.empty((len(self), part.stop - start), dtype=np.float32)
                for row, update in zip(values, self.decoded(), strict=True):
                    row[:] = (update.values if isinstance(update, DenseUpdate) else update.to_dense())[part]
                yield Block(part, values)

    def squared_distances(self) -> F64:
        """Return |x_i − x_j|² [C, C]. The sums have equal bits on every machine."""
        distances = np.zeros((len(self), len(self)))
        for block in self.blocks():
            for i in range(len(self)):
                for j in range(i):
                    distances[i, j] += squared_norm(block.values[i] - block.values[j])
        return distances + distances.T

    def norms(self) -> F64:
        """Return |x_i| [C]."""
        return np.sqrt([squared_norm(update.values) for update in self.decoded()])

    def distances(self, center: F64) -> F64:
        """Return |x_i − center| [C].

        Args:
            center: [P] float64.
        """
        return np.sqrt([squared_norm((update.to_dense() - center).astype(np.float32)) for update in self.decoded()])

    def combination(self, coefficients: F64) -> F64:
        """Return Σ c_i x_i [P] float64.

        Args:
            coefficients: c [C].
        """
        total = np.zeros(self.size, dtype=np.float64)
        for update, coefficient in zip(self.decoded(), coefficients, strict=True):
            if coefficient:
                update.add_to(total, float(coefficient))
        return total

    def support_weights(self) -> F64:
        """Return Σ p_i over the updates in which each coordinate was sent, [P].

        Updates that are not sparse are decoded again, because the dense form of a group of tensors has no support.
        """
        total = np.zeros(self.size, dtype=np.float64)
        for i, update in enumerate(self._updates):
            stored = self._stored[i] if self._is_stored else None
            decoded = stored if isinstance(stored, SparseUpdate) else self._ctx.decode(update)
            decoded.add_support_to(total, update.weight)
        return total


def _plain_form(update: Update) -> SparseUpdate | DenseUpdate:
    return update if isinstance(update, SparseUpdate) else DenseUpdate(update.to_dense())


def _gather(updates: Sequence[SparseUpdate], positions: I64) -> Block:
    """Return the values of these positions, ascending, in sparse updates."""
    values = np.zeros((len(updates), len(positions)), dtype=np.float32)
    for row, update in zip(values, updates, strict=True):
        first, last = np.searchsorted(update.indices, [positions[0], positions[-1] + 1])
        row[np.searchsorted(positions, update.indices[first:last])] = update.values[first:last]
    return Block(positions, values)


class CohortAggregator(Aggregator):
    """Rule that needs all updates of a round at once."""

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        cohort = DecodedCohort(updates, ctx)
        if not len(cohort):
            return np.zeros(ctx.layout.size, dtype=np.float32), state
        return self.aggregate_cohort(state, cohort)

    @abstractmethod
    def aggregate_cohort(self, state: StateArrays, cohort: DecodedCohort) -> AggregationResult:
        """Aggregate at least one update.

        Args:
            state: the server's state; never written to.
            cohort: updates of the round.
        """

    def max_working_bytes(self, layout: ParameterLayout, n_updates: int) -> int:
        return sum(min(MAX_BLOCK_BYTES, size * n_updates * layout.size) for size in (12, 4))  # sparse updates, and a block


def clipping_factors(norms: F64, max_norm: float) -> F64:
    """Return min(1, max_norm / norm) for each norm [C]."""
    return np.divide(max_norm, norms, out=np.ones_like(norms), where=norms > max_norm)
