"""FetchSGD."""

from __future__ import annotations

import numpy as np

from fedsgd.compression.operators.count_sketch import sketch
from fedsgd.compression.schemes.fetch_sgd import FetchSGD
from fedsgd.numerics.rng import shared_key
from tests.compression.helpers import (
    draw_dyadic,
    run_round,
)


def test_fetch_sgd_without_collisions_equals_momentum_and_error_feedback_on_vectors() -> None:
    """A table without collisions equals the steps on vectors: u ← ρu + mean, e ← e + u, send the largest of e, clear u there."""
    scheme = FetchSGD(density=1.0, rows=1, kept_share=0.125, momentum=0.5)
    cells = np.array(
        [np.flatnonzero(sketch(np.eye(8, dtype=np.float32)[i], 1, 8, shared_key(0, "fetch-sgd")).ravel())[0] for i in range(8)]
    )
    isolated = [i for i in range(8) if (cells == cells[i]).sum() == 1]
    assert len(isolated) >= 3
    u, e, server_state = np.zeros(8), np.zeros(8), {}
    for r in range(1, 8):
        x = np.zeros(8, dtype=np.float32)
        x[isolated] = draw_dyadic(len(isolated), r)
        update, server_state = run_round(scheme, server_state, [x], [{}], r, 1)
        u = 0.5 * u + x
        e = e + u
        best = int(np.abs(e).argmax())
        assert update[best] == e[best]
        assert np.count_nonzero(update) == 1
        e[best] = u[best] = 0
