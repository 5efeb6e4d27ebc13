"""Tests of deployments with processes, over Flower's own transport: equal results to a simulation, and faults."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import fedsgd
from fedsgd.cli import main
from fedsgd.cli.terminal import print_result
from fedsgd.errors import DataError, DeploymentError, NonFiniteError, OutputError, ScenarioError
from fedsgd.flower.deployment import (
    DeploymentCallbacks,
    DeploymentConfig,
    DeploymentResult,
    deploy,
    launch_folder,
    launchers,
    monitor,
    processes,
)
from fedsgd.flower.deployment.cluster import ClusterConfig, LocalCluster, local_cluster
from fedsgd.scenario.scenario import Scenario
from tests.flower import run as flower_run
from tests.flower.example import write_app
from tests.flower.user_source import write_rules

pytestmark = pytest.mark.deployment

Make = Callable[..., Scenario]
SMALL = {"rounds": 2, "engine.name": "sequential"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stc both ways, TLS": (
        {
            "uplink.compressor.name": "stc",
            "uplink.error_feedback": "none",
            "downlink.policy": "error-feedback",
            "downlink.compressor.name": "top-k",
            "downlink.compressor.values": "ternary",
        },
        {"tls": True},
    ),
    "top-k and differences": ({"downlink.policy": "difference"}, {}),
    "top-k and differences, cold": ({"downlink.policy": "difference"}, {"use_fork_server": False}),
}
"""Settings and options of deployments. By day, a deployment of `test_resume` has the results of a simulation.

The tests of the grid compare compressors with a simulation, in one process.
"""


def find_own_processes() -> set[int]:
    """Return the ids of all processes of deployments that this process started, which have its id in their environment."""
    pids = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("FEDSGD_TEST_OF") == str(os.getpid()) and process.status() != psutil.STATUS_ZOMBIE:
                pids.add(process.pid)
        except (psutil.Error, OSError):
            continue
    return pids - {os.getpid()}


@pytest.fixture(autouse=True)
def check_processes_and_ports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check after each test that no process runs and that no port is in use."""
    monkeypatch.setenv("FEDSGD_TEST_OF", str(os.getpid()))
    ports: list[int] = []
    find_free_port = processes.find_free_port
    monkeypatch.setattr(processes, "find_free_port", lambda: ports.append(find_free_port()) or ports[-1])
    yield
    assert find_own_processes() == set()
    for port in ports:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))


def deploy_scenario(
    scenario: Scenario | Path,
    out: Path,
    nodes: int = 2,
    data: Path | None = None,
    overwrite: bool = False,
    callbacks: DeploymentCallbacks | None = None,
    **execution: Any,
) -> DeploymentResult:
    """Deploy a scenario, with logs next to the run folder."""
    config = DeploymentConfig(**{"logs": out.with_name(f"logs-of-{out.name}"), **execution})
    return deploy(scenario, out, nodes=nodes, data=data, overwrite=overwrite, execution=config, callbacks=callbacks)


