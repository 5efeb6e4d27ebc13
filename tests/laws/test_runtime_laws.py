"""The laws of runtimes: one outcome for each message, and nothing but messages decides what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fedsgd.experiment.builder import Experiment, build_experiment, with_worker_pool
from fedsgd.federation import Reply, broadcast, client_update
from fedsgd.federation.client_state import ClientState
from fedsgd.federation.round_loop import ClientFailure
from fedsgd.scenario.scenario import Scenario

Make = Callable[..., Scenario]
RUNTIMES = {"in process": 1, "two workers": 2}
"""Name → the number of processes."""


@pytest.fixture(params=RUNTIMES.values(), ids=RUNTIMES.keys())
def make(request: Any) -> Iterator[Callable[[Scenario], Experiment]]:
    """Builds experiments whose runtimes last as long as the test."""
    with ExitStack() as stack:
        yield lambda scenario: stack.enter_context(with_worker_pool(build_experiment(scenario, share_data=True), request.param))


def test_clients_are_ascending_and_all_of_them(make: Callable[[Scenario], Experiment], scenario: Make) -> None:
    assert list(make(scenario()).runtime.list_clients()) == list(range(8))


def test_one_outcome_for_each_message_and_the_bytes_of_client_update(
    make: Callable[[Scenario], Experiment], scenario: Make
) -> None:
    experiment = make(scenario())
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [1, 4, 6])
    outcomes = {o.client: o for o in experiment.runtime.exchange(messages, None)}
    assert set(outcomes) == {1, 4, 6}
    reference = build_experiment(scenario())
    for client, outcome in outcomes.items():
        assert isinstance(outcome, Reply)
        examples = reference.train.examples_of(client)
        alone, _ = client_update(reference.plan, reference.engine, client, messages[client], ClientState(), examples)
        assert outcome.frames == alone.frames


def test_the_order_of_messages_does_not_matter(make: Callable[[Scenario], Experiment], scenario: Make) -> None:
    forwards, backwards = make(scenario()), make(scenario())
    messages, _ = broadcast(forwards.plan, forwards.initial_server_state, range(8))
    first = {o.client: o.frames for o in forwards.runtime.exchange(messages, None)}
    second = {o.client: o.frames for o in backwards.runtime.exchange(dict(reversed(messages.items())), None)}
    assert first == second


def test_a_message_that_cannot_be_read_is_a_failure_and_not_an_exception(
    make: Callable[[Scenario], Experiment], scenario: Make
) -> None:
    experiment = make(scenario())
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [2])
    (outcome,) = experiment.runtime.exchange({2: (messages[2][0], b"garbage")}, None)
    assert isinstance(outcome, ClientFailure)
    assert outcome.client == 2
    assert "byte 7: the frame ends after 7 bytes" in str(outcome.error)
