"""Schemes whose server tells clients a vector beside the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsgd.arrays import F32
from fedsgd.compress.base import Context, OperatorScheme
from fedsgd.compress.sparse import decode_sparse, encode_sparse, max_sparse_bytes
from fedsgd.compress.update import State
from fedsgd.errors import NonFiniteError
from fedsgd.layout import Layout
from fedsgd.vectors import all_finite
from fedsgd.wire import Sections


@dataclass(frozen=True)
class WithReference(OperatorScheme):
    """A scheme whose server state "reference" [P] is sent along with the model, exactly (float32, exponents coded, zeros left
    out), in a REFERENCE frame; nothing is sent before there is one."""

    def downlink(self, server: State, ctx: Context) -> Sections:
        if "reference" not in server:
            return ()
        with np.errstate(over="ignore"):  # sums of finite replies
            reference = server["reference"].astype(np.float32)
        if not all_finite(reference):
            raise NonFiniteError(ctx.round - 1, None, "what clients are told beside the model leaves float32's range")
        indices = np.flatnonzero(reference)
        return encode_sparse(indices, reference[indices], "float32", ctx)[0]

    def read_downlink(self, sections: Sections, ctx: Context) -> F32 | None:
        return decode_sparse(sections, "float32", ctx).to_dense()

    def max_downlink(self, layout: Layout) -> int:
        return max_sparse_bytes(layout.size, "float32", layout.size)
