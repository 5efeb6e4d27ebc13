"""Realistic faults, planted on purpose. OPERATORS and SCHEMES name the law that must reject each of them."""

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
    """The residual is the dropped part of the last update only: older residuals are lost."""

    name: ClassVar[str] = "forgetful"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        update = super().send(x, state, ctx)
        residual = x.copy()
        self.op.decode(update.sections, ctx).add_to(residual, -1.0)
        rollback = {"residual": EntryPatch(None, update.state_if_lost["residual"])}
        return EncodedUpdate(update.sections, {"residual": residual}, rollback)


@dataclass(frozen=True)
class CarelessFeedback(ErrorFeedback):
    """The residual is cleared although the reply was lost."""

    name: ClassVar[str] = "careless"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        update = super().send(x, state, ctx)
        return EncodedUpdate(update.sections, update.state, {})


@dataclass(frozen=True)
class SignInAByte(CompressionOperator):
    """(|x|₁/P)·sign(x), with a byte for each sign."""

    name: ClassVar[str] = "sign-in-a-byte"

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
class NormDivision(CompressionOperator):
    """x/|x| and |x|, without a case for zero."""

    name: ClassVar[str] = "norm-division"

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
    """Top-k of x[0] to x[P − 2]."""

    name: ClassVar[str] = "off-by-one-at-the-end"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        shortened = x.copy()
        shortened[-1] = 0
        return super().encode(shortened, ctx)


@dataclass(frozen=True)
class RandKWithoutLast(RandK):
    """Rand-k of x[0] to x[P − 2]: no single call shows it."""

    name: ClassVar[str] = "rand-k-without-last"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        shortened = x.copy()
        shortened[-1] = 0
        return super().encode(shortened, ctx)


