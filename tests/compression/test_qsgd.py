"""QSGD."""

from __future__ import annotations

import numpy as np
import pytest

from fedsgd.compression.operators.qsgd import QSGD
from tests.compression.helpers import (
    encode_and_decode,
    make_context,
)

pytestmark = pytest.mark.slow


def test_qsgd_level_frequencies_equal_their_probabilities() -> None:
    """s = 2 on (.6, .8): 2·.6 = 1.2 is rounded up to 2 in a fifth of the draws, 1.6 in three fifths."""
    x = np.array([0.6, 0.8], dtype=np.float32)
    samples = np.array([encode_and_decode(QSGD(2), x, make_context(2, r)) for r in range(1, 4001)])
    assert {round(v, 5) for v in samples.ravel()} == {0.5, 1.0}
    assert (samples > 0.75).mean(axis=0) == pytest.approx([0.2, 0.6], abs=0.04)
