"""Natural compression."""

from __future__ import annotations

import numpy as np
import pytest

from fedsgd.compression.operators.natural import NaturalCompression
from tests.compression.helpers import (
    encode_and_decode,
    make_context,
)


def test_natural_compression_of_subnormal_numbers_is_zero() -> None:
    x = np.full(8, 1e-40, dtype=np.float32)
    assert not encode_and_decode(NaturalCompression(), x, make_context(8)).any()
    assert NaturalCompression().variance(x) == pytest.approx(8 * float(x[0]) ** 2)
