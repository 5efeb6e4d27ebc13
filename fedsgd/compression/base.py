"""Base classes of compressors: operators without memory and schemes with memory.

P parameters, k coordinates of a sparse update. Vectors are flat float32 [P] in the order of `ParameterLayout`. The laws in the
docstrings are executable: `fedsgd.certification.operator_laws`, `scheme_laws` and `round_laws`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fedsgd.compression.run_config import STALE_ROUNDS, RunConfig
from fedsgd.compression.updates import EntryPatch, StateArrays, Update, apply_rollback
from fedsgd.config.component import Component
from fedsgd.config.registry import is_builtin
from fedsgd.errors import WireError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import shared_key
from fedsgd.wire import Sections

ClientId = int
"""Number of a client, 0 to N − 1."""
OperatorKind = Literal["unbiased", "contractive", "neither"]
"""Law that an operator obeys: see `CompressionOperator`."""
PLUGIN_CODEC = 255
"""Codec id in the frames of every plugin that has a format of its own."""
Weighting = Literal["examples", "uniform"]
"""Aggregation weight of a client: proportional to its number of training examples, or equal for all clients."""


@dataclass(frozen=True)
class CodecContext:
    """Context of one client's update, from which all shared randomness is hashed.

    Sender and receiver derive the context independently; no frame contains it.

    Attributes:
        seed, round, client: seed of the run, number of the round from 1, and number of the client from 0.
        layout: tensors of the vector, P numbers.
        reference: [P] float32, vector that the server sent with the model; None if it sent none, and in the server's context.
        cohort: C, number of clients whose updates are averaged.
        learning_rate_sum: sum of the learning rates of the client's local steps.
    """

    seed: int
    round: int
    client: ClientId
    layout: ParameterLayout
    reference: F32 | None = None
    cohort: int = 1
    learning_rate_sum: float = 1.0

    def derive_key(self, purpose: str) -> int:
        """Return the key of a random sequence that belongs to this client and round alone.

        Args:
            purpose: name of the sequence, such as "rounding".
        """
        return shared_key(self.seed, purpose, self.round, self.client)


@dataclass(frozen=True)
class Compressor(Component, ABC):
    """Operator or scheme: encoder of updates into the sections of a frame, and their decoder.

    Laws of rounds (`round_laws`). For these laws an operator is a scheme without memory:

    * Another process that has only the frames decodes them, in any order, to the same updates. No instance, class, module,
      file or environment variable holds a state.
    * The compressor neither draws from the global generators of `random`, numpy and torch nor reads or sets their states, even
      if it restores them.
    * A scheme's own aggregator that returns no state returns Σ weight · decoded update, for any weights that it accepts and for
      no reply. One that returns a state treats two replies of half the weight as one reply. Its scale is not tested.
    * An equal compressor that has only the server's reference frames encodes equal vectors to the same bytes.
    * `add_to` of a decoded update is out + weight · `to_dense()` up to rounding, for any weight, in float64 and float32.
    * Malformed sections raise WireError, or decode to a finite update of P coordinates whose `add_to` agrees with `to_dense`.
      The law also accepts any other exception, and values that are not finite: neither is a silent fault.
    * The aggregator writes to no state. The order of replies changes its result by rounding only; a second call not at all.
    """

    @property
    def codec(self) -> int:
        """Codec id in the frame header. Ids of built-in formats are class variables, unique, and never reused.

        A plugin has the id of the built-in class that it inherits `decode` from, and PLUGIN_CODEC for a `decode` of its own,
        whatever id it states. The receiver of a frame with PLUGIN_CODEC knows the plugin's class from the scenario.
        """
        return PLUGIN_CODEC

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if is_builtin(cls):
            return
        if {"encode", "send"} & vars(cls).keys() and "accepts_tensors" not in vars(cls):
            # the method that accepted them is replaced; in place of the property, which mypy takes for a change of the property
            cls.accepts_tensors = False  # type: ignore[assignment, method-assign]
        if "codec" in vars(cls):
            del cls.codec
        decoder_owner = next(parent for parent in cls.__mro__ if "decode" in vars(parent))
        if not is_builtin(decoder_owner):
            # in place of the property, as in the built-in classes; mypy takes it for a change of the property itself
            cls.codec = PLUGIN_CODEC  # type: ignore[assignment, method-assign]

    @property
    def accepts_tensors(self) -> bool:
        """True if `encode` and `send` also take torch tensors of any device; then a state has tensors, too.

        The sections are those of an array with the same numbers.
        """
        return False

    @abstractmethod
    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        """Decode the sections of one client. Raise WireError for malformed sections, before they are expanded.

        Args:
            sections: sections of the frame; they may be malformed.
            ctx: context at the server, which has no `reference`.
        """

    @abstractmethod
    def max_bytes(self, layout: ParameterLayout) -> int:
        """Return the maximum size of the sections' payload in bytes, in any round.

        Args:
            layout: tensors of the vector, P numbers.
        """

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        """Return the number of coordinates in valid sections. Override this method if they can be counted without decoding.

        Args:
            sections: valid sections of one client.
            ctx: context at the server.
        """
        return self.decode(sections, ctx).n_coordinates

    @property
    def has_independent_errors(self) -> bool:
        """False if clients share random numbers on purpose, so that their errors add up."""
        return True

    def check_layout(self, layout: ParameterLayout) -> None:
        """Raise FieldError if a setting does not fit the model.

        Args:
            layout: tensors of the vector, P numbers.
        """
        return

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Return one line for each setting of a run that does not suit this compressor.

        A line has the dotted key, the reason, and the setting to use instead. An override also returns its base class's lines.

        Args:
            run: settings of the run.
        """
        return ()


