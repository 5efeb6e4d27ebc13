"""Plans of runs, compared with the runs: bytes by direction and peak memory; the command and its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import fedsgd
from fedsgd.cli import main, terminal
from fedsgd.config.component import FieldError
from fedsgd.errors import DataError, FedsgdError, ModelError, RunError, ScenarioError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.planning import run_plan
from fedsgd.experiment.planning.cohorts import draw_cohorts
from fedsgd.experiment.planning.encoded_sizes import EncodedSize, make_uplink_trial, measure_curve
from fedsgd.experiment.planning.run_plan import DiskPlan, MemoryPlan, RunPlan, TrafficPlan, plan
from fedsgd.scenario.overrides import parse_setting
from fedsgd.scenario.scenario import Scenario, load, parse_scenario
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SCENARIOS = ROOT / "scenarios"
MAX_ERROR = 0.25
"""Relative error of a plan, at most."""
CASES = {
    "quickstart.toml": ("rounds=30", "client.epochs=1"),
    "dgc.toml": ("rounds=60",),
    "stc.toml": ("rounds=30", "client.epochs=1"),
    "participation/stragglers.toml": ("rounds=30", "client.epochs=1"),
    "fedavgm.toml": ("rounds=30", "downlink.policy=difference", "client.epochs=1"),
    "qsgd.toml": ("rounds=40",),
    "cafe.toml": ("rounds=40",),
    "ef21.toml": ("rounds=40", "downlink.policy=difference"),
    "participation/scaffold.toml": ("rounds=40",),
    "per_layer.toml": ("rounds=60",),
    "million_clients.toml": ("rounds=30",),
}
"""Scenarios and settings: difference downlink, schedule of densities, both ways compressed, dropouts, server momentum, ..."""
SMALL: dict[str, Any] = {
    "name": "small",
    "rounds": 3,
    "data": {"partition": {"name": "iid", "clients": 4}},
    "stop": {"target_accuracy": 0.99},
}
KEYS = {
    "name", "rounds", "clients", "cohort", "parameters", "workers", "engine", "calibrated_rounds", "calibration_seconds",
    "uplink", "downlink", "memory", "disk", "time", "stops_at", "warnings",
}  # fmt: skip


def run_scenario(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Run a scenario in a process of its own, and return the summary."""
    file, environment = folder / "scenario.toml", {**os.environ, "PYTHONPATH": str(ROOT)}
    file.write_text(scenario.to_toml())
    line = [sys.executable, "-m", "fedsgd", "run", str(file), "--out", str(folder / "run"), "--json", "--quiet"]
    result = subprocess.run(line, capture_output=True, text=True, env=environment, check=True)
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a scenario of three rounds."""
    file = tmp_path_factory.mktemp("scenario") / "small.toml"
    file.write_text(parse_scenario(SMALL).to_toml())
    return file


@pytest.fixture(scope="module")
def small_plan(small_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    """Return the plan of this scenario, and check that nothing remains on disk."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_plan, "TemporaryDirectory", partial(TemporaryDirectory, dir=folder))
        small_plan = plan(small_file)
    assert not list(folder.iterdir())
    return small_plan


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_plan_differs_from_the_run_by_at_most_a_quarter(name: str, tmp_path: Path) -> None:
    scenario = load(SCENARIOS / name, dict(map(parse_setting, CASES[name])))
    planned, summary = plan(scenario), run_scenario(scenario, tmp_path)
    assert planned.calibrated_rounds < summary["rounds"]
    assert planned.memory.main is not None
    size = sum(path.stat().st_size for path in (tmp_path / "run").iterdir())
    for label, estimate, figure, limit in (
        ("uplink", planned.uplink.total, summary["uplink_bytes"], MAX_ERROR),
        ("downlink", planned.downlink.total, summary["downlink_bytes"], MAX_ERROR),
        ("memory", planned.memory.main, summary["peak_memory_bytes"], MAX_ERROR),
        ("disk", planned.disk.total, size, 3 * MAX_ERROR),
    ):
        print(f"{name}: {label}, planned {estimate:,}, run {figure:,}, {estimate / figure - 1:+.1%}")
        assert abs(estimate / figure - 1) <= limit, f"{label}: planned {estimate:,}, run {figure:,}"


@pytest.mark.nightly
def test_plan_with_workers_and_checkpoints_has_their_parts(small_file: Path) -> None:
    settings = ("rounds=12", "uplink.compressor.name=top-k", "uplink.error_feedback=persist")
    options = [part for setting in settings for part in ("--set", setting)]
    result = invoke("plan", small_file, "--workers", "2", "--checkpoint-every", "4", *options, "--json")
    planned = json.loads(result.stdout)
    memory, disk = planned["memory"], planned["disk"]
    assert planned["workers"] == 2
    assert memory["worker"] > 50e6
    assert memory["shared"] >= memory["client_states"] > 4 * 4 * planned["parameters"]
    assert memory["total"] == memory["main"] + 2 * memory["worker"] + memory["shared"]
    assert disk["checkpoints"] > 2 * 4 * planned["parameters"]
    assert disk["total"] == sum(disk[name] for name in ("ledger", "files", "checkpoints", "client_states"))


def test_plan_of_a_short_run_has_its_bytes(small_plan: RunPlan) -> None:
    result = fedsgd.run(parse_scenario(SMALL))
    assert small_plan.calibrated_rounds == small_plan.rounds == 3
    assert small_plan.uplink.total == result.summary["uplink_bytes"]
    assert small_plan.downlink.total == result.summary["downlink_bytes"]
    assert small_plan.uplink.first_round == small_plan.uplink.last_round == result.history[0].uplink_bytes
    assert small_plan.stops_at == "0.99"
    assert small_plan.time.total > small_plan.time.start > 0
    assert repr(small_plan).startswith("RunPlan(small, 3 rounds: up ")


