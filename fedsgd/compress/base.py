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
from fedsgd.errors import WireError
from fedsgd.layout import Layout
from fedsgd.rng import shared_key
from fedsgd.vectors import scatter_add
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

    reference: what the server sent along with the model for the scheme's use [P], None where it sent nothing; cohort: m, the
    number of clients whose updates are averaged.
    """

    seed: int
    round: int
    client: ClientId
    layout: Layout
    reference: F32 | None = None
    cohort: int = 1

    def key(self, purpose: str) -> int:
        """The key of a shared randomness that is this client's in this round alone."""
        return shared_key(self.seed, purpose, self.round, self.client)


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
        if out.dtype == np.float64:
            scatter_add(out, self.indices, self.values, float(weight))
        else:
            out[self.indices] += self.values.astype(out.dtype, copy=False) * out.dtype.type(weight)

    def to_dense(self) -> F32:
        out = np.zeros(self.size, dtype=np.float32)
        out[self.indices] = self.values
        return out


@dataclass(frozen=True)
class Compressor(Component, ABC):
    """What turns updates into sections: an operator or a scheme. It owns its frames: codec, size, what they decode to."""

    @property
    @abstractmethod
    def codec(self) -> int:
        """Its id in the frame header: a class variable of each member, unique, never reused."""

    @abstractmethod
    def decode(self, sections: Sections, ctx: Context) -> Update:
        """What one client's sections say; WireError for sections of wrong kind, length, range or finiteness, before they are
        expanded."""

    @abstractmethod
    def max_bytes(self, layout: Layout) -> int:
        """The most that the sections' payload can weigh, in any round."""

    def kept(self, sections: Sections, ctx: Context) -> int:
        """The number of coordinates that valid sections carry; override it where that is known without decoding them."""
        return self.decode(sections, ctx).kept

    def check_layout(self, layout: Layout) -> None:
        """FieldError if a setting makes no sense for this model."""
        return


@dataclass(frozen=True)
class Operator(Compressor):
    """Memoryless: a finite float32 vector to sections and back.

    Laws for all: decode(sections) equals the update that encode returned, bit for bit, is finite and of x's size; zero goes to
    zero; equal inputs give equal bytes; the sections hold every byte that is needed, weigh at most `max_bytes` and hold no
    slack; `kept` of the sections is the update's; no stretch of the vector is favoured, if it is `even`.
    By kind, C(x) being what x decodes to: "unbiased": E[C(x)] = x, and where `variance` is known, E|C(x) − x|² is it;
    "contractive": |x − C(x)|² ≤ (1 − δ)|x|² + A with δ = `contraction` and A = `floor`, on each call if `deterministic`, else
    in the mean over the shared randomness, and never more than |x|²; "neither": the docstring says what holds instead.
    """

    @property
    def deterministic(self) -> bool:
        """False if the result depends on the context's shared randomness."""
        return True

    @property
    def exact(self) -> bool:
        """True if nothing is ever lost: unbiased and contractive at once."""
        return False

    @property
    def even(self) -> bool:
        """False if it treats some stretches of the vector differently on purpose."""
        return True

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """Which law of the class docstring holds; may depend on hyper-parameters."""

    @abstractmethod
    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        """(the bytes, what they decode to). x: [P], finite; never written to."""

    @abstractmethod
    def contraction(self, layout: Layout) -> float:
        """δ of the contraction law, in (0, 1]; 0 if the operator is not contractive."""

    def floor(self, layout: Layout) -> float:
        """A of the contraction law: the energy that may be lost however small the update is."""
        return 0.0

    def variance(self, x: F32) -> float | None:
        """E|C(x) − x|² of an unbiased operator exactly; None where there is no closed form."""
        return None


@dataclass(frozen=True, eq=False)
class Patch:
    """Entries of a vector to write back. indices: [k], or None for all of them; values: [k] or [P]."""

    indices: I64 | None
    values: NDArray[Any]

    def written_to(self, vector: NDArray[Any]) -> NDArray[Any]:
        """A copy of `vector` with the entries in place."""
        if self.indices is None:
            return self.values
        out = vector.copy()
        out[self.indices] = self.values
        return out


def patch(before: NDArray[Any], update: Update) -> Patch:
    """What undoes, in a vector that was `before`, whatever was done to it where `update` has coordinates."""
    if isinstance(update, Sparse):
        return Patch(update.indices, before[update.indices])
    return Patch(None, before)


@dataclass(frozen=True)
class Sent:
    """What `Scheme.send` leaves behind: the bytes, the next state if the server acknowledges, and how that state differs if it
    does not. undo: name → the entries to write back, or None for an entry of the state that is to go."""

    sections: Sections
    state: State
    undo: Mapping[str, Patch | None]

    @property
    def state_if_lost(self) -> State:
        """The next state if the reply never arrives."""
        return undone(self.state, self.undo)


def undone(state: State, undo: Mapping[str, Patch | None]) -> State:
    """`state` with the patches of `undo`, as new arrays where they differ."""
    out = dict(state)
    for name, patch in undo.items():
        if patch is None:
            out.pop(name, None)
        else:
            out[name] = patch.written_to(out[name]) if name in out else patch.values
    return out


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
class Scheme(Compressor):
    """Compression with a memory, at the client, at the server or at both: what is remembered, and by whom.

    Law (telescoping), where `withheld` is not None: over any sequence of sends, acknowledged or lost, Σ x = Σ decoded and
    acknowledged + `withheld`; and what is withheld stays bounded. A state that was handed in or out is never written to.
    """

    uniform: ClassVar[bool] = False
    """True if the server's arithmetic needs every client to weigh the same."""

    @abstractmethod
    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        """Encode this round's update x [P] of one client, given what that client remembers."""

    @abstractmethod
    def withheld(self, state: State, layout: Layout) -> F32 | None:
        """What has been kept back so far and will still be sent [P]; None if the scheme keeps nothing back, or changes it."""

    def fold(self, server: State, replies: Iterable[Received], gathering: Gathering) -> tuple[F32, State]:
        """(the cohort's update [P], the server's next state). By default the weighted mean."""
        return self.mean(replies, gathering.layout), server

    def mean(self, replies: Iterable[Received], layout: Layout) -> F32:
        """The weighted mean [P] of what the replies decode to, added up in float64 in their order, which the caller makes
        ascending by client."""
        total = np.zeros(layout.size, dtype=np.float64)
        for reply in replies:
            self.decode(reply.sections, reply.ctx).add_to(total, reply.weight)
        return total.astype(np.float32)

    def downlink(self, server: State, ctx: Context) -> Sections:
        """What every client of the coming round is sent beside the model; by default nothing."""
        return ()

    def max_downlink(self, layout: Layout) -> int:
        """The most that `downlink` can weigh."""
        return 0

    def read_downlink(self, sections: Sections, ctx: Context) -> F32 | None:
        """What `downlink` sent, at the client: its `Context.reference`."""
        if sections:
            raise WireError(sections[0].offset, f"{self.name} expects nothing beside the model")
        return None


@dataclass(frozen=True)
class OperatorScheme(Scheme):
    """A scheme whose frames are an operator's."""

    op: Operator

    def decode(self, sections: Sections, ctx: Context) -> Update:
        return self.op.decode(sections, ctx)

    def max_bytes(self, layout: Layout) -> int:
        return self.op.max_bytes(layout)

    def kept(self, sections: Sections, ctx: Context) -> int:
        return self.op.kept(sections, ctx)

    def check_layout(self, layout: Layout) -> None:
        self.op.check_layout(layout)
