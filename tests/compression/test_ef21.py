"""EF21: the estimates of clients and server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.ef21 import EF21
from fedsgd.errors import ScenarioError
from tests.compression.helpers import (
    draw_gaussian,
    make_context,
    run_round,
)


def test_ef21_server_estimate_is_the_mean_of_its_clients_estimates() -> None:
    scheme, states, server_state = EF21(TopK(0.1)), [{}, {}, {}], {}
    for r in range(1, 30):
        update, server_state = run_round(scheme, server_state, [draw_gaussian(60, c) for c in range(3)], states, r, 4)
        mean = sum(state["estimate"].astype(np.float64) for state in states) / 4
        assert update == pytest.approx(mean, abs=1e-6)
    target = sum(draw_gaussian(60, c).astype(np.float64) for c in range(3)) / 4
    assert np.square(update - target).sum() < 1e-9, "on constant updates the estimates converge"


def test_ef21_client_and_server_estimates_stay_equal() -> None:
    """Updates shrink a hundred-thousandfold over five hundred rounds: float32 sums would err by more than the last updates."""
    scheme, states, server_state = EF21(TopK(0.1)), [{}], {}
    for r in range(1, 501):
        update, server_state = run_round(
            scheme, server_state, [draw_gaussian(50, r) * np.float32(10 ** (-r / 100))], states, r, 1
        )
    assert np.abs(server_state["estimate"] - states[0]["estimate"]).max() < 1e-13
    assert update == pytest.approx(states[0]["estimate"], rel=1e-6)


def test_ef21_lost_reply_restores_the_previous_estimate() -> None:
    scheme = EF21(TopK(0.5))
    x = np.array([4, 1], dtype=np.float32)
    first = scheme.send(x, {}, make_context(2))
    assert first.state["estimate"].tolist() == [4, 0]
    assert "estimate" not in first.state_if_lost
    second = scheme.send(np.array([9, 1], dtype=np.float32), first.state, make_context(2, 2))
    assert second.state_if_lost["estimate"].tolist() == [4, 0]


def test_ef21_rejects_weights_that_are_not_uniform(scenario: Any) -> None:
    with pytest.raises(
        ScenarioError, match=r'server\.weighting: got "examples", expected "uniform": ef21 gives all clients equal'
    ):
        scenario({"uplink.compressor.name": "ef21", "uplink.error_feedback": "none"})
