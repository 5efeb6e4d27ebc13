"""Dense updates."""

from __future__ import annotations

import numpy as np

from fedsgd.compression.operators.dense import Dense
from tests.compression.helpers import (
    draw_gaussian,
    make_context,
    relative_error,
)


def test_float16_with_a_shared_scale_keeps_small_updates() -> None:
    x = draw_gaussian(10_000) * np.float32(1e-9)
    assert relative_error(Dense("float16"), x, make_context(len(x))) < 2**-21
    assert (x.astype(np.float16) == 0).all(), "without a scale all of it underflows"
