"""Hard threshold."""

from __future__ import annotations

import numpy as np

from fedsgd.compression import (
    ErrorFeedback,
)
from fedsgd.compression.operators.threshold import Threshold
from tests.compression.helpers import (
    draw_gaussian,
    encode_and_decode,
    make_context,
)


def test_threshold_is_inclusive_and_bounds_the_residual() -> None:
    x = np.array([0.5, -0.5, 0.49999997, 0, 2], dtype=np.float32)
    assert np.flatnonzero(encode_and_decode(Threshold(0.5), x, make_context(5))).tolist() == [0, 1, 4]
    scheme, state = ErrorFeedback(Threshold(1.0)), {}
    for r in range(1, 50):
        state = dict(scheme.send(draw_gaussian(100, r) / 3, state, make_context(100, r)).state)
        assert np.abs(state["residual"]).max() < 1
