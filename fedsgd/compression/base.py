"""The contracts of compression: operators without memory, schemes with it, and the updates they decode to.

P parameters, k kept coordinates. Vectors are flat float32 [P] in the order of `ParameterLayout`. The laws in the docstrings are
executable: `fedsgd.certification.operator_laws`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from fedsgd.compression.run_config import STALE_ROUNDS, RunConfig
from fedsgd.compression.updates import EntryPatch, StateArrays, Update, apply_rollback
from fedsgd.config.component import Component
from fedsgd.errors import WireError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import shared_key
from fedsgd.wire import Sections

ClientId = int
OperatorKind = Literal["unbiased", "contractive", "neither"]
Weighting = Literal["examples", "uniform"]
"""What a client's update counts in the mean: its number of training examples, or the same as every other."""


@dataclass(frozen=True)
class CodecContext:
    """What both ends know without being told: all shared randomness is a hash of it.

    reference: what the server sent along with the model for the scheme's use [P], None where it sent nothing; cohort: m, the
    number of clients whose updates are averaged; travelled: the sum of the step sizes of the client's local steps.
    """

    seed: int
    round: int
    client: ClientId
    layout: ParameterLayout
    reference: F32 | None = None
    cohort: int = 1
    learning_rate_sum: float = 1.0

    def derive_key(self, purpose: str) -> int:
        """The key of a shared randomness that is this client's in this round alone."""
        return shared_key(self.seed, purpose, self.round, self.client)


