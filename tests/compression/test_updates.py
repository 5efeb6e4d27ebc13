"""Decoded updates."""

from __future__ import annotations

import numpy as np

from fedsgd.compression import (
    SparseUpdate,
)


def test_sparse_update_multiplies_in_the_dtype_of_the_sum() -> None:
    third = np.float32(1 / 3)
    out = np.zeros(2, dtype=np.float64)
    SparseUpdate(np.array([1]), np.array([third]), 2).add_to(out, 0.1)
    assert out.tolist() == [0.0, float(third) * 0.1]
