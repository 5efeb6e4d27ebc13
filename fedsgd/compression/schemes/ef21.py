"""EF21: client and server store the same estimate of the client's update, and the client sends its correction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionOperator, EncodedUpdate, OperatorScheme
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.schemes.error_feedback import can_contract, require_contractive
from fedsgd.compression.updates import StateArrays, record_patch
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout


@dataclass(frozen=True)
class EF21(OperatorScheme):
    """Correction of an estimate of the client's update that client and server both store.

    EF21 (Richtárik, Sokolov and Fatkhullin 2021). Client i: c_i = C(x_i − g_i); g_i ← g_i + c_i. Server: g ← g + Σ c_i / N; the
    update is g. Absent clients have c_i = 0 (EF21-PP, Fatkhullin et al. 2021, arXiv 2110.03294, section 3 and algorithm 4):

    * The mean is over all N clients. Absent clients count with the estimate that they sent last.
    * All clients have equal weights: set server.weighting = "uniform".
    * The server steps with g in every round, also in a round without replies. With momentum at the server this is EF21-HB.
    * Estimates begin at 0. So the update is smaller than the cohort's until most clients have taken part.
    * x_i is the update of the local steps, which includes their learning rate; the paper's is a gradient. Under a schedule an
      absent client counts with the learning rate of its last round.

    Nothing is withheld: what was not sent is part of the next difference. If a reply is lost, client and server both restore
    g_i.

    The server stores one vector and each client one, all in float64: corrections add up over a whole run, and in float32 the
    two sums would diverge.

    Use: with all or most clients in each round, on data that differ between clients: the analysis assumes no bound on their
    difference.

    Avoid: with small cohorts, because absent clients count with old estimates, and where a client cannot store a float64
    vector.

    Attributes:
        op: contractive operator C.
    """

    name: ClassVar[str] = "ef21"
    codec: ClassVar[int] = 23
    aggregator: ClassVar[str] = "ef21"
    server_mirrors_clients: ClassVar[bool] = True

    op: CompressionOperator = field(default=TopK(), metadata={"accepts": can_contract})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_contractive(self)

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        estimate = state.get("estimate")
        previous_estimate = np.zeros(len(x)) if estimate is None else estimate
        sections, correction = self.op.encode((x - previous_estimate).astype(np.float32), ctx)
        next_estimate = previous_estimate.copy()
        correction.add_to(next_estimate, 1.0)
        patch = None if estimate is None else record_patch(previous_estimate, correction)
        return EncodedUpdate(sections, {"estimate": next_estimate}, {"estimate": patch})

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return None

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn of a run in whose first half fewer than half of the clients take part."""
        yield from super().find_warnings(run)
        participating_share = 1.0 if run.rounds is None else 1 - (1 - run.cohort / run.clients) ** (run.rounds / 2)
        if participating_share < 0.5:
            yield (
                f"{run.key}: EF21's mean is over all {run.clients:,} clients, but {100 * participating_share:.2g} % of them "
                "take part in the first half of the rounds, so its steps are too small; "
                "set a larger server.cohort, or more rounds"
            )
