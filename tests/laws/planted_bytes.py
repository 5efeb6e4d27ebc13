"""Faults by an author who did not know the laws, in short form: in bytes, sums, sizes and the state after a reply.

REJECTED names the law that must reject each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.aggregation import AggregationContext, Aggregator, WeightedUpdate, weighted_sum
from fedsgd.aggregation.base import AcceptedWeights
from fedsgd.certification.decoding_laws import no_silent_corruption, weighted_addition
from fedsgd.certification.operator_laws import call_order_invariance, sparse_supports
from fedsgd.certification.scheme_laws import check_telescoping_on_samples as telescoping
from fedsgd.certification.scheme_laws import lost_replies
from fedsgd.certification.statistical_laws import mean_error
from fedsgd.compression import (
    CodecContext,
    CompressionOperator,
    CompressionScheme,
    EncodedUpdate,
    EntryPatch,
    ErrorFeedback,
    SparseUpdate,
    StateArrays,
    Update,
)
from fedsgd.compression.base import OperatorKind
from fedsgd.compression.kernels.top_k import select_above, top_k
from fedsgd.compression.operators.integer import Integer
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.sparsifier import encode_sparse, top_k_size
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.config.component import Component
from fedsgd.numerics.arrays import F32, I64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import bucket_max_magnitudes
from fedsgd.numerics.rng import counter_hash
from fedsgd.wire import Section, SectionKind, Sections, decode_values
from fedsgd.wire.bits import pack_varint, unpack_varint
from fedsgd.wire.levels import require_sections

_THRESHOLDS: dict[int, float] = {}
_LAST_AGGREGATE: dict[int, F32] = {}


@dataclass(frozen=True)
class StaleThreshold(TopK):
    """A client's threshold is computed in rounds 1, 11, 21, ... and stored in the module for the following rounds."""

    name: ClassVar[str] = "stale-threshold"

    @property
    def kind(self) -> OperatorKind:
        return "neither"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        if ctx.round % 10 == 1 or ctx.client not in _THRESHOLDS:
            _THRESHOLDS[ctx.client] = float(np.abs(top_k(x, top_k_size(self.density, len(x)))[1]).min(initial=np.inf))
        return encode_sparse(*select_above(x, _THRESHOLDS[ctx.client]), self.values, ctx)


