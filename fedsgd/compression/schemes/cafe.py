"""Clients send how they differ from the last round's mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from fedsgd.compression.base import AggregationContext, CodecContext, CompressionOperator, EncodedUpdate, WeightedUpdate
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.error_feedback import can_contract, require_contractive
from fedsgd.compression.schemes.server_reference import ServerReferenceScheme
from fedsgd.compression.updates import StateArrays
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout


@dataclass(frozen=True)
class CAFe(ServerReferenceScheme):
    """How the update differs from the last round's mean is sent; the server adds that mean back.

    CAFe (arXiv 2512.22623). Client: C(x − r), r being the last round's mean update. Server: the mean of what it decodes, plus
    r, is the next r. What clients have in common need not be sent again, and no client remembers anything, so nothing
    goes stale when it sits out. The price is on the downlink: r is sent along with the model, exactly (float32, its exponents
    coded), and its bytes are counted (a REFERENCE frame). In the first round r is zero. C must be contractive.

    The paper's analysis averages over all clients in every round. Here the mean is the cohort's. A round
    without replies leaves the model and r as they are.
    """

    name: ClassVar[str] = "cafe"
    codec: ClassVar[int] = 24
    needs_normalized_weights: ClassVar[bool] = True

    op: CompressionOperator = field(default=TopK(), metadata={"accepts": can_contract})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_contractive(self)

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        difference = x if ctx.reference is None else x - ctx.reference
        return EncodedUpdate(self.op.encode(difference, ctx)[0], {}, {})

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return None

    def aggregate(
        self, server_state: StateArrays, replies: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        update = self.weighted_mean(replies, ctx.layout)
        if "reference" in server_state:
            update = server_state["reference"] + update
        return update, {"reference": update}
