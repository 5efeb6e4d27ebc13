"""Variances of unbiased operators: measured, by hand, and the bounds of their papers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedsgd.compression import (
    CompressionOperator,
)
from fedsgd.compression.operators.integer import Integer
from fedsgd.compression.operators.natural import NaturalCompression
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.terngrad import TernGrad
from tests.compression.helpers import (
    draw_gaussian,
    encode_and_decode,
    make_context,
)
from tests.effort import nightly_unless


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(
    "op",
    nightly_unless(
        (QSGD(), TernGrad(), Integer(), RandK(0.25)).__contains__,
        [
            QSGD(),
            QSGD(3, 16),
            QSGD(norm="max"),
            TernGrad(),
            NaturalCompression(),
            Integer(),
            Integer(4, bucket=16),
            RandK(0.25),
        ],
    ),
    ids=str,
)
def test_measured_variance_equals_the_stated_variance(op: CompressionOperator) -> None:
    x = draw_gaussian(48) * np.exp(draw_gaussian(48, 1))
    errors = [np.square(encode_and_decode(op, x, make_context(48, r)) - x).sum() for r in range(1, 6001)]
    variance = op.variance(x)
    assert variance is not None
    assert np.mean(errors) == pytest.approx(variance, abs=5 * np.std(errors) / math.sqrt(len(errors)))


def test_variance_of_a_short_vector_equals_the_value_by_hand() -> None:
    x = np.array([3, -4, 0, 1.5], dtype=np.float32)
    norm, energy = math.sqrt(27.25), 27.25
    fractions = [3 * 2 / norm % 1, 4 * 2 / norm % 1, 1.5 * 2 / norm % 1]
    assert QSGD(2).variance(x) == pytest.approx(sum((norm / 2) ** 2 * f * (1 - f) for f in fractions), rel=1e-6)
    assert TernGrad().variance(x) == pytest.approx(3 * (4 - 3) + 1.5 * (4 - 1.5))
    assert NaturalCompression().variance(x) == pytest.approx(4 * 0.5 * 0.5 + 1 * 0.5 * 0.5), (
        "3 = 2 · 1.5, 4 and 0 are powers, 1.5 = 1 · 1.5"
    )
    assert RandK(0.25).variance(x) == pytest.approx(3 * energy)


def test_variance_is_within_the_bound_of_the_paper() -> None:
    for seed in range(20):
        x = (draw_gaussian(512, seed) ** 5).astype(np.float32)
        energy = float(np.square(x, dtype=np.float64).sum())
        for s in (1, 4, 16):
            assert QSGD(s, 512).variance(x) <= min(512 / s**2, math.sqrt(512) / s) * energy
        assert NaturalCompression().variance(x) <= energy / 8


def test_single_coordinate_and_bucket_of_zeros_decode_exactly() -> None:
    x = np.zeros(1024, dtype=np.float32)
    x[7] = -0.1
    for op in (QSGD(127), QSGD(1, norm="max"), TernGrad(), Integer(), Integer(4, "nearest")):
        assert encode_and_decode(op, x, make_context(1024)).tolist() == x.astype(np.float64).tolist()
