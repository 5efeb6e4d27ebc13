"""Dense updates: every coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsgd.compression.base import CodecContext, DenseOperator, OperatorKind
from fedsgd.compression.updates import DenseUpdate, Update
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import FloatFormat, Sections, decode_values, encode_values, max_relative_squared_error, max_value_bytes


@dataclass(frozen=True)
class Dense(DenseOperator):
    """Every coordinate, as float32 (exact), bfloat16 or float16 (half the bytes).

    * float32: 32 bits a parameter, δ = 1. All compression ratios refer to this form.
    * bfloat16 rounds to nearest even with 8 bits of significand. Each coordinate errs by at most 2⁻⁸ of itself, so δ = 1 − 2⁻¹⁶
      for normal numbers; below 1.2e-38 the relative error grows.
    * float16 has 11 bits of significand: δ = 1 − 2⁻²¹. The whole vector shares a power of two, without which small updates
      would underflow.

    A finite value is never rounded to infinity.

    Use: as the baseline of a comparison, and on links that are faster than the encoding. bfloat16 halves the bytes at a small,
    relative error.

    Avoid: on slow uplinks, where nearly every other compressor sends fewer bytes.

    Attributes:
        values: format of the coordinates.
        entropy: code the exponents by their frequencies, without loss, at several times the time. Gaussian values then take
            26.6 bits as float32, 10.6 as bfloat16 and 13.5 as float16.
    """

    name: ClassVar[str] = "dense"
    codec: ClassVar[int] = 1
    kind: ClassVar[OperatorKind] = "contractive"

    values: FloatFormat = "float32"
    entropy: bool = False

    @property
    def lossless(self) -> bool:
        return self.values == "float32"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        sections, decoded_values = encode_values(x, self.values, entropy=self.entropy)
        return sections, DenseUpdate(decoded_values)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return DenseUpdate(decode_values(sections, ctx.layout.size, self.values, self.entropy))

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_value_bytes(layout.size, self.values)

    def contraction(self, layout: ParameterLayout) -> float:
        return 1.0 - (max_relative_squared_error(self.values) or 0.0)
