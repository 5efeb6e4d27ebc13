"""Executions of experiments in this process, and rounds without end, for tests of single rounds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from fedsgd.experiment.builder import Experiment
from fedsgd.experiment.execution import Execution, InProcessExecution
from fedsgd.federation import FederationPlan, ServerState
from fedsgd.federation.round_loop import FrameObserver, RoundParticipants, Runtime, run_round
from fedsgd.sampling import ParticipationModel


@lru_cache(maxsize=8)
def start_in_process(experiment: Experiment) -> Execution:
    """Return the open execution of an experiment that stores client states in memory, the same object for each call."""
    assert experiment.state_budget.location == "memory", "a store on disk has to be closed"
    assert experiment.shared_data is None, "shared memory has to be freed at the end of the test"
    return InProcessExecution(experiment).__enter__()


def run_rounds(
    plan: FederationPlan,
    server: ServerState,
    runtime: Runtime,
    participation: ParticipationModel,
    observer: FrameObserver,
    *options: Any,
    **named_options: Any,
) -> Iterator[tuple[ServerState, RoundParticipants]]:
    """Run rounds without end, and yield the server's state after each round and the round's participants."""
    while True:
        server, participants = run_round(plan, server, runtime, participation, observer, *options, **named_options)
        yield server, participants