@dataclass(frozen=True)
class CompressionOperator(Compressor):
    """Compressor without memory: maps a finite float32 vector to sections and back.

    Laws of all operators:

    * `decode` of the sections equals the update that `encode` returned, bit for bit. The update is finite and has x's size.
    * Zero decodes to zero. Equal inputs give equal bytes, in any order of calls.
    * The sections hold every byte that decoding needs. They have no slack and at most `max_bytes` bytes.
    * `n_coordinates` of the sections is the update's.
    * No positions are favoured, if the operator is `position_invariant`.
    * Scale: the laws hold for every x with P · max|x| within float32's range. Beyond it `encode` may raise NonFiniteError, and
      an operator that is not contractive may overflow. The server rejects an aggregate that is not finite.
    * Subnormal numbers may be flushed to zero: in addition to what a law allows, each coordinate may lose 2⁻¹²⁶, the smallest
      normal number.
    * Independence, if the operator `has_independent_errors`: the errors of one x in two contexts have no positive correlation
      if the contexts differ in seed, round or client. So the mean of n errors has at most 1/n of the variance. Negative
      correlation is legal.

    Laws by kind; C(x) is the decoded vector:

    * "unbiased": E[C(x)] = x. Where `variance` is not None, it is E|C(x) − x|².
    * "contractive": |x − C(x)|² ≤ (1 − δ)|x|² + A with δ = `contraction` and A = `absolute_error`. The law holds on each call
      if the operator is `deterministic`, else in the mean over the shared randomness. The error is never more than |x|².
    * "neither": the operator's docstring states the law.
    """

    @property
    def deterministic(self) -> bool:
        """False if the decoded vector depends on the context's shared randomness."""
        return True

    @property
    def lossless(self) -> bool:
        """True if C(x) = x for every x: the operator is then unbiased and contractive."""
        return False

    @property
    def position_invariant(self) -> bool:
        """False if the operator treats some positions of the vector differently on purpose."""
        return True

    @property
    @abstractmethod
    def kind(self) -> OperatorKind:
        """Law of the class docstring that holds; it may depend on hyper-parameters."""

    @abstractmethod
    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        """Encode a vector; return the sections, and the update that the sections decode to.

        Raise NonFiniteError if a number that has to be sent leaves float32's range.

        Args:
            x: [P] float32, finite; never written to.
            ctx: context of the client.
        """

    @abstractmethod
    def contraction(self, layout: ParameterLayout) -> float:
        """Return δ of the contraction law, in (0, 1]; 0 if the operator is not contractive.

        Args:
            layout: tensors of the vector, P numbers.
        """

    def absolute_error(self, layout: ParameterLayout) -> float:
        """Return A of the contraction law: the energy that may be lost even of a very small update.

        Args:
            layout: tensors of the vector, P numbers.
        """
        return 0.0

    def variance(self, x: F32) -> float | None:
        """Return E|C(x) − x|² of an unbiased operator exactly; None if there is no closed form.

        Args:
            x: [P] float32, vector to encode.
        """
        return None

    def is_lossy(self, layout: ParameterLayout) -> bool:
        """Return whether the operator is biased and may drop half of an update's energy, or any small coordinate.

        Args:
            layout: tensors of the vector, P numbers.
        """
        biased = self.kind == "contractive" and not self.lossless
        return biased and (self.contraction(layout) < 0.5 or self.absolute_error(layout) > 0)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn of a lossy operator without error feedback, unless residuals would be stale."""
        if run.error_feedback == "none" and run.rounds_between_participations < STALE_ROUNDS and self.is_lossy(run.layout):
            yield (
                f'{run.feedback_key} = "none": {self.name} is biased, and the part of an update that it drops is lost '
                f'(Karimireddy et al. 2019); set {run.feedback_key} = "persist"'
            )


@dataclass(frozen=True)
class DenseOperator(CompressionOperator):
    """Operator whose decoded vector has all P coordinates; not contractive, unless a member overrides `contraction`."""

    def contraction(self, layout: ParameterLayout) -> float:
        return 0.0

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return ctx.layout.size


@dataclass(frozen=True)
class EncodedUpdate:
    """Result of `CompressionScheme.send`.

    Attributes:
        sections: sections of the encoded update.
        state: client's next state if the server acknowledges the update.
        rollback: patches that turn `state` into the next state for a lost update, by name of the entry; None removes the entry.
    """

    sections: Sections
    state: StateArrays
    rollback: Mapping[str, EntryPatch | None]

    @property
    def state_if_lost(self) -> StateArrays:
        """Client's next state if the update is lost."""
        return apply_rollback(self.state, self.rollback)


