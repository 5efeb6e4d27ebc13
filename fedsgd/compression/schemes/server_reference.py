"""Base class of schemes whose server sends clients a vector in addition to the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsgd.compression.base import CodecContext, OperatorScheme
from fedsgd.compression.operators.sparsifier import decode_sparse, encode_sparse, max_sparse_bytes
from fedsgd.compression.updates import StateArrays
from fedsgd.errors import NonFiniteError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import all_finite
from fedsgd.wire import Sections


@dataclass(frozen=True)
class ServerReferenceScheme(OperatorScheme):
    """Scheme whose server sends the entry "reference" [P] of its aggregator's state with the model, in a REFERENCE frame.

    Without such an entry, no frame is sent. The reference is sent exactly: float32, exponents coded, zeros left out.
    """

    def encode_reference(self, aggregator_state: StateArrays, ctx: CodecContext) -> Sections:
        if "reference" not in aggregator_state:
            return ()
        with np.errstate(over="ignore"):  # sums of finite replies
            reference = aggregator_state["reference"].astype(np.float32)
        if not all_finite(reference):
            raise NonFiniteError(ctx.round - 1, None, "the reference vector leaves float32's range")
        indices = np.flatnonzero(reference)
        return encode_sparse(indices, reference[indices], "float32", ctx)[0]

    def decode_reference(self, sections: Sections, ctx: CodecContext) -> F32 | None:
        return decode_sparse(sections, "float32", ctx).to_dense()

    def max_reference_bytes(self, layout: ParameterLayout) -> int:
        return max_sparse_bytes(layout.size, "float32", layout.size)