def read_rows_without_seconds(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table without its columns of times."""
    table = pq.read_table(path)
    return table.drop_columns([name for name in table.column_names if name.endswith("_seconds")]).to_pylist()


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_deployment_has_the_parameters_and_frames_of_a_simulation(scenario: Make, tmp_path: Path, case: str) -> None:
    settings, options = CASES[case]
    s = scenario({**SMALL, **settings})
    simulation = fedsgd.run(s, out=tmp_path / "simulation")
    deployment = deploy_scenario(s, tmp_path / "deployment", measure_socket=True, **options)
    assert deployment.summary["params_sha256"] == simulation.summary["params_sha256"]
    assert deployment.summary["ledger_sha256"] == simulation.summary["ledger_sha256"]
    ledgers = [read_rows_without_seconds(tmp_path / name / "ledger.parquet") for name in ("deployment", "simulation")]
    assert ledgers[0] == ledgers[1]
    parameters = [(tmp_path / name / "params.safetensors").read_bytes() for name in ("deployment", "simulation")]
    assert parameters[0] == parameters[1]
    rows = pq.read_table(tmp_path / "deployment" / "transport.parquet").to_pylist()
    check_transport(rows, deployment.summary, tls=bool(options.get("tls")))


def check_transport(rows: list[dict[str, Any]], summary: Any, tls: bool) -> None:
    """Check that a new process trained for each message, and that all bytes went over sockets."""
    reply_rows = [row for row in rows if row["round"] and row["direction"] == "up" and row["messages"]]
    pids = [row["process"] for row in reply_rows]
    assert len(set(pids)) == len(pids) >= 2
    assert os.getpid() not in pids
    for row in rows:
        if row["round"]:
            assert row["frame_bytes"] < row["message_bytes"] or not row["messages"]
            assert row["socket_bytes"] > row["message_bytes"]
    totals = summary["flower"]["transport"]
    flower_counters = summary["flower"]["counted_by_flower"]
    for direction in ("up", "down"):
        assert totals[direction]["frame_bytes"] <= summary[f"{direction}link"]["n_bytes"]
        assert (
            totals[direction]["message_bytes"]
            <= flower_counters[direction]
            <= totals[direction]["socket_bytes"] + totals[direction]["outside_rounds"]
        )
        assert totals[direction]["outside_rounds"] > (2000 if tls else 500)


class FaultInjector:
    """Callbacks that inject a fault into the cluster after a round."""

    def __init__(self, inject: Callable[[LocalCluster], None], round: int = 1) -> None:
        self.inject = inject
        self.round = round
        self.clusters: list[LocalCluster] = []
        self.troubles: list[str] = []
        self.records: list[Any] = []
        self.callbacks = DeploymentCallbacks(
            on_cluster_start=self.clusters.append, on_round=self.on_round, on_trouble=self.troubles.append
        )

    def on_round(self, record: Any) -> None:
        self.records.append(record)
        if record.round == self.round:
            self.inject(self.clusters[0])


def kill_node(cluster: LocalCluster) -> None:
    cluster.nodes[1].kill()


def suspend_node(cluster: LocalCluster) -> None:
    """Suspend a node; its connections stay open."""
    os.kill(cluster.nodes[1].pid, signal.SIGSTOP)


def kill_superlink(cluster: LocalCluster) -> None:
    assert cluster.superlink is not None
    cluster.superlink.kill()


def suspend_superlink(cluster: LocalCluster) -> None:
    assert cluster.superlink is not None
    os.kill(cluster.superlink.pid, signal.SIGSTOP)


@pytest.mark.nightly
def test_run_continues_without_a_killed_node(scenario: Make, tmp_path: Path) -> None:
    s = scenario({**SMALL, "rounds": 3, "server.cohort": 8, "participation.on_failure": "continue"})
    injector = FaultInjector(kill_node)
    result = deploy_scenario(
        s, tmp_path / "deployment", callbacks=injector.callbacks, logs=tmp_path / "logs", round_seconds=15.0
    )
    pid = injector.clusters[0].nodes[1].pid
    log = tmp_path / "logs" / "node-1.log"
    assert injector.troubles == [
        f"node 1 (process {pid}) was killed by SIGKILL; its log is {log}; the run continues without its clients"
    ]
    assert [record.accepted for record in injector.records] == [tuple(range(8)), (0, 2, 4, 6), (0, 2, 4, 6)]
    assert all("node 1: " in failure for failure in injector.records[1].failures)
    assert result.summary["rounds"] == 3
    assert result.summary["failures"] == 8
    assert log.stat().st_size > 0


FAULTS = {
    "node killed": (kill_node, r"node 1 \(process \d+\) was killed by SIGKILL; its log is (\S+)"),
    "node hangs": (suspend_node, r"round 2, client 1: TimeoutError: node 1: no answer within 15 s; its log is (\S+)"),
    "SuperLink killed": (kill_superlink, r"the SuperLink \(process \d+\) was killed by SIGKILL; its log is (\S+)"),
    "SuperLink hangs": (suspend_superlink, r"the SuperLink \(process \d+\) does not answer after 8 s; its log is (\S+)"),
}
"""Faults and the messages of their errors, tested at night.

By day, a test of `test_resume` kills the ServerApp. In the tests of the grid, a node does not answer in time.
"""


@pytest.mark.nightly
@pytest.mark.parametrize("fault", FAULTS)
def test_failed_process_is_named_with_its_log_within_a_minute(
    scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    inject, message = FAULTS[fault]
    if inject is suspend_superlink:
        monkeypatch.setattr(monitor, "SILENT_SECONDS", 8.0)
    options = {"logs": None} if inject is kill_node else {}  # without a folder for logs, they are kept because of the error
    fault_times: list[float] = []
    injector = FaultInjector(lambda cluster: (inject(cluster), fault_times.append(time.monotonic()))[0])
    with pytest.raises(DeploymentError) as caught:
        deploy_scenario(
            scenario({**SMALL, "rounds": 9, "server.cohort": 8}),
            tmp_path / "deployment",
            callbacks=injector.callbacks,
            round_seconds=15.0,
            **options,
        )
    match = re.match(message, str(caught.value))
    assert match, str(caught.value)
    assert time.monotonic() - fault_times[0] < 60
    assert Path(match[1]).stat().st_size > 0, "the log was not removed"
    if options:
        shutil.rmtree(Path(match[1]).parent)
    ledger = read_rows_without_seconds(tmp_path / "deployment" / "ledger.parquet")
    assert {row["round"] for row in ledger} <= {1, 2}
    assert ledger


@pytest.mark.nightly
def test_missing_node_is_an_error(scenario: Make, tmp_path: Path) -> None:
    callbacks = DeploymentCallbacks(on_cluster_start=suspend_node)
    with pytest.raises(DeploymentError, match=r"1 of 2 nodes are ready after 25 s: node 1 did not answer"):
        deploy_scenario(scenario(SMALL), tmp_path / "run", callbacks=callbacks, start_seconds=25.0)


def test_wrong_arguments_are_errors(scenario: Make, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="nodes: expected a whole number from 1 to 8, got true; there are 8 clients"):
        deploy_scenario(scenario(SMALL), tmp_path / "run", nodes=True)
    with pytest.raises(ScenarioError, match="nodes: expected a whole number from 1 to 8, got 9; there are 8 clients"):
        deploy_scenario(scenario(SMALL), tmp_path / "run", nodes=9)
    with pytest.raises(ScenarioError, match='overwrite: got "no", expected True or False'):
        deploy_scenario(scenario(SMALL), tmp_path / "run", overwrite="no")
    for seconds in (0, float("inf"), float("nan"), "9"):
        with pytest.raises(ScenarioError, match=r"round_seconds: got .*, expected a positive number of seconds"):
            deploy_scenario(scenario(SMALL), tmp_path / "run", round_seconds=seconds)


@pytest.mark.nightly
def test_port_in_use_is_replaced_by_another(scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenario is the path of a file."""
    find_free_port, n_calls = processes.find_free_port, 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        used_port = listener.getsockname()[1]

        def find_port() -> int:
            nonlocal n_calls
            n_calls += 1
            return used_port if n_calls in (1, 3) else find_free_port()  # for the SuperLink, and for the first node

        monkeypatch.setattr(processes, "find_free_port", find_port)
        file = tmp_path / "mine.toml"
        file.write_text(scenario({**SMALL, "rounds": 1}).to_toml())
        result = deploy_scenario(file, tmp_path / "deployment", nodes=1)
    assert n_calls == 4
    assert result.summary["failures"] == 0


@pytest.mark.nightly
def test_errors_of_a_client_and_of_the_server_are_those_of_a_simulation(scenario: Make, tmp_path: Path) -> None:
    diverging = scenario({**SMALL, "client.optimizer.lr": 1e38, "client.epochs": 2})
    with pytest.raises(NonFiniteError, match=r"round 1, client \d: the update is not finite"):
        deploy_scenario(diverging, tmp_path / "run", nodes=1)
    without = scenario({**SMALL, "data.name": "mnist", "model.name": "softmax"})
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "summary.json").write_text("{}")
    with pytest.raises(DataError, match=f"{tmp_path}"):
        deploy_scenario(without, tmp_path / "kept", nodes=1, data=tmp_path, overwrite=True)
    assert (tmp_path / "kept" / "summary.json").read_text() == "{}", "an earlier run is not removed before the nodes are ready"


