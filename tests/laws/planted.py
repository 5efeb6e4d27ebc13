"""Bugs that are really made, planted on purpose: the laws must reject each of them, by the law that is named beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.arrays import F32
from fedsgd.compress import Context, Dense, ErrorFeedback, Operator, Patch, Scheme, Sent, Sparse, State, Update
from fedsgd.compress.base import Kind
from fedsgd.compress.density import kept_of
from fedsgd.compress.randk import RandK
from fedsgd.compress.sign import Sign
from fedsgd.compress.topk import TopK, top_k
from fedsgd.layout import Layout
from fedsgd.ledger import Ledger
from fedsgd.loop import Crossing
from fedsgd.wire import Part, Section, Sections, decode_values, encode_indices, encode_values


@dataclass(frozen=True)
class ForgetfulFeedback(ErrorFeedback):
    """Keeps what it left out of this update, and forgets what it had left out before."""

    name: ClassVar[str] = "forgetful"

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        sent = super().send(x, state, ctx)
        rest = x.copy()
        self.op.decode(sent.sections, ctx).add_to(rest, -1.0)
        return Sent(sent.sections, {"residual": rest}, {"residual": Patch(None, sent.state_if_lost["residual"])})


@dataclass(frozen=True)
class CarelessFeedback(ErrorFeedback):
    """Clears the residual although the reply was lost."""

    name: ClassVar[str] = "careless"

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        sent = super().send(x, state, ctx)
        return Sent(sent.sections, sent.state, {})


@dataclass(frozen=True)
class SignInAByte(Operator):
    """(|x|₁/P)·sign(x), a byte for each sign."""

    name: ClassVar[str] = "sign-in-a-byte"
    codec: ClassVar[int] = 201

    @property
    def kind(self) -> Kind:
        return "contractive"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        scale = np.abs(x).mean(dtype=np.float64).astype(np.float32)
        signs = np.sign(x).astype(np.int8)
        sections = Section(Part.VALUE, signs.tobytes()), Section(Part.SCALE, scale.tobytes())
        return sections, Dense(signs * scale)

    def decode(self, sections: Sections, ctx: Context) -> Update:
        signs, scale = np.frombuffer(sections[0].data, np.int8), np.frombuffer(sections[1].data, np.float32)[0]
        return Dense(signs * scale)

    def max_bytes(self, layout: Layout) -> int:
        return layout.size + 4

    def contraction(self, layout: Layout) -> float:
        return 1 / layout.size


@dataclass(frozen=True)
class DividesByTheNorm(Operator):
    """Sends x/|x| and |x|, without thinking of zero."""

    name: ClassVar[str] = "divides-by-the-norm"
    codec: ClassVar[int] = 202

    @property
    def kind(self) -> Kind:
        return "contractive"

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        norm = np.float32(np.linalg.norm(x))
        values, decoded = encode_values(x / norm, "float32")
        return (*values, Section(Part.SCALE, norm.tobytes())), Dense(decoded * norm)

    def decode(self, sections: Sections, ctx: Context) -> Update:
        norm = np.frombuffer(sections[1].data, np.float32)[0]
        return Dense(decode_values(sections[:1], ctx.layout.size, "float32") * norm)

    def max_bytes(self, layout: Layout) -> int:
        return 4 * layout.size + 4

    def contraction(self, layout: Layout) -> float:
        return 0.99


@dataclass(frozen=True)
class OffByOneAtTheEnd(TopK):
    """Looks at x[0] to x[P − 2]."""

    name: ClassVar[str] = "off-by-one-at-the-end"
    codec: ClassVar[int] = 203

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        shortened = x.copy()
        shortened[-1] = 0
        return super().encode(shortened, ctx)


@dataclass(frozen=True)
class RandomButNeverTheLast(RandK):
    """The same slip where no single call can show it."""

    name: ClassVar[str] = "random-but-never-the-last"
    codec: ClassVar[int] = 204

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        shortened = x.copy()
        shortened[-1] = 0
        return super().encode(shortened, ctx)


@dataclass(frozen=True)
class CutOffInIndexOrder(TopK):
    """A threshold from a sample lets too many through; the surplus is cut off at the end of the vector."""

    name: ClassVar[str] = "cut-off-in-index-order"
    codec: ClassVar[int] = 205

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        k = kept_of(self.density, len(x))
        passing, _ = top_k(x, min(len(x), k + -(-k // 2)))
        indices = passing[:k]
        values, decoded = encode_values(x[indices], self.values)
        return (Section(Part.INDEX, encode_indices(indices, len(x))), *values), Sparse(indices, decoded, len(x))


@dataclass(frozen=True)
class TakesAnyPart(Sign):
    """Goes by the order of its sections and never looks at what they are."""

    name: ClassVar[str] = "takes-any-part"
    codec: ClassVar[int] = 206

    def decode(self, sections: Sections, ctx: Context) -> Update:
        parts = (Part.VALUE, Part.SCALE)
        return super().decode(tuple(Section(part, s.data) for part, s in zip(parts, sections, strict=False)), ctx)


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

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        if "residual" in state:
            state["residual"][:] += x
            x = np.zeros_like(x)
        return super().send(x, state, ctx)


class LedgerWithoutHeaders(Ledger):
    """Counts sections only."""

    def __call__(self, crossing: Crossing) -> None:
        super().__call__(crossing)
        row = self._writer._rows[-1]
        self._writer._rows[-1] = {**row, "n_bytes": row["n_bytes"] - row["header_bytes"], "header_bytes": 0}


OPERATORS: list[tuple[Operator, str]] = [
    (SignInAByte(), "no_slack"),
    (DividesByTheNorm(), "zero"),
    (OffByOneAtTheEnd(density=0.05), "contraction"),
    (RandomButNeverTheLast(density=0.25), "fair"),
    (CutOffInIndexOrder(density=0.25), "fair"),
    (TakesAnyPart(), "strict"),
]
SCHEMES: list[tuple[Scheme, str]] = [
    (ForgetfulFeedback(TopK(density=0.05)), "telescoping"),
    (CarelessFeedback(TopK(density=0.05)), "telescoping"),
    (WritesToItsState(TopK(density=0.05)), "repeatable"),
    (FeedbackOverScaledRandK(RandK(density=0.25, scaled=True)), "bounded"),
]
