"""DeMo: momentum stays at the client, and its largest cosine coefficients are sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionScheme, EncodedUpdate
from fedsgd.compression.kernels.cosine import from_coefficients, to_coefficients
from fedsgd.compression.operators.chunks import (
    check_chunk_length,
    count_chunk_coordinates,
    decode_chunks,
    encode_chunks,
    max_chunks_bytes,
)
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.schemes.error_feedback import decay_vector
from fedsgd.compression.updates import DenseUpdate, EntryPatch, LazyUpdate, SparseUpdate, StateArrays, Update
from fedsgd.config.component import ChunkLength, ClosedFraction, FieldError, PositiveInt
from fedsgd.errors import NonFiniteError, WireError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import all_finite
from fedsgd.wire import Sections, ValueFormat
from fedsgd.wire.chunk_codec import Chunks

MAX_BLOCK = 4096
"""Maximum length of a block: a basis of n coordinates has n² numbers, and a transform n multiplications a coordinate."""


@dataclass(frozen=True)
class DeMo(CompressionScheme):
    """Decoupled momentum: the k largest cosine coefficients of each block of the momentum are sent and subtracted.

    Peng, Quesnelle and Kingma 2024 (arXiv 2411.19870), algorithm 1. With g the client's update, which includes the learning
    rate, and D the orthonormal discrete cosine transform (DCT-II) of each block of n coordinates:

        m ← βm + g;  send q = the k largest of D m in each block;  m ← m − D⁻¹ q

    The decoded update is D⁻¹ q. Then Σ_t β^(T − t) g_t = Σ_t β^(T − t) delivered_t + m after T rounds, up to rounding. If a
    reply is lost, m becomes βm + g. With β = 1 the rule is error feedback with top-k of cosine coefficients, and nothing is
    lost.

    Bits: log₂C(n, k)/k for a position, 1.9 for k = 32 of 64, where the authors' code sends an int64. Biased. With float32
    values, at least k/n of the energy of m is sent.

    Traps: three differences from the authors' code change results.

    * They step with the sign of the aggregate. To do the same, set server.optimizer to "fedadam" with beta1 = 0, beta2 = 0, and
      a tau far below the updates; lr is then the size of each step.
    * They transform a matrix in blocks of 64 × 64 and send 32 of these 4096 coefficients, and 32 of each 64 of a vector. Here a
      block is n consecutive numbers of the flat vector. The defaults send 64 times as many coefficients of matrices.
    * They divide a coefficient by the number of clients that sent it; here the mean of decoded updates is over all clients.

    Use: with all clients in each round, and no other momentum.

    Avoid: where clients return after many rounds, because their momentum is then stale.

    Attributes:
        momentum: β, decay of the momentum, from 0 to 1.
        block: n, coordinates of a block; the last one may be shorter.
        k: coefficients that each block sends; a shorter last block sends at most all of its own.
        values: format of the coefficients that are sent.
    """

    name: ClassVar[str] = "demo"
    codec: ClassVar[int] = 27
    residual_entries: ClassVar[tuple[str, ...]] = ("momentum",)

    momentum: ClosedFraction = 0.999
    block: ChunkLength = 64
    k: PositiveInt = 32
    values: ValueFormat = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block > MAX_BLOCK:
            raise FieldError(self.name, "block", f"got {self.block}, expected at most {MAX_BLOCK}")
        if self.k > self.block:
            raise FieldError(
                self.name, "k", f"got {self.k}, expected at most {self.block}, the number of coordinates of a block"
            )

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        total = decay_vector(state["momentum"], self.momentum) + x if "momentum" in state else x
        chunks = self._divide(len(x))
        coefficients = to_coefficients(total, chunks.length)
        if not all_finite(coefficients):
            raise NonFiniteError(ctx.round, ctx.client, "a cosine coefficient of the momentum leaves float32's range")
        sections, update = encode_chunks(coefficients, chunks, self.values, ctx)
        momentum = total - _restore(update, chunks)
        return EncodedUpdate(sections, {"momentum": momentum}, {"momentum": EntryPatch(None, total)})

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        if self.momentum != 1.0:
            return None
        return state["momentum"] if "momentum" in state else np.zeros(layout.size, dtype=np.float32)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        chunks = self._divide(ctx.layout.size)
        update = decode_chunks(sections, chunks, self.values)
        vector = _restore(update, chunks)
        if not all_finite(vector):
            raise WireError(sections[0].offset, "the coefficients are so large that a coordinate is not finite")
        return LazyUpdate(update.n_coordinates, lambda: DenseUpdate(vector))

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_chunks_bytes(self._divide(layout.size), self.values)

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return count_chunk_coordinates(sections, self._divide(ctx.layout.size))

    def check_layout(self, layout: ParameterLayout) -> None:
        check_chunk_length(self.name, self.block, layout, "block")

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn of a second momentum."""
        yield from super().find_warnings(run)
        if self.momentum:
            rule = "DeMo's momentum takes the place of any other (Peng et al. 2024)"
            yield from run.find_momentum_warnings(self.momentum, rule, run.find_second_momenta())

    def _divide(self, size: int) -> Chunks:
        return Chunks.divide(size, self.block, lambda length: min(self.k, length))


def _restore(coefficients: SparseUpdate, chunks: Chunks) -> F32:
    """Return the vector [P] with these coefficients."""
    return from_coefficients(coefficients.to_dense(), chunks.length)
