"""Base class of aggregators, which turn the encoded updates of a round into one update.

C updates of P parameters. x_i is the decoded update of client i, p_i its aggregation weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedsgd.compression import CodecContext, CompressionScheme, StateArrays
from fedsgd.compression.updates import Update
from fedsgd.config.component import Component, FieldError
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Sections

AcceptedWeights = Literal["any", "normalized", "equal"]
"""Weights that an aggregator can use: any; weights that add up to 1; equal weights that add up to 1."""

AggregationResult = tuple[F32, StateArrays]
"""The aggregate [P], and the server's next state."""


@dataclass(frozen=True)
class WeightedUpdate:
    """Encoded update of one client at the server, with its aggregation weight.

    Attributes:
        sections: sections of the encoded update.
        weight: p_i. The weights of a round add up to 1, unless they are corrected for inclusion probabilities or for the
            length of local training.
        ctx: context of the client, without `reference`.
    """

    sections: Sections
    weight: float
    ctx: CodecContext


@dataclass(frozen=True)
class AggregationContext:
    """Context of the round whose updates are aggregated.

    Attributes:
        seed: seed of the run.
        round: number of the round, from 1.
        layout: tensors of the vector, P numbers.
        n_clients: N, number of registered clients, in the cohort or not.
        scheme: scheme that encoded the updates.
    """

    seed: int
    round: int
    layout: ParameterLayout
    n_clients: int
    scheme: CompressionScheme

    def decode(self, update: WeightedUpdate) -> Update:
        """Decode an update. Raise WireError if its sections are malformed.

        Args:
            update: encoded update of this round.
        """
        return self.scheme.decode(update.sections, update.ctx)


@dataclass(frozen=True)
class Aggregator(Component, ABC):
    """Rule that combines the updates of a round, and the server's state between rounds.

    Laws, which `fedsgd.testing.check_aggregator` checks:

    * Updates are passed in ascending order of their clients. If the clients exchange their updates, the aggregate changes by
      rounding only.
    * If all clients send the update u, the aggregate of a rule without state is u up to rounding, for weights that add up to 1,
      unless the rule clips u to a fixed norm.
    * Breakdown: if at most `tolerated(C)` of C updates are replaced by arbitrary ones, the aggregate stays within a distance
      of the others that does not depend on the size of the replaced ones.
    * A state that was passed in is never written to. A second call with equal arguments returns equal bits.
    """

    accepted_weights: ClassVar[AcceptedWeights] = "any"
    scheme_type: ClassVar[type[CompressionScheme] | None] = None
    """Class of the scheme whose server half the rule is; None if it aggregates the updates of any scheme without one."""
    steps_without_replies: ClassVar[bool] = False
    """True if the server also steps in a round without replies, with the aggregate of no updates."""

    def init_state(self, layout: ParameterLayout) -> StateArrays:
        """Return the server's state before round 1.

        Args:
            layout: tensors of the vector, P numbers.
        """
        return {}

    @abstractmethod
    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        """Aggregate the updates of a round.

        Args:
            state: the server's state; never written to.
            updates: updates of the cohort, ascending by client. They can be iterated over once.
                `ctx.decode(update)` decodes one.
            ctx: context of the round.

        Raises:
            WireError: the sections of an update are malformed.
        """

    def tolerated(self, n_updates: int) -> int:
        """Return the maximum number of hostile updates among C for which the breakdown law holds.

        Args:
            n_updates: C, number of updates.
        """
        return 0

    def max_working_bytes(self, layout: ParameterLayout, n_updates: int) -> int:
        """Return the maximum memory of `aggregate` in bytes, in addition to the encoded updates and a few vectors [P].

        Args:
            layout: tensors of the vector, P numbers.
            n_updates: C, maximum number of updates in a round.
        """
        return 0

    def check_cohort(self, n_updates: int) -> None:
        """Raise FieldError if a setting does not fit the size of the cohort.

        Args:
            n_updates: C, maximum number of updates in a round.
        """
        return

    def check_scheme(self, scheme: CompressionScheme) -> None:
        """Raise FieldError if the rule belongs to another scheme.

        Args:
            scheme: scheme that encodes the updates.
        """
        if self.scheme_type is not None and not isinstance(scheme, self.scheme_type):
            problem = f'got "{self.name}" with the compressor {scheme.name}, expected the compressor {self.scheme_type.name}'
            raise FieldError("server", "aggregator", problem)


def weighted_sum(updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> F64:
    """Return Σ p_i x_i [P] float64, added up in the order of the updates.

    Args:
        updates: updates of the cohort. The caller sorts them by client, so that the sum does not depend on their arrival.
        ctx: context of the round.
    """
    total = np.zeros(ctx.layout.size, dtype=np.float64)
    for update in updates:
        ctx.decode(update).add_to(total, update.weight)
    return total
