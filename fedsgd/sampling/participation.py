"""Who is asked in a round, and whose reply is taken."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from fedsgd.config.component import describe_value
from fedsgd.config.user_errors import make_component_error, wrap_user_errors
from fedsgd.numerics.rng import derive_generator
from fedsgd.sampling.base import CohortSampler, SampledCohort
from fedsgd.sampling.client_durations import DurationModel


def first_within_deadline(seconds: Mapping[int, float], max_replies: int, deadline: float | None) -> list[int]:
    """The clients whose replies are accepted, ascending: the first `target_cohort` of those that took at most `deadline`
    seconds.

    seconds: client → how long it took; of equally fast clients the lower one comes first. Over-selection takes the first m of
    more than m clients that were asked (Bonawitz et al. 2019, section 2.2). deadline: None for no such limit.
    """
    punctual = ((took, client) for client, took in seconds.items() if deadline is None or took <= deadline)
    return sorted(client for _, client in heapq.nsmallest(max_replies, punctual))


def is_lost(seed: int, round: int, client: int, probability: float) -> bool:
    """Whether a client's reply gets lost on the way, with `probability` in [0, 1]: each independently of all others."""
    return bool(derive_generator(seed, "dropout", round, client).random() < probability)


Delivery = Literal["received", "lost", "late", "refused"]
"""What became of a frame: it arrived and was taken; it never arrived; it came when the round was over; it could not be read."""


@dataclass(frozen=True, eq=False)
class ParticipationModel:
    """draw: of the clients that are asked. clients: N; wanted: m, the replies that a round takes at most; over_selection: how
    many times as many are asked; dropout: the probability that a reply gets lost; deadline: how long a round waits, in
    simulated seconds, None for as long as it takes; durations: how long clients take.

    Everything is a function of (seed, round): nobody's clock is read.
    """

    seed: int
    cohort_sampler: CohortSampler
    clients: int
    target_cohort: int
    over_selection: float = 1.0
    dropout: float = 0.0
    deadline: float | None = None
    durations: DurationModel | None = None

    @property
    def n_invited(self) -> int:
        """How many are asked in a round, where so many are available."""
        return min(self.clients, math.ceil(self.target_cohort * Fraction(str(self.over_selection))))  # 100 · 1.1 is above 110

    def sample_round(self, round: int) -> SampledCohort:
        """The clients that are sent a message in `round`."""
        return self.cohort_sampler(round, self.n_invited)

    def delivery_of(self, round: int, steps: Mapping[int, int]) -> dict[int, Delivery]:
        """What becomes of the replies that clients send in `round`. steps: of local training, by client. A reply that is lost
        is lost whatever it would have taken; one that comes too late is thrown away."""
        gone = {client for client in steps if is_lost(self.seed, round, client, self.dropout)} if self.dropout else set()
        there = [client for client in steps if client not in gone]
        taken = set(there)
        if self.deadline is not None or len(there) > self.target_cohort:
            taken = set(
                first_within_deadline(
                    {client: self.reply_seconds(round, client, steps[client]) for client in there},
                    self.target_cohort,
                    self.deadline,
                )
            )
        return {client: "lost" if client in gone else "received" if client in taken else "late" for client in steps}

    def reply_seconds(self, round: int, client: int, steps: int) -> float:
        """From when a client is sent the message of `round` until its reply is there, in simulated seconds."""
        if self.durations is None:
            return 0.0
        key = "participation.durations"
        with wrap_user_errors(key, self.durations, round):
            seconds: Any = self.durations.reply_seconds(self.seed, round, client, steps)
        if not isinstance(seconds, int | float | np.number) or not seconds >= 0:
            problem = f"client {client} takes {describe_value(seconds)} seconds, expected a number of at least 0"
            raise make_component_error(key, self.durations, problem, round)
        return float(seconds)
