"""The clients of one process: who trains together, and whose failure it is when that goes wrong."""

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


class InBatches(Sequential):
    """Three at once, the results backwards; client 5 spoils it for all who train with it, client 6 gets no result."""

    preferred_batch_of_clients = 3
    spoilt = (5,)
    forgotten: tuple[int, ...] = ()

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        self.batches = [*getattr(self, "batches", []), [work.client for work in jobs]]
        for work in reversed(jobs):
            if work.client in self.spoilt:
                raise ZeroDivisionError("in my loss")
            if work.client not in self.forgotten:
                yield from super().train([work])


def with_engine(experiment: Experiment, engine: Any) -> InProcessRuntime:
    return InProcessRuntime(experiment.plan, engine, InMemoryClientStore(), experiment.train)


def test_the_largest_come_first_and_equals_by_number() -> None:
    assert chunk_by_size([4, 3, 2, 1, 0], np.array([1, 9, 5, 9, 5]), 2) == [[1, 3], [0, 2], [4]]
    assert chunk_by_size([], np.array([], dtype=int), 2) == []


def test_an_engine_gets_as_many_at_once_as_it_likes(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    engine = InBatches(experiment.task, experiment.plan.local_training)
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [0, 1, 2, 3])
    batched = list(with_engine(experiment, engine).exchange(messages, None))
    alone = {
        o.client: o
        for o in with_engine(experiment, Sequential(experiment.task, experiment.plan.local_training)).exchange(messages, None)
    }
    assert [len(batch) for batch in engine.batches] == [3, 1]
    assert [o.client for o in batched[:3]] == engine.batches[0][::-1]
    for outcome in batched:
        assert isinstance(outcome, Reply)
        assert outcome.frames == alone[outcome.client].frames


@pytest.mark.parametrize(("client", "message"), [(5, "in my loss"), (6, "the engine gave no result for 6")])
def test_what_fails_together_is_tried_alone(scenario: Make, client: int, message: str) -> None:
    experiment = build_experiment(scenario())
    engine = InBatches(experiment.task, experiment.plan.local_training)
    engine.preferred_batch_of_clients, engine.forgotten = 8, (6,)
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, range(8))
    outcomes = {o.client: o for o in with_engine(experiment, engine).exchange(messages, None)}
    assert [c for c, o in sorted(outcomes.items()) if isinstance(o, ClientFailure)] == [5, 6]
    assert message in str(outcomes[client].error)


def test_a_client_without_a_readable_message_spoils_nothing_for_others(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    engine = InBatches(experiment.task, experiment.plan.local_training)
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [0, 1, 2])
    outcomes = {o.client: o for o in with_engine(experiment, engine).exchange({**messages, 1: ()}, None)}
    assert [c for c, o in sorted(outcomes.items()) if isinstance(o, ClientFailure)] == [1]
