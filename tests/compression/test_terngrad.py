"""TernGrad: the rule of clipping."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from fedsgd.compression import (
    CodecContext,
    CompressionOperator,
)
from fedsgd.compression.operators.per_layer import PerLayer
from fedsgd.compression.operators.terngrad import TernGrad
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import SectionKind
from tests.compression.helpers import (
    encode_and_decode,
    make_context,
)


def read_scales(op: CompressionOperator, x: F32, layout: ParameterLayout | None = None) -> list[float]:
    """Return the scales in the frame, one for each tensor that is compressed as a vector of its own."""
    sections, _ = op.encode(x, CodecContext(0, 1, 0, layout or ParameterLayout.from_size(len(x))))
    (scales,) = [section.data for section in sections if section.kind == SectionKind.SCALE]
    return np.frombuffer(scales, "<f4").tolist()


def test_terngrad_clips_at_the_standard_deviation_about_the_mean() -> None:
    """(2, 4): the mean is 3, σ = 1 and the root mean square √10. Wen et al. 2017 clip at 2.5 σ."""
    x = np.array([2, 4], dtype=np.float32)
    assert read_scales(TernGrad(2.5, "std"), x) == [2.5]
    assert read_scales(TernGrad(1.0), x) == [np.float32(math.sqrt(10))]
    assert read_scales(TernGrad(2.5), x) == [4.0], "2.5 √10 = 7.9 is above both"


def test_terngrad_scale_of_a_shifted_gaussian_equals_the_paper() -> None:
    x = np.random.default_rng(0).normal(3, 1, 4096).astype(np.float32)
    assert read_scales(TernGrad(2.5), x) == [x.max()] == pytest.approx([6.2572], abs=1e-4)
    assert read_scales(TernGrad(2.5, "std"), x) == pytest.approx([2.5 * statistics.pstdev(x.tolist())], rel=1e-6)
    assert read_scales(TernGrad(2.5, "std"), x) == pytest.approx([2.4939], abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-45, -0.1, 3e38])
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_terngrad_does_not_clip_equal_coordinates(size: int, value: float) -> None:
    """Their σ is 0. A limit of 0 would always send a tensor of one coordinate as zero."""
    x = np.full(size, value, dtype=np.float32)
    assert encode_and_decode(TernGrad(2.5, "std"), x, make_context(size)).tolist() == x.astype(np.float64).tolist()


def test_terngrad_limit_at_the_ends_of_float32_is_correct() -> None:
    largest, smallest = float(np.finfo(np.float32).max), 2.0**-149
    assert read_scales(TernGrad(0.5, "std"), np.array([largest, -largest], np.float32)) == [np.float32(largest / 2)]
    assert read_scales(TernGrad(2.5, "std"), np.array([largest, -largest], np.float32)) == [largest], "the limit is infinite"
    assert read_scales(TernGrad(2.0, "std"), np.array([smallest, -smallest], np.float32)) == [smallest]
    shifted = np.array([2.0**20, 2.0**20 + 1], dtype=np.float32)
    assert read_scales(TernGrad(2.0, "std"), shifted) == [1.0], "σ = 1/2, although float32 squares of 2²⁰ cannot represent it"


def test_terngrad_uses_the_deviation_of_each_tensor_only_for_separate_tensors() -> None:
    layout = ParameterLayout(("a", "b"), ((2,), (2,)))
    x = np.array([2, 4, 20, 40], dtype=np.float32)
    clipped = TernGrad(1.0, "std")
    assert read_scales(PerLayer(clipped, separate=True), x, layout) == [1.0, 10.0]
    whole = [np.float32(statistics.pstdev(x.tolist()))]
    assert read_scales(PerLayer(clipped), x, layout) == read_scales(clipped, x, layout) == whole
