"""Sign compression."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedsgd.compression.operators.sign import Sign
from tests.compression.helpers import (
    draw_gaussian,
    make_context,
    relative_error,
)


def test_signs_of_a_gaussian_keep_two_over_pi_of_its_energy() -> None:
    x = draw_gaussian(1_000_000)
    l1, l2 = np.abs(x.astype(np.float64)).sum(), np.square(x, dtype=np.float64).sum()
    assert 1 - relative_error(Sign(), x, make_context(len(x))) == pytest.approx(l1**2 / (len(x) * l2), rel=1e-6)
    assert l1**2 / (len(x) * l2) == pytest.approx(2 / math.pi, abs=1e-3)
