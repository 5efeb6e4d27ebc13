"""Models of the time that clients take."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.config.component import FieldError
from fedsgd.sampling import (
    DURATIONS,
)
from fedsgd.sampling.client_durations import LogNormalDurations


@pytest.mark.parametrize("name", list(DURATIONS))
@given(seed=st.integers(0, 1000), round=st.integers(1, 1000), client=st.integers(0, 10**6), steps=st.integers(0, 10**4))
def test_duration_is_finite_deterministic_and_grows_with_steps(
    name: str, seed: int, round: int, client: int, steps: int
) -> None:
    model = DURATIONS[name]()
    seconds = model.reply_seconds(seed, round, client, steps)
    assert type(seconds) is float
    assert 0 <= seconds < math.inf
    assert model.reply_seconds(seed, round, client, steps) == seconds
    assert model.reply_seconds(seed, round, client, steps + 1) >= seconds


@pytest.mark.slow
def test_log_normal_durations_have_the_configured_moments() -> None:
    """Of 4000 clients, and of 4000 rounds of one client, the standard errors of mean and deviation are 0.016 and 0.011 of the
    deviation.
    """
    base = LogNormalDurations(fixed=3.0, per_step=0.5, spread=0.7)
    logs = np.log([base.reply_seconds(0, 1, client, 10) for client in range(4000)])
    assert logs.mean() == pytest.approx(math.log(8.0), abs=0.06)
    assert logs.std() == pytest.approx(0.7, rel=0.06)
    assert base.reply_seconds(0, 2, 17, 10) == base.reply_seconds(0, 1, 17, 10) != base.reply_seconds(1, 1, 17, 10)
    with_jitter = LogNormalDurations(fixed=3.0, per_step=0.5, spread=0.7, jitter=0.2)
    logs = np.log(
        [with_jitter.reply_seconds(0, round, 17, 10) / base.reply_seconds(0, round, 17, 10) for round in range(1, 4001)]
    )
    assert logs.mean() == pytest.approx(0, abs=0.02)
    assert logs.std() == pytest.approx(0.2, rel=0.06)


def test_log_normal_duration_without_spread_is_linear_in_steps() -> None:
    assert LogNormalDurations(fixed=2.0, per_step=0.25, spread=0.0).reply_seconds(0, 1, 2, 8) == 4.0


def test_log_normal_without_time_or_with_overflow_raises_field_error() -> None:
    with pytest.raises(FieldError, match="per_step: got 0 for both fixed and per_step, expected at least one above 0"):
        LogNormalDurations(per_step=0.0)
    with pytest.raises(FieldError, match=r"log-normal\.spread: got 1000000\.0, .* client \d overflows; reduce spread, "):
        _ = [LogNormalDurations(spread=1e6).reply_seconds(0, 1, client, 1) for client in range(10)]
