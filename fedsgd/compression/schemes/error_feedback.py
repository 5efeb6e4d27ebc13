"""Error feedback: the client stores the part of an update that the operator drops and adds it to the next update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionOperator, CompressionScheme, EncodedUpdate, OperatorScheme
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.updates import SparseUpdate, StateArrays, Update, record_patch
from fedsgd.config.component import FieldError, FractionAboveZero, field_defaults, field_types
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.vectors import copy_vector, is_tensor, scale_vector
from fedsgd.wire import Sections

TINY = np.float32(2.0**-126)
"""Smallest normal float32."""
MAX_COPIED = 2**16
"""Largest P for which the sum of residual and update is copied. With more coordinates, the sum becomes the next residual."""


@dataclass(frozen=True)
class ErrorFeedback(OperatorScheme):
    """Error feedback: a = β residual + x; send C(a); residual ← a − C(a).

    Seide et al. 2014; Stich, Cordonnier and Jaggi 2018; Karimireddy et al. 2019. x is the update, which includes the learning
    rate. So a residual stays right when the learning rate changes. If the reply is lost, the residual becomes a: nothing was
    delivered.

    With β = 1 all updates are delivered in the end: Σ x = Σ delivered + residual. With β < 1, the residual takes the place of
    an outer momentum (SparseLoCo: Sarfi et al. 2025, arXiv 2508.15706). Then Σ_t β^(T − t) x_t = Σ_t β^(T − t) delivered_t +
    residual after T sends, up to rounding. So a part of the updates is lost, and `undelivered_update` is None. Decayed
    coordinates below 2⁻¹²⁶ become 0.

    The operator must contract, because |a − C(a)|² ≤ (1 − δ)|a|² + A bounds the residual. Scaled rand-k is rejected: with it
    the residual grows by a factor of P/k − 1 a round. The residual of an absent client stays unchanged; `StaleResidualPolicy`
    has other policies.

    Attributes:
        op: contractive operator C.
        decay: β, factor of the residual in each send. `StaleResidualPolicy.factor` is for missed rounds instead.

    >>> import numpy as np
    >>> from fedsgd.compression.operators.topk import TopK
    >>> ctx = CodecContext(seed=0, round=1, client=0, layout=ParameterLayout.from_size(3))
    >>> update = ErrorFeedback(TopK(density=0.3)).send(np.array([4, 2, 1], dtype=np.float32), {}, ctx)
    >>> update.state["residual"]
    array([0., 2., 1.], dtype=float32)
    >>> update.state_if_lost["residual"]
    array([4., 2., 1.], dtype=float32)
    """

    name: ClassVar[str] = "error-feedback"
    residual_entries: ClassVar[tuple[str, ...]] = ("residual",)

    decay: FractionAboveZero = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_contractive(self, 'its residual would grow without bound; use error_feedback = "none"')

    @property
    def codec(self) -> int:
        return self.op.codec

    @property
    def accepts_tensors(self) -> bool:
        return self.op.accepts_tensors

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        residual = state.get("residual")
        total = x if residual is None else decay_vector(residual, self.decay) + x
        sections, update = self.op.encode(total, ctx)
        patch = record_patch(total, update)
        is_own = residual is not None and len(x) > MAX_COPIED and isinstance(update, SparseUpdate)
        next_residual = total if is_own and not _refers_to(total, sections, update) else copy_vector(total)
        update.add_to(next_residual, -1.0)
        return EncodedUpdate(sections, {"residual": next_residual}, {"residual": patch})

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        if self.decay != 1.0:
            return None
        return state["residual"] if "residual" in state else np.zeros(layout.size, dtype=np.float32)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        return [*CompressionScheme.find_warnings(self, run), *self.op.find_warnings(run)]


def decay_vector(vector: F32, factor: float) -> F32:
    """Return factor · vector [P], with 0 for subnormal numbers; the vector itself for a factor of 1."""
    if factor == 1.0:
        return vector
    decayed: F32 = scale_vector(vector, np.float32(factor))
    decayed[abs(decayed) < float(TINY)] = 0  # arithmetic with subnormal numbers is many times slower
    return decayed


def _refers_to(vector: F32, sections: Sections, update: Update) -> bool:
    """Return whether the sections or the values of an encoded update may be views of the vector."""
    if is_tensor(vector):  # they are copies on the host
        return False
    values = [update.values] if isinstance(update, SparseUpdate) else [vector]
    arrays = [*values, *(np.frombuffer(section.data, dtype=np.uint8) for section in sections if section.data)]
    return any(np.may_share_memory(vector, array) for array in arrays)


def can_contract(operator: type[CompressionOperator]) -> bool:
    """Return whether operators of this class contract by default, or if they are unscaled."""
    return (
        {*field_types(operator)} != {*field_defaults(operator)}
        or operator().kind == "contractive"
        or hasattr(operator, "scaled")
    )


def require_contractive(scheme: OperatorScheme, reason: str = "its error would not shrink; use another compressor") -> None:
    """Raise FieldError unless the scheme's operator contracts; the message gives `reason` as the consequence."""
    op = scheme.op
    if op.kind != "contractive":
        remedy = ", or scaled = false" if hasattr(op, "scaled") else ""
        problem = f"{scheme.name} needs a contractive compressor, got {op}, which is {op.kind}: {reason}{remedy}"
        raise FieldError(scheme.name, "op", problem)
