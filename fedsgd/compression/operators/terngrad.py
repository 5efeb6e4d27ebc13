"""TernGrad: stochastic rounding to three levels, minus the scale, zero and plus the scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedsgd.compression.base import CodecContext, DenseOperator, OperatorKind
from fedsgd.compression.kernels.quantise import bucket_peaks, decode_quantised, encode_quantised, rounding_variance
from fedsgd.compression.updates import Update
from fedsgd.config.component import NonNegativeFloat
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import bucket_max_magnitudes, squared_norm, standard_deviation
from fedsgd.wire import Sections
from fedsgd.wire.levels import max_level_bytes


@dataclass(frozen=True)
class TernGrad(DenseOperator):
    """Stochastic rounding of each coordinate to −s, 0 or s, with s the largest magnitude.

    TernGrad (Wen et al. 2017, NIPS, arXiv 1705.07878): s·sign(x_i) with probability |x_i|/s, else 0. E[C(x)] = x, with
    variance Σ|x_i|(s − |x_i|).

    One large coordinate makes s coarse for all. The paper's section on gradient clipping first cuts magnitudes to c·σ, with
    c = 2.5 and σ the standard deviation of the tensor. Clipping is a bias: the kind is then "neither".

    Traps:

    * σ is taken about the mean: N(3, 1) is cut to ±2.5, and most coordinates become s. The root mean square cuts at 7.9,
      which is above nearly all of them.
    * With σ = 0 (one coordinate, equal coordinates) nothing is clipped. The paper's rule would send zeros in every round.
    * s is the largest magnitude after clipping, as in the paper. The authors' code takes c·σ even if no coordinate is as large.
    * The paper's workers share their largest s. Here each client has its own s, because a round has one uplink phase.

    The paper clips and scales each tensor by itself, as `per-layer` does with separate = true. Otherwise σ and s belong to the
    whole vector, or to each group under `per-layer` with separate = false.

    Five trits to a byte, 1.6 bits a coordinate, which rANS then brings close to the entropy: about 0.8 bits on Gaussian
    vectors. Where nearly all trits are 0, most of the 243 byte values are rarer than 1/4096, the smallest frequency with 12
    bits. Frames with 15 bits are then 1 to 5 % smaller, from some 200,000 coordinates on.

    Use: for unbiased updates of less than about one bit a coordinate, from clients without state, where many clients are
    averaged.

    Avoid: where a round averages few clients, or where a few coordinates are far larger than the others. With `clip` 0 the
    variance then exceeds the energy of the update.

    Attributes:
        clip: c, the largest magnitude in units of `clip_by`; 0 does not clip.
        clip_by: "rms", the root mean square of the vector, or "std", the standard deviation; without effect at clip = 0.
        frequency_bits: precision of rANS frequencies, 12 or 15. With 15 each frame has the shorter of the two forms.
    """

    name: ClassVar[str] = "terngrad"
    codec: ClassVar[int] = 6
    deterministic: ClassVar[bool] = False

    clip: NonNegativeFloat = 0.0
    clip_by: Literal["rms", "std"] = "rms"
    frequency_bits: Literal[12, 15] = 12

    @property
    def accepts_tensors(self) -> bool:
        """False with `clip`, whose unit is a sum over the whole vector in a fixed order."""
        return not self.clip

    @property
    def kind(self) -> OperatorKind:
        return "neither" if self.clip else "unbiased"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        clipped_update = self._clip_magnitudes(x)
        scales = bucket_peaks(clipped_update, len(x))
        return encode_quantised(clipped_update, scales, 1, len(x), ctx, stochastic=True, frequency_bits=self.frequency_bits)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return decode_quantised(sections, 1, ctx.layout.size, ctx)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_level_bytes(layout.size, 1, layout.size)

    def variance(self, x: F32) -> float | None:
        return None if self.clip else rounding_variance(x, bucket_max_magnitudes(x, len(x)), 1, len(x))

    def _clip_magnitudes(self, x: F32) -> F32:
        if not self.clip:
            return x
        unit = standard_deviation(x) if self.clip_by == "std" else float(np.sqrt(squared_norm(x) / len(x)))
        with np.errstate(over="ignore"):
            limit = np.float32(self.clip * unit)
        return np.clip(x, -limit, limit) if unit else x
