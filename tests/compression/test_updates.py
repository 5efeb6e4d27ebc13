"""Decoded updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsgd.compression import DenseUpdate, SparseUpdate
from fedsgd.compression.updates import ADDITION_BLOCK


def test_sparse_update_multiplies_in_the_dtype_of_the_sum() -> None:
    third = np.float32(1 / 3)
    out = np.zeros(2, dtype=np.float64)
    SparseUpdate(np.array([1]), np.array([third]), 2).add_to(out, 0.1)
    assert out.tolist() == [0.0, float(third) * 0.1]


@pytest.mark.parametrize(
    ("indices", "values"),
    [([0, 8], [1, 2]), ([-1, 2], [1, 2]), ([3, 3], [1, 2]), ([4, 1], [1, 2]), ([1, 2], [1]), ([1], [1, 2])],
    ids=["beyond the end", "negative", "twice", "descending", "too few values", "too many values"],
)
def test_sparse_update_refuses_positions_that_would_be_written_outside_of_a_vector(
    indices: list[int], values: list[int]
) -> None:
    with pytest.raises(ValueError, match="a sparse update needs"):
        SparseUpdate(np.array(indices), np.array(values, np.float32), 8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [ADDITION_BLOCK - 1, ADDITION_BLOCK, ADDITION_BLOCK + 1, 2 * ADDITION_BLOCK + 5])
def test_dense_update_in_blocks_adds_the_bits_of_one_sum(dtype: Any, size: int) -> None:
    rng = np.random.default_rng(size)
    values, total = rng.standard_normal(size, dtype=np.float32), rng.standard_normal(size).astype(dtype)
    expected = total + values.astype(dtype) * dtype(0.3)
    DenseUpdate(values).add_to(total, 0.3)
    assert total.tobytes() == expected.tobytes()