@dataclass(frozen=True)
class CompressionScheme(Compressor):
    """Compressor with memory, at the client, at the server or at both.

    Laws:

    * Telescoping, where `undelivered_update` is not None: over any sequence of sends, acknowledged or lost, Σ x = Σ decoded and
      acknowledged + `undelivered_update` in each coordinate, up to rounding. The undelivered update stays bounded.
    * A state that was passed in or returned is never written to.
    * Lost replies: after a lost reply no entry of `residual_entries` is missing, or zero where the update was not zero.
    """

    server_mirrors_clients: ClassVar[bool] = False
    """True if the server stores the sum of a vector that each client stores too: no client may lose its state or round it."""
    corrects_gradients: ClassVar[bool] = False
    """True if clients add `gradient_correction` to each gradient of local training."""
    residual_entries: ClassVar[tuple[str, ...]] = ()
    """State entries of a client that hold unsent updates and become stale in its absence; the last entry is the residual."""

    @property
    def aggregator(self) -> str | type[Component] | None:
        """Aggregator that is the server half of this scheme: its name or its class. None: any aggregator of decoded updates."""
        return None

    @abstractmethod
    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        """Encode the update of one client. Raise NonFiniteError if a number that has to be sent leaves float32's range.

        Args:
            x: [P] float32, update of this round; never written to.
            state: client's state, empty before its first update; never written to.
            ctx: context of the client.
        """

    @abstractmethod
    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        """Return the part of past updates that will be sent later, [P] float32.

        None if the scheme withholds nothing, or changes the part that it withholds.

        Args:
            state: client's state.
            layout: tensors of the vector, P numbers.
        """

    def residual(self, state: StateArrays) -> F32 | None:
        """Return a client's residual, [P] float32, or None. A scheme may change a residual before it is sent.

        Args:
            state: client's state.
        """
        return state.get(self.residual_entries[-1]) if self.residual_entries else None

    def gradient_correction(self, state: StateArrays, ctx: CodecContext) -> F32 | None:
        """Return the vector that a client adds to each gradient of local training, [P] float32; None for no correction.

        Args:
            state: client's state.
            ctx: context of the client.
        """
        return None

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn of residuals that persist although clients take part so rarely that residuals are stale."""
        interval = run.rounds_between_participations
        clients_return = run.rounds is None or run.rounds >= interval
        residuals_persist = bool(self.residual_entries) and run.error_feedback in ("none", "persist")
        if residuals_persist and clients_return and interval >= STALE_ROUNDS:
            yield (
                f"{run.feedback_key}: a client takes part every {interval:.0f} rounds on average, and residuals that persist "
                f'are {interval:.0f} rounds old; set {run.feedback_key} = "decay" or "reset", or sample more clients in a round'
            )

    def encode_reference(self, aggregator_state: StateArrays, ctx: CodecContext) -> Sections:
        """Encode the vector that the server sends to every client with the model; by default no sections.

        Args:
            aggregator_state: state of the scheme's aggregator.
            ctx: context of the coming round.
        """
        return ()

    def max_reference_bytes(self, layout: ParameterLayout) -> int:
        """Return the maximum payload size of `encode_reference` in bytes.

        Args:
            layout: tensors of the vector, P numbers.
        """
        return 0

    def decode_reference(self, sections: Sections, ctx: CodecContext) -> F32 | None:
        """Decode the sections of `encode_reference` at a client, for `CodecContext.reference`.

        Args:
            sections: sections of the REFERENCE frame; they may be malformed.
            ctx: context of the coming round.
        """
        raise WireError(sections[0].offset if sections else 0, f"{self.name} expects no REFERENCE frame")


@dataclass(frozen=True)
class OperatorScheme(CompressionScheme):
    """Scheme whose frames an operator encodes and decodes.

    Attributes:
        op: operator of the frames.
    """

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
        """Return the scheme's warnings, and the operator's as if the operator had error feedback."""
        operator_run = replace(run, key=f"{run.key}.op", error_feedback="persist")
        return [*super().find_warnings(run), *self.op.find_warnings(operator_run)]
