"""Rand-k: the shared support, the variance, and overflow."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from fedsgd.compression import (
    CodecContext,
)
from fedsgd.compression.operators.randk import RandK, random_support
from fedsgd.errors import NonFiniteError
from fedsgd.numerics.parameter_layout import ParameterLayout
from tests.compression.helpers import (
    make_context,
)


def test_random_support_differs_by_round_and_client_and_is_uniform_over_pairs() -> None:
    supports = {
        tuple(random_support(5, make_context(500, round, client)).tolist()) for round in range(1, 21) for client in range(5)
    }
    assert len(supports) == 100
    pairs = np.zeros((8, 8))
    for round in range(4000):
        support = random_support(2, make_context(8, round))
        pairs[support[0], support[1]] += 1
    observed = pairs[np.triu_indices(8, 1)]
    assert chisquare(observed).pvalue > 1e-4


SUPPORT = [267, 296, 732, 735, 987]


def test_random_support_of_a_context_never_changes() -> None:
    """The wire format depends on it: every version must draw the same positions from the same context."""
    assert random_support(5, CodecContext(0, 1, 0, ParameterLayout.from_size(1000))).tolist() == SUPPORT


@pytest.mark.slow
def test_scaled_rand_k_has_the_stated_variance() -> None:
    """E|C(x) − x|² = (P/k − 1)|x|², as the mean over 6000 supports of a short vector."""
    x = np.random.default_rng(3).standard_normal(40).astype(np.float32)
    errors = [np.square(RandK(0.25).encode(x, make_context(40, r))[1].to_dense() - x).sum() for r in range(6000)]
    assert np.mean(errors) == pytest.approx(3 * np.square(x).sum(), rel=0.03)


def test_rand_k_overflow_error_names_round_and_client() -> None:
    with pytest.raises(NonFiniteError, match=r"round 3, client 4: scaling the update by P/k = 2 leaves"):
        RandK(0.5).encode(np.full(4, 3e38, np.float32), make_context(4, 3, 4))
