"""Faults that a reader who did not know the laws planted, shortened: in bytes, in sums, in sizes and in what a reply leaves.

Each is listed with the law that must reject it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.certification.decoding_laws import no_silent_corruption, weighted_addition
from fedsgd.certification.operator_laws import call_order_invariance, sparse_supports
from fedsgd.certification.scheme_laws import check_telescoping_on_samples as telescoping
from fedsgd.certification.scheme_laws import lost_replies
from fedsgd.certification.statistical_laws import mean_error
from fedsgd.compression import (
    AggregationContext,
    CodecContext,
    CompressionOperator,
    CompressionScheme,
    EncodedUpdate,
    EntryPatch,
    ErrorFeedback,
    SparseUpdate,
    StateArrays,
    Update,
    WeightedUpdate,
)
from fedsgd.compression.base import OperatorKind
from fedsgd.compression.kernels.top_k import select_above, top_k
from fedsgd.compression.operators.integer import Integer
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.sparsifier import encode_sparse, top_k_size
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import bucket_max_magnitudes
from fedsgd.numerics.rng import counter_hash
from fedsgd.wire import Section, SectionKind, Sections, decode_values
from fedsgd.wire.bits import pack_varint, unpack_varint
from fedsgd.wire.levels import require_sections

_THRESHOLDS: dict[int, float] = {}
_LAST: dict[int, F32] = {}


@dataclass(frozen=True)
class StaleThreshold(TopK):
    """A client's threshold is computed in rounds 1, 11, 21, and stored in the module for the rounds between them."""

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
    """Tensors are sent the same number of coordinates, and the contraction is stated as if it were for their sizes."""

    name: ClassVar[str] = "equal-shares-of-tensors"
    position_invariant: ClassVar[bool] = False

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        kept = np.zeros_like(x)
        slices = [part for _, part, _ in ctx.layout.list_slices()]
        for part in slices:
            indices, values = top_k(x[part], -(-top_k_size(self.density, len(x)) // len(slices)))
            kept[part][indices] = values
        return super().encode(kept, ctx)


@dataclass(frozen=True)
class TwoBytesForAGap(TopK):
    """`max_bytes` has two bytes for the distance between positions; from 16,384 on it takes three."""

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
    """Fractions of a level are compared with one random byte: those below 1/256 are never rounded up."""

    name: ClassVar[str] = "dither-of-a-byte"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        step = np.repeat(bucket_max_magnitudes(x, len(x)), len(x)).astype(np.float64) / 7
        dither = (counter_hash(ctx.derive_key("dither"), np.arange(len(x), dtype=np.uint64)) >> np.uint64(56)) / 256.0
        levels = np.floor(np.abs(x) / np.where(step > 0, step, 1) + dither)
        return (), SparseUpdate(np.arange(len(x)), (np.copysign(levels, x) * step).astype(np.float32), len(x))


@dataclass(frozen=True)
class ClippedPeaks(Integer):
    """The largest magnitude is rounded to 8 bits, to the nearest number: where that is lower, the largest are clipped to it."""

    name: ClassVar[str] = "clipped-peaks"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        mantissa, exponent = np.frexp(np.abs(x).max())
        peak = np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)
        return super().encode(np.clip(x, -peak, peak), ctx)


@dataclass(frozen=True)
class RepeatedPositions(TopK):
    """The decoder does not require that positions ascend: one that occurs twice counts twice in the sum."""

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
        indices = decode_values(sections[1:], k, "float32", entropy=False), np.frombuffer(sections[0].data, "<u4")
        positions = np.resize(indices[1], k).astype(np.int64) % ctx.layout.size
        return SparseUpdate(positions, indices[0], ctx.layout.size)


@dataclass(frozen=True, eq=False)
class _CopiedSign(Update):
    values: F32

    @property
    def n_coordinates(self) -> int:
        return len(self.values)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        out += np.copysign(self.values * out.dtype.type(weight), self.values)

    def to_dense(self) -> F32:
        return self.values.copy()


@dataclass(frozen=True)
class AddsNegativeWeights(Sign):
    """A negative weight adds instead of taking away."""

    name: ClassVar[str] = "adds-negative-weights"

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return _CopiedSign(super().decode(sections, ctx).to_dense())


@dataclass(frozen=True)
class FirstReplyLost(ErrorFeedback):
    """The residual is dropped if a client's first reply is lost."""

    name: ClassVar[str] = "first-reply-lost"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        sent = super().send(x, state, ctx)
        return sent if state else EncodedUpdate(sent.sections, sent.state, {"residual": None})


@dataclass(frozen=True)
class MaskedWhenLost(DGC):
    """Momentum stays cleared where it was sent in a reply that was lost."""

    name: ClassVar[str] = "masked-when-lost"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        sent = super().send(x, state, ctx)
        return EncodedUpdate(sent.sections, sent.state, {"v": sent.rollback["v"]})


@dataclass(frozen=True)
class CounterOf8Bits(ErrorFeedback):
    """The residual counts as unset when a counter of sends is zero, as it is after 256 of them."""

    name: ClassVar[str] = "counter-of-8-bits"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        sends = state.get("sends", np.zeros(1, dtype=np.uint8))
        sent = super().send(x, {"residual": state["residual"]} if sends[0] else {}, ctx)
        return EncodedUpdate(sent.sections, {**sent.state, "sends": sends + np.uint8(1)}, sent.rollback)


@dataclass(frozen=True)
class ResidualOfSteps(ErrorFeedback):
    """The residual is stored divided by the step sizes, and multiplied by those of another round."""

    name: ClassVar[str] = "residual-of-steps"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        step = np.float32(ctx.learning_rate_sum)
        sent = super().send(x, {name: value * step for name, value in state.items()}, ctx)
        lost, state = sent.state_if_lost["residual"] / step, {"residual": sent.state["residual"] / step}
        return EncodedUpdate(sent.sections, state, {"residual": EntryPatch(None, lost)})


@dataclass(frozen=True)
class PrunedResidual(ErrorFeedback):
    """Entries of the residual below a millionth of the largest are cleared."""

    name: ClassVar[str] = "pruned-residual"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        sent = super().send(x, state, ctx)
        accumulated, rest = sent.state_if_lost["residual"], sent.state["residual"]
        rest[np.abs(rest) < np.float32(1e-6) * np.abs(accumulated).max()] = 0
        return EncodedUpdate(sent.sections, {"residual": rest}, {"residual": EntryPatch(None, accumulated)})


@dataclass(frozen=True)
class FreeReference(ErrorFeedback):
    """Clients read the last aggregate from a variable of the module, instead of a downlink."""

    name: ClassVar[str] = "free-reference"
    needs_normalized_weights: ClassVar[bool] = True

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        last = _LAST.get(len(x)) if ctx.round > 1 else None
        return EncodedUpdate(self.op.encode(x if last is None else x - last, ctx)[0], {}, {})

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return None

    def aggregate(
        self, server_state: StateArrays, replies: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        update = self.weighted_mean(replies, ctx.layout) + server_state.get("reference", np.float32(0))
        _LAST[ctx.layout.size] = update
        return update, {"reference": update}


REJECTED: list[tuple[CompressionOperator | CompressionScheme, Callable[..., None], str]] = [
    (StaleThreshold(), call_order_invariance, "call_order"),
    (EqualSharesOfTensors(), sparse_supports, "supports"),
    (TwoBytesForAGap(density=0.0001), sparse_supports, "supports"),
    (DitherOfAByte(), mean_error, "mean"),
    (ClippedPeaks(), mean_error, "mean"),
    (RepeatedPositions(), no_silent_corruption, "malformed"),
    (AddsNegativeWeights(), weighted_addition, "addition"),
    (FirstReplyLost(TopK()), lost_replies, "lost_replies"),
    (FirstReplyLost(TopK()), telescoping, "telescoping"),
    (MaskedWhenLost(), lost_replies, "lost_replies"),
    (CounterOf8Bits(TopK()), telescoping, "telescoping"),
    (ResidualOfSteps(TopK()), telescoping, "telescoping"),
    (PrunedResidual(TopK()), telescoping, "telescoping"),
]
