"""Sparse ternary compression: bits of the paper, and the server's side."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedsgd.compression import (
    CodecContext,
)
from fedsgd.compression.operators.topk import TopK
from fedsgd.federation.downlink import ModelBroadcast, initial_public_model, next_public_model
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import ALL_CLIENTS, gap_codec
from tests.compression.helpers import (
    draw_dyadic,
    draw_gaussian,
    make_context,
)


@pytest.mark.parametrize(
    ("density", "bits", "ratio"), [(1 / 25, 7.08, 113), (1 / 100, 9.11, 351), (1 / 400, 11.11, 1152), (1 / 1000, 12.49, 2563)]
)
def test_stc_bits_per_non_zero_equal_the_paper(density: float, bits: float, ratio: int) -> None:
    """Sattler et al. 2019, section IV-D: b + 1/(1 − (1 − p)^(2^b)) bits for a position and 1 for a sign.

    Both the formula and two million geometric gaps, encoded with that one parameter, must agree with the paper.
    """
    phi = (1 + math.sqrt(5)) / 2
    b = 1 + math.floor(math.log2(math.log(phi - 1) / math.log(1 - density)))
    formula = b + 1 / (1 - (1 - density) ** (2**b)) + 1
    assert formula == pytest.approx(bits, abs=0.006), "three digits"
    assert 32 / (density * formula) == pytest.approx(ratio, rel=1e-3)
    k = 2_000_000
    gaps = np.random.default_rng(0).geometric(density, k) - 1
    encoded = gap_codec.encode_rice(gaps, np.full(-(-k // 128), b))
    measured = 8 * len(encoded) / k - 5 / 128 + 1  # without the parameter of each block, which the paper does not send
    assert measured == pytest.approx(formula, abs=0.005)


def test_ternary_message_needs_at_most_the_bits_of_the_paper() -> None:
    sections, _ = TopK(1 / 400, "ternary").encode(draw_gaussian(1_000_000), make_context(1_000_000))
    assert 8 * sum(len(s.data) for s in sections) / 2500 < 1.01 * 11.11


def test_stc_server_changes_k_coordinates_and_stores_the_residual() -> None:
    """Sattler et al. 2019: the server compresses the sum of its step and its residual."""
    broadcast, layout = ModelBroadcast("error-feedback", TopK(0.05, "ternary")), ParameterLayout.from_size(100)
    public = initial_public_model(broadcast, np.zeros(100, dtype=np.float32), lambda r: CodecContext(0, r, ALL_CLIENTS, layout))
    exact_sum, weights = np.zeros(100), public.weights
    for r in range(1, 20):
        step = draw_dyadic(100, r)
        exact_sum += step
        previous = weights
        weights, public = next_public_model(
            broadcast, public, weights + step, step, lambda r: CodecContext(0, r, ALL_CLIENTS, layout)
        )
        change = weights - previous
        assert np.count_nonzero(change) == 5
        assert weights.tobytes() == public.weights.tobytes(), "the server continues from its clients' model"
    assert public.residual is not None
    assert weights + public.residual == pytest.approx(exact_sum, abs=1e-4)
