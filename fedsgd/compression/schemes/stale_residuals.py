"""Decay or reset of residuals after missed rounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionScheme, EncodedUpdate
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.updates import StateArrays, Update
from fedsgd.config.component import Component, FieldError, FractionBelowOne, PositiveInt
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.vectors import scale_vector
from fedsgd.wire import Sections


@dataclass(frozen=True)
class StaleResidualPolicy(CompressionScheme):
    """A scheme whose residuals decay or are reset while a client is absent.

    A residual refers to an older model, and each missed round makes the residual less accurate. If every client takes part in
    every round, neither policy has an effect. Missed rounds are counted from the last round in which the client took part,
    whether its reply arrived or not.

    Attributes:
        scheme: scheme with residual entries in the client's state.
        policy: "decay" multiplies the residual by `factor` for each missed round; "reset" drops the residual after more than
            `rounds` missed rounds.
        factor: share of the residual that remains after a missed round.
        rounds: maximum number of missed rounds without a reset.
    """

    name: ClassVar[str] = "ageing"

    scheme: CompressionScheme
    policy: Literal["decay", "reset"] = "decay"
    factor: FractionBelowOne = 0.9
    rounds: PositiveInt = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scheme.residual_entries:
            raise FieldError(self.name, "scheme", f"{self.scheme.name} has no residual that could become stale")

    @property
    def codec(self) -> int:
        return self.scheme.codec

    @property
    def accepts_tensors(self) -> bool:
        return self.scheme.accepts_tensors

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        update = self.scheme.send(x, self._apply_policy(state, ctx.round), ctx)
        return EncodedUpdate(update.sections, {**update.state, "round": np.array(ctx.round)}, update.rollback)

    def _apply_policy(self, state: StateArrays, round: int) -> StateArrays:
        """Return the state with which the client encodes in `round`."""
        scheme_state = {name: value for name, value in state.items() if name != "round"}
        missed_rounds = max(0, round - int(state["round"]) - 1) if "round" in state else 0
        if self.policy == "reset" and missed_rounds > self.rounds:
            return {name: value for name, value in scheme_state.items() if name not in self.scheme.residual_entries}
        if self.policy == "decay" and missed_rounds:
            remaining_share = np.float32(self.factor**missed_rounds)
            return {
                name: scale_vector(value, remaining_share) if name in self.scheme.residual_entries else value
                for name, value in scheme_state.items()
            }
        return scheme_state

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return self.scheme.undelivered_update({name: value for name, value in state.items() if name != "round"}, layout)

    def residual(self, state: StateArrays) -> F32 | None:
        return self.scheme.residual(state)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return self.scheme.decode(sections, ctx)

    @property
    def aggregator(self) -> str | type[Component] | None:
        return self.scheme.aggregator

    def max_bytes(self, layout: ParameterLayout) -> int:
        return self.scheme.max_bytes(layout)

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return self.scheme.n_coordinates(sections, ctx)

    @property
    def has_independent_errors(self) -> bool:
        return self.scheme.has_independent_errors

    def check_layout(self, layout: ParameterLayout) -> None:
        self.scheme.check_layout(layout)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        return self.scheme.find_warnings(run)
