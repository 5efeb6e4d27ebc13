"""Every coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsgd.compression.base import CodecContext, CompressionOperator, OperatorKind
from fedsgd.compression.updates import DenseUpdate, Update
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import FloatFormat, Sections, decode_values, encode_values, max_relative_squared_error, max_value_bytes


@dataclass(frozen=True)
class Dense(CompressionOperator):
    """Every coordinate, as float32 (exact), bfloat16 or float16 (half the bytes).

    float32 is the baseline that all ratios refer to: 32 bits a parameter, δ = 1. bfloat16 rounds to nearest even with 8 bits of
    significand: each coordinate is off by at most 2⁻⁸ of itself, so δ = 1 − 2⁻¹⁶ (for normal numbers; below 1.2e-38 the
    relative error grows). float16 has 11 bits of significand over a power of two that the whole vector shares, without which
    small updates would underflow: δ = 1 − 2⁻²¹. A finite value is never rounded to infinity.

    entropy: code the exponents by how often they occur (no loss). On Gaussian values that takes float32 to 26.6 bits,
    bfloat16 to 10.6 and float16 to 13.5, at several times the time.
    """

    name: ClassVar[str] = "dense"
    codec: ClassVar[int] = 1

    values: FloatFormat = "float32"
    entropy: bool = False

    @property
    def kind(self) -> OperatorKind:
        return "contractive"

    @property
    def lossless(self) -> bool:
        return self.values == "float32"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        sections, decoded = encode_values(x, self.values, entropy=self.entropy)
        return sections, DenseUpdate(decoded)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return DenseUpdate(decode_values(sections, ctx.layout.size, self.values, self.entropy))

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_value_bytes(layout.size, self.values)

    def contraction(self, layout: ParameterLayout) -> float:
        return 1.0 - (max_relative_squared_error(self.values) or 0.0)

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return ctx.layout.size
