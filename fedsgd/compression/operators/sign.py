"""Sign compression: the signs of all coordinates and one magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.compression.base import CodecContext, DenseOperator, OperatorKind
from fedsgd.compression.updates import SignUpdate, Update, pack_signs
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import mean_magnitude
from fedsgd.wire import Section, SectionKind, Sections
from fedsgd.wire.bits import n_bytes
from fedsgd.wire.levels import decode_scales, require_sections
from fedsgd.wire.value_codec import decode_signs


@dataclass(frozen=True)
class Sign(DenseOperator):
    """The sign of every coordinate times the mean magnitude.

    C(x) = (|x|₁/P) sign(x). Bernstein et al. 2018 send signs; Karimireddy et al. 2019 add the scale and error feedback
    (EF-sign). Without error feedback training may diverge: set `error_feedback`. δ = |x|₁²/(P|x|²), which is 2/π on a Gaussian
    vector and 1/P in the worst case. P bits and 4 bytes.

    Traps: zeros have a sign too, so they decode to plus or minus the scale. The scale is a mean over P, so a vector of mostly
    zeros loses most of its energy: signs suit dense updates.

    Use: with error feedback, for dense updates at one bit a coordinate, where encoding and decoding have to be fast.

    Avoid: without error feedback, and for updates that are mostly zeros.
    """

    name: ClassVar[str] = "sign"
    codec: ClassVar[int] = 5
    kind: ClassVar[OperatorKind] = "contractive"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        scale, sign_bits = np.float32(mean_magnitude(x)), pack_signs(x)
        sections = Section(SectionKind.VALUE, sign_bits.tobytes()), Section(SectionKind.SCALE, scale.astype("<f4").tobytes())
        return sections, SignUpdate(sign_bits, scale, len(x))

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        require_sections(sections, (SectionKind.VALUE, SectionKind.SCALE))
        sign_bits = decode_signs(sections[0], ctx.layout.size, "signs")
        (scale,) = decode_scales(sections[1], 1)
        return SignUpdate(sign_bits, scale, ctx.layout.size)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return n_bytes(layout.size) + 4

    def contraction(self, layout: ParameterLayout) -> float:
        return 1 / layout.size
