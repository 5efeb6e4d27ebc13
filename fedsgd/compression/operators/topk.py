"""Top-k: the k largest coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fedsgd.compression.base import CodecContext
from fedsgd.compression.kernels.top_k import top_k
from fedsgd.compression.operators.chunks import (
    check_chunk_length,
    count_chunk_coordinates,
    decode_chunks,
    divide_into_chunks,
    encode_chunks,
    max_chunks_bytes,
    min_chunk_share,
)
from fedsgd.compression.operators.sparsifier import (
    Sparsifier,
    contraction_after_rounding,
    decode_sparse,
    encode_sparse,
    max_sparse_bytes,
    top_k_size,
)
from fedsgd.compression.updates import Update
from fedsgd.config.component import ChunkLength, FieldError, FractionAboveZero
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Sections, ValueFormat, max_relative_squared_error
from fedsgd.wire.chunk_codec import Chunks
from fedsgd.wire.grouped_values import GROUP_FORMATS


class _TopKCodec:
    """Codec id of top-k: without chunks, and of the class, 2; with chunks, which have an INDEX section of their own, 15."""

    def __get__(self, instance: TopK | None, owner: type[TopK]) -> int:
        return 2 if instance is None or instance.chunk is None else CHUNKED_CODEC


CHUNKED_CODEC = 15
"""Codec id of top-k with `chunk`."""
_OPTIONS = ", ".join(f'"{name}"' for name in GROUP_FORMATS)


@dataclass(frozen=True)
class TopK(Sparsifier):
    """The k largest coordinates by magnitude, with their positions.

    C(x) keeps x_i for the k = max(1, round(density · P)) largest |x_i| of the whole vector (Aji and Heafield 2017; Stich,
    Cordonnier and Jaggi 2018, "Sparsified SGD with memory"). Biased; δ = k/P with float32 values, and the exact error is the
    energy of the coordinates that are not sent. "ternary" values are sign · mean magnitude (Sattler et al. 2019): |x − C(x)|² =
    |x|² − |top|₁²/k exactly, so δ is only 1/P in the worst case. "2bit" values are the means of four bins by sign and
    magnitude: their error is the variance within the bins, and δ is 1/P in the worst case too.

    Bits: log₂C(P, k)/k for a position (8.1 at 1 %). For a value at 1 % of a real update, about 24 as float32, 8.5 as bfloat16
    and 1 as ternary. Ties go to the lowest position. Zeros are never sent, so there may be fewer than k coordinates.

    With `chunk`, each chunk of n consecutive coordinates sends its max(1, round(density · n)) largest, as SparseLoCo does with
    chunks of 4096 (Sarfi et al. 2025, arXiv 2508.15706). δ is then the smallest k/n of a chunk, with float32 values. A position
    takes log₂C(n, k)/k bits: 8.32, 7.36 and 6.38 for k = 32, 64 and 128 of 4096. The selection keeps less energy than the k
    largest of the vector; it sends from every part of the model, and a chunk can be encoded before the next one is known.

    Use: with error feedback, for an uplink of about a hundredth of the bytes. The dropped coordinates then arrive in later
    rounds (Karimireddy et al. 2019).

    Avoid: without error feedback, and where clients return after many rounds, because residuals are then stale. The
    coordinate-wise median and trimmed mean drop the coordinates that few clients send.

    Attributes:
        density: k / P, share of the coordinates that is sent.
        values: format of the values.
        chunk: coordinates of a chunk, each of which sends its largest; unset, the whole vector. The last chunk may be shorter.
        scales: "vector", also if unset: one scale, or four bins, for all values. "chunk": one scale of 4 bytes, or four bins of
            16 bytes, for each chunk; only with `chunk`, and with values "2bit", "ternary", "int8" or "int4".

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
    codec = _TopKCodec()
    accepts_tensors = True

    density: FractionAboveZero = 0.01
    values: ValueFormat = "float32"
    chunk: ChunkLength | None = None
    scales: Literal["vector", "chunk"] | None = field(default=None, metadata={"example": '"vector"'})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales == "chunk" and (self.chunk is None or self.values not in GROUP_FORMATS):
            got = "no chunk" if self.chunk is None else f'values = "{self.values}"'
            problem = f'got "chunk" with {got}, expected "vector", or chunk and values = {_OPTIONS}'
            raise FieldError(self.name, "scales", problem)

    @classmethod
    def resolve_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values with `scales` unset for "vector", its default."""
        is_default = isinstance(values["scales"], str) and values["scales"] == "vector"  # values are not checked yet
        return {**values, "scales": None} if is_default else values

    @property
    def _in_groups(self) -> bool:
        return self.scales == "chunk"

    @property
    def position_invariant(self) -> bool:
        """False with chunks, since the last one may be shorter and send another share."""
        return self.chunk is None

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        if self.chunk is not None:
            return encode_chunks(x, self._divide(self.chunk, len(x)), self.values, ctx, self._in_groups)
        return encode_sparse(*top_k(x, top_k_size(self.density, len(x))), self.values, ctx)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        if self.chunk is not None:
            return decode_chunks(sections, self._divide(self.chunk, ctx.layout.size), self.values, self._in_groups)
        return decode_sparse(sections, self.values, ctx, top_k_size(self.density, ctx.layout.size))

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        if self.chunk is not None:
            return count_chunk_coordinates(sections, self._divide(self.chunk, ctx.layout.size))
        return super().n_coordinates(sections, ctx)

    def max_bytes(self, layout: ParameterLayout) -> int:
        if self.chunk is not None:
            return max_chunks_bytes(self._divide(self.chunk, layout.size), self.values, self._in_groups)
        return max_sparse_bytes(top_k_size(self.density, layout.size), self.values, layout.size)

    def contraction(self, layout: ParameterLayout) -> float:
        if self.chunk is None:
            return contraction_after_rounding(top_k_size(self.density, layout.size) / layout.size, self.values, layout)
        chunks = self._divide(self.chunk, layout.size)
        if self._in_groups:  # at least 1/k of the energy of a chunk's k coordinates remains, which is k/n of the chunk's
            return 1 / chunks.length
        if max_relative_squared_error(self.values) is None:  # at least 1/k of the energy of all k coordinates remains
            return min_chunk_share(chunks) / chunks.max_k
        return contraction_after_rounding(min_chunk_share(chunks), self.values, layout)

    def check_layout(self, layout: ParameterLayout) -> None:
        if self.chunk is not None:
            check_chunk_length(self.name, self.chunk, layout)

    def _divide(self, length: int, size: int) -> Chunks:
        return divide_into_chunks(self.density, length, size)
