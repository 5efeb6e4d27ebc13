"""Hard threshold: every coordinate above a fixed magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsgd.compression.base import CodecContext
from fedsgd.compression.kernels.top_k import select_above
from fedsgd.compression.operators.sparsifier import (
    Sparsifier,
    contraction_after_rounding,
    decode_sparse,
    encode_sparse,
    max_sparse_bytes,
)
from fedsgd.compression.updates import Update
from fedsgd.config.component import PositiveFloat
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Sections, ValueFormat


@dataclass(frozen=True)
class Threshold(Sparsifier):
    """All coordinates whose magnitude is at least `threshold`.

    Hard threshold (Ström 2015, who sends the threshold with a sign). Sahu et al. 2021 show that a hard threshold with error
    feedback spends a budget of bytes over a whole run better than top-k. The operator contracts up to a constant:
    |x − C(x)|² ≤ (1 − δ)|x|² + P·threshold². So with float32 values every coordinate of a residual stays below the threshold.

    Bits for each coordinate: as for top-k. The number of coordinates follows the size of the updates, from almost none to all.

    Use: with error feedback, where a limit holds for the bytes of a whole run, and a round may send more or less (Sahu et al.
    2021).

    Avoid: where each round has a limit of bytes, or where the scale of the updates is unknown: the number of coordinates
    follows it.

    Attributes:
        threshold: smallest magnitude that is sent, in units of the update, which includes the learning rate.
        values: format of the values.
    """

    name: ClassVar[str] = "threshold"
    codec: ClassVar[int] = 4
    accepts_tensors = True

    threshold: PositiveFloat = 0.001
    values: ValueFormat = "float32"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return encode_sparse(*select_above(x, self.threshold), self.values, ctx)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return decode_sparse(sections, self.values, ctx)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_sparse_bytes(layout.size, self.values, layout.size)

    def contraction(self, layout: ParameterLayout) -> float:
        return contraction_after_rounding(1.0, self.values, layout)

    def absolute_error(self, layout: ParameterLayout) -> float:
        return layout.size * self.threshold**2