def test_command_prints_tables_of_80_columns_or_json(
    small_plan: RunPlan, small_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_plan, "plan", lambda scenario, **options: small_plan)
    monkeypatch.setenv("COLUMNS", "80")
    result = invoke("plan", small_file, "--quiet")
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    for text in ("small: plan of 3 rounds", "calibrated: 3 rounds in ", "uplink", "all rounds", "main process", "ledger"):
        assert text in result.stdout
    printed = json.loads(invoke("plan", small_file, "--json", "--quiet").stdout)
    assert printed.keys() == KEYS
    assert printed["uplink"].keys() == {"first_round", "last_round", "total"}


def test_tables_of_a_large_plan_have_80_columns(
    small_plan: RunPlan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    memory = MemoryPlan(10**12, 10**11, 10**12, 10**13, 10**12, 10**12, 10**11, 10**11)
    disk = DiskPlan(10**11, 10**11, 10**12, 10**12, 10**13, "/tmp")
    traffic = TrafficPlan(999 * 10**9, 999 * 10**9, 999 * 10**12)
    figures = {"memory": memory, "disk": disk, "uplink": traffic, "downlink": traffic, "workers": 4096, "rounds": 10**6}
    terminal.print_plan(replace(small_plan, **figures, calibrated_rounds=1, warnings=()))
    output = capsys.readouterr().out
    for text in (
        "4096 workers, each",
        "shared by the workers",
        "checkpoints",
        "only one round was run",
        "client states on disk",
    ):
        assert text in output
    tables = output.split("of the memory")[0]
    assert max(map(len, tables.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "0"), "0 is not in the range x>=1"),
        (("--set", "server.cohrt=3"), 'server.cohrt: unknown key, did you mean "cohort"?'),
        (("--set", "data.name=my_module:Data"), "data.name: "),
    ],
)
def test_wrong_option_is_refused_as_by_run(small_file: Path, options: tuple[str, ...], message: str) -> None:
    result = invoke("plan", small_file, *options, "--quiet")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout


@pytest.mark.nightly
def test_error_of_the_calibration_keeps_class_message_and_file(small_file: Path) -> None:
    result = invoke("plan", small_file, "--set", "server.cohort=9", "--quiet")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"fedsgd: {small_file}: server.cohort: ")


@pytest.mark.parametrize(
    "error", [DataError("no file"), RunError(3, None, "a cause"), FieldError("top-k", "density", "wrong"), ModelError("m")]
)
def test_errors_pass_from_process_to_process(error: FedsgdError) -> None:
    error.add_note("a note")
    restored = run_plan.restore_error(json.loads(json.dumps(run_plan.describe_error(error))))
    assert (str(restored), restored.__notes__) == (str(error), ["a note"])
    assert isinstance(error, type(restored))
    assert type(restored) is not FedsgdError


def test_wrong_number_of_workers_is_refused() -> None:
    with pytest.raises(ScenarioError, match="workers: got 0"):
        plan(parse_scenario(SMALL), execution=fedsgd.ExecutionConfig(workers=0))


def test_killed_calibration_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "CHILD_COMMAND", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(FedsgdError, match="calibration was killed; it may have run out of memory"):
        plan(parse_scenario(SMALL))
    monkeypatch.setattr(run_plan, "CHILD_COMMAND", "raise SystemExit(3)")
    with pytest.raises(FedsgdError, match="calibration ended with exit status 3"):
        plan(parse_scenario(SMALL))


def load_stragglers(rounds: int) -> Scenario:
    return load(SCENARIOS / "participation" / "stragglers.toml", {"rounds": rounds, "client.epochs": 1})


def test_drawn_cohorts_are_those_of_the_run() -> None:
    scenario = load_stragglers(6)
    experiment, result = build_experiment(scenario), fedsgd.run(scenario)
    cohorts = draw_cohorts(experiment)
    table = result.ledger.table().to_pylist()
    for cohort in cohorts.cohorts:
        rows = [row for row in table if row["round"] == cohort.round]
        tasks = sorted(row["client"] for row in rows if row["kind"] == "TASK")
        last_accepted = {
            row["client"]: row["round"]
            for row in table
            if row["round"] < cohort.round and row["kind"] == "UPDATE" and row["fate"] == "received"
        }
        assert cohort.base_rounds.tolist() == [last_accepted.get(client, 0) for client in tasks]
        assert cohort.n_steps == sum(row["steps"] for row in rows)
    assert cohorts.n_participants == len({row["client"] for row in table})


def test_curve_follows_a_schedule_of_densities() -> None:
    scenario = load(SCENARIOS / "dgc.toml")
    measure = make_uplink_trial(build_experiment(scenario).plan)
    curve = measure_curve(measure, 200)
    for round in (1, 5, 6, 10, 11, 15, 16, 20, 21, 200):
        assert curve.interpolate(round).n_coordinates == measure(round).n_coordinates


def test_curve_of_a_constant_encoder_takes_few_trials() -> None:
    rounds: list[int] = []

    def measure(round: int) -> EncodedSize:
        rounds.append(round)
        return EncodedSize(100 + round % 2, 10)

    curve = measure_curve(measure, 1000)
    assert rounds == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert np.all(np.abs(curve.n_bytes - 100.5) <= 0.5)
