"""What the operator drops is remembered and added to the next update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedsgd.arrays import F32
from fedsgd.component import Coefficient, Count, FieldError
from fedsgd.compress.base import Context, OperatorScheme, Sent, State, patch
from fedsgd.layout import Layout

Policy = Literal["persist", "decay", "reset"]


@dataclass(frozen=True)
class ErrorFeedback(OperatorScheme):
    """Local accumulation of what was not sent: a = residual + x; send C(a); residual ← a − C(a).

    Seide et al. 2014; Stich, Cordonnier and Jaggi 2018; Karimireddy et al. 2019. x is the update with the step size in it, so a
    residual stays right when the step size changes. If the reply is lost the residual becomes a: nothing was delivered, so
    nothing may be forgotten.

    policy: what happens to the residual of a client that sits out. It was computed on an older model, and says less about the
    present one with every round. "persist": it waits unchanged; "decay": it shrinks by `factor` for each round missed; "reset":
    it is dropped if more than `rounds` were missed. With every client in every round the three are the same.

    The operator must contract: |a − C(a)|² ≤ (1 − δ)|a|² + A is what bounds the residual. Over scaled rand-k it grows by a
    factor of P/k − 1 a round, so that is refused.
    """

    name: ClassVar[str] = "error-feedback"

    policy: Policy = "persist"
    factor: Coefficient = 0.9
    rounds: Count = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require_contractive(self, 'its residual would grow without bound; use error_feedback = "none"')

    @property
    def codec(self) -> int:
        """Its frames are the operator's."""
        return self.op.codec

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        residual = self._residual(state, ctx.round)
        accumulated = x if residual is None else residual + x
        sections, decoded = self.op.encode(accumulated, ctx)
        rest = accumulated.copy()
        decoded.add_to(rest, -1.0)
        kept: State = {"residual": rest, "round": np.array(ctx.round)}
        return Sent(sections, kept, {"residual": patch(accumulated, decoded)})

    def _residual(self, state: State, round: int) -> F32 | None:
        """What is left of the residual in `round`, by the policy."""
        residual = state.get("residual")
        if residual is None or self.policy == "persist":
            return residual
        missed = max(0, round - int(state["round"]) - 1)
        if self.policy == "decay":
            return residual * np.float32(self.factor**missed) if missed else residual
        return None if missed > self.rounds else residual

    def withheld(self, state: State, layout: Layout) -> F32 | None:
        residual = state.get("residual")
        return np.zeros(layout.size, dtype=np.float32) if residual is None else residual


def require_contractive(scheme: OperatorScheme, why: str = "what it has not sent would not shrink") -> None:
    """FieldError unless the scheme's operator contracts."""
    op = scheme.op
    if op.kind != "contractive":
        remedy = ", or scaled = false" if hasattr(op, "scaled") else ""
        problem = f"{scheme.name} needs a contractive compressor, and {op} is {op.kind}: {why}{remedy}"
        raise FieldError(scheme.name, "op", problem)
