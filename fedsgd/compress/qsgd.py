"""Stochastic rounding to a few levels of the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedsgd.arrays import F32
from fedsgd.component import Bucket, Level
from fedsgd.compress.base import Context, Kind, Operator
from fedsgd.compress.quantise import decode_quantised, encode_quantised, rounding_variance
from fedsgd.compress.update import Update
from fedsgd.layout import Layout
from fedsgd.vectors import bucket_peaks, norms
from fedsgd.wire import Sections
from fedsgd.wire.levels import max_level_bytes


@dataclass(frozen=True)
class QSGD(Operator):
    """Stochastic rounding of each bucket to `levels` multiples of its norm.

    QSGD (Alistarh et al. 2017): |x_i| goes to ‖x‖/s times ⌊s|x_i|/‖x‖⌋ or the next integer, with probabilities that make the
    mean right: E[C(x)] = x, with variance Σ(‖x‖/s)² f(1 − f), f being the fractions, at most min(B/s², √B/s)|x|² for buckets of
    B. norm: "l2" as in the analysis, or "max", which the paper's experiments use, with less variance and more bits.

    Levels and signs together are coded by rANS instead of the paper's Elias code: most levels are 0, and at s = 4 on buckets of
    512 a coordinate costs 0.8 bits, with the 32 for each bucket's norm. Traps: a bucket of zeros, a norm rounded down to
    float32 (a lone coordinate would be above the last level), the sign bit forgotten in the count.
    """

    name: ClassVar[str] = "qsgd"
    codec: ClassVar[int] = 7
    deterministic: ClassVar[bool] = False

    levels: Level = 4
    bucket: Bucket = 512
    norm: Literal["l2", "max"] = "l2"

    @property
    def kind(self) -> Kind:
        return "unbiased"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        return encode_quantised(x, self._scales(x), self.levels, self.bucket, ctx, stochastic=True)

    def decode(self, sections: Sections, ctx: Context) -> Update:
        return decode_quantised(sections, self.levels, self.bucket, ctx)

    def max_bytes(self, layout: Layout) -> int:
        return max_level_bytes(layout.size, self.levels, self.bucket)

    def contraction(self, layout: Layout) -> float:
        return 0.0

    def variance(self, x: F32) -> float | None:
        return rounding_variance(x, self._scales(x), self.levels, self.bucket)

    def kept(self, sections: Sections, ctx: Context) -> int:
        return ctx.layout.size

    def _scales(self, x: F32) -> F32:
        return norms(x, self.bucket) if self.norm == "l2" else bucket_peaks(x, self.bucket)
