"""Laws of runtimes: one outcome for each message, which depends on the messages alone."""

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
"""Name → number of processes."""


@pytest.fixture(params=RUNTIMES.values(), ids=RUNTIMES.keys())
def make_experiment(request: Any) -> Iterator[Callable[[Scenario], Experiment]]:
    """Return a function that builds experiments whose runtimes last as long as the test."""
    with ExitStack() as stack:
        yield lambda scenario: stack.enter_context(with_worker_pool(build_experiment(scenario, share_data=True), request.param))


def test_list_clients_returns_all_clients_ascending(make_experiment: Callable[[Scenario], Experiment], scenario: Make) -> None:
    assert list(make_experiment(scenario()).runtime.list_clients()) == list(range(8))


def test_exchange_gives_one_outcome_per_message_with_the_bytes_of_client_update(
    make_experiment: Callable[[Scenario], Experiment], scenario: Make
) -> None:
    experiment = make_experiment(scenario())
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [1, 4, 6])
    outcomes = {o.client: o for o in experiment.runtime.exchange(messages, None)}
    assert set(outcomes) == {1, 4, 6}
    reference = build_experiment(scenario())
    for client, outcome in outcomes.items():
        assert isinstance(outcome, Reply)
        examples = reference.train.examples_of(client)
        expected, _ = client_update(reference.plan, reference.engine, client, messages[client], ClientState(), examples)
        assert outcome.frames == expected.frames


def test_exchange_does_not_depend_on_the_order_of_messages(
    make_experiment: Callable[[Scenario], Experiment], scenario: Make
) -> None:
    forwards, backwards = make_experiment(scenario()), make_experiment(scenario())
    messages, _ = broadcast(forwards.plan, forwards.initial_server_state, range(8))
    first = {o.client: o.frames for o in forwards.runtime.exchange(messages, None)}
    second = {o.client: o.frames for o in backwards.runtime.exchange(dict(reversed(messages.items())), None)}
    assert first == second


def test_unreadable_message_gives_a_client_failure(make_experiment: Callable[[Scenario], Experiment], scenario: Make) -> None:
    experiment = make_experiment(scenario())
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [2])
    (outcome,) = experiment.runtime.exchange({2: (messages[2][0], b"garbage")}, None)
    assert isinstance(outcome, ClientFailure)
    assert outcome.client == 2
    assert "byte 7: the frame ends after 7 bytes" in str(outcome.error)
