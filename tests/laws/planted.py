"""Bugs that are really made, planted on purpose: the laws must reject each of them, by the law that is named beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from fedsgd.compression import (
    CodecContext,
    CompressionOperator,
    CompressionScheme,
    DenseUpdate,
    EncodedUpdate,
    EntryPatch,
    ErrorFeedback,
    SparseUpdate,
    StateArrays,
    Update,
)
from fedsgd.compression.base import OperatorKind
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.sparsifier import encode_sparse, top_k_size
from fedsgd.compression.operators.terngrad import TernGrad
from fedsgd.compression.operators.topk import TopK, top_k
from fedsgd.errors import NonFiniteError, WireError
from fedsgd.experiment.ledger import Ledger
from fedsgd.federation.round_loop import FrameEvent
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import counter_hash
from fedsgd.wire import Section, SectionKind, Sections, decode_values, encode_indices, encode_values
from fedsgd.wire.levels import decode_scales, require_sections


@dataclass(frozen=True)
class ForgetfulFeedback(ErrorFeedback):
    """Keeps what it left out of this update, and forgets what it had left out before."""

    name: ClassVar[str] = "forgetful"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        sent = super().send(x, state, ctx)
        rest = x.copy()
        self.op.decode(sent.sections, ctx).add_to(rest, -1.0)
        return EncodedUpdate(sent.sections, {"residual": rest}, {"residual": EntryPatch(None, sent.state_if_lost["residual"])})


@dataclass(frozen=True)
class CarelessFeedback(ErrorFeedback):
    """Clears the residual although the reply was lost."""

    name: ClassVar[str] = "careless"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        sent = super().send(x, state, ctx)
        return EncodedUpdate(sent.sections, sent.state, {})


@dataclass(frozen=True)
class SignInAByte(CompressionOperator):
    """(|x|₁/P)·sign(x), a byte for each sign."""

    name: ClassVar[str] = "sign-in-a-byte"
    codec: ClassVar[int] = 201

    @property
    def kind(self) -> OperatorKind:
        return "contractive"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        scale = np.abs(x).mean(dtype=np.float64).astype(np.float32)
        signs = np.sign(x).astype(np.int8)
        sections = Section(SectionKind.VALUE, signs.tobytes()), Section(SectionKind.SCALE, scale.tobytes())
        return sections, DenseUpdate(signs * scale)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        signs, scale = np.frombuffer(sections[0].data, np.int8), np.frombuffer(sections[1].data, np.float32)[0]
        return DenseUpdate(signs * scale)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return layout.size + 4

    def contraction(self, layout: ParameterLayout) -> float:
        return 1 / layout.size


@dataclass(frozen=True)
class DividesByTheNorm(CompressionOperator):
    """Sends x/|x| and |x|, without thinking of zero."""

    name: ClassVar[str] = "divides-by-the-norm"
    codec: ClassVar[int] = 202

    @property
    def kind(self) -> OperatorKind:
        return "contractive"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        norm = np.float32(np.linalg.norm(x))
        values, decoded = encode_values(x / norm, "float32")
        return (*values, Section(SectionKind.SCALE, norm.tobytes())), DenseUpdate(decoded * norm)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        norm = np.frombuffer(sections[1].data, np.float32)[0]
        return DenseUpdate(decode_values(sections[:1], ctx.layout.size, "float32") * norm)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return 4 * layout.size + 4

    def contraction(self, layout: ParameterLayout) -> float:
        return 0.99


@dataclass(frozen=True)
class OffByOneAtTheEnd(TopK):
    """Looks at x[0] to x[P − 2]."""

    name: ClassVar[str] = "off-by-one-at-the-end"
    codec: ClassVar[int] = 203

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        shortened = x.copy()
        shortened[-1] = 0
        return super().encode(shortened, ctx)


@dataclass(frozen=True)
class RandomButNeverTheLast(RandK):
    """The same slip where no single call can show it."""

    name: ClassVar[str] = "random-but-never-the-last"
    codec: ClassVar[int] = 204

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        shortened = x.copy()
        shortened[-1] = 0
        return super().encode(shortened, ctx)


@dataclass(frozen=True)
class CutOffInIndexOrder(TopK):
    """A threshold from a sample lets too many through; the surplus is cut off at the end of the vector."""

    name: ClassVar[str] = "cut-off-in-index-order"
    codec: ClassVar[int] = 205

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        k = top_k_size(self.density, len(x))
        passing, _ = top_k(x, min(len(x), k + -(-k // 2)))
        indices = passing[:k]
        values, decoded = encode_values(x[indices], self.values)
        return (Section(SectionKind.INDEX, encode_indices(indices, len(x))), *values), SparseUpdate(indices, decoded, len(x))


@dataclass(frozen=True)
class TakesAnyPart(Sign):
    """Goes by the order of its sections and never looks at what they are."""

    name: ClassVar[str] = "takes-any-part"
    codec: ClassVar[int] = 206

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        parts = (SectionKind.VALUE, SectionKind.SCALE)
        return super().decode(tuple(Section(part, s.data) for part, s in zip(parts, sections, strict=False)), ctx)


KEYS: dict[str, Callable[[CodecContext], CodecContext]] = {
    "seed and round": lambda ctx: replace(ctx, client=0),
    "seed and client": lambda ctx: replace(ctx, round=1),
    "round and client": lambda ctx: replace(ctx, seed=0),
    "round + client": lambda ctx: replace(ctx, round=ctx.round + ctx.client, client=0),
    "client modulo 2": lambda ctx: replace(ctx, client=ctx.client % 2),
    "client modulo 256": lambda ctx: replace(ctx, client=ctx.client % 256),
    "client modulo 10,000": lambda ctx: replace(ctx, client=ctx.client % 10_000),
    "24 bits of the client": lambda ctx: replace(ctx, client=ctx.client % 2**24),
    "ten rounds": lambda ctx: replace(ctx, round=ctx.round // 10),
}
"""The contexts that share a support, by what the key is made of."""


@dataclass(frozen=True)
class SharedSupport(RandK):
    """One support for several contexts, which need a support each."""

    name: ClassVar[str] = "shared-support"
    codec: ClassVar[int] = 207

    key: str = "seed and round"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return super().encode(x, KEYS[self.key](ctx))

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return super().decode(sections, KEYS[self.key](ctx))


@dataclass(frozen=True)
class StatedSharedSupport(SharedSupport):
    """One support for all clients of a round on purpose, stated by `has_independent_errors`."""

    name: ClassVar[str] = "stated-shared-support"
    codec: ClassVar[int] = 216
    has_independent_errors: ClassVar[bool] = False


@dataclass(frozen=True)
class SharedRounding(CompressionOperator):
    """Stochastic rounding to 255 levels by random numbers u that clients share: odd clients use u, even clients 1 − u.

    among: "round": all clients of a round share u, so clients 0 and 2 make equal errors. "pair": clients 2i and 2i + 1 share u,
    and their errors cancel in part (antithetic draws), which is legal.
    """

    name: ClassVar[str] = "shared-rounding"
    codec: ClassVar[int] = 208
    deterministic: ClassVar[bool] = False

    among: Literal["round", "pair"] = "round"

    @property
    def kind(self) -> OperatorKind:
        return "unbiased"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        group = replace(ctx, client=0 if self.among == "round" else ctx.client // 2)
        u = counter_hash(group.derive_key("rounding"), np.arange(len(x), dtype=np.uint64)) * 2.0**-64
        peak = np.abs(x).max()
        exact = x * (127 / np.float64(peak)) if peak > 0 else np.zeros(len(x))
        levels = np.floor(exact + (u if ctx.client % 2 else 1 - u)).astype(np.int8)
        sections = Section(SectionKind.VALUE, levels.tobytes()), Section(SectionKind.SCALE, peak.tobytes())
        return sections, DenseUpdate((levels * (np.float64(peak) / 127)).astype(np.float32))

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        require_sections(sections, (SectionKind.VALUE, SectionKind.SCALE))
        levels, (peak,) = np.frombuffer(sections[0].data, np.int8), decode_scales(sections[1], 1)
        if len(levels) != ctx.layout.size:
            raise WireError(sections[0].offset, f"{len(levels)} levels, expected {ctx.layout.size}")
        return DenseUpdate((levels * (np.float64(peak) / 127)).astype(np.float32))

    def max_bytes(self, layout: ParameterLayout) -> int:
        return layout.size + 4

    def contraction(self, layout: ParameterLayout) -> float:
        return 0.0


@dataclass(frozen=True)
class UnscaledHalves(CompressionOperator):
    """float16 without a scale: infinite from 65,520 on, zero below 6e-8."""

    name: ClassVar[str] = "unscaled-halves"
    codec: ClassVar[int] = 209

    @property
    def kind(self) -> OperatorKind:
        return "contractive"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        halves = x.astype(np.float16)
        return (Section(SectionKind.VALUE, halves.tobytes()),), DenseUpdate(halves.astype(np.float32))

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        require_sections(sections, (SectionKind.VALUE,))
        return DenseUpdate(np.frombuffer(sections[0].data, np.float16).astype(np.float32))

    def max_bytes(self, layout: ParameterLayout) -> int:
        return 2 * layout.size

    def contraction(self, layout: ParameterLayout) -> float:
        return 1 - 2.0**-20


@dataclass(frozen=True)
class Float32Squares(QSGD):
    """A refusal of vectors whose squares leave float32's range, although their norm does not."""

    name: ClassVar[str] = "float32-squares"
    codec: ClassVar[int] = 210

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        if not np.isfinite(np.square(x).sum()):
            raise NonFiniteError(ctx.round, ctx.client, "the norm leaves float32's range")
        return super().encode(x, ctx)


