"""Vectors of P numbers that a round stores, shares and overwrites."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from fedsgd.aggregation import AggregationContext, AggregationResult, Aggregator, WeightedUpdate, weighted_sum
from fedsgd.compression import StateArrays
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.ledger import Ledger
from fedsgd.federation import DownlinkCache, aggregate, broadcast, rebroadcast
from fedsgd.federation.round_loop import run_round
from fedsgd.scenario.scenario import Scenario
from fedsgd.wire import Frame, FrameKind, Header
from tests.executions import start_in_process
from tests.federation.test_rounds import collect_replies

Make = Callable[..., Scenario]


@dataclass(frozen=True)
class StoredMean(Aggregator):
    """Mean whose state is the array of the last aggregate."""

    name: ClassVar[str] = "stored-mean"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        mean = weighted_sum(updates, ctx).astype(np.float32)
        return mean, {"last": mean}


def test_aggregate_that_is_a_state_is_not_overwritten(scenario: Make) -> None:
    experiment = build_experiment(scenario({"uplink.compressor.name": "dense"}))
    server, replies = experiment.initial_server_state, collect_replies(experiment, range(3))
    expected, _ = aggregate(experiment.plan, server, replies)
    next_server, _ = aggregate(replace(experiment.plan, aggregator=StoredMean()), server, replies)
    assert next_server.weights.tobytes() == expected.weights.tobytes()
    assert np.allclose(next_server.aggregator_state["last"], next_server.weights - server.weights, atol=1e-6)


def test_second_message_has_the_frame_of_the_first(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    messages, server = broadcast(experiment.plan, experiment.initial_server_state, [0, 1])
    second_messages, _ = rebroadcast(experiment.plan, server, {0: Frame(Header(FrameKind.RESYNC, 1, client=0))})
    assert messages[0][1] is messages[1][1] is second_messages[0][1]


def test_initial_state_stores_no_frame_of_an_exact_model(scenario: Make) -> None:
    for settings in ({}, {"downlink.policy": "difference"}):
        assert build_experiment(scenario(settings)).initial_server_state.public_model.full_model_frame is None
    lossy = build_experiment(scenario({"downlink.compressor": {"name": "dense", "values": "bfloat16"}}))
    assert lossy.initial_server_state.public_model.full_model_frame is not None


@pytest.mark.slow
def test_ledger_stores_no_full_model_after_its_round(scenario: Make) -> None:
    for settings, n_frames in (({}, 0), ({"downlink.policy": "difference"}, 1)):
        experiment, ledger = build_experiment(scenario(settings)), Ledger()
        runtime, server = start_in_process(experiment).runtime, experiment.initial_server_state
        for _ in range(2):
            server, _ = run_round(experiment.plan, server, runtime, experiment.participation, ledger)
        assert len(ledger._shared_frames) == n_frames


def test_runtime_drops_decoded_models_after_an_exchange(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    runtime = start_in_process(experiment).runtime
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, range(3))
    assert len(list(runtime.exchange(messages, None))) == 3
    cache = runtime._host._downlink_cache
    assert isinstance(cache, DownlinkCache)
    assert not cache._entries
