"""k random coordinates that both ends draw from a shared seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.arrays import F32, I64
from fedsgd.component import Share
from fedsgd.compress.base import Context, Kind, Operator, Sparse, Update, kept_of
from fedsgd.errors import NonFiniteError
from fedsgd.layout import Layout
from fedsgd.rng import shared_hash, shared_key
from fedsgd.wire import DenseFormat, Sections, decode_values, encode_values, max_value_bytes


def shared_support(k: int, ctx: Context) -> I64:
    """The k positions of this client in this round, ascending: those whose shared 64-bit hashes are smallest.

    Every subset of size k is equally likely, up to the quality of the hash; no two hashes of one key are equal.
    """
    size = ctx.layout.size
    key = shared_key(ctx.seed, "rand-k", ctx.round, ctx.client)
    hashes = shared_hash(key, np.arange(size, dtype=np.uint64))
    return np.sort(np.argpartition(hashes, k - 1)[:k])


@dataclass(frozen=True)
class RandK(Operator):
    """k uniformly random coordinates; the positions follow from a shared seed and cost no bits.

    C(x) keeps x_i on a random support of k = max(1, round(density · P)) (Wangni et al. 2018; Stich, Cordonnier and Jaggi
    2018). scaled: multiplied by P/k, so that E[C(x)] = x with variance (P/k − 1)|x|² (the default; kind "unbiased"). Not
    scaled: contractive in the mean, E|x − C(x)|² = (1 − k/P)|x|², and fit for error feedback, where the scaled form would let
    the residual grow without bound. bfloat16 values round, so the scaled form is then only nearly unbiased: kind "neither".
    Zeros on the support are sent: the receiver cannot know them. There are no ternary values here for that reason.
    """

    name: ClassVar[str] = "rand-k"
    codec: ClassVar[int] = 3
    deterministic: ClassVar[bool] = False

    density: Share = 0.01
    values: DenseFormat = "float32"
    scaled: bool = True

    @property
    def kind(self) -> Kind:
        if not self.scaled:
            return "contractive"
        return "unbiased" if self.values == "float32" else "neither"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        k = kept_of(self.density, len(x))
        support = shared_support(k, ctx)
        with np.errstate(over="ignore"):
            values = x[support] * np.float32(len(x) / k) if self.scaled else x[support]
        if not np.isfinite(values).all():
            raise NonFiniteError(ctx.round, ctx.client, f"scaling the update by P/k = {len(x) / k:g} leaves float32's range")
        sections, decoded = encode_values(values, self.values)
        return sections, Sparse(support, decoded, len(x))

    def decode(self, sections: Sections, ctx: Context) -> Update:
        k = kept_of(self.density, ctx.layout.size)
        values = decode_values(sections, k, self.values)
        return Sparse(shared_support(k, ctx), values, ctx.layout.size)

    def max_bytes(self, layout: Layout) -> int:
        return max_value_bytes(kept_of(self.density, layout.size), self.values)

    def contraction(self, layout: Layout) -> float:
        if self.scaled:
            return 0.0
        rounding = 2.0**-16 if self.values == "bfloat16" else 0.0
        return kept_of(self.density, layout.size) / layout.size * (1 - rounding)

    def kept(self, sections: Sections, ctx: Context) -> int:
        return kept_of(self.density, ctx.layout.size)
