"""QSGD: stochastic rounding to a few levels of the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedsgd.compression.base import CodecContext, DenseOperator, OperatorKind
from fedsgd.compression.kernels.quantise import (
    bucket_norms,
    bucket_peaks,
    decode_quantised,
    encode_quantised,
    rounding_variance,
)
from fedsgd.compression.updates import Update
from fedsgd.config.component import BucketSize, QuantizationLevel
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Sections
from fedsgd.wire.levels import max_level_bytes


@dataclass(frozen=True)
class QSGD(DenseOperator):
    """Stochastic rounding of each bucket to `levels` multiples of its norm.

    QSGD (Alistarh et al. 2017): |x_i| becomes ‖x‖/s times ⌊s|x_i|/‖x‖⌋ or the next integer, at random so that E[C(x)] = x.
    With f the fractions, the variance is Σ(‖x‖/s)² f(1 − f), at most min(B/s², √B/s)|x|² for buckets of B.

    rANS codes levels and signs together, instead of the paper's Elias code, because most levels are 0. At s = 4 on buckets of
    512 a coordinate costs 0.8 bits, which includes 32 bits for each bucket's norm.

    Traps: a bucket of zeros has no norm to divide by; a norm rounded down to float32 puts a single coordinate above the last
    level. A count of bits must include the sign bits.

    Use: for clients that return rarely: it is unbiased and needs no state. `levels` trades bits for variance.

    Avoid: where the downlink limits the run: nearly every coordinate of the mean changes, so it stays large.

    Attributes:
        levels: s, the highest level.
        bucket: B, coordinates that share a norm.
        norm: "l2" as in the paper's analysis, or "max" as in its experiments, with less variance and more bits.
    """

    name: ClassVar[str] = "qsgd"
    codec: ClassVar[int] = 7
    kind: ClassVar[OperatorKind] = "unbiased"
    deterministic: ClassVar[bool] = False
    accepts_tensors = True

    levels: QuantizationLevel = 4
    bucket: BucketSize = 512
    norm: Literal["l2", "max"] = "l2"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return encode_quantised(x, self._compute_scales(x), self.levels, self.bucket, ctx, stochastic=True)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return decode_quantised(sections, self.levels, self.bucket, ctx)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_level_bytes(layout.size, self.levels, self.bucket)

    def variance(self, x: F32) -> float | None:
        return rounding_variance(x, self._compute_scales(x), self.levels, self.bucket)

    def _compute_scales(self, x: F32) -> F32:
        return bucket_norms(x, self.bucket) if self.norm == "l2" else bucket_peaks(x, self.bucket)
