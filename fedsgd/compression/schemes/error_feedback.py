"""What the operator drops is remembered and added to the next update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionOperator, CompressionScheme, EncodedUpdate, OperatorScheme
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.updates import StateArrays, record_patch
from fedsgd.config.component import FieldError, field_defaults, field_types
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout


@dataclass(frozen=True)
class ErrorFeedback(OperatorScheme):
    """Local accumulation of what was not sent: a = residual + x; send C(a); residual ← a − C(a).

    Seide et al. 2014; Stich, Cordonnier and Jaggi 2018; Karimireddy et al. 2019. x is the update with the step size in it, so a
    residual stays right when the step size changes. If the reply is lost the residual becomes a: nothing was delivered, so
    nothing may be forgotten.

    The residual of a client that sits out waits for it unchanged; `StaleResidualPolicy` has other policies.

    The operator must contract: |a − C(a)|² ≤ (1 − δ)|a|² + A is what bounds the residual. Over scaled rand-k it grows by a
    factor of P/k − 1 a round, so that is refused.
    """

    name: ClassVar[str] = "error-feedback"
    residual_entries: ClassVar[tuple[str, ...]] = ("residual",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_contractive(self, 'its residual would grow without bound; use error_feedback = "none"')

    @property
    def codec(self) -> int:
        """Its frames are the operator's."""
        return self.op.codec

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        residual = state.get("residual")
        accumulated = x if residual is None else residual + x
        sections, decoded = self.op.encode(accumulated, ctx)
        rest = accumulated.copy()
        decoded.add_to(rest, -1.0)
        return EncodedUpdate(sections, {"residual": rest}, {"residual": record_patch(accumulated, decoded)})

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        residual = state.get("residual")
        return np.zeros(layout.size, dtype=np.float32) if residual is None else residual

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        return [*CompressionScheme.find_warnings(self, run), *self.op.find_warnings(run)]


def can_contract(operator: type[CompressionOperator]) -> bool:
    """Return whether an operator of this class contracts, by default or unscaled."""
    return (
        {*field_types(operator)} != {*field_defaults(operator)}
        or operator().kind == "contractive"
        or hasattr(operator, "scaled")
    )


def require_contractive(scheme: OperatorScheme, reason: str = "what it has not sent would not shrink") -> None:
    """FieldError unless the scheme's operator contracts."""
    op = scheme.op
    if op.kind != "contractive":
        remedy = ", or scaled = false" if hasattr(op, "scaled") else ""
        problem = f"{scheme.name} needs a contractive compressor, and {op} is {op.kind}: {reason}{remedy}"
        raise FieldError(scheme.name, "op", problem)
