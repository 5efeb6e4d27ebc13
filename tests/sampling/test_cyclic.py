"""Sampling in turn."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fedsgd.sampling.cyclic import Cyclic
from tests.sampling.pools import make_pool


@given(clients=st.integers(1, 40), seed=st.integers(0, 100), data=st.data())
def test_cyclic_counts_of_participation_differ_by_at_most_one(clients: int, seed: int, data: st.DataObject) -> None:
    cohort_size = data.draw(st.integers(1, clients))
    sample_cohort = Cyclic().bind(make_pool(clients, seed))
    counts: Counter[int] = Counter(dict.fromkeys(range(clients), 0))
    for round in range(1, clients + 1):
        counts.update(sample_cohort(round, cohort_size).cohort)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert set(counts.values()) == {cohort_size}


def test_cyclic_order_is_shuffled() -> None:
    first_cohorts = {Cyclic().bind(make_pool(100, seed))(1, 10).cohort for seed in range(5)}
    assert len(first_cohorts | {tuple(range(10))}) == 6
