"""Which of many intervals hold a point, without a look at those that do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsgd.numerics.arrays import I64

MAX_POINT = 2**31 - 1
"""The largest point that intervals may hold, and the largest owner they may have."""


@dataclass(frozen=True, eq=False)
class IntervalTree:
    """n intervals of whole numbers, each with an owner, as a segment tree (Bentley 1977).

    The ends of intervals cut the numbers into slots, the tree's leaves, and each interval is kept at the O(log n) nodes that
    make it up: those that hold a point lie on the way from its slot to the root. O(n log n) to build, O(log n) to ask.

    edges: where slots begin, and the last one ends, ascending; owners: node by node, ascending within each; bounds: node i has
    owners[bounds[i] : bounds[i + 1]]; node i's parent is i // 2.
    """

    edges: I64
    owners: I64
    bounds: I64

    @staticmethod
    def from_intervals(owner: I64, first: I64, last: I64) -> IntervalTree:
        """From [n] each, in [0, LATEST], first ≤ last, both of them held; n ≥ 1. Intervals of one owner may overlap."""
        owner, first, end = _merge_intervals(owner, first, last)
        edges = np.unique(np.concatenate([first, end]))
        slots = len(edges) - 1
        left, right = np.searchsorted(edges, first) + slots, np.searchsorted(edges, end) + slots
        nodes, owners = [], []
        while len(owner):  # upwards, a level at a time: what the parents of left, ..., right − 1 do not make up stays here
            at_left, at_right = left & 1 == 1, right & 1 == 1
            nodes += [left[at_left], right[at_right] - 1]
            owners += [owner[at_left], owner[at_right]]
            left, right = (left + 1) >> 1, right >> 1
            wide = left < right
            owner, left, right = owner[wide], left[wide], right[wide]
        node, whose = np.concatenate(nodes), np.concatenate(owners)
        bounds = np.zeros(2 * slots + 1, dtype=np.int64)
        np.cumsum(np.bincount(node, minlength=2 * slots), out=bounds[1:])
        return IntervalTree(edges, whose[np.lexsort((whose, node))], bounds)

    def owners_at(self, point: int) -> list[I64]:
        """The owners of the intervals that hold a point, each once: a few arrays, views of this one's, none of them empty."""
        slots = len(self.edges) - 1
        slot = int(np.searchsorted(self.edges, point, side="right")) - 1
        if not 0 <= slot < slots:
            return []
        found, node = [], slot + slots
        while node:
            if self.bounds[node] < self.bounds[node + 1]:
                found.append(self.owners[self.bounds[node] : self.bounds[node + 1]])
            node //= 2
        return found


def _merge_intervals(owner: I64, first: I64, last: I64) -> tuple[I64, I64, I64]:
    """(owner, first, last + 1) of as few intervals, sorted by owner and first, no two of one owner overlap or touch."""
    begin, end = (owner << 32) + first, (owner << 32) + last + 1  # on one line, owner after owner: sorted and merged as one
    order = np.argsort(begin, kind="stable")
    begin, reach = begin[order], np.maximum.accumulate(end[order])
    fresh = np.concatenate([[True], begin[1:] > reach[:-1]])
    begin, end = begin[fresh], reach[np.concatenate([fresh[1:], [True]])]
    owner = begin >> 32
    return owner, begin - (owner << 32), end - (owner << 32)