@dataclass(frozen=True)
class EqualSharesOfTensors(TopK):
    """Each tensor has the same number of coordinates, but the stated contraction assumes shares by size."""

    name: ClassVar[str] = "equal-shares-of-tensors"
    position_invariant: ClassVar[bool] = False

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        selected = np.zeros_like(x)
        slices = [part for _, part, _ in ctx.layout.list_slices()]
        for part in slices:
            indices, values = top_k(x[part], -(-top_k_size(self.density, len(x)) // len(slices)))
            selected[part][indices] = values
        return super().encode(selected, ctx)


@dataclass(frozen=True)
class TwoBytesForAGap(TopK):
    """`max_bytes` assumes two bytes for the distance between positions; from 16,384 on a distance takes three."""

    name: ClassVar[str] = "two-bytes-for-a-gap"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        indices, values = top_k(x, top_k_size(self.density, len(x)))
        body = b"".join(pack_varint(int(gap)) for gap in np.diff(indices, prepend=-1) - 1)
        return (Section(SectionKind.INDEX, body), Section(SectionKind.VALUE, values.tobytes())), SparseUpdate(
            indices, values, len(x)
        )

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        gaps, at = [], 0
        while at < len(sections[0].data):
            gap, at = unpack_varint(sections[0].data, at)
            gaps.append(gap)
        values = decode_values(sections[1:], len(gaps), "float32", entropy=False)
        return SparseUpdate(np.cumsum(np.array(gaps, dtype=np.int64) + 1) - 1, values, ctx.layout.size)

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return len(sections[1].data) // 4

    def max_bytes(self, layout: ParameterLayout) -> int:
        return 6 * top_k_size(self.density, layout.size)


@dataclass(frozen=True)
class DitherOfAByte(QSGD):
    """Fractions of a level are compared with one random byte: fractions below 1/256 are never rounded up."""

    name: ClassVar[str] = "dither-of-a-byte"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        step = np.repeat(bucket_max_magnitudes(x, len(x)), len(x)).astype(np.float64) / 7
        dither = (counter_hash(ctx.derive_key("dither"), np.arange(len(x), dtype=np.uint64)) >> np.uint64(56)) / 256.0
        levels = np.floor(np.abs(x) / np.where(step > 0, step, 1) + dither)
        return (), SparseUpdate(np.arange(len(x)), (np.copysign(levels, x) * step).astype(np.float32), len(x))


@dataclass(frozen=True)
class ClippedPeaks(Integer):
    """The scale is the largest magnitude rounded to 8 bits. If it is rounded down, the largest values are clipped."""

    name: ClassVar[str] = "clipped-peaks"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        mantissa, exponent = np.frexp(np.abs(x).max())
        peak = np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)
        return super().encode(np.clip(x, -peak, peak), ctx)


@dataclass(frozen=True, eq=False)
class _UncheckedSparseUpdate(Update):
    """Sparse update of an author's own, without SparseUpdate's check of the positions."""

    indices: I64
    values: F32
    size: int

    @property
    def n_coordinates(self) -> int:
        return len(self.indices)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        np.add.at(out, self.indices, self.values * out.dtype.type(weight))

    def to_dense(self) -> F32:
        out = np.zeros(self.size, np.float32)
        out[self.indices] = self.values
        return out


@dataclass(frozen=True)
class RepeatedPositions(TopK):
    """The decoder does not require ascending positions: a repeated position counts twice in the sum."""

    name: ClassVar[str] = "repeated-positions"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        indices, values = top_k(x, top_k_size(self.density, len(x)))
        sections = (
            Section(SectionKind.INDEX, indices.astype("<u4").tobytes()),
            Section(SectionKind.VALUE, values.astype("<f4").tobytes()),
        )
        return sections, SparseUpdate(indices, values, len(x))

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        require_sections(sections, (SectionKind.INDEX, SectionKind.VALUE))
        k = top_k_size(self.density, ctx.layout.size)
        values = decode_values(sections[1:], k, "float32", entropy=False)
        positions = np.resize(np.frombuffer(sections[0].data, "<u4"), k).astype(np.int64) % ctx.layout.size
        return _UncheckedSparseUpdate(positions, values, ctx.layout.size)


@dataclass(frozen=True, eq=False)
class _UnsignedUpdate(Update):
    values: F32

    @property
    def n_coordinates(self) -> int:
        return len(self.values)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        out += np.copysign(self.values * out.dtype.type(weight), self.values)

    def to_dense(self) -> F32:
        return self.values.copy()


@dataclass(frozen=True)
class UnsignedWeights(Sign):
    """The sign of a weight has no effect: a negative weight adds instead of subtracting."""

    name: ClassVar[str] = "unsigned-weights"

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return _UnsignedUpdate(super().decode(sections, ctx).to_dense())


@dataclass(frozen=True)
class FirstReplyLost(ErrorFeedback):
    """The residual is dropped if a client's first reply is lost."""

    name: ClassVar[str] = "first-reply-lost"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        update = super().send(x, state, ctx)
        return update if state else EncodedUpdate(update.sections, update.state, {"residual": None})


@dataclass(frozen=True)
class MaskWithoutRollback(DGC):
    """Momentum stays cleared at the coordinates of a lost reply."""

    name: ClassVar[str] = "mask-without-rollback"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        update = super().send(x, state, ctx)
        return EncodedUpdate(update.sections, update.state, {"v": update.rollback["v"]})


@dataclass(frozen=True)
class CounterOf8Bits(ErrorFeedback):
    """The residual counts as unset if an 8-bit counter of sends is zero, as after 256 sends."""

    name: ClassVar[str] = "counter-of-8-bits"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        sends = state.get("sends", np.zeros(1, dtype=np.uint8))
        update = super().send(x, {"residual": state["residual"]} if sends[0] else {}, ctx)
        return EncodedUpdate(update.sections, {**update.state, "sends": sends + np.uint8(1)}, update.rollback)


@dataclass(frozen=True)
class ResidualOfSteps(ErrorFeedback):
    """The residual is stored divided by the learning rates, and multiplied by the learning rates of another round."""

    name: ClassVar[str] = "residual-of-steps"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        rate = np.float32(ctx.learning_rate_sum)
        update = super().send(x, {name: value * rate for name, value in state.items()}, ctx)
        residual, residual_if_lost = update.state["residual"] / rate, update.state_if_lost["residual"] / rate
        return EncodedUpdate(update.sections, {"residual": residual}, {"residual": EntryPatch(None, residual_if_lost)})


@dataclass(frozen=True)
class PrunedResidual(ErrorFeedback):
    """Entries of the residual below a millionth of the largest are cleared."""

    name: ClassVar[str] = "pruned-residual"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        update = super().send(x, state, ctx)
        accumulated, residual = update.state_if_lost["residual"], update.state["residual"]
        residual[np.abs(residual) < np.float32(1e-6) * np.abs(accumulated).max()] = 0
        return EncodedUpdate(update.sections, {"residual": residual}, {"residual": EntryPatch(None, accumulated)})


@dataclass(frozen=True)
class FreeReferenceAggregator(Aggregator):
    """Aggregator of `FreeReference`."""

    name: ClassVar[str] = "free-reference"
    accepted_weights: ClassVar[AcceptedWeights] = "normalized"

    def aggregate(
        self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        update = weighted_sum(updates, ctx).astype(np.float32) + state.get("reference", np.float32(0))
        _LAST_AGGREGATE[ctx.layout.size] = update
        return update, {"reference": update}


@dataclass(frozen=True)
class FreeReference(ErrorFeedback):
    """Clients read the last aggregate from a module variable instead of the downlink."""

    name: ClassVar[str] = "free-reference"
    aggregator: ClassVar[type[Component]] = FreeReferenceAggregator

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        last = _LAST_AGGREGATE.get(len(x)) if ctx.round > 1 else None
        return EncodedUpdate(self.op.encode(x if last is None else x - last, ctx)[0], {}, {})

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return None


REJECTED: list[tuple[CompressionOperator | CompressionScheme, Callable[..., None], str]] = [
    (StaleThreshold(), call_order_invariance, "call_order_invariance"),
    (EqualSharesOfTensors(), sparse_supports, "sparse_supports"),
    (TwoBytesForAGap(density=0.0001), sparse_supports, "sparse_supports"),
    (DitherOfAByte(), mean_error, "mean_error"),
    (ClippedPeaks(), mean_error, "mean_error"),
    (RepeatedPositions(), no_silent_corruption, "no_silent_corruption"),
    (UnsignedWeights(), weighted_addition, "weighted_addition"),
    (FirstReplyLost(TopK()), lost_replies, "lost_replies"),
    (FirstReplyLost(TopK()), telescoping, "telescoping"),
    (MaskWithoutRollback(), lost_replies, "lost_replies"),
    (CounterOf8Bits(TopK()), telescoping, "telescoping"),
    (ResidualOfSteps(TopK()), telescoping, "telescoping"),
    (PrunedResidual(TopK()), telescoping, "telescoping"),
]
