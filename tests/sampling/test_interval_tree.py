"""Search for the intervals that contain a point."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.sampling.interval_tree import MAX_POINT, IntervalTree


@given(
    lines=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40), st.integers(0, 20)), min_size=1, max_size=60),
    point=st.integers(0, 70),
)
def test_tree_returns_each_owner_of_a_point_once(lines: list[tuple[int, int, int]], point: int) -> None:
    owner, first, length = np.array(lines).T
    groups = IntervalTree.from_intervals(owner, first, first + length).owners_at(point)
    assert all(len(group) for group in groups)
    owners = [int(c) for group in groups for c in group]
    assert sorted(owners) == sorted({c for c, a, m in lines if a <= point <= a + m})


def test_tree_accepts_the_largest_point_and_owner() -> None:
    interval = np.array([MAX_POINT]), np.array([1]), np.array([MAX_POINT])
    assert [group.tolist() for group in IntervalTree.from_intervals(*interval).owners_at(MAX_POINT)] == [[MAX_POINT]]
    assert IntervalTree.from_intervals(*interval).owners_at(MAX_POINT + 1) == []
