"""PowerSGD: exactness, errors, warm start and zero matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsgd.compression import (
    CodecContext,
    StateArrays,
)
from fedsgd.compression.schemes.power_sgd import LowRankUpdate, PowerSGD, split_tensors
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from tests.compression.helpers import (
    draw_gaussian,
)

LAYOUT = ParameterLayout(("w", "bias", "conv"), ((12, 9), (7,), (8, 2, 3, 3)))


def encode_round(scheme: PowerSGD, x: F32, state: StateArrays, round: int = 1) -> tuple[F32, StateArrays]:
    """Send one update and return the decoded update and the next state."""
    ctx = CodecContext(0, round, 0, LAYOUT)
    update = scheme.send(x, state, ctx)
    return scheme.decode(update.sections, ctx).to_dense(), update.state


def test_power_sgd_is_exact_on_low_rank_matrices_and_vectors() -> None:
    rng = np.random.default_rng(0)
    w, conv = (rng.standard_normal((n, 2)) @ rng.standard_normal((2, m)) for n, m in ((12, 9), (8, 18)))
    x = np.concatenate([w.ravel(), rng.standard_normal(7), conv.ravel()]).astype(np.float32)
    decoded, state = encode_round(PowerSGD(2), x, {})
    assert decoded == pytest.approx(x, abs=1e-4)
    assert decoded[108:115].tobytes() == x[108:115].tobytes()
    assert np.abs(state["residual"]).max() < 1e-4


def test_power_sgd_error_equals_the_energy_outside_the_projection() -> None:
    """|M − P̂Qᵀ|² = |M|² − |P̂ᵀM|² for the orthonormal factor that is sent."""
    x = draw_gaussian(LAYOUT.size)
    encoded = PowerSGD(2).send(x, {}, CodecContext(0, 1, 0, LAYOUT))
    update: Any = PowerSGD(2).decode(encoded.sections, CodecContext(0, 1, 0, LAYOUT))
    assert isinstance(update, LowRankUpdate)
    for matrix in split_tensors(LAYOUT, 2)[0]:
        m = x[matrix.flat_slice].reshape(matrix.n, matrix.m).astype(np.float64)
        left = matrix.view_factors(update.factors)[0].astype(np.float64)
        error = np.square(m - update.to_dense()[matrix.flat_slice].reshape(m.shape)).sum()
        assert left.T @ left == pytest.approx(np.eye(2), abs=1e-6)
        assert error == pytest.approx(np.square(m).sum() - np.square(left.T @ m).sum(), rel=1e-5)


def test_power_sgd_warm_start_converges_to_the_best_factors() -> None:
    """If the matrix stays the same, the product converges to the best approximation of its rank, the truncated SVD."""
    x, state = draw_gaussian(LAYOUT.size), {}
    singular = np.linalg.svd(x[:108].reshape(12, 9).astype(np.float64), compute_uv=False)
    best, errors = np.square(singular[2:]).sum(), []
    for r in range(1, 60):
        decoded, next_state = encode_round(PowerSGD(2), x, state, r)
        errors.append(np.square(x[:108].astype(np.float64) - decoded[:108]).sum())
        state = {"factors": next_state["factors"]}
    assert errors[0] > 1.05 * best
    assert errors[-1] == pytest.approx(best, rel=1e-3)


def test_power_sgd_after_a_zero_matrix_is_exact_on_the_next_matrix() -> None:
    zero = np.zeros(LAYOUT.size, dtype=np.float32)
    decoded, state = encode_round(PowerSGD(2), zero, {})
    assert decoded.tolist() == zero.tolist()
    x = zero.copy()
    x[3] = 1
    decoded, _ = encode_round(PowerSGD(2), x, {"factors": state["factors"]}, 2)
    assert decoded == pytest.approx(x, abs=1e-6)


def test_tensors_that_factors_would_enlarge_are_not_factored() -> None:
    matrices, other_slices = split_tensors(ParameterLayout(("small", "big"), ((2, 2), (40, 30))), 1)
    assert [(matrix.n, matrix.m) for matrix in matrices] == [(40, 30)]
    assert other_slices == [slice(0, 4)]