@dataclass(frozen=True)
class Compressor(Component, ABC):
    """An operator or a scheme: encoder of updates into sections, and decoder. It owns its frames: codec, size, decoded update.

    Laws of rounds, in which an operator is a scheme without memory (`round_laws`):

    * Another process that has nothing but the frames decodes them, in any order, to the same updates. No instance, class,
      module, file or environment variable holds a state.
    * The compressor neither draws from the global generators of `random`, numpy and torch nor reads or sets their states,
    even
      if it restores them.
    * A `aggregate` that returns no state returns Σ weight · decoded update, for any weights (that add up to 1 if
    `needs_normalized_weights`) and for
      no reply. A `aggregate` that returns a state takes two replies of half the weight for one reply; its scale is not tested.
    * An equal compressor that has nothing of the server but the reference frames encodes equal vectors to the same bytes.
    * `add_to` of a decoded update is out + weight · `to_dense()` up to rounding, for any weight, in float64 and float32.
    * Malformed sections are a WireError, or decode to a finite update of P coordinates whose `add_to` agrees with `to_dense`.
      The law accepts any other exception as well, and values that are not finite: neither is a silent fault.
    * `aggregate` writes to no state. The order of replies changes its result by rounding only, a second call not at all.
    """

    @property
    @abstractmethod
    def codec(self) -> int:
        """Its id in the frame header: a class variable of each member, unique, never reused."""

    @abstractmethod
    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        """Decode one client's sections; WireError for wrong kind, length, range or finiteness, before they are expanded.

        ctx: context of the server, which has no `reference`.
        """

    @abstractmethod
    def max_bytes(self, layout: ParameterLayout) -> int:
        """The most that the sections' payload can weigh, in any round."""

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        """The number of coordinates that valid sections carry; override it where that is known without decoding them."""
        return self.decode(sections, ctx).n_coordinates

    @property
    def has_independent_errors(self) -> bool:
        """False if clients share random numbers on purpose, so that their errors add up."""
        return True

    def check_layout(self, layout: ParameterLayout) -> None:
        """FieldError if a setting makes no sense for this model."""
        return

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Find the settings of a run that this compressor is not made for.

        Args:
            run: settings of the run.

        Returns:
            One line for each fault: the dotted key, the reason, and what to set instead. A class that overrides this method
            returns the lines of its parent class too.
        """
        return ()


@dataclass(frozen=True)
class CompressionOperator(Compressor):
    """Memoryless: a finite float32 vector to sections and back.

    Laws for all: decode(sections) equals the update that encode returned, bit for bit, is finite and of x's size; zero goes to
    zero; equal inputs give equal bytes, in whatever order
    calls are made; the sections hold every byte that is needed, weigh at most `max_bytes` and hold no
    slack; `n_coordinates` of the sections is the update's; no stretch of the vector is favoured, if it is `position_invariant`.
    Scale: the laws hold for every x with P · max|x| within float32's range. Beyond it `encode` may raise NonFiniteError, and an
    operator that is not contractive may overflow: the server refuses an aggregate that is not finite. Subnormal numbers may be
    flushed to zero: each coordinate may lose 2⁻¹²⁶, the smallest normal number, in addition to what a law allows.
    Independence, if it is `has_independent_errors`: errors of one x in contexts that differ in seed, round or client have no
    positive
    correlation. So the mean of m errors has at most 1/m of the variance. Negative correlation is legal.
    By kind, C(x) being what x decodes to: "unbiased": E[C(x)] = x, and where `variance` is known, E|C(x) − x|² is it;
    "contractive": |x − C(x)|² ≤ (1 − δ)|x|² + A with δ = `contraction` and A = `absolute_error`, on each call if
    `deterministic`, else
    in the mean over the shared randomness, and never more than |x|²; "neither": the docstring says what holds instead.
    """

    @property
    def deterministic(self) -> bool:
        """False if the result depends on the context's shared randomness."""
        return True

    @property
    def lossless(self) -> bool:
        """True if nothing is ever lost: unbiased and contractive at once."""
        return False

    @property
    def position_invariant(self) -> bool:
        """False if it treats some stretches of the vector differently on purpose."""
        return True

    @property
    @abstractmethod
    def kind(self) -> OperatorKind:
        """Which law of the class docstring holds; may depend on hyper-parameters."""

    @abstractmethod
    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        """(the bytes, what they decode to). x: [P], finite; never written to."""

    @abstractmethod
    def contraction(self, layout: ParameterLayout) -> float:
        """δ of the contraction law, in (0, 1]; 0 if the operator is not contractive."""

    def absolute_error(self, layout: ParameterLayout) -> float:
        """A of the contraction law: the energy that may be lost however small the update is."""
        return 0.0

    def variance(self, x: F32) -> float | None:
        """E|C(x) − x|² of an unbiased operator exactly; None where there is no closed form."""
        return None

    def is_lossy(self, layout: ParameterLayout) -> bool:
        """Return whether the operator is biased and may leave out half of an update's energy, or any small coordinate."""
        biased = self.kind == "contractive" and not self.lossless
        return biased and (self.contraction(layout) < 0.5 or self.absolute_error(layout) > 0)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn where a lossy operator has no error feedback, unless residuals would be stale."""
        if run.error_feedback == "none" and run.rounds_between_participations < STALE_ROUNDS and self.is_lossy(run.layout):
            yield (
                f'{run.feedback_key} = "none": {self.name} is biased, and what it leaves out of an update is lost '
                f'(Karimireddy et al. 2019); set {run.feedback_key} = "persist"'
            )


@dataclass(frozen=True)
class EncodedUpdate:
    """What `CompressionScheme.send` leaves behind: the bytes, the next state if the server acknowledges, and how that state
    differs if it
    does not. undo: name → the entries to write back, or None for an entry of the state that is to go."""

    sections: Sections
    state: StateArrays
    rollback: Mapping[str, EntryPatch | None]

    @property
    def state_if_lost(self) -> StateArrays:
        """The next state if the reply never arrives."""
        return apply_rollback(self.state, self.rollback)


@dataclass(frozen=True)
class AggregationContext:
    """What a scheme knows of the round whose replies it folds. clients: N, all there are, in the cohort or not."""

    seed: int
    round: int
    layout: ParameterLayout
    clients: int


@dataclass(frozen=True)
class WeightedUpdate:
    """One client's sections at the server. weight: its share of the mean. The shares of a round add up to 1, but where they are
    corrected for chances of taking part, or for how far local steps go."""

    sections: Sections
    weight: float
    ctx: CodecContext


@dataclass(frozen=True)
class CompressionScheme(Compressor):
    """Compression with a memory, at the client, at the server or at both: what is remembered, and by whom.

    Law (telescoping), where `undelivered_update` is not None: over any sequence of sends, acknowledged or lost, Σ x = Σ
    decoded and
    acknowledged + `undelivered_update` in each coordinate, up to rounding; and what is withheld stays bounded. A state that
    was handed in
    or out is never written to.
    Law (lost replies): after a lost reply no entry of the `residual_entries` is missing, or zero where the update was not zero.
    """

    needs_uniform_weights: ClassVar[bool] = False
    """True if the server's arithmetic needs every client to weigh the same."""
    needs_normalized_weights: ClassVar[bool] = False
    """True if the server's arithmetic needs shares that add up to 1."""
    server_mirrors_clients: ClassVar[bool] = False
    """True if the server keeps the sum of something that each client keeps too: then a client that lost its state cannot go on,
    and what it keeps may not be rounded."""
    corrects_gradients: ClassVar[bool] = False
    """True if clients train with a correction of each gradient: `gradient_correction`."""
    steps_without_replies: ClassVar[bool] = False
    """True if a round without replies steps too, with the update that `aggregate` returns for no replies."""
    residual_entries: ClassVar[tuple[str, ...]] = ()
    """The entries of a client's state that are updates not sent yet, and so grow stale while it is away; the last of them is
    what is held back."""

    @abstractmethod
    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        """Encode this round's update x [P] of one client, given what that client remembers."""

    @abstractmethod
    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        """What has been kept back so far and will still be sent [P]; None if the scheme keeps nothing back, or changes it."""

    def residual(self, state: StateArrays) -> F32 | None:
        """What a client has accumulated and not sent [P]; None if it has nothing of the kind. Unlike `undelivered_update`,
        this may be
        changed before it is sent."""
        return state.get(self.residual_entries[-1]) if self.residual_entries else None

    def gradient_correction(self, state: StateArrays, ctx: CodecContext) -> F32 | None:
        """What a client adds to each gradient of its local training in this round [P], given what it remembers."""
        return None

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn where residuals persist although clients take part so rarely that they are stale."""
        returns = run.rounds is None or run.rounds >= run.rounds_between_participations
        if (
            self.residual_entries
            and run.error_feedback in ("none", "persist")
            and returns
            and run.rounds_between_participations >= STALE_ROUNDS
        ):
            yield (
                f"{run.feedback_key}: a client takes part every {run.rounds_between_participations:.0f} rounds in the mean, "
                "and a residual "
                f'that persists is as old; set {run.feedback_key} = "decay" or "reset", or have more clients in a round'
            )

    def aggregate(
        self, server_state: StateArrays, replies: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        """Return the cohort's update [P] and the server's next state; by default the weighted mean.

        replies: none or more, ascending by client; they can be iterated over once.
        """
        return self.weighted_mean(replies, ctx.layout), server_state

    def weighted_mean(self, replies: Iterable[WeightedUpdate], layout: ParameterLayout) -> F32:
        """The weighted mean [P] of what the replies decode to, added up in float64 in their order, which the caller makes
        ascending by client."""
        total = np.zeros(layout.size, dtype=np.float64)
        for reply in replies:
            self.decode(reply.sections, reply.ctx).add_to(total, reply.weight)
        return total.astype(np.float32)

    def encode_reference(self, server_state: StateArrays, ctx: CodecContext) -> Sections:
        """What every client of the coming round is sent beside the model; by default nothing."""
        return ()

    def max_reference_bytes(self, layout: ParameterLayout) -> int:
        """The most that `encode_reference` can weigh."""
        return 0

    def decode_reference(self, sections: Sections, ctx: CodecContext) -> F32 | None:
        """What `encode_reference` sent, at the client: its `CodecContext.reference`."""
        raise WireError(sections[0].offset if sections else 0, f"{self.name} expects nothing beside the model")


@dataclass(frozen=True)
class OperatorScheme(CompressionScheme):
    """A scheme whose frames are an operator's."""

    op: CompressionOperator

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return self.op.decode(sections, ctx)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return self.op.max_bytes(layout)

    @property
    def has_independent_errors(self) -> bool:
        return self.op.has_independent_errors

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return self.op.n_coordinates(sections, ctx)

    def check_layout(self, layout: ParameterLayout) -> None:
        self.op.check_layout(layout)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Return the scheme's warnings, and those of the operator, whose losses the scheme makes up for."""
        within = replace(run, key=f"{run.key}.op", error_feedback="persist")
        return [*super().find_warnings(run), *self.op.find_warnings(within)]
