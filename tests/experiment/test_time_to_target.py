"""The one rule for when a target is reached."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.experiment.time_to_target import TargetReached, find_first_reached, running_maximum, summarize_seeds


def test_target_crossing_is_interpolated_on_the_running_maximum() -> None:
    """By hand: best so far .5, .8, .8, .9; .85 lies half of the way from round 30 (where .8 still is the best) to round 40."""
    measured = [(10, 0.5), (20, 0.8), (30, 0.6), (40, 0.9)]
    found = find_first_reached(measured, 0.85)
    assert found is not None
    assert (found.before, found.after) == (30, 40)
    assert found.share == pytest.approx(0.5)
    assert found.rounds == pytest.approx(35)
    bytes_after = np.arange(41.0) * 100
    assert found.interpolate_on(bytes_after) == pytest.approx(3500)


def test_target_reached_first_later_or_never_is_distinguished() -> None:
    assert find_first_reached([(5, 0.9)], 0.9) == TargetReached(5, 5, 0.0)
    assert find_first_reached([(5, 0.9), (6, 0.89)], 0.91) is None
    assert find_first_reached([], 0.5) is None
    assert find_first_reached([(1, math.nan), (2, 0.4), (3, math.nan), (4, 0.6)], 0.5) == TargetReached(
        2, 4, pytest.approx(0.5)
    )


def test_target_met_exactly_is_reached_in_that_round() -> None:
    found = find_first_reached([(1, 0.5), (2, 0.7)], 0.7)
    assert found is not None
    assert found.rounds == 2


accuracies = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(accuracies, st.floats(0.01, 1))
def test_target_is_reached_iff_the_maximum_reaches_it(values: list[float], target: float) -> None:
    measured = list(enumerate(values, start=1))
    found = find_first_reached(measured, target)
    assert (found is None) == (max(values) < target)
    if found is not None:
        first = next(round for round, value in measured if value >= target)
        assert first - 1 <= found.rounds <= first
        assert found.after == first


@given(accuracies, st.floats(0.01, 1), st.floats(0.01, 1))
def test_higher_target_is_never_reached_sooner(values: list[float], one: float, other: float) -> None:
    low, high = (find_first_reached(list(enumerate(values, start=1)), target) for target in sorted((one, other)))
    if high is not None:
        assert low is not None
        assert low.rounds <= high.rounds + 1e-9


def test_running_maximum_skips_nan() -> None:
    assert running_maximum([0.1, math.nan, 0.3, 0.2]) == [0.1, 0.1, 0.3, 0.3]


def test_seed_summary_counts_unreached_as_infinite() -> None:
    all_three = summarize_seeds([3.0, 1.0, 2.0])
    assert (all_three.median, all_three.low, all_three.high, all_three.reached, all_three.n) == (2.0, 1.0, 3.0, 3, 3)
    two = summarize_seeds([3.0, None, 2.0])
    assert (two.median, two.high, two.reached) == (3.0, math.inf, 2)
    one = summarize_seeds([3.0, None])
    assert (one.median, one.low, one.reached) == (math.inf, 3.0, 1)
    assert summarize_seeds([None]).reached == 0
