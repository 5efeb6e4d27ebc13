"""The k largest coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsgd.arrays import F32
from fedsgd.component import Share
from fedsgd.compress.base import Context
from fedsgd.compress.density import kept_of
from fedsgd.compress.select import top_k
from fedsgd.compress.sparse import Sparsifier, decode_sparse, encode_sparse, max_sparse_bytes, surviving
from fedsgd.compress.update import Update
from fedsgd.layout import Layout
from fedsgd.wire import Sections, ValueFormat


@dataclass(frozen=True)
class TopK(Sparsifier):
    """The k largest coordinates by magnitude, with their positions.

    C(x) keeps x_i for the k = max(1, round(density · P)) largest |x_i| over the whole vector (Aji and Heafield 2017; Stich,
    Cordonnier and Jaggi 2018, "Sparsified SGD with memory"). Biased; δ = k/P with float32 values, the exact error being the
    energy of what is left out. With "ternary" values the kept coordinates are sent as sign · mean magnitude (Sattler et al.
    2019): |x − C(x)|² = |x|² − |top|₁²/k exactly, so δ is only 1/P in the worst case.
    Bits: log₂C(P, k)/k for a position (8.1 at 1 %); for a value at 1 % of a real update about 24 as float32, 8.5 as bfloat16, 1
    as ternary. Ties go to the lowest index; zeros are never sent, so there may be fewer than k.
    """

    name: ClassVar[str] = "top-k"
    codec: ClassVar[int] = 2

    density: Share = 0.01
    values: ValueFormat = "float32"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        return encode_sparse(*top_k(x, kept_of(self.density, len(x))), self.values, ctx)

    def decode(self, sections: Sections, ctx: Context) -> Update:
        return decode_sparse(sections, self.values, ctx, kept_of(self.density, ctx.layout.size))

    def max_bytes(self, layout: Layout) -> int:
        return max_sparse_bytes(kept_of(self.density, layout.size), self.values, layout.size)

    def contraction(self, layout: Layout) -> float:
        return surviving(kept_of(self.density, layout.size) / layout.size, self.values, layout)
