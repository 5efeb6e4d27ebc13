"""Signs and one magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.arrays import F32
from fedsgd.compress.base import Context, Kind, Operator
from fedsgd.compress.update import Update
from fedsgd.compress.updates import Signs, pack_signs
from fedsgd.layout import Layout
from fedsgd.vectors import mean_magnitude
from fedsgd.wire import Part, Section, Sections
from fedsgd.wire.bits import n_bytes
from fedsgd.wire.levels import expect_parts, read_scales
from fedsgd.wire.values import read_signs


@dataclass(frozen=True)
class Sign(Operator):
    """The sign of every coordinate, times the mean magnitude: one bit each.

    C(x) = (|x|₁/P) sign(x) (Bernstein et al. 2018 send signs; Karimireddy et al. 2019 add the scale and error feedback, without
    which it need not converge: use it with `error_feedback`, that is EF-sign). δ = |x|₁²/(P|x|²): 2/π on a Gaussian vector, 1/P
    at worst. Zeros have a sign too, so they come back as ± the scale; the scale is a mean over P, and a vector that is mostly
    zeros loses most of its energy: signs are for dense updates. P bits and 4 bytes.
    """

    name: ClassVar[str] = "sign"
    codec: ClassVar[int] = 5

    @property
    def kind(self) -> Kind:
        return "contractive"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        scale, packed = np.float32(mean_magnitude(x)), pack_signs(x)
        sections = Section(Part.VALUE, packed.tobytes()), Section(Part.SCALE, scale.astype("<f4").tobytes())
        return sections, Signs(packed, scale, len(x))

    def decode(self, sections: Sections, ctx: Context) -> Update:
        expect_parts(sections, (Part.VALUE, Part.SCALE))
        packed = read_signs(sections[0], ctx.layout.size, "signs")
        (scale,) = read_scales(sections[1], 1)
        return Signs(packed, scale, ctx.layout.size)

    def max_bytes(self, layout: Layout) -> int:
        return n_bytes(layout.size) + 4

    def contraction(self, layout: Layout) -> float:
        return 1 / layout.size

    def kept(self, sections: Sections, ctx: Context) -> int:
        return ctx.layout.size
