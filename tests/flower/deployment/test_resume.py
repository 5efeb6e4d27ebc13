"""Tests of deployments that lose a process in mid-round and are resumed: the results are those of a simulation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsgd
from fedsgd.cli.terminal import print_result
from fedsgd.errors import DeploymentError, OutputError
from fedsgd.experiment.run_checkpoints import find_resume_point
from fedsgd.flower.deployment import DeploymentCallbacks, DeploymentConfig, deploy, resume_deployment
from fedsgd.flower.deployment.cluster import LocalCluster
from fedsgd.flower.deployment.runner import EVENT_FILE
from fedsgd.scenario.scenario import Scenario
from tests.flower.deployment.test_deploy import check_processes_and_ports as check_processes_and_ports
from tests.flower.deployment.test_deploy import check_transport, find_own_processes, read_rows_without_seconds

pytestmark = pytest.mark.deployment

Make = Callable[..., Scenario]
SETTINGS = {"rounds": 4, "engine.name": "sequential", "downlink.policy": "difference", "checkpoint.every": 2}
KILL_ROUND = 3
CLI = [sys.executable, "-m", "fedsgd"]


def wait_for_message(events: Path, round: int) -> dict[str, Any]:
    """Wait until the ServerApp sends the first message of a round, and return the first event, which has its process's id."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = [json.loads(line) for line in events.read_text().split("\n")[:-1]] if events.exists() else []
        if any(event["event"] == "carried" and event["round"] == round for event in lines):
            return lines[0]
        time.sleep(0.005)
    raise AssertionError(f"no message of round {round}")


def kill_server_app(cluster: LocalCluster, out: Path) -> None:
    """Kill the ServerApp when a node has stored its states of `KILL_ROUND`: the repeated round then gets its stored replies."""
    pid = wait_for_message(cluster.folder / EVENT_FILE, KILL_ROUND)["process"]
    generations = list((out / "checkpoints" / "nodes").glob("node-*/generation"))
    while all(int(path.read_text()) < KILL_ROUND for path in generations):
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)


def kill_superlink(cluster: LocalCluster, out: Path) -> None:
    wait_for_message(cluster.folder / EVENT_FILE, KILL_ROUND)
    assert cluster.superlink is not None
    cluster.superlink.kill()


def deploy_with_fault(scenario: Scenario, out: Path, kill: Callable[[LocalCluster, Path], None], message: str) -> None:
    """Deploy a scenario, and kill a process when the messages of `KILL_ROUND` are sent."""
    clusters: list[LocalCluster] = []

    def on_round(record: Any) -> None:
        if record.round == KILL_ROUND - 1:
            kill(clusters[0], out)

    callbacks = DeploymentCallbacks(on_cluster_start=clusters.append, on_round=on_round)
    config = DeploymentConfig(logs=out.with_name("logs"), tls=True, measure_socket=True)
    with pytest.raises(DeploymentError, match=message):
        deploy(scenario, out, nodes=2, execution=config, callbacks=callbacks)


def check_resumed(out: Path, scenario: Scenario, summary: Any) -> None:
    """Check that a resumed run has the figures of a simulation, and each row of its ledger once."""
    folder = out.with_name("simulation")
    simulation = fedsgd.run(scenario, out=folder)
    for key in ("params_sha256", "ledger_sha256", "residuals", "uplink", "downlink", "rounds"):
        assert summary[key] == simulation.summary[key], key
    assert read_rows_without_seconds(out / "ledger.parquet") == read_rows_without_seconds(folder / "ledger.parquet")
    assert (out / "params.safetensors").read_bytes() == (folder / "params.safetensors").read_bytes()


@pytest.mark.nightly  # by day, test_resume_over_grid.py repeats the messages of a round in one process
@pytest.mark.parametrize(
    ("kill", "message"),
    [
        (kill_server_app, r"the ServerApp \(process \d+\) died"),
        (kill_superlink, r"the SuperLink \(process \d+\) was killed"),
    ],
)
def test_deployment_killed_in_a_round_resumes_with_the_results_of_a_simulation(
    scenario: Make, tmp_path: Path, kill: Callable[[LocalCluster, Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    s, out, rounds = scenario(SETTINGS), tmp_path / "run", list[int]()
    deploy_with_fault(s, out, kill, message)
    first_round = find_resume_point(out).manifest.round + 1
    assert first_round in (KILL_ROUND, KILL_ROUND + 1), "the process may have finished the round before its end"
    with pytest.raises(OutputError, match="is the run of a deployment"):
        fedsgd.resume(out)
    result = resume_deployment(out, callbacks=DeploymentCallbacks(on_round=lambda record: rounds.append(record.round)))
    assert rounds == list(range(first_round, 5))
    check_resumed(out, s, result.summary)
    assert result.summary["flower"]["first_round"] == first_round
    rows = read_rows_without_seconds(out / "transport.parquet")
    assert {row["round"] for row in rows if row["round"]} == set(rounds)
    check_transport(rows, result.summary, tls=True)
    assert result.summary["flower"]["nodes"] == 2
    print_result(result)
    output = capsys.readouterr().out
    assert f"2 nodes, TLS, from round {first_round} on" in output
    assert "frames, one for each client" not in output


@pytest.mark.nightly
def test_command_resumes_at_once_after_the_launcher_was_killed(
    scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard is still ending the earlier ServerApp, for which the command waits."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    s, out, file = scenario(SETTINGS), tmp_path / "run", tmp_path / "mine.toml"
    file.write_text(s.to_toml())
    with subprocess.Popen([*CLI, "flower", str(file), "--nodes", "2", "--quiet", "--out", str(out)]) as running:
        while not (event_files := list(tmp_path.glob(f"fedsgd-*/run/{EVENT_FILE}"))):
            time.sleep(0.05)
        wait_for_message(event_files[0], KILL_ROUND)
        running.kill()
    result = subprocess.run([*CLI, "resume", str(out), "--json", "--quiet"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    check_resumed(out, s, json.loads(result.stdout))
    refused = subprocess.run([*CLI, "resume", str(out), "--workers", "2"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "got 2, expected no such option" in refused.stderr.replace("\n", " ")
    deadline = time.monotonic() + 30
    while find_own_processes() and time.monotonic() < deadline:
        time.sleep(0.2)


@pytest.mark.nightly
def test_ctrl_c_names_the_command_that_continues_the_deployment(scenario: Make, tmp_path: Path) -> None:
    s, out, file = scenario(SETTINGS), tmp_path / "run", tmp_path / "mine.toml"
    file.write_text(s.to_toml())
    command = [*CLI, "flower", str(file), "--nodes", "2", "--quiet", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        while not list((out / "checkpoints").glob("checkpoint-*.json")):
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.stderr is not None
        lines = running.stderr.read().splitlines()
    assert running.returncode == 130
    assert f"fedsgd: to continue: fedsgd resume {out}" in lines
    assert lines[-1] == "fedsgd: interrupted"
    check_resumed(out, s, resume_deployment(out).summary)
