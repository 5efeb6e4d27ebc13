"""DRIVE: a random rotation, then the sign of each coordinate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from fedsgd.compression.base import CodecContext, DenseOperator, OperatorKind
from fedsgd.compression.operators.eden import decode_rotated, encode_rotated, find_short_vector_warnings, max_rotated_bytes
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.updates import Update
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Sections


@dataclass(frozen=True)
class Drive(DenseOperator):
    """Random rotation of blocks of at most 4096, the sign of each coordinate, and a scale for each block.

    DRIVE (Vargaftik et al. 2021): y = R x; decoded R⁻¹ S sign(y). 1 bit a coordinate, and a float32 for each block.

    Use: at one bit a coordinate: with scale = "least-squares" under error feedback, with "unbiased" without it.

    Avoid: for more than one bit, which `eden` has, and scale = "least-squares" without error feedback, which shrinks every
    update.

    Attributes:
        scale: rule for S. "unbiased": S = |y|²/|y|₁ equals one-bit EDEN and is nearly unbiased (kind "neither"), with a squared
            error of π/2 − 1 = .571 of |x|² on Gaussian vectors. "least-squares": S = |y|₁/d has the least error, 1 − 2/π =
            .363, but is biased: it is contractive and suits error feedback. Its δ is |y|₁²/(d|y|²), at least 1/4096 and nearly
            always 2/π, because the rotation removes the vectors on which signs alone are bad.
    """

    name: ClassVar[str] = "drive"
    codec: ClassVar[int] = 11
    accepts_tensors = True

    scale: Literal["unbiased", "least-squares"] = "unbiased"

    @property
    def kind(self) -> OperatorKind:
        return "neither" if self.scale == "unbiased" else "contractive"

    @property
    def deterministic(self) -> bool:
        return False

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return encode_rotated(x, 1, ctx, self.name, self.scale == "unbiased")

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return decode_rotated(sections, 1, ctx, self.name)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_rotated_bytes(layout.size, 1)

    def contraction(self, layout: ParameterLayout) -> float:
        return 1 / 4096 if self.kind == "contractive" else 0.0

    def is_lossy(self, layout: ParameterLayout) -> bool:
        """Return False: the bias of "least-squares" is one factor for all coordinates."""
        return False

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        return [*super().find_warnings(run), *(find_short_vector_warnings(run) if self.scale == "unbiased" else ())]
