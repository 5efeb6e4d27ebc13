"""Search for the intervals that contain a point, in logarithmic time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsgd.numerics.arrays import I64

MAX_POINT = 2**31 - 1
"""Maximum of points and owners."""


@dataclass(frozen=True, eq=False)
class IntervalTree:
    """Segment tree (Bentley 1977) of n intervals of integers, each with an owner.

    The ends of all intervals cut the integers into slots, the leaves of the tree. Each interval is stored at O(log n) nodes,
    which together cover the interval's slots. The intervals that contain a point are stored on the path from the point's slot
    to the root. Building takes O(n log n), a search O(log n).

    Attributes:
        edges: start of each slot, and end of the last slot, ascending.
        owners: owners of the stored intervals, node by node, ascending within each node.
        bounds: node i has owners[bounds[i] : bounds[i + 1]]; the parent of node i is node i // 2.

    >>> tree = IntervalTree.from_intervals(np.array([4, 7]), first=np.array([1, 3]), last=np.array([5, 9]))
    >>> [owner for owners in tree.owners_at(4) for owner in owners.tolist()]
    [4, 7]
    """

    edges: I64
    owners: I64
    bounds: I64

    @staticmethod
    def from_intervals(owner: I64, first: I64, last: I64) -> IntervalTree:
        """Return the tree of n ≥ 1 intervals [first, last], which include both ends; all numbers are in [0, MAX_POINT].

        Intervals of one owner may overlap.
        """
        owner, first, end = _merge_intervals(owner, first, last)
        edges = np.unique(np.concatenate([first, end]))
        n_slots = len(edges) - 1
        left, right = np.searchsorted(edges, first) + n_slots, np.searchsorted(edges, end) + n_slots
        nodes, owners = [], []
        # One level at a time, upwards. Nodes that the parents of left, ..., right − 1 do not cover are stored at this level.
        while len(owner):
            at_left, at_right = left & 1 == 1, right & 1 == 1
            nodes += [left[at_left], right[at_right] - 1]
            owners += [owner[at_left], owner[at_right]]
            left, right = (left + 1) >> 1, right >> 1
            is_not_empty = left < right
            owner, left, right = owner[is_not_empty], left[is_not_empty], right[is_not_empty]
        node, node_owner = np.concatenate(nodes), np.concatenate(owners)
        bounds = np.zeros(2 * n_slots + 1, dtype=np.int64)
        np.cumsum(np.bincount(node, minlength=2 * n_slots), out=bounds[1:])
        return IntervalTree(edges, node_owner[np.lexsort((node_owner, node))], bounds)

    def owners_at(self, point: int) -> list[I64]:
        """Return the distinct owners of the intervals that contain a point, as O(log n) views that are not empty."""
        n_slots = len(self.edges) - 1
        slot = int(np.searchsorted(self.edges, point, side="right")) - 1
        if not 0 <= slot < n_slots:
            return []
        owners, node = [], slot + n_slots
        while node:
            if self.bounds[node] < self.bounds[node + 1]:
                owners.append(self.owners[self.bounds[node] : self.bounds[node + 1]])
            node //= 2
        return owners


def _merge_intervals(owner: I64, first: I64, last: I64) -> tuple[I64, I64, I64]:
    """Join intervals of one owner that overlap or touch. Return (owner, first, last + 1), sorted by owner and start."""
    # All intervals are placed on one line, one owner after another.
    start, end = (owner << 32) + first, (owner << 32) + last + 1
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    is_first = np.concatenate([[True], start[1:] > reach[:-1]])
    start, end = start[is_first], reach[np.concatenate([is_first[1:], [True]])]
    owner = start >> 32
    return owner, start - (owner << 32), end - (owner << 32)