@dataclass(frozen=True)
class SilentUnderflow(RandK):
    """Rand-k that flushes numbers below 6e-8 to zero: a bias that no single call shows."""

    name: ClassVar[str] = "silent-underflow"
    codec: ClassVar[int] = 211

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return super().encode(np.where(np.abs(x) < 6e-8, np.float32(0), x), ctx)


@dataclass(frozen=True)
class HiddenClip(TernGrad):
    """TernGrad that clips at four root mean squares, which Gaussian vectors do not show, and states no bias."""

    name: ClassVar[str] = "hidden-clip"
    codec: ClassVar[int] = 217

    clip: float = 4.0

    @property
    def kind(self) -> OperatorKind:
        return "unbiased"


@dataclass(frozen=True)
class ShortIndices(TopK):
    """Top-k of the coordinates that an index of 16 bits can name."""

    name: ClassVar[str] = "short-indices"
    codec: ClassVar[int] = 212

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return super().encode(np.where(np.arange(len(x)) < 2**16, x, np.float32(0)), ctx)


@dataclass(frozen=True)
class ShortSupport(RandK):
    """Rand-k of the coordinates that an index of 16 bits can name: no single call shows it."""

    name: ClassVar[str] = "short-support"
    codec: ClassVar[int] = 213

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return super().encode(np.where(np.arange(len(x)) < 2**16, x, np.float32(0)), ctx)


