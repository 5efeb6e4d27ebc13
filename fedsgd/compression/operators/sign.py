"""Signs and one magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionOperator, OperatorKind
from fedsgd.compression.updates import SignUpdate, Update, pack_signs
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import mean_magnitude
from fedsgd.wire import Section, SectionKind, Sections
from fedsgd.wire.bits import n_bytes
from fedsgd.wire.levels import decode_scales, require_sections
from fedsgd.wire.value_codec import decode_signs


@dataclass(frozen=True)
class Sign(CompressionOperator):
    """The sign of every coordinate, times the mean magnitude: one bit each.

    C(x) = (|x|₁/P) sign(x) (Bernstein et al. 2018 send signs; Karimireddy et al. 2019 add the scale and error feedback, without
    which it need not converge: use it with `error_feedback`, that is EF-sign). δ = |x|₁²/(P|x|²): 2/π on a Gaussian vector, 1/P
    at worst. Zeros have a sign too, so they come back as ± the scale; the scale is a mean over P, and a vector that is mostly
    zeros loses most of its energy: signs are for dense updates. P bits and 4 bytes.
    """

    name: ClassVar[str] = "sign"
    codec: ClassVar[int] = 5

    @property
    def kind(self) -> OperatorKind:
        return "contractive"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        scale, packed = np.float32(mean_magnitude(x)), pack_signs(x)
        sections = Section(SectionKind.VALUE, packed.tobytes()), Section(SectionKind.SCALE, scale.astype("<f4").tobytes())
        return sections, SignUpdate(packed, scale, len(x))

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        require_sections(sections, (SectionKind.VALUE, SectionKind.SCALE))
        packed = decode_signs(sections[0], ctx.layout.size, "signs")
        (scale,) = decode_scales(sections[1], 1)
        return SignUpdate(packed, scale, ctx.layout.size)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return n_bytes(layout.size) + 4

    def contraction(self, layout: ParameterLayout) -> float:
        return 1 / layout.size

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return ctx.layout.size
