"""Quantisation to evenly spaced levels: sections, and the exact variance of stochastic rounding."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from fedsgd.compression.base import CodecContext
from fedsgd.compression.kernels import tensor_forms
from fedsgd.compression.updates import LevelUpdate
from fedsgd.errors import NonFiniteError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.reductions import all_finite, bucket_max_magnitudes, round_up_to_float32
from fedsgd.numerics.reductions import bucket_norms as bucket_norms_of_array
from fedsgd.numerics.vectors import is_tensor, to_host
from fedsgd.wire import Sections
from fedsgd.wire.levels import decode_levels, encode_levels, quantise


def encode_quantised(
    x: F32,
    scales: F32,
    level: int,
    bucket: int,
    ctx: CodecContext,
    stochastic: bool,
    entropy: bool = True,
    frequency_bits: int = 12,
) -> tuple[Sections, LevelUpdate]:
    """Encode x [P] on 2L + 1 levels of each bucket's scale [⌈P / bucket⌉], which bounds its magnitudes; `level` is L."""
    if not all_finite(scales):
        raise NonFiniteError(ctx.round, ctx.client, "the norm of a bucket leaves float32's range")
    key = ctx.derive_key("rounding") if stochastic else None
    if is_tensor(x):
        levels = tensor_forms.quantise(cast("Any", x), scales, level, bucket, key)
    else:
        levels = quantise(x, scales, level, bucket, key)
    return encode_levels(levels, scales, level, entropy, frequency_bits), LevelUpdate(levels, scales, level, bucket)


def bucket_norms(x: F32, bucket: int) -> F32:
    """Return `fedsgd.numerics.reductions.bucket_norms` of an array or a tensor. Long buckets of a tensor are copied."""
    if not is_tensor(x) or bucket > tensor_forms.MAX_SUMMED:
        return bucket_norms_of_array(to_host(x), bucket)
    return round_up_to_float32(np.sqrt(tensor_forms.bucket_sums_of_squares(cast("Any", x), bucket)))


def bucket_peaks(x: F32, bucket: int) -> F32:
    """Return `fedsgd.numerics.reductions.bucket_max_magnitudes` of an array or a tensor."""
    return tensor_forms.bucket_max_magnitudes(cast("Any", x), bucket) if is_tensor(x) else bucket_max_magnitudes(x, bucket)


def decode_quantised(sections: Sections, level: int, bucket: int, ctx: CodecContext) -> LevelUpdate:
    """Decode the sections of `encode_quantised`."""
    return LevelUpdate(*decode_levels(sections, ctx.layout.size, level, bucket), level, bucket)


def rounding_variance(x: F32, scales: F32, level: int, bucket: int) -> float:
    """Return E|C(x) − x|² of stochastic rounding: Σ(scale / L)² f(1 − f), with f the fraction of |x_i| L / scale."""
    steps = np.repeat(scales.astype(np.float64) / level, bucket)[: len(x)]
    fraction = np.divide(np.abs(x.astype(np.float64)), steps, out=np.zeros(len(x)), where=steps > 0) % 1
    return float((np.square(steps) * fraction * (1 - fraction)).sum())