@dataclass(frozen=True)
class SampledThreshold(TopK):
    """Top-k by a threshold from a sample, which short vectors do not show; a surplus is cut off at the end of the vector."""

    name: ClassVar[str] = "sampled-threshold"
    codec: ClassVar[int] = 214

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        k, stride = top_k_size(self.density, len(x)), max(1, len(x) // 4096)
        sample = np.sort(np.abs(x[::stride]))
        indices = np.flatnonzero((np.abs(x) >= sample[-max(1, round(k / stride))]) & (x != 0))[:k]
        return encode_sparse(indices, x[indices], self.values, ctx)


@dataclass(frozen=True)
class LongVectorBias(QSGD):
    """A bias of 3 % in vectors of more than 10,000 coordinates."""

    name: ClassVar[str] = "long-vector-bias"
    codec: ClassVar[int] = 215

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return super().encode(x * np.float32(0.97) if len(x) > 10_000 else x, ctx)


@dataclass(frozen=True)
class ClippedResidual(ErrorFeedback):
    """Error feedback with a limit for the residual in absolute units."""

    name: ClassVar[str] = "clipped-residual"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        sent = super().send(x, state, ctx)
        return EncodedUpdate(sent.sections, {"residual": sent.state["residual"].clip(-1e4, 1e4)}, sent.rollback)


@dataclass(frozen=True)
class FeedbackOverScaledRandK(ErrorFeedback):
    """Error feedback without its refusal of operators that do not contract."""

    name: ClassVar[str] = "feedback-over-scaled-rand-k"

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class WritesToItsState(ErrorFeedback):
    """Saves a copy by adding to the residual in place, which is still the state if the reply is lost."""

    name: ClassVar[str] = "writes-to-its-state"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        if "residual" in state:
            state["residual"][:] += x
            x = np.zeros_like(x)
        return super().send(x, state, ctx)


class LedgerWithoutHeaders(Ledger):
    """Counts sections only."""

    def __call__(self, event: FrameEvent) -> None:
        super().__call__(event)
        row = self._writer._rows[-1]
        self._writer._rows[-1] = {**row, "n_bytes": row["n_bytes"] - row["header_bytes"], "header_bytes": 0}


OPERATORS: list[tuple[CompressionOperator, str]] = [
    (SignInAByte(), "no_slack"),
    (DividesByTheNorm(), "zero"),
    (OffByOneAtTheEnd(density=0.05), "contraction"),
    (RandomButNeverTheLast(density=0.25), "fair"),
    (CutOffInIndexOrder(density=0.25), "fair"),
    (TakesAnyPart(), "strict"),
    (SharedSupport(density=0.1), "independence"),
    (SharedSupport(density=0.1, scaled=False), "independence"),
    (SharedRounding("round"), "independence"),
    (UnscaledHalves(), "scale"),
    (Float32Squares(), "scale"),
    (SilentUnderflow(density=0.25), "scale"),
    (HiddenClip(), "mean"),
    (ShortIndices(density=0.1), "contraction"),
    (ShortSupport(density=0.1, scaled=False), "fair"),
    (SampledThreshold(density=0.01), "fair"),
    (LongVectorBias(), "mean"),
]
SCHEMES: list[tuple[CompressionScheme, str]] = [
    (ForgetfulFeedback(TopK(density=0.05)), "telescoping"),
    (CarelessFeedback(TopK(density=0.05)), "telescoping"),
    (WritesToItsState(TopK(density=0.05)), "repeatable"),
    (FeedbackOverScaledRandK(RandK(density=0.25, scaled=True)), "bounded"),
    (ClippedResidual(TopK(density=0.05)), "telescoping"),
]
