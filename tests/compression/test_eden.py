"""EDEN and DRIVE: errors on Gaussian vectors, centroids, and independent rotations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from fedsgd.compression.operators.drive import Drive
from fedsgd.compression.operators.eden import CENTROIDS, Eden
from tests.compression.helpers import (
    draw_gaussian,
    encode_and_decode,
    make_context,
    relative_error,
)


@pytest.mark.parametrize(("bits", "error"), [(1, 0.571), (2, 0.133), (3, 0.0358), (4, 0.0096)])
def test_eden_error_on_a_gaussian_equals_the_paper(bits: int, error: float) -> None:
    x = draw_gaussian(200_000)
    assert relative_error(Eden(bits), x, make_context(len(x))) == pytest.approx(error, rel=0.01)


def test_eden_projection_is_exact_and_its_mean_is_nearly_unbiased() -> None:
    """⟨C(x), x⟩ = |x|² on every call; for a long x the mean of C(x) over many rotations is close to x."""
    x = np.exp(2 * draw_gaussian(8192))
    energy = np.square(x, dtype=np.float64).sum()
    draws = [encode_and_decode(Eden(1), x, make_context(8192, r)) for r in range(1, 201)]
    for draw in draws[:20]:
        assert draw @ x == pytest.approx(energy, rel=1e-5)
    mean = np.mean(draws, axis=0)
    assert np.square(mean - x).sum() / energy < 1.5 * 0.571 / 200


def test_eden_errors_of_clients_with_different_rotations_average_out() -> None:
    x = draw_gaussian(4096)
    mean = np.mean([encode_and_decode(Eden(1), x, make_context(4096, 1, c)) for c in range(50)], axis=0)
    assert np.square(mean - x).sum() / np.square(x).sum() == pytest.approx(0.571 / 50, rel=0.25)


def test_drive_error_equals_one_bit_eden_and_least_squares_keeps_two_over_pi() -> None:
    x = draw_gaussian(100_000)
    assert relative_error(Drive(), x, make_context(len(x))) == pytest.approx(math.pi / 2 - 1, rel=0.01)
    assert relative_error(Drive("least-squares"), x, make_context(len(x))) == pytest.approx(1 - 2 / math.pi, rel=0.01)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_eden_centroids_are_those_of_lloyd_and_max(bits: int) -> None:
    c = np.array(CENTROIDS[bits])
    edges = np.concatenate([[0], (c[1:] + c[:-1]) / 2, [np.inf]])
    means = (norm.pdf(edges[:-1]) - norm.pdf(edges[1:])) / (norm.cdf(edges[1:]) - norm.cdf(edges[:-1]))
    assert means == pytest.approx(c, abs=1e-9)
