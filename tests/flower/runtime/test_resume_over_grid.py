"""Tests of a run over a Grid whose server dies in a round: the resumed run repeats the round, and no reply counts twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import fedsgd
from fedsgd.errors import OutputError
from fedsgd.experiment.resume import plan_resumption
from fedsgd.experiment.run_checkpoints import read_deployment
from fedsgd.experiment.runner import execute_run
from fedsgd.flower.runtime import node
from fedsgd.flower.runtime.client_app import app
from fedsgd.flower.runtime.execution import FlowerExecution
from fedsgd.flower.runtime.grid_runtime import FlowerRuntime, MessageEvent
from fedsgd.scenario.scenario import Scenario
from fedsgd.storage.run_directory import CHECKPOINT_FOLDER, NODE_FOLDER, lock_folder
from fedsgd.system.torch_determinism import isolate_global_state
from tests.effort import nightly_unless
from tests.flower.grid import InProcessGrid, identity

pytestmark = pytest.mark.slow

Make = Callable[..., Scenario]
DEPLOYMENT = {"nodes": 3, "execution": {}}
SMALL = {"engine.name": "sequential", "checkpoint.every": 1}
CASES: dict[str, dict[str, Any]] = {
    "top-k and differences": {"downlink.policy": "difference", "engine.name": "auto"},
    "stateless and differences": {
        "uplink.compressor.name": "qsgd",
        "uplink.error_feedback": "none",
        "downlink.policy": "difference",
    },
    "dgc, whole model": {"uplink.compressor.name": "dgc", "uplink.error_feedback": "none", "uplink.compressor.momentum": 0.0},
    "bfloat16 states": {"client.velocity": "carry", "state.precision": "bfloat16"},
    "stc both ways": {
        "uplink.compressor.name": "stc",
        "uplink.error_feedback": "none",
        "downlink.policy": "error-feedback",
        "downlink.compressor.name": "top-k",
        "downlink.compressor.values": "ternary",
    },
    "ef21": {"uplink.compressor.name": "ef21", "uplink.error_feedback": "none", "server.weighting": "uniform"},
}


class ServerDied(BaseException):
    """Stand-in for the death of the ServerApp."""


@pytest.fixture(autouse=True)
def state_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the root of the states that end with a deployment."""
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    node.PREBUILT.clear()
    with identity(1):
        yield tmp_path / "state"


def run_over_new_grid(
    scenario: Scenario, out: Path, on_message: Callable[[MessageEvent], None] = lambda event: None, **options: Any
) -> fedsgd.Result:
    """Run a scenario over three new nodes, whose states are in the run directory."""
    state = str(out / CHECKPOINT_FOLDER / NODE_FOLDER)
    grid = InProcessGrid.of(app, 3, scenario=scenario.to_toml(), data="", state=state)

    def create_execution(experiment: Any) -> FlowerExecution:
        runtime = FlowerRuntime(grid, len(experiment.train), 3, 5.0, on_message, str(experiment.engine_choice))
        return FlowerExecution(experiment, runtime, 5.0, deployment=DEPLOYMENT)

    with isolate_global_state():
        return execute_run(scenario, out=out, overwrite=True, execution_factory=create_execution, **options)


def die_in(round: int, n_replies: int) -> Callable[[MessageEvent], None]:
    """Return a function that ends the run at the n-th reply in a round; the nodes' replies before are not yet aggregated."""
    replies: list[MessageEvent] = []

    def on_message(event: MessageEvent) -> None:
        if event.round == round and event.direction == "up":
            replies.append(event)
            if len(replies) == n_replies:
                raise ServerDied

    return on_message


