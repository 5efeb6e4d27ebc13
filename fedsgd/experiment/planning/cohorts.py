"""Cohorts of a run, drawn in advance: clients, their local steps, and the models that they have stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedsgd.experiment.builder import Experiment
from fedsgd.federation.client_state import AcknowledgedRounds
from fedsgd.numerics.arrays import I64

MAX_MESSAGES = 100_000
"""Messages that are drawn in advance; the rounds after them have the mean of the last half of the drawn rounds."""


@dataclass(frozen=True, eq=False)
class PlannedCohort:
    """Cohort of one round.

    Attributes:
        round: number of the round, from 1.
        base_rounds: [C] int64, round of the model that the server assumes each client to have stored; 0 for none.
        n_steps: local steps of all clients together that the run computes.
        n_replies: clients that send an update.
    """

    round: int
    base_rounds: I64
    n_steps: int
    n_replies: int


@dataclass(eq=False)
class CohortSequence:
    """Cohorts of all rounds, as the run draws them; replies are lost, late and accepted as in the run.

    Attributes:
        cohorts: cohorts of the first rounds, all rounds unless there are too many.
        n_participants: number of clients of these cohorts.
        n_models: number of different models that the clients have stored after these rounds.
    """

    cohorts: list[PlannedCohort]
    n_participants: int
    n_models: int


def draw_cohorts(experiment: Experiment, min_rounds: int = 1) -> CohortSequence:
    """Return the cohorts of a run, up to `MAX_MESSAGES` messages.

    Args:
        experiment: description of the run.
        min_rounds: rounds that are drawn, whatever the number of messages.
    """
    drawer = _CohortDrawer(experiment)
    cohorts = list(drawer.draw(min_rounds))
    seen = [round for round in drawer.model_rounds.values() if round]
    return CohortSequence(cohorts, len(seen), len(set(seen)))


class _CohortDrawer:
    """Simulation of the participation alone, without training."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._steps_by_size: dict[tuple[int, int | None], int] = {}
        self.model_rounds: dict[int, int] = {}

    def draw(self, min_rounds: int) -> Iterator[PlannedCohort]:
        participation, downlink = self._experiment.participation, self._experiment.plan.downlink
        acknowledged_rounds, n_messages = AcknowledgedRounds(), 0
        for round in range(1, self._experiment.scenario.rounds + 1):
            if n_messages > MAX_MESSAGES and round > min_rounds:
                return
            cohort = participation.sample_round(round).cohort
            base_rounds = [downlink.assumed_base_round(round, acknowledged_rounds.get(client)) for client in cohort]
            steps = self._count_steps(round, cohort)
            deliveries = participation.delivery_of(round, steps)
            accepted = [client for client, delivery in deliveries.items() if delivery == "received"]
            acknowledged_rounds = acknowledged_rounds.with_rounds(accepted, round)
            self.model_rounds.update(dict.fromkeys(cohort, round))
            n_messages += len(cohort)
            yield PlannedCohort(round, np.array(base_rounds, dtype=np.int64), sum(steps.values()), len(steps))

    def _count_steps(self, round: int, cohort: tuple[int, ...]) -> dict[int, int]:
        """Return the local steps of each client that replies: of all clients but dropped stragglers."""
        plan, steps = self._experiment.plan, dict[int, int]()
        for client, size in zip(cohort, self._experiment.train.sizes_of(cohort).tolist(), strict=True):
            if plan.stragglers is not None and plan.stragglers.is_dropped(round, client):
                continue
            training = plan.local_training_of(round, client)
            key = size, training.work
            if key not in self._steps_by_size:
                self._steps_by_size[key] = training.n_steps(size)
            steps[client] = self._steps_by_size[key]
        return steps
