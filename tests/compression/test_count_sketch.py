"""Count sketch: linearity, and the variance of one row."""

from __future__ import annotations

import numpy as np
import pytest

from fedsgd.compression.operators.count_sketch import CountSketch, sketch, unsketch
from tests.compression.helpers import (
    draw_gaussian,
    encode_and_decode,
    make_context,
)


def test_sketches_are_additive_and_large_coordinates_can_be_read() -> None:
    x, y = draw_gaussian(2000) * np.float32(0.01), np.zeros(2000, dtype=np.float32)
    y[[5, 77, 1999]] = [10, -20, 5]
    tables = [sketch(v, 5, 300, 9) for v in (x, y, x + y)]
    assert tables[0] + tables[1] == pytest.approx(tables[2], abs=1e-6)
    estimates = unsketch(tables[2], 2000, 9)
    assert estimates[[5, 77, 1999]] == pytest.approx([10, -20, 5], abs=0.5)
    assert sorted(np.argsort(-np.abs(estimates))[:3].tolist()) == [5, 77, 1999]


@pytest.mark.slow
def test_count_sketch_of_one_row_has_the_variance_of_the_docstring() -> None:
    x, op = draw_gaussian(40), CountSketch(0.25, rows=1)
    errors = np.mean([np.square(encode_and_decode(op, x, make_context(40, r)) - x) for r in range(1, 5001)], axis=0)
    expected = (np.square(x).sum() - np.square(x)) / 10
    assert errors.sum() == pytest.approx(expected.sum(), rel=0.05)
