"""CAFe: clients send the difference from the last aggregate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedsgd.compression.base import CodecContext, CompressionOperator, EncodedUpdate
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.error_feedback import can_contract, require_contractive
from fedsgd.compression.schemes.server_reference import ServerReferenceScheme
from fedsgd.compression.updates import StateArrays
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout


@dataclass(frozen=True)
class CAFe(ServerReferenceScheme):
    """Compressed difference from the last aggregate; the server adds that aggregate.

    CAFe (arXiv 2512.22623). Client: C(x − r), with r the last aggregate. Server: r ← r + mean of the decoded differences; r is
    the update. So clients do not send again what they have in common, and they have no state that could become stale.

    The cost is on the downlink: r is sent with the model in a REFERENCE frame, exactly (float32, exponents coded), and its
    bytes are counted. In the first round r is zero. The operator must be contractive.

    The paper's analysis averages over all clients in every round; here the mean is the cohort's. A round without replies
    changes neither the model nor r.

    Use: where clients cannot store a state or return rarely, and the mean of one round predicts the updates of the next.

    Avoid: where the downlink limits the run, since the reference is sent with every model, and with one or two clients in a
    round.

    Attributes:
        op: contractive operator C.
    """

    name: ClassVar[str] = "cafe"
    codec: ClassVar[int] = 24
    aggregator: ClassVar[str] = "cafe"

    op: CompressionOperator = field(default=TopK(), metadata={"accepts": can_contract})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_contractive(self)

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        difference = x if ctx.reference is None else x - ctx.reference
        return EncodedUpdate(self.op.encode(difference, ctx)[0], {}, {})

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return None
