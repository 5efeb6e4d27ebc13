"""Sparse ternary compression: the clients' side of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsgd.arrays import F32
from fedsgd.component import Share
from fedsgd.compress.base import Context, Scheme, Sent
from fedsgd.compress.error_feedback import ErrorFeedback
from fedsgd.compress.topk import TopK
from fedsgd.compress.update import State, Update
from fedsgd.layout import Layout
from fedsgd.wire import Sections


@dataclass(frozen=True)
class STC(Scheme):
    """Top-k with the kept coordinates sent as sign · mean magnitude, and error feedback.

    Sattler, Wiedemann, Müller and Samek 2019 (arXiv 1903.02891). a = residual + x, send STC(a), residual ← a − STC(a).
    |x − C(x)|² = |x|² − |top|₁²/k exactly. 1 bit and a position for each kept coordinate.

    With fewer than k non-zeros all of them are sent, and no others. μ is then their mean; the paper divides by k all the same,
    which makes μ smaller.

    The paper's server does the same with the mean of what it decodes, and sends that: [downlink] policy = "error-feedback" with
    compressor = { name = "top-k", values = "ternary" }.
    """

    name: ClassVar[str] = "stc"
    codec: ClassVar[int] = 21
    backlog: ClassVar[tuple[str, ...]] = ("residual",)

    density: Share = 0.01

    @property
    def _feedback(self) -> ErrorFeedback:
        return ErrorFeedback(TopK(self.density, "ternary"))

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        return self._feedback.send(x, state, ctx)

    def withheld(self, state: State, layout: Layout) -> F32 | None:
        return self._feedback.withheld(state, layout)

    def decode(self, sections: Sections, ctx: Context) -> Update:
        return self._feedback.decode(sections, ctx)

    def max_bytes(self, layout: Layout) -> int:
        return self._feedback.max_bytes(layout)

    def kept(self, sections: Sections, ctx: Context) -> int:
        return self._feedback.kept(sections, ctx)
