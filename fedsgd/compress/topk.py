"""The k largest coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.arrays import F32, I64
from fedsgd.component import Share
from fedsgd.compress.base import Context, Kind, Operator, Sparse, Update, kept_of
from fedsgd.errors import WireError
from fedsgd.layout import Layout
from fedsgd.wire import (
    Part,
    Section,
    Sections,
    ValueFormat,
    count_indices,
    decode_indices,
    decode_values,
    encode_indices,
    encode_values,
    max_index_bytes,
    max_value_bytes,
)


def top_k(x: F32, k: int) -> I64:
    """The positions of the k largest |x|, ascending. Exact; of equal magnitudes the lowest index wins; zeros are never chosen.

    x: [P], finite; returns [min(k, number of non-zeros)]. The bits of a float without its sign order as its magnitude does,
    so all comparisons are of integers and -0.0 is a zero.
    """
    key = x.view(np.uint32) & np.uint32(0x7FFFFFFF)
    if k >= len(x):
        return np.flatnonzero(key)
    cut = len(x) - k
    threshold = np.partition(key, cut)[cut]
    chosen = np.flatnonzero(key > threshold)
    if threshold == 0:
        return chosen
    ties = np.flatnonzero(key == threshold)[: k - len(chosen)]
    return np.sort(np.concatenate([chosen, ties]))


@dataclass(frozen=True)
class TopK(Operator):
    """The k largest coordinates by magnitude, with their positions.

    C(x) keeps x_i for the k = max(1, round(density · P)) largest |x_i| over the whole vector (Aji and Heafield 2017; Stich,
    Cordonnier and Jaggi 2018, "Sparsified SGD with memory"). Biased; δ = k/P with float32 values. With "ternary" values the
    kept coordinates are sent as sign · mean magnitude (Sattler et al. 2019): |x − C(x)|² = |x|² − |top|₁²/k exactly, so δ is
    only 1/P in the worst case and near k/P when the kept magnitudes are nearly equal, as they are under error feedback.
    Bits: log₂C(P, k)/k for a position (8.1 at 1 %), and 32, 16 or 1 for a value. Ties go to the lowest index.
    """

    name: ClassVar[str] = "top-k"
    codec: ClassVar[int] = 2

    density: Share = 0.01
    values: ValueFormat = "float32"

    @property
    def kind(self) -> Kind:
        return "contractive"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        indices = top_k(x, kept_of(self.density, len(x)))
        value_sections, values = encode_values(x[indices], self.values)
        index_section = Section(Part.INDEX, encode_indices(indices, len(x)))
        return (index_section, *value_sections), Sparse(indices, values, len(x))

    def decode(self, sections: Sections, ctx: Context) -> Update:
        size = ctx.layout.size
        if not sections or sections[0].part != Part.INDEX:
            where = sections[0].offset if sections else 0
            raise WireError(where, "the first section of a top-k update is not its index section")
        indices = decode_indices(sections[0], size, kept_of(self.density, size))
        return Sparse(indices, decode_values(sections[1:], len(indices), self.values), size)

    def max_bytes(self, layout: Layout) -> int:
        k = kept_of(self.density, layout.size)
        return min(max_index_bytes(layout.size), 6 + 4 * k) + max_value_bytes(k, self.values)

    def contraction(self, layout: Layout) -> float:
        if self.values == "ternary":
            return 1 / layout.size
        rounding = 2.0**-16 if self.values == "bfloat16" else 0.0
        return min(1.0, kept_of(self.density, layout.size) / layout.size) * (1 - rounding)

    def kept(self, sections: Sections, ctx: Context) -> int:
        return count_indices(sections[0].data, ctx.layout.size)
