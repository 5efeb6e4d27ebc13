"""Tests of `fedsgd.build`: equal results to `run`, the latest state alone, the caller's global state, and the end of a run."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsgd
from fedsgd.errors import RunError, ScenarioError, ScenarioWarning
from fedsgd.experiment.builder import build_experiment
from fedsgd.federation import ServerState
from fedsgd.federation.round_record import RoundRecord
from fedsgd.scenario.scenario import Scenario

Make = Callable[..., Scenario]


def run_all_rounds(federation: fedsgd.Federation) -> tuple[ServerState, list[RoundRecord]]:
    """Run the rounds of a federation to its end, and return the last state and all records."""
    state, records = federation.initial_state(), []
    while not federation.is_over:
        state, record = federation.step(state)
        records.append(record)
    return state, records


def digests_of(federation: fedsgd.Federation, state: ServerState) -> tuple[str, str]:
    """Return the digests of the parameters and of the ledger, as in the summary of a run."""
    return hashlib.sha256(state.weights.astype("<f4").tobytes()).hexdigest(), federation.ledger.sha256


def digests_of_run(scenario: Scenario) -> tuple[str, str]:
    summary = fedsgd.run(scenario).summary
    return summary["params_sha256"], summary["ledger_sha256"]


# -------------------------------------------------------------------------------------------------------------- equal to `run`

CASES: dict[str, dict[str, Any]] = {
    "error feedback": {"downlink.policy": "difference", "evaluation.every": 2, "participation.dropout": 0.2},
    "own aggregator": {"uplink.compressor.name": "ef21", "uplink.error_feedback": "none", "server.weighting": "uniform"},
    "accuracy by client": {"data.held_out": 0.3, "evaluation.clients": True, "evaluation.every": 3},
    "target": {"stop.target_accuracy": 0.05, "rounds": 9},
}


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_steps_give_the_results_of_run(scenario: Make, settings: dict[str, Any]) -> None:
    result = fedsgd.run(scenario(settings))
    with fedsgd.build(scenario(settings)) as federation:
        state, records = run_all_rounds(federation)
    assert [replace(r, seconds=0.0) for r in records] == [replace(r, seconds=0.0) for r in result.history]
    assert digests_of(federation, state) == (result.summary["params_sha256"], result.summary["ledger_sha256"])
    assert federation.ledger.table().num_rows == result.ledger.table().num_rows
    assert (federation.client_accuracy is None) == (result.client_accuracy is None)


@pytest.mark.slow
def test_steps_with_workers_give_the_results_of_one_process(scenario: Make) -> None:
    with fedsgd.build(scenario(), execution=fedsgd.ExecutionConfig(workers=2)) as federation:
        state, _ = run_all_rounds(federation)
    assert digests_of(federation, state) == digests_of_run(scenario())


def test_federation_gives_access_to_its_description(scenario: Make, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(scenario().to_toml())
    with fedsgd.build(path) as federation:
        state = federation.initial_state()
        assert (federation.scenario.name, federation.plan.n_clients, state.round) == ("quickstart", 8, 1)
        assert federation.scenario.engine.name != "auto"
        assert federation.layout.size == state.weights.size == federation.plan.layout.size


# ------------------------------------------------------------------------------------------------------ the latest state alone


@pytest.mark.slow
def test_older_state_is_refused_and_the_latest_continues(scenario: Make) -> None:
    with fedsgd.build(scenario()) as federation:
        first = federation.initial_state()
        second, _ = federation.step(first)
        for _ in range(2):
            with pytest.raises(
                ScenarioError, match="state: got a state before round 1, expected the latest state, before round 2"
            ):
                federation.step(first)
        third, record = federation.step(second)
        assert (record.round, third.round) == (2, 3)
        with pytest.raises(ScenarioError, match="expected the latest state, before round 3"):
            federation.step(replace(third, weights=third.weights * 2))
        state, _ = federation.step(third)
    assert digests_of(federation, state) == digests_of_run(scenario())


def test_argument_that_is_no_state_is_refused(scenario: Make) -> None:
    with fedsgd.build(scenario()) as federation:
        state: Any = federation.step(federation.initial_state())
        with pytest.raises(ScenarioError, match="state: got tuple, expected the ServerState"):
            federation.step(state)


def test_step_after_the_last_round_is_refused(scenario: Make) -> None:
    with fedsgd.build(scenario({"rounds": 1})) as federation:
        state, _ = run_all_rounds(federation)
        with pytest.raises(ScenarioError, match="rounds: got a step of round 2, expected at most 1 rounds"):
            federation.step(state)


def test_closed_federation_is_refused(scenario: Make) -> None:
    federation = fedsgd.build(scenario())
    state, _ = federation.step(federation.initial_state())
    federation.close()
    with pytest.raises(ScenarioError, match="state: the federation ended before round 2"):
        federation.step(state)


def fail_in_training(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if FAILURES:
        raise ZeroDivisionError(FAILURES[0])
    return torch.nn.functional.cross_entropy(output, target)


FAILURES: list[str] = []


UNCLOSED = """
import fedsgd