def test_wrong_scenario_or_folder_is_an_error_without_a_process(scenario: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    (tmp_path / "wrong.toml").write_text('name = "x"\nround = 3\n')
    with pytest.raises(ScenarioError, match=r"^\S+wrong.toml: round: .*did you mean") as caught:
        deploy_scenario(tmp_path / "wrong.toml", tmp_path / "run")
    assert str(caught.value).count("wrong.toml") == 1
    with pytest.raises(OutputError, match="logs cannot be in the run folder"):
        deploy_scenario(scenario(SMALL), tmp_path / "run2", logs=tmp_path / "run2" / "logs")
    with pytest.raises(OutputError, match="logs cannot be written there"):
        deploy_scenario(scenario(SMALL), tmp_path / "run3", logs=tmp_path / "mine.txt" / "logs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(OutputError, match="is not empty"):
        deploy_scenario(scenario(SMALL), tmp_path / "mine")


@pytest.mark.nightly
def test_module_next_to_the_scenario_travels_in_the_app(
    scenario: Make, user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process of the deployment but this one has the folder of the module on its path, and no process is forked."""
    settings = write_rules(user_folder, "travelling_rules")
    s = scenario({**SMALL, **settings, "rounds": 1})
    simulation = fedsgd.run(s)
    file = user_folder / "mine.toml"
    file.write_text(s.to_toml())
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [entry for entry in sys.path if entry != str(user_folder)])
        del sys.modules["travelling_rules"]
        deployment = deploy_scenario(file, user_folder.parent / "deployment", nodes=1, use_fork_server=False)
    for digest in ("params_sha256", "ledger_sha256"):
        assert deployment.summary[digest] == simulation.summary[digest]
    text = (user_folder.parent / "deployment" / "scenario.toml").read_text()
    assert all(f'"{path}"' in text for path in settings.values())


@pytest.mark.nightly
def test_module_that_a_node_cannot_import_ends_the_command_before_round_1(scenario: Make, user_folder: Path) -> None:
    settings = write_rules(user_folder, "unimportable_rules")
    file = user_folder / "mine.toml"
    file.write_text(scenario({**SMALL, **settings}).to_toml())
    problem = "if sys.argv[0].endswith('flwr-clientapp'):\n    raise ImportError('no library of this name')"
    (user_folder / "unimportable_rules_helper.py").write_text(f"import sys\n{problem}\nFACTOR = 2\n")
    out = user_folder.parent / "run"
    command = ["flower", str(file), "--nodes", "1", "--cold", "--quiet", "--out", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2, result.stderr
    assert result.stderr == (
        f"fedsgd: {file}: node 0: cannot take part: the scenario needs unimportable_rules:HalfTopK, unimportable_rules:UserMean: "
        'server.aggregator.name: cannot import "unimportable_rules": ImportError: no library of this name\n'
    )


@pytest.mark.nightly
def test_readme_command_over_a_deployment_sends_compressed_updates() -> None:
    run = flower_run.run_in_deployment()
    run.check()
    replies = flower_run.ROUNDS * flower_run.NODES * 2
    assert 0 < run.bytes_up < replies * 10_000, "the arrays of one reply have 220,840 bytes"


@pytest.mark.nightly
def test_example_app_on_four_forked_nodes_logs_the_bytes_of_the_sockets(tmp_path: Path) -> None:
    """Compare the bytes of the app's log with Flower's own counter and the sockets."""
    with local_cluster(ClusterConfig(4, measure_socket=True), tmp_path / "run", tmp_path / "logs") as cluster:
        app = write_app(cluster.folder / "app", compressed=True, settings={"num-server-rounds": 2, "min-nodes": 4})
        cluster.submit(app, stream=True).wait()
        flower_counters, log = cluster.read_flower_byte_counters(), cluster.get_log_path("serverapp").read_text()
        traffic = [item for proxy in cluster.proxies.values() for item in proxy.traffic]
    sizes = {phase: int(n.replace(",", "")) for phase, n in re.findall(r"fedsgd: (round \d.*?): ([\d,]+) bytes", log)}
    assert list(sizes) == ["round 1", "round 1, evaluation", "round 2", "round 2, evaluation"], log[-2000:]
    uplink_bytes = sizes["round 1"] + sizes["round 2"]
    assert flower_counters is not None
    assert uplink_bytes < flower_counters["up"] < uplink_bytes + 16 * 5000
    assert flower_counters["up"] < sum(item.n_bytes for item in traffic if item.direction == "up")
    assert uplink_bytes < 2 * 4 * 55_210 * 4 / 60, "a sixtieth of the arrays"
    assert "accuracy" in log


@pytest.mark.nightly
def test_ctrl_c_ends_all_processes(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ["--set", "rounds=200", "--set", "client.epochs=1", "--set", "server.cohort=4"]
    command = [sys.executable, "-m", "fedsgd", "flower", str(root / "scenarios" / "quickstart.toml"), *settings, "--nodes", "2"]
    with subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        lines = []
        for line in running.stderr:
            lines.append(line)
            if "round 1" in line:
                break
        assert len(find_own_processes()) >= 7, "a SuperLink, two SuperNodes, the processes that they start, and the command"
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert running.returncode == 130, "".join(lines) + rest
    assert rest.splitlines()[-1] == "fedsgd: interrupted"


@pytest.mark.nightly
def test_launcher_killed_by_sigkill_leaves_no_process_and_no_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    settings = ["--set", "rounds=200", "--set", "client.epochs=1", "--set", "server.cohort=4", "--nodes", "2"]
    command = [sys.executable, "-m", "fedsgd", "flower", str(root / "scenarios" / "quickstart.toml"), *settings]
    with subprocess.Popen([*command, "--out", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert any("round 1" in line for line in running.stderr)
        assert len(find_own_processes()) >= 8, (
            "a SuperLink, two SuperNodes, the processes that they start, the command and its guard"
        )
        assert len(list(tmp_path.glob("fedsgd-*"))) == 2, "the work folder and the folder of the logs"
        running.kill()
    deadline = time.monotonic() + 30
    while (find_own_processes() or list(tmp_path.glob("fedsgd-*"))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert find_own_processes() == set()
    assert list(tmp_path.glob("fedsgd-*")) == []


@pytest.mark.nightly
def test_fork_server_with_a_long_temporary_path_uses_a_short_private_folder(
    scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other folder is removed at the end."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    clusters: list[LocalCluster] = []
    troubles: list[str] = []
    callbacks = DeploymentCallbacks(on_cluster_start=clusters.append, on_trouble=troubles.append)
    result = deploy_scenario(scenario({**SMALL, "rounds": 1}), tmp_path / "deployment", nodes=1, callbacks=callbacks)
    assert troubles == []
    assert result.summary["flower"]["warm"]
    socket_folder = Path(clusters[0].env[launchers.SOCKET_VARIABLE]).parent
    assert folder not in socket_folder.parents
    assert not socket_folder.exists()
    assert list(folder.glob("fedsgd-*")) == []


@pytest.mark.nightly
def test_cluster_without_a_launch_folder_reports_it_and_uses_flowers_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_folder, "find_problem", lambda folder: "no")
    monkeypatch.setattr(launch_folder, "_list_candidate_parents", lambda: [tmp_path])
    troubles: list[str] = []
    with local_cluster(ClusterConfig(1), tmp_path / "run", tmp_path / "logs", on_trouble=troubles.append) as cluster:
        assert cluster.fork_server is None
        assert str(tmp_path) not in cluster.env["PATH"]
    (line,) = troubles
    assert line.startswith("each app starts as a new process, more slowly, and the ServerApp has no log")
    assert f": {tmp_path / 'run'} (no); {tmp_path} (no); other logs are in {tmp_path / 'logs'}" in line
    assert {path.name for path in tmp_path.iterdir()} == {"run", "logs"}


@pytest.mark.nightly
def test_ctrl_c_while_processes_are_stopped_does_not_interrupt(root: Path, tmp_path: Path) -> None:
    """The signal comes after the results are written and before all processes have ended."""
    out = tmp_path / "run"
    settings = ["--set", "rounds=1", "--set", "client.epochs=1", "--json", "--nodes", "1"]
    command = [
        sys.executable,
        "-m",
        "fedsgd",
        "flower",
        str(root / "scenarios" / "quickstart.toml"),
        *settings,
        "--out",
        str(out),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and not (out / "summary.json").exists():
            time.sleep(0.02)
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate()
    assert running.returncode in (0, 130)
    assert find_own_processes() == set()
    if running.returncode == 0:
        assert json.loads(output)["flower"]["nodes"] == 1


@pytest.mark.nightly
def test_command_prints_the_summary_as_json_and_the_measured_bytes(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--set", "rounds=1", "--set", "client.epochs=1"]
    command = ["flower", str(root / "scenarios" / "quickstart.toml"), *settings, "--out", str(tmp_path / "run")]
    options = ["--nodes", "1", "--measure-socket", "--keep-logs", str(tmp_path / "logs"), "--json", "--quiet"]
    result = CliRunner().invoke(main, [*command, *options])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert result.stderr == ""
    monkeypatch.setenv("COLUMNS", "120")
    print_result(DeploymentResult(json.loads(result.stdout), tmp_path / "run"))
    output = capsys.readouterr().out
    uplink = json.loads(result.stdout)["flower"]["transport"]["up"]
    for title, key in (("on sockets, in rounds", "socket_bytes"), ("in Flower's messages", "message_bytes")):
        assert re.search(rf"{title} +{uplink[key]:,} +×", output), output
    assert "median duration of a round: " in output
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {
        "node-0.log",
        "serverapp.log",
        "submission.log",
        "superlink.log",
        "warm.log",
    }
