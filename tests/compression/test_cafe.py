"""CAFe: the reference and the differences from it."""

from __future__ import annotations

import numpy as np
import pytest

from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.cafe import CAFe
from fedsgd.numerics.parameter_layout import ParameterLayout
from tests.compression.helpers import (
    draw_gaussian,
    make_context,
    run_round,
)


def test_cafe_aggregate_is_the_mean_without_loss_and_converges_with_loss() -> None:
    """Without loss the aggregate is the mean; with loss the reference converges to constant updates."""
    updates = [draw_gaussian(30, c) for c in range(3)]
    mean = np.mean(np.array(updates, dtype=np.float64), axis=0)
    first, server_state = run_round(CAFe(Dense()), {}, updates, [{}, {}, {}], 1, 3)
    assert first == pytest.approx(mean, abs=1e-6)
    second, _ = run_round(CAFe(Dense()), server_state, updates, [{}, {}, {}], 2, 3)
    assert second == pytest.approx(mean, abs=1e-6)
    server_state, states = {}, [{}]
    for r in range(1, 12):
        update, server_state = run_round(CAFe(TopK(0.1)), server_state, updates[:1], states, r, 1)
        assert np.count_nonzero(update) == min(30, 3 * r)
    assert update.tobytes() == updates[0].tobytes()
    assert states == [{}], "clients have no state"


def test_cafe_reference_is_sent_without_loss() -> None:
    server_state = {"reference": draw_gaussian(500)}
    sections = CAFe().encode_reference(server_state, make_context(500))
    assert CAFe().decode_reference(sections, make_context(500)).tobytes() == server_state["reference"].tobytes()
    assert sum(len(s.data) for s in sections) <= CAFe().max_reference_bytes(ParameterLayout.from_size(500))
    assert CAFe().encode_reference({}, make_context(500)) == ()
