"""Rule for the round in which a target is reached."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.experiment.time_to_target import TargetReached, find_first_reached, list_best_so_far, summarize_seeds
from fedsgd.scenario.target import Criterion, Target


def test_target_crossing_is_interpolated_on_the_list_best_so_far() -> None:
    """The running maximum is .5, .8, .8, .9; .85 lies halfway between round 30 (maximum .8) and round 40."""
    accuracies = [(10, 0.5), (20, 0.8), (30, 0.6), (40, 0.9)]
    crossing = find_first_reached(accuracies, 0.85)
    assert crossing is not None
    assert (crossing.before, crossing.after) == (30, 40)
    assert crossing.share == pytest.approx(0.5)
    assert crossing.rounds == pytest.approx(35)
    bytes_after = np.arange(41.0) * 100
    assert crossing.interpolate_on(bytes_after) == pytest.approx(3500)


def test_target_reached_first_later_or_never_is_distinguished() -> None:
    assert find_first_reached([(5, 0.9)], 0.9) == TargetReached(5, 5, 0.0)
    assert find_first_reached([(5, 0.9), (6, 0.89)], 0.91) is None
    assert find_first_reached([], 0.5) is None
    assert find_first_reached([(1, math.nan), (2, 0.4), (3, math.nan), (4, 0.6)], 0.5) == TargetReached(
        2, 4, pytest.approx(0.5)
    )


def test_infinite_value_counts_as_not_measured() -> None:
    target = Target("perplexity", below=100.0)
    measurements = [(1, math.inf), (2, 300.0), (3, math.inf), (4, 50.0)]
    reached = find_first_reached(measurements, target)
    assert reached is not None
    assert reached.rounds == pytest.approx(2 + 2 * (300 - 100) / (300 - 50))
    assert find_first_reached([(1, math.inf), (2, 50.0)], target) == TargetReached(2, 2, 0.0)
    assert find_first_reached([(1, math.inf)], Target("gain", above=1.0)) is None
    assert not Target("gain", above=1.0).is_reached_by(math.inf)


def test_target_met_exactly_is_reached_in_that_round() -> None:
    crossing = find_first_reached([(1, 0.5), (2, 0.7)], 0.7)
    assert crossing is not None
    assert crossing.rounds == 2


accuracies = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(accuracies, st.floats(0.01, 1))
def test_target_is_reached_iff_the_maximum_reaches_it(values: list[float], target: float) -> None:
    evaluations = list(enumerate(values, start=1))
    crossing = find_first_reached(evaluations, target)
    assert (crossing is None) == (max(values) < target)
    if crossing is not None:
        first = next(round for round, value in evaluations if value >= target)
        assert first - 1 <= crossing.rounds <= first
        assert crossing.after == first


@given(accuracies, st.floats(0.01, 1), st.floats(0.01, 1))
def test_higher_target_is_never_reached_sooner(values: list[float], first_target: float, second_target: float) -> None:
    low, high = (
        find_first_reached(list(enumerate(values, start=1)), target) for target in sorted((first_target, second_target))
    )
    if high is not None:
        assert low is not None
        assert low.rounds <= high.rounds + 1e-9


def test_list_best_so_far_skips_nan() -> None:
    assert list_best_so_far([0.1, math.nan, 0.3, 0.2], Criterion()) == [0.1, 0.1, 0.3, 0.3]


def test_seed_summary_counts_unreached_as_infinite() -> None:
    all_three = summarize_seeds([3.0, 1.0, 2.0])
    assert (all_three.median, all_three.low, all_three.high, all_three.reached, all_three.n) == (2.0, 1.0, 3.0, 3, 3)
    three_seeds = summarize_seeds([3.0, None, 2.0])
    assert (three_seeds.median, three_seeds.high, three_seeds.reached) == (3.0, math.inf, 2)
    two_seeds = summarize_seeds([3.0, None])
    assert (two_seeds.median, two_seeds.low, two_seeds.reached) == (math.inf, 3.0, 1)
    assert summarize_seeds([None]).reached == 0