def resume_over_new_grid(out: Path, **options: Any) -> fedsgd.Result:
    """Continue the run in a directory over three new nodes."""
    point, scenario = plan_resumption(out, options.pop("rounds", None))
    return run_over_new_grid(scenario, out, point=point, **options)


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a ledger without its columns of times."""
    table = pq.read_table(folder / "ledger.parquet")
    return table.drop_columns([name for name in table.column_names if name.endswith("_seconds")]).to_pylist()


@pytest.mark.parametrize(
    "case", nightly_unless(lambda case: case in ("top-k and differences", "stateless and differences"), CASES)
)
def test_repeated_round_gives_the_results_of_a_simulation(scenario: Make, tmp_path: Path, case: str) -> None:
    """All nodes trained in the interrupted round, so each client that keeps a state repeats its stored reply."""
    s = scenario({**SMALL, "rounds": 4, "server.cohort": 5, "checkpoint.every": 3, **CASES[case]})
    simulation = fedsgd.run(s, out=tmp_path / "simulation")
    out = tmp_path / "run"
    with pytest.raises(ServerDied):
        run_over_new_grid(s, out, die_in(3, 2))
    assert read_deployment(out) == DEPLOYMENT
    result = resume_over_new_grid(out)
    for key in ("params_sha256", "ledger_sha256", "residuals", "uplink", "downlink"):
        assert result.summary[key] == simulation.summary[key], key
    assert read_ledger(out) == read_ledger(tmp_path / "simulation")
    for record, expected in zip(result.history, simulation.history, strict=True):
        assert (record.residual_norm, record.rounds_missed) == (expected.residual_norm, expected.rounds_missed)


def test_states_of_a_run_with_checkpoints_are_in_its_directory(scenario: Make, tmp_path: Path, state_root: Path) -> None:
    """The cache of pickled objects is not there, and an overwritten run leaves no state."""
    out, s = tmp_path / "run", scenario({**SMALL, "rounds": 1})
    first = run_over_new_grid(s, out)
    folders = sorted((out / CHECKPOINT_FOLDER / NODE_FOLDER).iterdir())
    assert [folder.name for folder in folders] == ["node-0", "node-1", "node-2"]
    assert not list(out.rglob("*.pickle"))
    assert list(state_root.rglob("*.pickle"))
    assert run_over_new_grid(s, out).summary["params_sha256"] == first.summary["params_sha256"], "no state of the first run"
    (folders[0] / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"node-0/notes\.txt: no run wrote this"):
        run_over_new_grid(s, out)


def test_budget_counts_the_states_in_the_run_directory(scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s, out = scenario({**SMALL, "rounds": 1}), tmp_path / "run"
    run_over_new_grid(s, out)
    used = sum(path.stat().st_size for path in (out / CHECKPOINT_FOLDER / NODE_FOLDER).rglob("client-*"))
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", f"{used} B")
    with pytest.raises(fedsgd.RunError, match="free in the budget of"):
        resume_over_new_grid(out, rounds=9)


def test_finished_run_continues_with_more_rounds(scenario: Make, tmp_path: Path) -> None:
    s = scenario({**SMALL, "rounds": 2})
    simulation = fedsgd.run(scenario({**SMALL, "rounds": 3}))
    run_over_new_grid(s, tmp_path / "run")
    result = resume_over_new_grid(tmp_path / "run", rounds=3)
    for key in ("params_sha256", "ledger_sha256", "residuals"):
        assert result.summary[key] == simulation.summary[key], key


def test_simulation_function_refuses_the_run_of_a_deployment(scenario: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ServerDied):
        run_over_new_grid(scenario({**SMALL}), out, die_in(2, 1))
    with pytest.raises(OutputError, match=r"is the run of a deployment; continue it with `fedsgd resume`"):
        fedsgd.resume(out)


def test_node_does_not_use_states_that_another_process_uses(
    scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsgd.flower.state_directory.LOCK_SECONDS", 0.2)
    out, s = tmp_path / "run", scenario({**SMALL, "rounds": 2, "server.cohort": 8})
    run_over_new_grid(s, out)
    with lock_folder(out / CHECKPOINT_FOLDER / NODE_FOLDER / "node-1", ""), pytest.raises(fedsgd.RunError) as caught:
        resume_over_new_grid(out, rounds=3)
    assert "node-1: another process uses these client states" in str(caught.value)


def test_manifest_of_a_simulation_names_no_deployment(scenario: Make, tmp_path: Path) -> None:
    fedsgd.run(scenario({**SMALL, "rounds": 1}), out=tmp_path / "run")
    assert read_deployment(tmp_path / "run") is None
    (manifest,) = (tmp_path / "run" / CHECKPOINT_FOLDER).glob("checkpoint-*.json")
    assert json.loads(manifest.read_text())["checkpoint"]["run"]["deployment"] is None
