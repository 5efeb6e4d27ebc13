"""Tests of the size of sets of positions."""

from __future__ import annotations

import math

import pytest

from fedsgd.numerics.binomial import log2_choose


@pytest.mark.parametrize(("n", "k"), [(5, 0), (5, 5), (5, 2), (7, 7), (10, 3), (1000, 10)])
def test_log2_choose_is_the_logarithm_of_the_number_of_subsets(n: int, k: int) -> None:
    assert log2_choose(n, k) == pytest.approx(math.log2(math.comb(n, k)), abs=1e-9)
