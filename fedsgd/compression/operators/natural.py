"""Natural compression: powers of two with a sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.compression.base import CodecContext, DenseOperator, OperatorKind
from fedsgd.compression.updates import DenseUpdate, Update
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Sections, decode_values, encode_values, max_value_bytes


@dataclass(frozen=True)
class NaturalCompression(DenseOperator):
    """Each coordinate rounded stochastically to one of its two neighbouring powers of two.

    Natural compression (Horváth et al. 2019): the mantissa is the probability of rounding up and is not sent, so E[C(x)] = x.
    The variance is Σ 4^e m(1 − m) for |x_i| = 2^e (1 + m), at most |x|²/8. There is no scale and no bucket: small coordinates
    are as precise as large ones. 9 bits, a sign and an exponent; the exponents of a Gaussian vector take 2.6 of their 8 bits.

    Traps: from 2¹²⁷ on values are rounded down, and below 2⁻¹²⁶ to zero.

    Use: as a safe first step: the variance is at most an eighth of the energy, and there is nothing to tune.

    Avoid: where a coordinate has to cost less than about four bits.
    """

    name: ClassVar[str] = "natural"
    codec: ClassVar[int] = 8
    kind: ClassVar[OperatorKind] = "unbiased"
    deterministic: ClassVar[bool] = False

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        sections, decoded_values = encode_values(x, "natural", ctx.derive_key("values"))
        return sections, DenseUpdate(decoded_values)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return DenseUpdate(decode_values(sections, ctx.layout.size, "natural"))

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_value_bytes(layout.size, "natural")

    def variance(self, x: F32) -> float | None:
        words = x.view(np.uint32)
        exponent = (words >> np.uint32(23) & np.uint32(255)).astype(np.int64)
        mantissa = (words & np.uint32(0x7FFFFF)) / 2.0**23
        normal = np.ldexp(1.0, 2 * (exponent - 127)) * mantissa * (1 - mantissa)
        return float(np.where(exponent > 0, normal, np.square(x.astype(np.float64))).sum())
