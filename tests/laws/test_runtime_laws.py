"""Laws of runtimes: one outcome for each message, which depends on the messages alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.execution import Execution, make_execution
from fedsgd.federation import Reply, broadcast, client_update
from fedsgd.federation.client_state import ClientState
from fedsgd.federation.round_loop import ClientFailure
from fedsgd.scenario.scenario import Scenario

Make = Callable[..., Scenario]
RUNTIMES = {"in process": 1, "two workers": 2}
"""Name → number of processes."""


@pytest.fixture(params=RUNTIMES.values(), ids=RUNTIMES.keys())
def open_execution(request: Any) -> Iterator[Callable[[Scenario], Execution]]:
    """Return a function that opens executions which last as long as the test."""
    with ExitStack() as stack:
        yield lambda scenario: stack.enter_context(make_execution(build_experiment(scenario, workers=2), request.param))


def test_list_clients_returns_all_clients_ascending(open_execution: Callable[[Scenario], Execution], scenario: Make) -> None:
    assert list(open_execution(scenario()).runtime.list_clients()) == list(range(8))


def test_exchange_gives_one_outcome_per_message_with_the_bytes_of_client_update(
    open_execution: Callable[[Scenario], Execution], scenario: Make
) -> None:
    execution = open_execution(scenario())
    experiment = execution.experiment
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [1, 4, 6])
    outcomes = {o.client: o for o in execution.runtime.exchange(messages, None)}
    assert set(outcomes) == {1, 4, 6}
    reference = build_experiment(scenario())
    for client, outcome in outcomes.items():
        assert isinstance(outcome, Reply)
        examples = reference.train.examples_of(client)
        expected, _ = client_update(reference.plan, reference.engine, client, messages[client], ClientState(), examples)
        assert outcome.frames == expected.frames


@pytest.mark.slow
def test_exchange_does_not_depend_on_the_order_of_messages(
    open_execution: Callable[[Scenario], Execution], scenario: Make
) -> None:
    forwards, backwards = open_execution(scenario()), open_execution(scenario())
    messages, _ = broadcast(forwards.experiment.plan, forwards.experiment.initial_server_state, range(8))
    first = {o.client: o.frames for o in forwards.runtime.exchange(messages, None)}
    second = {o.client: o.frames for o in backwards.runtime.exchange(dict(reversed(messages.items())), None)}
    assert first == second


def test_unreadable_message_gives_a_client_failure(open_execution: Callable[[Scenario], Execution], scenario: Make) -> None:
    execution = open_execution(scenario())
    experiment = execution.experiment
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [2])
    (outcome,) = execution.runtime.exchange({2: (messages[2][0], b"garbage")}, None)
    assert isinstance(outcome, ClientFailure)
    assert outcome.client == 2
    assert "byte 7: the frame ends after 7 bytes" in str(outcome.error)
