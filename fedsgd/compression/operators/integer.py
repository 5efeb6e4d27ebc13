"""Evenly spaced integers of 8 or 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedsgd.compression.base import CodecContext, DenseOperator, OperatorKind
from fedsgd.compression.kernels.quantise import decode_quantised, encode_quantised, rounding_variance
from fedsgd.compression.updates import Update
from fedsgd.config.component import BucketSize
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import bucket_max_magnitudes
from fedsgd.wire import Sections
from fedsgd.wire.levels import max_level_bytes


@dataclass(frozen=True)
class Integer(DenseOperator):
    """Every coordinate as an integer from −L to L, with L = 127 for 8 bits and 7 for 4 bits.

    An integer n decodes to n · s/L, with s the largest magnitude of its bucket. The levels are symmetric: zero is a level.

    Use: 8 bits as a nearly exact format that is fast to decode; 4 bits with rounding = "nearest" and error feedback for half of
    these bytes.

    Avoid: for fewer than four bits a coordinate (see `eden`, `qsgd`), and with a few very large coordinates in each bucket.

    Attributes:
        bits: 8 or 4 bits a coordinate, and 32 for each bucket.
        rounding: "stochastic" is unbiased with variance Σ(s/L)² f(1 − f). "nearest" has half the squared error, but is biased.
            No coordinate moves by more than itself and the largest of each bucket not at all, so δ is at least 1/bucket. δ is
            far larger on vectors that are not nearly all zeros.
        bucket: coordinates that share a scale.
        entropy: code the integers by their frequencies, at several times the time. Gaussian values then take 7.2 bits of 8
            and 3.1 of 4.
    """

    name: ClassVar[str] = "integer"
    codec: ClassVar[int] = 9

    bits: Literal[8, 4] = 8
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    bucket: BucketSize = 2048
    entropy: bool = False

    @property
    def kind(self) -> OperatorKind:
        return "unbiased" if self.rounding == "stochastic" else "contractive"

    @property
    def deterministic(self) -> bool:
        return self.rounding == "nearest"

    @property
    def level(self) -> int:
        """L, the largest integer."""
        return 127 if self.bits == 8 else 7

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        scales = bucket_max_magnitudes(x, self.bucket)
        return encode_quantised(x, scales, self.level, self.bucket, ctx, not self.deterministic, self.entropy)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return decode_quantised(sections, self.level, self.bucket, ctx)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_level_bytes(layout.size, self.level, self.bucket)

    def contraction(self, layout: ParameterLayout) -> float:
        return 1 / min(self.bucket, layout.size) if self.deterministic else 0.0

    def variance(self, x: F32) -> float | None:
        if self.deterministic:
            return None
        return rounding_variance(x, bucket_max_magnitudes(x, self.bucket), self.level, self.bucket)

    def is_lossy(self, layout: ParameterLayout) -> bool:
        """Return False: unlike its bound, the error of rounding to nearest is small on real updates."""
        return False
