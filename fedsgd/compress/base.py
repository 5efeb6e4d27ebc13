"""The contracts of compression: operators without memory, schemes with it, and the updates they decode to.

P parameters, k kept coordinates. Vectors are flat float32 [P] in the order of `Layout`. The laws in the docstrings are
executable: `fedsgd.compress.laws`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32, I64
from fedsgd.component import Component
from fedsgd.layout import Layout
from fedsgd.wire import Sections

ClientId = int
Kind = Literal["unbiased", "contractive", "neither"]
Weighting = Literal["examples", "uniform"]
"""What a client's update counts in the mean: its number of training examples, or the same as every other."""
State = Mapping[str, NDArray[Any]]
"""What a scheme remembers, by name. An absent entry is zero; arrays in it are never written to."""


@dataclass(frozen=True)
class Context:
    """What both ends know without being told: all shared randomness is a hash of it.

    reference: the last aggregate that the client decoded [P], or None before the first.
    """

    seed: int
    round: int
    client: ClientId
    layout: Layout
    reference: F32 | None = None


def kept_of(density: float, size: int) -> int:
    """k = max(1, round(density · P)), halves to even as Python's round."""
    return max(1, round(density * size))


class Update(ABC):
    """A decoded vector [P], in the form that is cheapest to add."""

    @property
    @abstractmethod
    def kept(self) -> int:
        """The number of coordinates that were sent."""

    @abstractmethod
    def add_to(self, out: NDArray[Any], weight: float) -> None:
        """out += weight · update, in place; the product is taken in out's dtype. out: [P]."""

    @abstractmethod
    def to_dense(self) -> F32:
        """The update as a new float32 [P]."""


@dataclass(frozen=True, eq=False)
class Dense(Update):
    """Every coordinate. values: [P]."""

    values: F32

    @property
    def kept(self) -> int:
        return len(self.values)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        out += self.values.astype(out.dtype, copy=False) * out.dtype.type(weight)

    def to_dense(self) -> F32:
        return self.values.copy()


@dataclass(frozen=True, eq=False)
class Sparse(Update):
    """k coordinates of `size` = P. indices: [k], strictly ascending; values: [k]; all others are zero."""

    indices: I64
    values: F32
    size: int

    @property
    def kept(self) -> int:
        return len(self.indices)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        out[self.indices] += self.values.astype(out.dtype, copy=False) * out.dtype.type(weight)

    def to_dense(self) -> F32:
        out = np.zeros(self.size, dtype=np.float32)
        out[self.indices] = self.values
        return out


@dataclass(frozen=True)
class Operator(Component, ABC):
    """Memoryless: a finite float32 vector to sections and back.

    Laws for all: decode(sections) equals the update that encode returned, bit for bit, is finite and of x's size; zero goes to
    zero; equal inputs give equal bytes; the sections hold every byte that is needed, weigh at most `max_bytes` and hold no
    slack; `kept` of the sections is the update's; no stretch of the vector is favoured.
    By kind, C(x) being what x decodes to: "unbiased": E[C(x)] = x; "contractive": |x − C(x)|² ≤ (1 − δ)|x|² with
    δ = `contraction`, on each call if `deterministic`, else in the mean over the shared randomness, and never more than
    |x|²; "neither": the docstring says what holds instead.
    """

    codec: ClassVar[int]
    """The compressor's id in the frame header: unique, never reused."""
    deterministic: ClassVar[bool] = True
    """False if the result depends on the context's shared randomness."""

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """Which law of the class docstring holds; may depend on hyper-parameters."""

    @abstractmethod
    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        """(the bytes, what they decode to). x: [P], finite; never written to."""

    @abstractmethod
    def decode(self, sections: Sections, ctx: Context) -> Update:
        """Inverse of `encode`; WireError for sections of wrong kind, length, range or finiteness, before they are expanded."""

    @abstractmethod
    def max_bytes(self, layout: Layout) -> int:
        """The most that the sections' payload can weigh, in any round."""

    @abstractmethod
    def contraction(self, layout: Layout) -> float:
        """δ of the contraction law, in (0, 1]; 0 if the operator is not contractive."""

    def kept(self, sections: Sections, ctx: Context) -> int:
        """The number of coordinates that valid sections carry; override it where that is known without decoding them."""
        return self.decode(sections, ctx).kept


@dataclass(frozen=True)
class Sent:
    """What `Scheme.send` leaves behind: the bytes, the next state if the server acknowledges, and if it does not."""

    sections: Sections
    state: State
    state_if_lost: State


@dataclass(frozen=True)
class Gathering:
    """What a scheme knows of the round whose replies it folds. clients: N, all there are, in the cohort or not."""

    seed: int
    round: int
    layout: Layout
    clients: int


@dataclass(frozen=True)
class Received:
    """One client's sections at the server. weight: its share of the mean, all shares of a round adding up to 1."""

    sections: Sections
    weight: float
    ctx: Context


@dataclass(frozen=True)
class Scheme(Component, ABC):
    """An operator in a federation: what is remembered, and by whom. It owns its frames: codec, max_bytes, kept.

    Law (telescoping), where `withheld` is not None: over any sequence of sends, acknowledged or lost, Σ x = Σ decoded and
    acknowledged + `withheld`; and what is withheld stays bounded. A state that was handed in or out is never written to.
    """

    op: Operator

    @property
    def codec(self) -> int:
        """The wire id of its frames; by default the operator's."""
        return self.op.codec

    def max_bytes(self, layout: Layout) -> int:
        """The most that the sections' payload can weigh, in any round."""
        return self.op.max_bytes(layout)

    def kept(self, sections: Sections, ctx: Context) -> int:
        """The number of coordinates that valid sections carry, without decoding them."""
        return self.op.kept(sections, ctx)

    @abstractmethod
    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        """Encode this round's update x [P] of one client, given what that client remembers."""

    @abstractmethod
    def withheld(self, state: State, layout: Layout) -> F32 | None:
        """What has been kept back so far and will still be sent [P]; None if the scheme keeps nothing back."""

    def decode(self, sections: Sections, ctx: Context) -> Update:
        """What one client's sections say."""
        return self.op.decode(sections, ctx)

    def fold(self, server: State, replies: Iterable[Received], gathering: Gathering) -> tuple[F32, State]:
        """(the cohort's update [P], the server's next state). By default the weighted mean, added up in float64 in the order
        of `replies`, which the caller makes ascending by client."""
        total = np.zeros(gathering.layout.size, dtype=np.float64)
        for reply in replies:
            self.decode(reply.sections, reply.ctx).add_to(total, reply.weight)
        return total.astype(np.float32), server
