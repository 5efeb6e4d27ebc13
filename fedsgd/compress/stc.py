"""Sparse ternary compression at the clients and at the server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedsgd.arrays import F32
from fedsgd.component import Share
from fedsgd.compress.base import Context, Gathering, Received, Scheme, Sent, State, Update
from fedsgd.compress.error_feedback import ErrorFeedback
from fedsgd.compress.topk import TopK
from fedsgd.errors import NonFiniteError
from fedsgd.layout import Layout
from fedsgd.vectors import all_finite
from fedsgd.wire import ALL, Sections


@dataclass(frozen=True)
class STC(Scheme):
    """Top-k with the kept coordinates sent as sign · mean magnitude, and error feedback at both ends.

    Sattler, Wiedemann, Müller and Samek 2019 (arXiv 1903.02891). Clients: a = residual + x, send STC(a), residual ← a − STC(a).
    Server: the mean of what it decodes is added to a residual of its own, STC of that is the cohort's update, and the rest
    waits: so each round changes at most k coordinates of the model, which is what makes a sparse downlink possible.
    |x − C(x)|² = |x|² − |top|₁²/k exactly. 1 bit and a position for each kept coordinate. μ is the mean over the k kept; fewer
    than k non-zeros are not filled up.
    """

    name: ClassVar[str] = "stc"
    codec: ClassVar[int] = 21

    density: Share = 0.01
    server_density: Share = 0.01

    @property
    def _client(self) -> ErrorFeedback:
        return ErrorFeedback(TopK(self.density, "ternary"))

    @property
    def _server(self) -> ErrorFeedback:
        return ErrorFeedback(TopK(self.server_density, "ternary"))

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        return self._client.send(x, state, ctx)

    def withheld(self, state: State, layout: Layout) -> F32 | None:
        return self._client.withheld(state, layout)

    def decode(self, sections: Sections, ctx: Context) -> Update:
        return self._client.decode(sections, ctx)

    def fold(self, server: State, replies: Iterable[Received], gathering: Gathering) -> tuple[F32, State]:
        ctx = Context(gathering.seed, gathering.round, ALL, gathering.layout)
        sent = self._server.send(self.mean(replies, gathering.layout), server, ctx)
        if not all_finite(sent.state["residual"]):
            raise NonFiniteError(gathering.round, None, "what the server has held back leaves float32's range")
        return self._server.decode(sent.sections, ctx).to_dense(), sent.state

    def max_bytes(self, layout: Layout) -> int:
        return self._client.max_bytes(layout)

    def kept(self, sections: Sections, ctx: Context) -> int:
        return self._client.kept(sections, ctx)
