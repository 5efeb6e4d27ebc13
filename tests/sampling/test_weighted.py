"""Sampling in proportion to the clients' examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.errors import DataError
from fedsgd.sampling import (
    SamplingPool,
)
from fedsgd.sampling.weighted import Weighted
from tests.sampling.pools import make_pool_of_sizes


def capped_probabilities(weights: np.ndarray, cohort_size: int) -> np.ndarray:
    """Return inclusion probabilities by a direct loop: clients above 1 get 1, and the rest is redistributed until no client is
    above 1.
    """
    probabilities = np.zeros(len(weights))
    is_certain = np.zeros(len(weights), bool)
    while True:
        probabilities[~is_certain] = (cohort_size - is_certain.sum()) * weights[~is_certain] / weights[~is_certain].sum()
        probabilities[is_certain] = 1.0
        if not (probabilities > 1 + 1e-12).any():
            return probabilities
        is_certain |= probabilities > 1 + 1e-12


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(1, 10**4), min_size=1, max_size=40),
    exponent=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    data=st.data(),
)
def test_weighted_probabilities_are_capped_at_one_and_redistributed(
    sizes: list[int], exponent: float, data: st.DataObject
) -> None:
    cohort_size = data.draw(st.integers(1, len(sizes)))
    expected = capped_probabilities(np.array(sizes, dtype=float) ** exponent, cohort_size)
    assert expected.sum() == pytest.approx(cohort_size)
    sample_cohort = Weighted(exponent=exponent).bind(make_pool_of_sizes(*sizes))
    for round in range(1, 4):
        sampled = sample_cohort(round, cohort_size)
        assert set(np.flatnonzero(expected == 1)) <= set(sampled.cohort)
        assert sampled.inclusion_probabilities == pytest.approx(expected[list(sampled.cohort)], rel=1e-6)


def test_weighted_cohort_has_all_clients_of_probability_one() -> None:
    sample_cohort = Weighted().bind(make_pool_of_sizes(1000, 1, 1, 500, 1, 1))
    for round in range(1, 30):
        sampled = sample_cohort(round, 3)
        assert {0, 3} < set(sampled.cohort)
        assert sampled.inclusion_probabilities is not None
        assert sorted(sampled.inclusion_probabilities) == [0.25, 1, 1]
    assert sample_cohort(1, 6).cohort == tuple(range(6))


def test_weighted_with_exponent_zero_has_equal_probabilities() -> None:
    sampled = Weighted(exponent=0.0).bind(make_pool_of_sizes(0, 5, 100, 10**9))(1, 2)
    assert sampled.inclusion_probabilities == pytest.approx([0.5, 0.5])


def test_weighted_never_draws_clients_without_examples() -> None:
    sample_cohort = Weighted().bind(make_pool_of_sizes(0, 3, 0, 2))
    assert {sample_cohort(round, 2).cohort for round in range(1, 30)} == {(1, 3)}
    with pytest.raises(DataError, match='"weighted" has to draw 3 clients a round, but only 2 have any examples'):
        sample_cohort(1, 3)
    with pytest.raises(DataError, match="but only 0 have any examples"):
        Weighted().bind(make_pool_of_sizes(0, 0))(1, 1)


def test_weighted_probability_that_underflows_stays_above_zero() -> None:
    """(1/10⁶)¹⁰⁰ underflows to 0. A client with examples can be drawn nevertheless."""
    sampled = Weighted(exponent=100.0).bind(make_pool_of_sizes(1, 10**6, 1))(1, 3)
    assert sampled.cohort == (0, 1, 2)


@pytest.mark.slow
def test_weighted_probabilities_are_exact_for_a_million_clients() -> None:
    sizes = np.random.default_rng(0).integers(1, 1000, 10**6)
    sizes[::100_000] = 10**9
    sample_cohort = Weighted().bind(SamplingPool(0, 10**6, lambda: sizes))
    is_small = np.arange(10**6) % 100_000 != 0
    for round in range(1, 20):
        sampled = sample_cohort(round, 1000)
        assert len(set(sampled.cohort)) == 1000
        assert {*range(0, 10**6, 100_000)} <= set(sampled.cohort)
        assert sampled.inclusion_probabilities is not None
        small_clients = [c for c in sampled.cohort if is_small[c]]
        assert sampled.inclusion_probabilities[sampled.inclusion_probabilities < 1] == pytest.approx(
            990 * sizes[small_clients] / sizes[is_small].sum(), rel=1e-4
        )
