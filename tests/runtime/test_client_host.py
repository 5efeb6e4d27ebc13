"""Clients of one process: chunks that train together, and failures of single clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from fedsgd.experiment.builder import Experiment, build_experiment
from fedsgd.federation import Reply, broadcast
from fedsgd.federation.client_state import InMemoryClientStore
from fedsgd.federation.round_loop import ClientFailure
from fedsgd.runtime import InProcessRuntime
from fedsgd.runtime.client_host import chunk_by_size
from fedsgd.scenario.scenario import Scenario
from fedsgd.training import TrainingJob, TrainingResult
from fedsgd.training.sequential import Sequential

Make = Callable[..., Scenario]


class ThreeAtOnce(Sequential):
    """Engine that trains three clients together and yields results in reverse. Client 5 raises for its whole chunk."""

    preferred_batch_of_clients = 3
    failing = (5,)
    without_result: tuple[int, ...] = ()

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        self.batches = [*getattr(self, "batches", []), [job.client for job in jobs]]
        for job in reversed(jobs):
            if job.client in self.failing:
                raise ZeroDivisionError("in my loss")
            if job.client not in self.without_result:
                yield from super().train([job])


def make_runtime(experiment: Experiment, engine: Any) -> InProcessRuntime:
    return InProcessRuntime(experiment.plan, engine, InMemoryClientStore(), experiment.train)


def test_chunk_by_size_orders_by_size_and_then_by_client() -> None:
    assert chunk_by_size([4, 3, 2, 1, 0], np.array([1, 9, 5, 9, 5]), 2) == [[1, 3], [0, 2], [4]]
    assert chunk_by_size([], np.array([], dtype=int), 2) == []


@pytest.mark.slow
def test_engine_gets_chunks_of_its_preferred_size(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    engine = ThreeAtOnce(experiment.task, experiment.plan.local_training)
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [0, 1, 2, 3])
    batched = list(make_runtime(experiment, engine).exchange(messages, None))
    alone = {
        outcome.client: outcome
        for outcome in make_runtime(experiment, Sequential(experiment.task, experiment.plan.local_training)).exchange(
            messages, None
        )
    }
    assert [len(batch) for batch in engine.batches] == [3, 1]
    assert [outcome.client for outcome in batched[:3]] == engine.batches[0][::-1]
    for outcome in batched:
        assert isinstance(outcome, Reply)
        assert outcome.frames == alone[outcome.client].frames


@pytest.mark.parametrize(("client", "message"), [(5, "in my loss"), (6, "the engine gave no result for 6")])
def test_clients_of_a_failing_chunk_train_alone(scenario: Make, client: int, message: str) -> None:
    experiment = build_experiment(scenario())
    engine = ThreeAtOnce(experiment.task, experiment.plan.local_training)
    engine.preferred_batch_of_clients, engine.without_result = 8, (6,)
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, range(8))
    outcomes = {o.client: o for o in make_runtime(experiment, engine).exchange(messages, None)}
    assert [c for c, o in sorted(outcomes.items()) if isinstance(o, ClientFailure)] == [5, 6]
    assert message in str(outcomes[client].error)


def test_unreadable_message_fails_only_its_client(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    engine = ThreeAtOnce(experiment.task, experiment.plan.local_training)
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [0, 1, 2])
    outcomes = {o.client: o for o in make_runtime(experiment, engine).exchange({**messages, 1: ()}, None)}
    assert [c for c, o in sorted(outcomes.items()) if isinstance(o, ClientFailure)] == [1]
