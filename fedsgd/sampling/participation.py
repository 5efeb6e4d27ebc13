"""Participation of clients: the cohort of a round, and the delivery of its replies."""

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
    """Return the clients whose replies are accepted, ascending: the first `max_replies` within `deadline` seconds (None: any).

    Over-selection accepts the first m of more than m invited clients (Bonawitz et al. 2019, section 2.2). Of clients with equal
    durations, the client with the lowest number is first.

    >>> first_within_deadline({0: 4.0, 1: 2.0, 2: 9.0, 3: 4.0}, max_replies=2, deadline=5.0)
    [0, 1]
    """
    punctual_replies = ((duration, client) for client, duration in seconds.items() if deadline is None or duration <= deadline)
    return sorted(client for _, client in heapq.nsmallest(max_replies, punctual_replies))


def is_lost(seed: int, round: int, client: int, probability: float) -> bool:
    """Return whether a client's reply is lost, with `probability` in [0, 1], independently of all other replies."""
    return bool(derive_generator(seed, "dropout", round, client).random() < probability)


Delivery = Literal["received", "lost", "late", "refused", "diverged", "dropped"]
"""Outcome of a delivery, in this order: accepted; lost; late; unreadable, or of a failed round; nothing sent, because the
update was not finite; nothing sent by a dropped straggler.
"""


@dataclass(frozen=True, eq=False)
class ParticipationModel:
    """Model of each round's clients and of the delivery of their replies. No clock is read.

    Attributes:
        seed, cohort_sampler: seed of the scenario, and function that draws the cohorts.
        clients: N, number of registered clients.
        target_cohort: m, maximum number of replies that a round accepts.
        over_selection: number of invited clients divided by m; the number is rounded up, and at most N.
        dropout: probability that a reply is lost.
        deadline: simulated seconds that a round waits for replies; None for no deadline.
        durations: model of the time that clients take; None for 0 seconds.
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
        """Maximum number of clients that are invited in a round; fewer may be available."""
        n_selected = math.ceil(self.target_cohort * Fraction(str(self.over_selection)))  # the float 100 · 1.1 is above 110
        return min(self.clients, n_selected)

    def sample_round(self, round: int) -> SampledCohort:
        """Return the clients that are sent a message in `round`."""
        return self.cohort_sampler(round, self.n_invited)

    def delivery_of(self, round: int, steps: Mapping[int, int]) -> dict[int, Delivery]:
        """Return the delivery of each reply. `steps` has the local steps of each client that replies in `round`."""
        lost_clients = {client for client in steps if self.dropout and is_lost(self.seed, round, client, self.dropout)}
        arrived_clients = [client for client in steps if client not in lost_clients]
        accepted_clients = set(arrived_clients)
        if self.deadline is not None or len(arrived_clients) > self.target_cohort:
            seconds = {client: self.reply_seconds(round, client, steps[client]) for client in arrived_clients}
            accepted_clients = set(first_within_deadline(seconds, self.target_cohort, self.deadline))
        return {c: "lost" if c in lost_clients else "received" if c in accepted_clients else "late" for c in steps}

    def reply_seconds(self, round: int, client: int, steps: int) -> float:
        """Return the simulated seconds from sending the message of `round` to receiving the client's reply.

        A RunError is raised if a user's duration model raises, or returns no number of at least 0.
        """
        if self.durations is None:
            return 0.0
        key = "participation.durations"
        with wrap_user_errors(key, self.durations, round):
            seconds: Any = self.durations.reply_seconds(self.seed, round, client, steps)
        if not isinstance(seconds, int | float | np.number) or not seconds >= 0:
            problem = f"client {client} takes {describe_value(seconds)} seconds, expected a number of at least 0"
            raise make_component_error(key, self.durations, problem, round)
        return float(seconds)
