"""Faults that a reader who did not know the laws planted, shortened: in bytes, in sums, in sizes and in what a reply leaves.

Each is listed with the law that must reject it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32
from fedsgd.compress import Context, ErrorFeedback, Gathering, Operator, Patch, Received, Scheme, Sent, Sparse, State, Update
from fedsgd.compress.base import Kind
from fedsgd.compress.decoding_laws import addition, malformed
from fedsgd.compress.density import kept_of
from fedsgd.compress.dgc import DGC
from fedsgd.compress.integer import Integer
from fedsgd.compress.laws import call_order, supports
from fedsgd.compress.population import mean
from fedsgd.compress.qsgd import QSGD
from fedsgd.compress.scheme_laws import lost_replies
from fedsgd.compress.scheme_laws import on_updates as telescoping
from fedsgd.compress.select import at_least, top_k
from fedsgd.compress.sign import Sign
from fedsgd.compress.sparse import encode_sparse
from fedsgd.compress.topk import TopK
from fedsgd.layout import Layout
from fedsgd.rng import shared_hash
from fedsgd.vectors import bucket_peaks
from fedsgd.wire import Part, Section, Sections, decode_values
from fedsgd.wire.bits import pack_varint, unpack_varint
from fedsgd.wire.levels import expect_parts

_THRESHOLDS: dict[int, float] = {}
_LAST: dict[int, F32] = {}


@dataclass(frozen=True)
class StaleThreshold(TopK):
    """A client's threshold is computed in rounds 1, 11, 21, and stored in the module for the rounds between them."""

    name: ClassVar[str] = "stale-threshold"

    @property
    def kind(self) -> Kind:
        return "neither"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        if ctx.round % 10 == 1 or ctx.client not in _THRESHOLDS:
            _THRESHOLDS[ctx.client] = float(np.abs(top_k(x, kept_of(self.density, len(x)))[1]).min(initial=np.inf))
        return encode_sparse(*at_least(x, _THRESHOLDS[ctx.client]), self.values, ctx)


