"""Each client and the server keep the same estimate of the client's update, and send its correction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fedsgd.compression.base import (
    AggregationContext,
    CodecContext,
    CompressionOperator,
    EncodedUpdate,
    OperatorScheme,
    WeightedUpdate,
)
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.schemes.error_feedback import can_contract, require_contractive
from fedsgd.compression.updates import EntryPatch, StateArrays, record_patch
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout


@dataclass(frozen=True)
class EF21(OperatorScheme):
    """Client and server keep the same estimate of the client's update; its correction is sent.

    Client i: c_i = C(x_i − g_i); g_i ← g_i + c_i. Server: g ← g + Σ c_i / N; the update is g. EF21 (Richtárik, Sokolov and
    Fatkhullin 2021), with c_i = 0 for absent clients (EF21-PP, Fatkhullin et al. 2021, arXiv 2110.03294, section 3 and
    algorithm 4):

    * The mean runs over the whole population of N clients. Absent clients count with the estimate that they last sent.
    * All clients weigh the same: set server.weighting = "uniform".
    * The server steps with g in every round, also in one without replies. With momentum on the server this is EF21-HB.
    * Estimates begin at 0, so until most clients took part the update is smaller than the cohort's.
    * x_i is the update of the local steps, with their step size in it; the paper's is a gradient. Under a schedule an absent
      client counts with the step size that it had.

    Any contractive operator will do. Nothing is ever withheld: what was not sent is in the next difference again. If a reply is
    lost, g_i is what it was before, at both ends.

    The server keeps one vector, each client one, both in float64: corrections add up over a whole run, and in float32 the two
    would drift apart.
    """

    name: ClassVar[str] = "ef21"
    codec: ClassVar[int] = 23
    needs_uniform_weights: ClassVar[bool] = True
    needs_normalized_weights: ClassVar[bool] = True
    server_mirrors_clients: ClassVar[bool] = True
    steps_without_replies: ClassVar[bool] = True

    op: CompressionOperator = field(default=TopK(), metadata={"accepts": can_contract})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_contractive(self)

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        estimate = state.get("estimate")
        before = np.zeros(len(x)) if estimate is None else estimate
        sections, correction = self.op.encode((x - before).astype(np.float32), ctx)
        after = before.copy()
        correction.add_to(after, 1.0)
        undo: dict[str, EntryPatch | None] = {"estimate": None if estimate is None else record_patch(before, correction)}
        return EncodedUpdate(sections, {"estimate": after}, undo)

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return None

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn of a run in whose first half fewer than half of the clients take part."""
        yield from super().find_warnings(run)
        seen = 1.0 if run.rounds is None else 1 - (1 - run.cohort / run.clients) ** (run.rounds / 2)
        if seen < 0.5:
            yield (
                f"{run.key}: EF21's mean is over all {run.clients:,} clients, of which {100 * seen:.1g} % take part in the "
                "first half of the rounds, so that its steps are too small; set a larger server.cohort, or more rounds"
            )

    def aggregate(
        self, server_state: StateArrays, replies: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        total = np.zeros(ctx.layout.size) if "estimate" not in server_state else server_state["estimate"].copy()
        for reply in replies:
            self.decode(reply.sections, reply.ctx).add_to(total, 1 / ctx.clients)
        return total.astype(np.float32), {"estimate": total}
