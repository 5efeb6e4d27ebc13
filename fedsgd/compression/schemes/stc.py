"""Sparse ternary compression (STC): the uplink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsgd.compression.base import CodecContext, CompressionScheme, EncodedUpdate
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.error_feedback import ErrorFeedback
from fedsgd.compression.updates import StateArrays, Update
from fedsgd.config.component import FractionAboveZero
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Sections


@dataclass(frozen=True)
class STC(CompressionScheme):
    """Top-k with values sign · mean magnitude, and error feedback.

    Sattler, Wiedemann, Müller and Samek 2019 (arXiv 1903.02891). a = residual + x, send STC(a), residual ← a − STC(a).
    |x − C(x)|² = |x|² − |top|₁²/k exactly. 1 bit and a position for each coordinate.

    With fewer than k non-zeros, all of them are sent, and no zeros. The mean is then over the values that are sent; the paper
    still divides by k, which makes the mean smaller.

    The paper's server compresses the mean of the decoded updates in the same way: [downlink] policy = "error-feedback" with
    compressor = { name = "top-k", values = "ternary" }.

    Use: where both directions are slow and clients take part often, with the downlink policy above.

    Avoid: where clients return after many rounds, above all with few classes a client: residuals are then stale on both sides.

    Attributes:
        density: k / P, share of the coordinates that is sent.
    """

    name: ClassVar[str] = "stc"
    codec: ClassVar[int] = 21
    accepts_tensors = True
    residual_entries: ClassVar[tuple[str, ...]] = ("residual",)

    density: FractionAboveZero = 0.01

    @property
    def _feedback(self) -> ErrorFeedback:
        return ErrorFeedback(TopK(self.density, "ternary"))

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        return self._feedback.send(x, state, ctx)

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return self._feedback.undelivered_update(state, layout)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return self._feedback.decode(sections, ctx)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return self._feedback.max_bytes(layout)

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return self._feedback.n_coordinates(sections, ctx)
