"""Top-k: the k largest coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsgd.compression.base import CodecContext
from fedsgd.compression.kernels.top_k import top_k
from fedsgd.compression.operators.sparsifier import (
    Sparsifier,
    contraction_after_rounding,
    decode_sparse,
    encode_sparse,
    max_sparse_bytes,
    top_k_size,
)
from fedsgd.compression.updates import Update
from fedsgd.config.component import FractionAboveZero
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Sections, ValueFormat


@dataclass(frozen=True)
class TopK(Sparsifier):
    """The k largest coordinates by magnitude, with their positions.

    C(x) keeps x_i for the k = max(1, round(density · P)) largest |x_i| of the whole vector (Aji and Heafield 2017; Stich,
    Cordonnier and Jaggi 2018, "Sparsified SGD with memory"). Biased; δ = k/P with float32 values, and the exact error is the
    energy of the coordinates that are not sent. "ternary" values are sign · mean magnitude (Sattler et al. 2019): |x − C(x)|² =
    |x|² − |top|₁²/k exactly, so δ is only 1/P in the worst case.

    Bits: log₂C(P, k)/k for a position (8.1 at 1 %). For a value at 1 % of a real update, about 24 as float32, 8.5 as bfloat16
    and 1 as ternary. Ties go to the lowest position. Zeros are never sent, so there may be fewer than k coordinates.

    Use: with error feedback, for an uplink of about a hundredth of the bytes. The dropped coordinates then arrive in later
    rounds (Karimireddy et al. 2019).

    Avoid: without error feedback, and where clients return after many rounds, because residuals are then stale. The
    coordinate-wise median and trimmed mean drop the coordinates that few clients send.

    Attributes:
        density: k / P, share of the coordinates that is sent.
        values: format of the values.

    >>> import numpy as np
    >>> x = np.array([0.5, -3, 0, 2], dtype=np.float32)
    >>> ctx = CodecContext(seed=0, round=1, client=0, layout=ParameterLayout.from_size(4))
    >>> sections, update = TopK(density=0.5).encode(x, ctx)
    >>> update.to_dense()
    array([ 0., -3.,  0.,  2.], dtype=float32)
    >>> TopK(density=0.5).decode(sections, ctx).indices
    array([1, 3])
    """

    name: ClassVar[str] = "top-k"
    codec: ClassVar[int] = 2

    density: FractionAboveZero = 0.01
    values: ValueFormat = "float32"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return encode_sparse(*top_k(x, top_k_size(self.density, len(x))), self.values, ctx)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return decode_sparse(sections, self.values, ctx, top_k_size(self.density, ctx.layout.size))

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_sparse_bytes(top_k_size(self.density, layout.size), self.values, layout.size)

    def contraction(self, layout: ParameterLayout) -> float:
        return contraction_after_rounding(top_k_size(self.density, layout.size) / layout.size, self.values, layout)
