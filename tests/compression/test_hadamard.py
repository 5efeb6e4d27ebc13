"""Random rotations in blocks."""

from __future__ import annotations

import numpy as np
import pytest

from fedsgd.compression.kernels.hadamard import compute_block_ends, rotate, unrotate
from tests.compression.helpers import (
    draw_gaussian,
)


@pytest.mark.parametrize("size", [1, 63, 64, 100, 4096, 4097, 10_000])
def test_rotation_is_orthogonal_and_pads_fewer_than_64_coordinates(size: int) -> None:
    x, ends = draw_gaussian(size), compute_block_ends(size)
    y = rotate(x, ends, 5)
    assert np.square(y, dtype=np.float64).sum() == pytest.approx(np.square(x, dtype=np.float64).sum(), rel=1e-5)
    assert unrotate(y, ends, 5, size) == pytest.approx(x, abs=1e-5)
    assert size <= ends[-1] < size + 64
