"""Uniform sampling."""

from __future__ import annotations

import pytest

from fedsgd.numerics.rng import derive_generator
from fedsgd.sampling.uniform import Uniform
from tests.sampling.pools import make_pool


@pytest.mark.parametrize(("clients", "cohort_size"), [(5, 5), (100, 10), (20_000, 1000), (1_000_000, 100)])
def test_uniform_cohort_equals_numpy_choice(clients: int, cohort_size: int) -> None:
    """Recorded runs were made with this expression."""
    sample_cohort = Uniform().bind(make_pool(clients, seed=7))
    for round in (1, 2, 50):
        drawn = derive_generator(7, "cohort", round).choice(clients, size=cohort_size, replace=False)
        assert sample_cohort(round, cohort_size).cohort == tuple(sorted(drawn.tolist()))
