"""Rand-k: k random coordinates, whose positions client and server draw from a shared seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionOperator, OperatorKind
from fedsgd.compression.operators.sparsifier import contraction_after_rounding, top_k_size
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.updates import SparseUpdate, Update
from fedsgd.config.component import FractionAboveZero
from fedsgd.errors import NonFiniteError
from fedsgd.numerics.arrays import F32, I64, U64
from fedsgd.numerics.kernels import kernel
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import all_finite, squared_norm
from fedsgd.numerics.rng import counter_hash, counter_hash_scalar
from fedsgd.numerics.vectors import to_host
from fedsgd.wire import DenseFormat, Sections, decode_values, encode_values, max_value_bytes
from fedsgd.wire.bits import bitmap_positions


def random_support(k: int, ctx: CodecContext) -> I64:
    """Return the k positions of a client in a round, ascending: every subset of size k is equally likely.

    Floyd's sampling (Bentley and Floyd 1987) in k steps: for j from P − k to P − 1 draw t below j + 1; add t, or j if t is in
    the sample already. t is the upper half of the product of j + 1 and the 64 shared random bits of counter j.
    """
    return bitmap_positions(_sample(k, ctx.layout.size, np.uint64(ctx.derive_key("rand-k"))), k)


@dataclass(frozen=True)
class RandK(CompressionOperator):
    """k uniformly random coordinates. The positions follow from a shared seed and cost no bits.

    C(x) keeps x_i on a random support of k = max(1, round(density · P)) (Konečný et al. 2016: random masks from a seed; Stich,
    Cordonnier and Jaggi 2018). Zeros on the support are sent too, because the receiver cannot know them. For that reason there
    are no ternary values.

    Use: as an unbiased baseline, or unscaled with error feedback; where positions have to be free, or independent of the data.

    Avoid: at low densities with few clients in a round: the variance is P/k − 1 times the energy. Top-k keeps far more of the
    energy for the same bytes.

    Attributes:
        density: k / P, share of the coordinates that is sent.
        values: format of the values.
        scaled: True to multiply the values by P/k. Then E[C(x)] = x, for float32 with variance (P/k − 1)|x|²: kind "unbiased";
            with values that are rounded to nearest the kind is "neither". False: contractive in the mean, for float32
            E|x − C(x)|² = (1 − k/P)|x|². Error feedback needs False: otherwise the residual would grow without bound.
    """

    name: ClassVar[str] = "rand-k"
    codec: ClassVar[int] = 3
    accepts_tensors = True
    deterministic: ClassVar[bool] = False

    density: FractionAboveZero = 0.01
    values: DenseFormat = "float32"
    scaled: bool = True

    @property
    def kind(self) -> OperatorKind:
        if not self.scaled:
            return "contractive"
        return "unbiased" if self.values in ("float32", "natural") else "neither"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        k = top_k_size(self.density, len(x))
        support = random_support(k, ctx)
        selected = to_host(x[support])
        with np.errstate(over="ignore"):
            values = selected * np.float32(len(x) / k) if self.scaled else selected
        if not all_finite(values):
            raise NonFiniteError(ctx.round, ctx.client, f"scaling the update by P/k = {len(x) / k:g} leaves float32's range")
        sections, decoded_values = encode_values(values, self.values, ctx.derive_key("values"))
        return sections, SparseUpdate(support, decoded_values, len(x))

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        k = top_k_size(self.density, ctx.layout.size)
        values = decode_values(sections, k, self.values)
        return SparseUpdate(random_support(k, ctx), values, ctx.layout.size)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_value_bytes(top_k_size(self.density, layout.size), self.values)

    def contraction(self, layout: ParameterLayout) -> float:
        if self.scaled:
            return 0.0
        return contraction_after_rounding(top_k_size(self.density, layout.size) / layout.size, self.values, layout)

    def variance(self, x: F32) -> float | None:
        if not self.scaled or self.values != "float32":
            return None
        return (len(x) / top_k_size(self.density, len(x)) - 1) * squared_norm(x)

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return top_k_size(self.density, ctx.layout.size)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn of noise that remains in the mean over the cohort, or of coordinates that are never sent."""
        yield from super().find_warnings(run)
        share = top_k_size(self.density, run.layout.size) / run.layout.size
        if self.scaled:
            yield from run.find_noise_warnings(1 / share - 1)
        elif run.error_feedback != "none" and run.participations is not None and run.participations * share < 1:
            share_of_run = 1 - (1 - share) ** run.participations
            yield (
                f"{run.key}.density = {self.density:g}: a client takes part {run.participations:.3g} times on average "
                f"and sends {100 * share_of_run:.2g} % of its coordinates in the whole run; "
                f'set a larger density, or {run.key}.name = "top-k"'
            )


def _sample_reference(k: int, size: int, key: np.uint64) -> U64:
    words = counter_hash(int(key), np.arange(size - k, size, dtype=np.uint64))
    sample: set[int] = set()
    for j, word in zip(range(size - k, size), words.tolist(), strict=True):
        t = word * (j + 1) >> 64
        sample.add(j if t in sample else t)
    mask = np.zeros(-(-size // 64) * 64, dtype=np.uint8)
    mask[list(sample)] = 1
    return np.packbits(mask, bitorder="little").view("<u8").astype(np.uint64)


@kernel(_sample_reference, lambda k, size, key: size, element_ns=100)
def _sample(k: int, size: int, key: np.uint64) -> U64:
    """Return k of `size` positions as a bitmap, which is in order by construction."""
    bitmap = np.zeros((size + 63) // 64, dtype=np.uint64)
    for j in range(size - k, size):
        word, below = counter_hash_scalar(key, np.uint64(j)), np.uint64(j + 1)
        low = (word & np.uint64(0xFFFFFFFF)) * below >> np.uint64(32)
        t = ((word >> np.uint64(32)) * below + low) >> np.uint64(32)
        word_index = np.int64(t >> np.uint64(6))
        if bitmap[word_index] >> (t & np.uint64(63)) & np.uint64(1):
            bitmap[j >> 6] |= np.uint64(1) << np.uint64(j & 63)
        else:
            bitmap[word_index] |= np.uint64(1) << (t & np.uint64(63))
    return bitmap
