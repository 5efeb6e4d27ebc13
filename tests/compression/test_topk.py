"""Top-k: exact selection, ties, energy of Gaussian vectors, ternary values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsgd.compression import (
    COMPRESSORS,
)
from fedsgd.compression.kernels.top_k import top_k
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import ScenarioError, WireError
from fedsgd.numerics.arrays import F32
from tests.compression.helpers import (
    make_context,
)
from tests.effort import examples


@examples(100)
@given(
    x=hnp.arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 2.5, -3.0, 1e-40])),
    k=st.integers(1, 250),
)
def test_top_k_equals_a_stable_sort(x: F32, k: int) -> None:
    order = sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))
    expected = sorted(i for i in order[:k] if x[i] != 0)
    indices, values = top_k(x, k)
    assert indices.tolist() == expected
    assert values.tobytes() == x[indices].tobytes()


@pytest.mark.parametrize(("density", "energy"), [(0.001, 0.01270), (0.01, 0.08449), (0.1, 0.43929)])
def test_top_k_of_gaussian_vector_keeps_the_expected_energy(density: float, energy: float) -> None:
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    decoded = TopK(density).encode(x, make_context(len(x)))[1].to_dense()
    assert np.square(decoded, dtype=np.float64).sum() / np.square(x, dtype=np.float64).sum() == pytest.approx(energy, rel=0.01)


def test_ternary_top_k_error_equals_the_formula_of_the_docstring() -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    update = TopK(0.05, "ternary").encode(x, make_context(1000))[1]
    top = np.sort(np.abs(x).astype(np.float64))[-50:]
    expected = np.square(x, dtype=np.float64).sum() - top.sum() ** 2 / 50
    assert np.square(x - update.to_dense().astype(np.float64)).sum() == pytest.approx(expected, rel=1e-6)


def test_ternary_top_k_with_fewer_non_zeros_than_k_sends_no_zeros() -> None:
    update = TopK(0.5, "ternary").encode(np.array([0, 4, 0, -2, 0, 0], dtype=np.float32), make_context(6))[1]
    assert update.to_dense().tolist() == [0, 3, 0, -3, 0, 0]
    assert update.n_coordinates == 2


def test_decoder_rejects_more_coordinates_than_k() -> None:
    sections, _ = TopK(0.5).encode(np.ones(10, np.float32), make_context(10))
    with pytest.raises(WireError, match="5 indices, expected 0 to 2"):
        TopK(0.2).decode(sections, make_context(10))


@pytest.mark.parametrize(
    "options", [{"density": 0.0}, {"density": 1.5}, {"density": "x"}, {"values": "float64"}, {"density": float("nan")}]
)
def test_top_k_rejects_invalid_hyper_parameters(options: dict[str, object]) -> None:
    with pytest.raises(ScenarioError, match=r"^top-k\.(density|values): "):
        COMPRESSORS["top-k"](**options)
