"""MODEL frames: the policies that say which there are, and how each is encoded. P parameters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedsgd.arrays import F32, I64
from fedsgd.compress import Context, Operator
from fedsgd.compress.dense import DenseOperator
from fedsgd.compress.sparse import encode_sparse, max_sparse_bytes
from fedsgd.layout import Layout
from fedsgd.wire import MAX_SECTIONS, Frame, Header, Kind, Sections, encode_frame, overhead

Policy = Literal["model", "difference", "plain", "error-feedback", "shift"]
ContextOf = Callable[[int], Context]
"""What both ends know of a MODEL frame, by its round."""

CHANGES = 40
"""The codec of a MODEL frame that assigns: positions, and the values that stand there now, as float32."""
WHOLE = DenseOperator(entropy=True)
"""How the whole model is sent where the others of the round get a difference: exactly."""


@dataclass(frozen=True)
class Downlink:
    """policy: see the module; op: C, or the form of the whole model; remember: for how many rounds a client keeps a model, so
    that it can be told differences (None: for ever)."""

    policy: Policy = "model"
    op: Operator = DenseOperator()
    remember: int | None = None

    @property
    def whole(self) -> Operator:
        """How the whole model is sent."""
        return self.op if self.policy == "model" else WHOLE

    @property
    def needs_held(self) -> bool:
        """Whether clients have to keep the model that they were sent last."""
        return self.policy != "model"

    def base_of(self, round: int, known: int) -> int:
        """The model that a client can be taken to hold in `round`, if the one of round `known` (0: none) was the last that it
        is known to have had; 0: none."""
        kept = self.needs_held and (self.remember is None or round - known <= self.remember)
        return known if kept else 0


@dataclass(frozen=True, eq=False)
class Encoded:
    """A frame that was made here. opened: what it decodes to; kept: how many coordinates it carries; seconds: what making it
    took."""

    data: bytes
    opened: Frame
    kept: int
    seconds: float


def whole_of(link: Downlink, weights: F32, ctx: Context) -> tuple[F32, Encoded]:
    """(what clients decode [P], the frame)."""
    begun = time.perf_counter()
    sections, update = link.whole.encode(weights, ctx)
    frame = encoded(Header(Kind.MODEL, ctx.round, link.whole.codec), sections, update.kept, begun)
    return (weights if link.whole.exact else update.to_dense()), frame


def changes_of(base: int, model: F32, indices: I64, ctx: Context) -> Encoded:
    """The frame that assigns the model's values [P] at these positions."""
    begun = time.perf_counter()
    sections, _ = encode_sparse(indices, model[indices], "float32", ctx)
    return encoded(Header(Kind.MODEL, ctx.round, CHANGES, base=base), sections, len(indices), begun)


def encoded(header: Header, sections: Sections, kept: int, begun: float) -> Encoded:
    """A frame of these sections, which carry `kept` coordinates; making them began at `begun`."""
    frame = Frame(header, sections)
    return Encoded(encode_frame(frame), frame, kept, time.perf_counter() - begun)


def max_model_bytes(link: Downlink, layout: Layout) -> int:
    """The longest MODEL frame."""
    sections = [link.whole.max_bytes(layout)]
    if link.needs_held:
        sections += [link.op.max_bytes(layout), max_sparse_bytes(layout.size, "float32", layout.size)]
    return overhead(MAX_SECTIONS) + max(sections)
