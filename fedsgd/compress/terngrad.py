"""Stochastic rounding to minus, nothing and plus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.arrays import F32
from fedsgd.component import NonNegative
from fedsgd.compress.base import Context, Kind, Operator
from fedsgd.compress.quantise import decode_quantised, encode_quantised, rounding_variance
from fedsgd.compress.update import Update
from fedsgd.layout import Layout
from fedsgd.vectors import bucket_peaks, energy
from fedsgd.wire import Sections
from fedsgd.wire.levels import max_level_bytes


@dataclass(frozen=True)
class TernGrad(Operator):
    """Each coordinate as −s, 0 or s, s being the largest magnitude, at random so that the mean is right.

    TernGrad (Wen et al. 2017): s·sign(x_i) with probability |x_i|/s, else 0; E[C(x)] = x with variance Σ|x_i|(s − |x_i|). One
    large coordinate makes it coarse for all: clip (the paper uses 2.5) first cuts magnitudes to that many root mean squares,
    which is a bias (kind "neither"); 0 does not clip. Scale by scale for each layer, as in the paper: under `per-layer`.

    Five trits to a byte, 1.6 bits a coordinate, which rANS then brings near their entropy: about 0.8 bits on Gaussian vectors.
    """

    name: ClassVar[str] = "terngrad"
    codec: ClassVar[int] = 6
    deterministic: ClassVar[bool] = False

    clip: NonNegative = 0.0

    @property
    def kind(self) -> Kind:
        return "neither" if self.clip else "unbiased"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        clipped = self._clipped(x)
        return encode_quantised(clipped, bucket_peaks(clipped, len(x)), 1, len(x), ctx, stochastic=True)

    def decode(self, sections: Sections, ctx: Context) -> Update:
        return decode_quantised(sections, 1, ctx.layout.size, ctx)

    def max_bytes(self, layout: Layout) -> int:
        return max_level_bytes(layout.size, 1, layout.size)

    def contraction(self, layout: Layout) -> float:
        return 0.0

    def variance(self, x: F32) -> float | None:
        return None if self.clip else rounding_variance(x, bucket_peaks(x, len(x)), 1, len(x))

    def kept(self, sections: Sections, ctx: Context) -> int:
        return ctx.layout.size

    def _clipped(self, x: F32) -> F32:
        if not self.clip:
            return x
        with np.errstate(over="ignore"):
            limit = np.float32(self.clip * np.sqrt(energy(x) / len(x)))
        return np.clip(x, -limit, limit)