@dataclass(frozen=True)
class EqualSharesOfTensors(TopK):
    """Tensors are sent the same number of coordinates, and the contraction is stated as if it were for their sizes."""

    name: ClassVar[str] = "equal-shares-of-tensors"
    even: ClassVar[bool] = False

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        kept = np.zeros_like(x)
        slices = [part for _, part, _ in ctx.layout.slices()]
        for part in slices:
            indices, values = top_k(x[part], -(-kept_of(self.density, len(x)) // len(slices)))
            kept[part][indices] = values
        return super().encode(kept, ctx)


@dataclass(frozen=True)
class TwoBytesForAGap(TopK):
    """`max_bytes` has two bytes for the distance between positions; from 16,384 on it takes three."""

    name: ClassVar[str] = "two-bytes-for-a-gap"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        indices, values = top_k(x, kept_of(self.density, len(x)))
        body = b"".join(pack_varint(int(gap)) for gap in np.diff(indices, prepend=-1) - 1)
        return (Section(Part.INDEX, body), Section(Part.VALUE, values.tobytes())), Sparse(indices, values, len(x))

    def decode(self, sections: Sections, ctx: Context) -> Update:
        gaps, at = [], 0
        while at < len(sections[0].data):
            gap, at = unpack_varint(sections[0].data, at)
            gaps.append(gap)
        values = decode_values(sections[1:], len(gaps), "float32", entropy=False)
        return Sparse(np.cumsum(np.array(gaps, dtype=np.int64) + 1) - 1, values, ctx.layout.size)

    def kept(self, sections: Sections, ctx: Context) -> int:
        return len(sections[1].data) // 4

    def max_bytes(self, layout: Layout) -> int:
        return 6 * kept_of(self.density, layout.size)


@dataclass(frozen=True)
class DitherOfAByte(QSGD):
    """Fractions of a level are compared with one random byte: those below 1/256 are never rounded up."""

    name: ClassVar[str] = "dither-of-a-byte"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        step = np.repeat(bucket_peaks(x, len(x)), len(x)).astype(np.float64) / 7
        dither = (shared_hash(ctx.key("dither"), np.arange(len(x), dtype=np.uint64)) >> np.uint64(56)) / 256.0
        levels = np.floor(np.abs(x) / np.where(step > 0, step, 1) + dither)
        return (), Sparse(np.arange(len(x)), (np.copysign(levels, x) * step).astype(np.float32), len(x))


@dataclass(frozen=True)
class ClippedPeaks(Integer):
    """The largest magnitude is rounded to 8 bits, to the nearest number: where that is lower, the largest are clipped to it."""

    name: ClassVar[str] = "clipped-peaks"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        mantissa, exponent = np.frexp(np.abs(x).max())
        peak = np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)
        return super().encode(np.clip(x, -peak, peak), ctx)


@dataclass(frozen=True)
class RepeatedPositions(TopK):
    """The decoder does not require that positions ascend: one that occurs twice counts twice in the sum."""

    name: ClassVar[str] = "repeated-positions"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        indices, values = top_k(x, kept_of(self.density, len(x)))
        sections = Section(Part.INDEX, indices.astype("<u4").tobytes()), Section(Part.VALUE, values.astype("<f4").tobytes())
        return sections, Sparse(indices, values, len(x))

    def decode(self, sections: Sections, ctx: Context) -> Update:
        expect_parts(sections, (Part.INDEX, Part.VALUE))
        k = kept_of(self.density, ctx.layout.size)
        indices = decode_values(sections[1:], k, "float32", entropy=False), np.frombuffer(sections[0].data, "<u4")
        positions = np.resize(indices[1], k).astype(np.int64) % ctx.layout.size
        return Sparse(positions, indices[0], ctx.layout.size)


@dataclass(frozen=True, eq=False)
class _CopiedSign(Update):
    values: F32

    @property
    def kept(self) -> int:
        return len(self.values)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        out += np.copysign(self.values * out.dtype.type(weight), self.values)

    def to_dense(self) -> F32:
        return self.values.copy()


@dataclass(frozen=True)
class AddsNegativeWeights(Sign):
    """A negative weight adds instead of taking away."""

    name: ClassVar[str] = "adds-negative-weights"

    def decode(self, sections: Sections, ctx: Context) -> Update:
        return _CopiedSign(super().decode(sections, ctx).to_dense())


@dataclass(frozen=True)
class FirstReplyLost(ErrorFeedback):
    """The residual is dropped if a client's first reply is lost."""

    name: ClassVar[str] = "first-reply-lost"

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        sent = super().send(x, state, ctx)
        return sent if state else Sent(sent.sections, sent.state, {"residual": None})


@dataclass(frozen=True)
class MaskedWhenLost(DGC):
    """Momentum stays cleared where it was sent in a reply that was lost."""

    name: ClassVar[str] = "masked-when-lost"

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        sent = super().send(x, state, ctx)
        return Sent(sent.sections, sent.state, {"v": sent.undo["v"]})


@dataclass(frozen=True)
class CounterOf8Bits(ErrorFeedback):
    """The residual counts as unset when a counter of sends is zero, as it is after 256 of them."""

    name: ClassVar[str] = "counter-of-8-bits"

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        sends = state.get("sends", np.zeros(1, dtype=np.uint8))
        sent = super().send(x, {"residual": state["residual"]} if sends[0] else {}, ctx)
        return Sent(sent.sections, {**sent.state, "sends": sends + np.uint8(1)}, sent.undo)


@dataclass(frozen=True)
class ResidualOfSteps(ErrorFeedback):
    """The residual is stored divided by the step sizes, and multiplied by those of another round."""

    name: ClassVar[str] = "residual-of-steps"

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        step = np.float32(ctx.travelled)
        sent = super().send(x, {name: value * step for name, value in state.items()}, ctx)
        lost, state = sent.state_if_lost["residual"] / step, {"residual": sent.state["residual"] / step}
        return Sent(sent.sections, state, {"residual": Patch(None, lost)})


@dataclass(frozen=True)
class PrunedResidual(ErrorFeedback):
    """Entries of the residual below a millionth of the largest are cleared."""

    name: ClassVar[str] = "pruned-residual"

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        sent = super().send(x, state, ctx)
        accumulated, rest = sent.state_if_lost["residual"], sent.state["residual"]
        rest[np.abs(rest) < np.float32(1e-6) * np.abs(accumulated).max()] = 0
        return Sent(sent.sections, {"residual": rest}, {"residual": Patch(None, accumulated)})


@dataclass(frozen=True)
class FreeReference(ErrorFeedback):
    """Clients read the last aggregate from a variable of the module, instead of a downlink."""

    name: ClassVar[str] = "free-reference"
    convex: ClassVar[bool] = True

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        last = _LAST.get(len(x)) if ctx.round > 1 else None
        return Sent(self.op.encode(x if last is None else x - last, ctx)[0], {}, {})

    def withheld(self, state: State, layout: Layout) -> F32 | None:
        return None

    def fold(self, server: State, replies: Iterable[Received], gathering: Gathering) -> tuple[F32, State]:
        update = self.mean(replies, gathering.layout) + server.get("reference", np.float32(0))
        _LAST[gathering.layout.size] = update
        return update, {"reference": update}


REJECTED: list[tuple[Operator | Scheme, Callable[..., None], str]] = [
    (StaleThreshold(), call_order, "call_order"),
    (EqualSharesOfTensors(), supports, "supports"),
    (TwoBytesForAGap(density=0.0001), supports, "supports"),
    (DitherOfAByte(), mean, "mean"),
    (ClippedPeaks(), mean, "mean"),
    (RepeatedPositions(), malformed, "malformed"),
    (AddsNegativeWeights(), addition, "addition"),
    (FirstReplyLost(TopK()), lost_replies, "lost_replies"),
    (FirstReplyLost(TopK()), telescoping, "telescoping"),
    (MaskedWhenLost(), lost_replies, "lost_replies"),
    (CounterOf8Bits(TopK()), telescoping, "telescoping"),
    (ResidualOfSteps(TopK()), telescoping, "telescoping"),
    (PrunedResidual(TopK()), telescoping, "telescoping"),
]
