"""Every coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.arrays import F32
from fedsgd.compress.base import Context, Dense, Kind, Operator, Update
from fedsgd.layout import Layout
from fedsgd.wire import DenseFormat, Sections, decode_values, encode_values, max_value_bytes


@dataclass(frozen=True)
class DenseOperator(Operator):
    """Every coordinate, as float32 (exact) or bfloat16 (half the bytes).

    float32 is the baseline that all ratios refer to: 32 bits a parameter, δ = 1. bfloat16 rounds to nearest even with 8 bits
    of significand, 16 bits a parameter: each coordinate is off by at most 2⁻⁸ of itself, so δ = 1 − 2⁻¹⁶ (for normal numbers;
    below 1.2e-38 the relative error grows). A finite value is never rounded to infinity.
    """

    name: ClassVar[str] = "dense"
    codec: ClassVar[int] = 1

    values: DenseFormat = "float32"

    @property
    def kind(self) -> Kind:
        return "contractive"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        sections, decoded = encode_values(x, self.values)
        return sections, Dense(decoded)

    def decode(self, sections: Sections, ctx: Context) -> Update:
        return Dense(decode_values(sections, ctx.layout.size, self.values))

    def max_bytes(self, layout: Layout) -> int:
        return max_value_bytes(layout.size, self.values)

    def contraction(self, layout: Layout) -> float:
        return 1.0 if self.values == "float32" else float(1 - np.ldexp(1.0, -16))

    def kept(self, sections: Sections, ctx: Context) -> int:
        return ctx.layout.size
