"""Delivery of replies: deadline, over-selection and loss."""

from __future__ import annotations

import numpy as np
import pytest

from fedsgd.sampling import (
    ParticipationModel,
    first_within_deadline,
    is_lost,
)
from fedsgd.sampling.uniform import Uniform
from tests.sampling.pools import make_pool


@pytest.mark.parametrize(
    ("seconds", "max_replies", "deadline", "accepted"),
    [
        ({4: 2.0, 1: 3.0, 7: 1.0}, 2, None, [4, 7]),
        ({4: 2.0, 1: 3.0, 7: 1.0}, 9, 2.0, [4, 7]),
        ({4: 2.0, 1: 3.0, 7: 1.0}, 1, 2.5, [7]),
        ({4: 2.0, 1: 3.0}, 2, 1.0, []),
        ({9: 1.0, 3: 1.0, 6: 1.0}, 2, None, [3, 6]),
        ({}, 3, None, []),
        ({1: 1.0}, 0, None, []),
    ],
)
def test_first_replies_within_the_deadline_are_accepted(
    seconds: dict[int, float], max_replies: int, deadline: float | None, accepted: list[int]
) -> None:
    assert first_within_deadline(seconds, max_replies, deadline) == accepted
    assert first_within_deadline(dict(reversed(seconds.items())), max_replies, deadline) == accepted


@pytest.mark.parametrize(
    ("target_cohort", "over_selection", "n_invited"),
    [(100, 1.1, 110), (50, 1.1, 55), (10, 1.3, 13), (10, 1.25, 13), (7, 1.0, 7), (900, 2.0, 1000)],
)
def test_over_selection_rounds_the_decimal_product_up(target_cohort: int, over_selection: float, n_invited: int) -> None:
    assert ParticipationModel(0, Uniform().bind(make_pool(1000)), 1000, target_cohort, over_selection).n_invited == n_invited


@pytest.mark.slow
def test_replies_are_lost_with_the_given_probability() -> None:
    """8000 replies: a frequency's standard deviation is 0.0051."""
    pairs = [(round, client) for round in range(1, 81) for client in range(100)]
    lost = [is_lost(3, round, client, 0.3) for round, client in pairs]
    assert np.mean(lost) == pytest.approx(0.3, abs=0.025)
    assert lost == [is_lost(3, round, client, 0.3) for round, client in pairs]
    assert lost != [is_lost(4, round, client, 0.3) for round, client in pairs]
    assert not any(is_lost(3, round, client, 0.0) for round, client in pairs)
    assert all(is_lost(3, round, client, 1.0) for round, client in pairs)
    assert all(is_lost(3, *pair, 0.5) for pair, is_lost_at_0_3 in zip(pairs, lost, strict=True) if is_lost_at_0_3), (
        "a reply that is lost at 0.3 is lost at 0.5"
    )
