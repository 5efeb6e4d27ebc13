"""Law suite: the laws that apply to a compressor, for the tests and for certificates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fedsgd.certification import decoding_laws, operator_laws, round_laws, scheme_laws, statistical_laws
from fedsgd.certification.independence_law import independence
from fedsgd.certification.law import Law, make_law
from fedsgd.certification.scale_law import scale
from fedsgd.compression.base import CompressionOperator, CompressionScheme, Compressor, OperatorScheme

SAMPLED_VECTOR_LAWS: Sequence[Callable[[CompressionOperator], None]] = (
    operator_laws.preserves_zero,
    operator_laws.boundary_positions,
    operator_laws.sparse_supports,
    operator_laws.call_order_invariance,
    statistical_laws.position_invariance,
    statistical_laws.mean_error,
    statistical_laws.variance,
    independence,
    scale,
    operator_laws.incompressible_payload,
    operator_laws.rejects_malformed,
)
"""Laws of an operator that draw their own vectors."""
SCHEME_LAWS: Sequence[Callable[..., None]] = (
    scheme_laws.round_trip,
    scheme_laws.deterministic_send,
    scheme_laws.bounded_residual,
    scheme_laws.telescoping,
    scheme_laws.lost_replies,
    scheme_laws.scale,
    independence,
)


def applicable_laws(compressor: Compressor, include_round_laws: bool = True) -> Iterator[Law]:
    """Yield the laws that apply to a compressor. For a scheme with an operator, the operator's laws come first.

    With `include_round_laws`, the laws of rounds and of decoding come last; they apply to every compressor.

    >>> from fedsgd.compression import COMPRESSORS
    >>> [law.name for law in applicable_laws(COMPRESSORS["top-k"]())][:3]
    ['preserves_zero', 'boundary_positions', 'sparse_supports']
    """
    if isinstance(compressor, OperatorScheme):
        yield from applicable_laws(compressor.op, include_round_laws=False)
    if isinstance(compressor, CompressionOperator):
        for sampled_law in SAMPLED_VECTOR_LAWS:
            if _is_applicable(sampled_law, compressor):
                yield make_law(sampled_law, compressor)
        for input_law in operator_laws.INPUT_LAWS:
            if _is_applicable(input_law, compressor):
                yield make_law(input_law, compressor, partial(operator_laws.check_on_sample_vectors, input_law, compressor))
    if isinstance(compressor, CompressionScheme):
        for law in SCHEME_LAWS:
            if _is_applicable(law, compressor):
                check_law = scheme_laws.check_telescoping_on_samples if law is scheme_laws.telescoping else law
                yield make_law(law, compressor, partial(check_law, compressor))
    for round_law in (*round_laws.ROUND_LAWS, *decoding_laws.DECODING_LAWS) if include_round_laws else ():
        yield make_law(round_law, compressor)


def _is_applicable(law: Callable[..., None], compressor: Compressor) -> bool:
    """Return True if a law's condition holds or raises an error. After an error, trying the law shows the fault."""
    try:
        return _CONDITIONS[law](compressor) if law in _CONDITIONS else True
    except Exception:  # the user's own code
        return True


def _has_stated_variance(op: Any) -> bool:
    return op.kind == "unbiased" and op.variance(np.ones(operator_laws.SMALL_SIZE, dtype=np.float32)) is not None


def _has_undelivered_update(scheme: Any) -> bool:
    return scheme.undelivered_update({}, operator_laws.example_layout(operator_laws.SMALL_SIZE)) is not None


_CONDITIONS: Mapping[Callable[..., None], Callable[[Any], bool]] = {
    operator_laws.contraction: lambda op: op.kind == "contractive",
    statistical_laws.position_invariance: lambda op: op.position_invariant,
    statistical_laws.mean_error: lambda op: op.kind == "unbiased" or (op.kind == "contractive" and not op.deterministic),
    statistical_laws.variance: _has_stated_variance,
    independence: lambda compressor: compressor.has_independent_errors,
    scheme_laws.lost_replies: lambda scheme: bool(scheme.residual_entries),
    scheme_laws.telescoping: _has_undelivered_update,
    scheme_laws.bounded_residual: _has_undelivered_update,
}