@dataclass(frozen=True)
class CutOffInIndexOrder(TopK):
    """A threshold from a sample selects too many coordinates; the surplus is cut off at the end of the vector."""

    name: ClassVar[str] = "cut-off-in-index-order"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        k = top_k_size(self.density, len(x))
        candidates, _ = top_k(x, min(len(x), k + -(-k // 2)))
        indices = candidates[:k]
        values, decoded = encode_values(x[indices], self.values)
        return (Section(SectionKind.INDEX, encode_indices(indices, len(x))), *values), SparseUpdate(indices, decoded, len(x))


@dataclass(frozen=True)
class UncheckedSections(Sign):
    """The decoder relies on the order of the sections and does not check their kinds."""

    name: ClassVar[str] = "unchecked-sections"

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        kinds = (SectionKind.VALUE, SectionKind.SCALE)
        return super().decode(tuple(Section(kind, s.data) for kind, s in zip(kinds, sections, strict=False)), ctx)


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
"""Contexts that share a support, by the parts of the key."""


@dataclass(frozen=True)
class SharedSupport(RandK):
    """One support for several contexts that need different supports."""

    name: ClassVar[str] = "shared-support"

    key: str = "seed and round"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return super().encode(x, KEYS[self.key](ctx))

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return super().decode(sections, KEYS[self.key](ctx))


@dataclass(frozen=True)
class StatedSharedSupport(SharedSupport):
    """One support for all clients of a round on purpose, as `has_independent_errors` states."""

    name: ClassVar[str] = "stated-shared-support"
    has_independent_errors: ClassVar[bool] = False


@dataclass(frozen=True)
class SharedRounding(CompressionOperator):
    """Stochastic rounding to 255 levels by random numbers u that clients share: odd clients use u, even clients 1 − u.

    Attributes:
        among: "round": all clients of a round share u, so clients 0 and 2 make equal errors. "pair": clients 2i and 2i + 1
            share u, and their errors cancel in part (antithetic draws), which is legal.
    """

    name: ClassVar[str] = "shared-rounding"
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
    """Vectors whose squares leave float32's range are rejected, although their norm does not leave it."""

    name: ClassVar[str] = "float32-squares"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        if not np.isfinite(np.square(x).sum()):
            raise NonFiniteError(ctx.round, ctx.client, "the norm leaves float32's range")
        return super().encode(x, ctx)


@dataclass(frozen=True)
class SilentUnderflow(RandK):
    """Rand-k that flushes numbers below 6e-8 to zero: no single call shows the bias."""

    name: ClassVar[str] = "silent-underflow"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return super().encode(np.where(np.abs(x) < 6e-8, np.float32(0), x), ctx)


@dataclass(frozen=True)
class HiddenClip(TernGrad):
    """TernGrad that clips at four root mean squares and states no bias. Gaussian vectors do not show it."""

    name: ClassVar[str] = "hidden-clip"

    clip: float = 4.0

    @property
    def kind(self) -> OperatorKind:
        return "unbiased"


@dataclass(frozen=True)
class ShortIndices(TopK):
    """Top-k of the positions below 2¹⁶, as with indices of 16 bits."""

    name: ClassVar[str] = "short-indices"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return super().encode(np.where(np.arange(len(x)) < 2**16, x, np.float32(0)), ctx)


@dataclass(frozen=True)
class ShortSupport(RandK):
    """Rand-k of the positions below 2¹⁶, as with indices of 16 bits: no single call shows it."""

    name: ClassVar[str] = "short-support"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return super().encode(np.where(np.arange(len(x)) < 2**16, x, np.float32(0)), ctx)


@dataclass(frozen=True)
class SampledThreshold(TopK):
    """Top-k by a threshold from a sample, with a surplus cut off at the end of the vector. Short vectors do not show it."""

    name: ClassVar[str] = "sampled-threshold"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        k, stride = top_k_size(self.density, len(x)), max(1, len(x) // 4096)
        sample = np.sort(np.abs(x[::stride]))
        indices = np.flatnonzero((np.abs(x) >= sample[-max(1, round(k / stride))]) & (x != 0))[:k]
        return encode_sparse(indices, x[indices], self.values, ctx)


@dataclass(frozen=True)
class LongVectorBias(QSGD):
    """A bias of 3 % in vectors of more than 10,000 coordinates."""

    name: ClassVar[str] = "long-vector-bias"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return super().encode(x * np.float32(0.97) if len(x) > 10_000 else x, ctx)


@dataclass(frozen=True)
class ClippedResidual(ErrorFeedback):
    """Error feedback with an absolute limit for the residual."""

    name: ClassVar[str] = "clipped-residual"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        update = super().send(x, state, ctx)
        return EncodedUpdate(update.sections, {"residual": update.state["residual"].clip(-1e4, 1e4)}, update.rollback)


@dataclass(frozen=True)
class FeedbackOverScaledRandK(ErrorFeedback):
    """Error feedback that accepts operators that do not contract."""

    name: ClassVar[str] = "feedback-over-scaled-rand-k"

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class FeedbackInPlace(ErrorFeedback):
    """The update is added to the residual in place, although that array is still the state if the reply is lost."""

    name: ClassVar[str] = "feedback-in-place"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        if "residual" in state:
            state["residual"][:] += x
            x = np.zeros_like(x)
        return super().send(x, state, ctx)


class LedgerWithoutHeaders(Ledger):
    """Ledger that counts sections only."""

    def __call__(self, event: FrameEvent) -> None:
        super().__call__(event)
        row = self._writer._rows[-1]
        self._writer._rows[-1] = {**row, "n_bytes": row["n_bytes"] - row["header_bytes"], "header_bytes": 0}


OPERATORS: list[tuple[CompressionOperator, str]] = [
    (SignInAByte(), "incompressible_payload"),
    (NormDivision(), "preserves_zero"),
    (OffByOneAtTheEnd(density=0.05), "contraction"),
    (RandKWithoutLast(density=0.25), "position_invariance"),
    (CutOffInIndexOrder(density=0.25), "position_invariance"),
    (UncheckedSections(), "rejects_malformed"),
    (SharedSupport(density=0.1), "independence"),
    (SharedSupport(density=0.1, scaled=False), "independence"),
    (SharedRounding("round"), "independence"),
    (UnscaledHalves(), "scale"),
    (Float32Squares(), "scale"),
    (SilentUnderflow(density=0.25), "scale"),
    (HiddenClip(), "mean_error"),
    (ShortIndices(density=0.1), "contraction"),
    (ShortSupport(density=0.1, scaled=False), "position_invariance"),
    (SampledThreshold(density=0.01), "position_invariance"),
    (LongVectorBias(), "mean_error"),
]
SCHEMES: list[tuple[CompressionScheme, str]] = [
    (ForgetfulFeedback(TopK(density=0.05)), "telescoping"),
    (CarelessFeedback(TopK(density=0.05)), "telescoping"),
    (FeedbackInPlace(TopK(density=0.05)), "deterministic_send"),
    (FeedbackOverScaledRandK(RandK(density=0.25, scaled=True)), "bounded_residual"),
    (ClippedResidual(TopK(density=0.05)), "telescoping"),
]