if __name__ == "__main__":
    federation = fedsgd.build(fedsgd.Scenario(name="open", rounds=2), execution=fedsgd.ExecutionConfig(workers=2))
    federation.step(federation.initial_state())
"""


@pytest.mark.slow
@pytest.mark.nightly
def test_script_that_closes_no_federation_ends_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(UNCLOSED)
    process = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert (process.returncode, process.stderr) == (0, "")


def test_federation_with_a_failed_round_is_refused(scenario: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fedsgd.CustomModel(loss=fail_in_training)
    with fedsgd.build(scenario({"engine.name": "sequential"}), model=model) as federation:
        state = federation.initial_state()
        monkeypatch.setattr(f"{__name__}.FAILURES", ["broken"])
        with pytest.raises(RunError, match=r"round 1, client \d+: .*broken"):
            federation.step(state)
        monkeypatch.setattr(f"{__name__}.FAILURES", [])
        with pytest.raises(ScenarioError, match="ended before round 1, by an error in step or by close"):
            federation.step(state)


# ----------------------------------------------------------------------------------------------- several, and the caller's state


@pytest.mark.slow
def test_federations_that_take_turns_do_not_affect_each_other(scenario: Make) -> None:
    settings: tuple[dict[str, Any], ...] = ({}, {"seed": 5})
    federations = [fedsgd.build(scenario(s)) for s in settings]
    states = [federation.initial_state() for federation in federations]
    for _ in range(3):
        states = [federation.step(state)[0] for federation, state in zip(federations, states, strict=True)]
    for federation, state, s in zip(federations, states, settings, strict=True):
        assert digests_of(federation, state) == digests_of_run(scenario(s))
        federation.close()


@pytest.mark.slow
def test_loop_of_the_caller_has_the_caller_state(scenario: Make) -> None:
    expected = digests_of_run(scenario())
    torch.set_default_dtype(torch.float64)
    try:
        with fedsgd.build(scenario()) as federation:
            state = federation.initial_state()
            while not federation.is_over:
                random.seed(7)
                np.random.seed(7)  # noqa: NPY002
                torch.manual_seed(7)
                before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002
                state, _ = federation.step(state)
                after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002
                assert before == after
                assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert digests_of(federation, state) == expected


def test_build_warns_of_settings_at_the_line_of_the_caller(scenario: Make) -> None:
    with pytest.warns(ScenarioWarning) as warnings, fedsgd.build(scenario({"client.steps": 1, "rounds": 1})) as federation:
        assert [str(w.message) for w in warnings] == list(federation.experiment.warnings)
    assert {w.filename for w in warnings} == {__file__}


# ------------------------------------------------------------------------------------------------------- one scheme for a run


def test_checks_and_plan_share_scheme_and_aggregator(scenario: Make) -> None:
    s = scenario({"uplink.compressor.name": "ef21", "uplink.error_feedback": "none", "server.weighting": "uniform"})
    plan = build_experiment(s).plan
    assert plan.uplink is s.resolved_uplink.scheme
    assert plan.aggregator is s.resolved_uplink.aggregator
    assert plan.aggregator.name == "ef21"
