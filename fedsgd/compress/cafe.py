"""Clients send how they differ from the last round's mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from fedsgd.arrays import F32
from fedsgd.compress.base import Context, Gathering, Operator, Received, Sent
from fedsgd.compress.error_feedback import may_contract, require_contractive
from fedsgd.compress.reference import WithReference
from fedsgd.compress.topk import TopK
from fedsgd.compress.update import State
from fedsgd.layout import Layout


@dataclass(frozen=True)
class CAFe(WithReference):
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
    convex: ClassVar[bool] = True

    op: Operator = field(default=TopK(), metadata={"accepts": may_contract})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_contractive(self)

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        difference = x if ctx.reference is None else x - ctx.reference
        return Sent(self.op.encode(difference, ctx)[0], {}, {})

    def withheld(self, state: State, layout: Layout) -> F32 | None:
        return None

    def fold(self, server: State, replies: Iterable[Received], gathering: Gathering) -> tuple[F32, State]:
        update = self.mean(replies, gathering.layout)
        if "reference" in server:
            update = server["reference"] + update
        return update, {"reference": update}
