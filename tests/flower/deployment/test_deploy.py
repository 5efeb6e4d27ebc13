"""Real deployments: SuperLinks and SuperNodes as processes, over Flower's own transport. Parity with a simulation, and faults."""

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

import fedsgd
from fedsgd.cli.terminal import print_result
from fedsgd.errors import DataError, DeploymentError, NonFiniteError, OutputError, ScenarioError
from fedsgd.flower.deployment import DeploymentCallbacks, DeploymentResult, deploy, launch_folder, launchers, monitor, processes
from fedsgd.flower.deployment.cluster import ClusterConfig, LocalCluster, local_cluster
from fedsgd.scenario.scenario import Scenario
from tests.flower import run as flower_run
from tests.flower.example import write_app

Make = Callable[..., Scenario]
SMALL = {"rounds": 2, "engine.name": "sequential"}
NO_FEEDBACK = {"uplink.error_feedback": "none"}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense, TLS": ({"uplink.compressor.name": "dense", **NO_FEEDBACK}, {"tls": True}),
    "dgc, cold": ({"uplink.compressor.name": "dgc", "uplink.compressor.momentum": 0.0, **NO_FEEDBACK}, {"warm": False}),
    "stc both ways": (
        {
            "uplink.compressor.name": "stc",
            "downlink.policy": "error-feedback",
            "downlink.compressor.name": "top-k",
            "downlink.compressor.values": "ternary",
            **NO_FEEDBACK,
        },
        {},
    ),
    "qsgd": ({"uplink.compressor.name": "qsgd", "downlink.policy": "difference", **NO_FEEDBACK}, {}),
    "eden": ({"uplink.compressor.name": "eden", **NO_FEEDBACK}, {}),
}


def ours() -> set[int]:
    """Processes of deployments that this process started: all of them have its own id in their environment."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("FEDSGD_TEST_OF") == str(os.getpid()) and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except (psutil.Error, OSError):
            continue
    return found - {os.getpid()}


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process and no port, however the test ends."""
    monkeypatch.setenv("FEDSGD_TEST_OF", str(os.getpid()))
    ports: list[int] = []
    real = processes.find_free_port
    monkeypatch.setattr(processes, "find_free_port", lambda: ports.append(real()) or ports[-1])
    yield
    assert ours() == set()
    for port in ports:
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("127.0.0.1", port))


def deployed(scenario: Scenario | Path, out: Path, **given: Any) -> DeploymentResult:
    return deploy(scenario, out, **{"nodes": 2, "logs": out.with_name(f"logs-of-{out.name}"), **given})


def frame_rows(path: Path) -> list[dict[str, Any]]:
    """All that is not a time."""
    table = pq.read_table(path)
    return table.drop_columns([name for name in table.column_names if name.endswith("_seconds")]).to_pylist()


@pytest.mark.parametrize("way", WAYS)
def test_the_same_bits_and_the_same_frames_as_a_simulation(scenario: Make, tmp_path: Path, way: str) -> None:
    settings, options = WAYS[way]
    s = scenario({**SMALL, **settings})
    here = fedsgd.run(s, out=tmp_path / "here")
    over = deployed(s, tmp_path / "over", measure_socket=True, **options)
    assert over.summary["params_sha256"] == here.summary["params_sha256"]
    assert over.summary["ledger_sha256"] == here.summary["ledger_sha256"]
    assert frame_rows(tmp_path / "over" / "ledger.parquet") == frame_rows(tmp_path / "here" / "ledger.parquet")
    assert (tmp_path / "over" / "params.safetensors").read_bytes() == (tmp_path / "here" / "params.safetensors").read_bytes()
    rows = pq.read_table(tmp_path / "over" / "transport.parquet").to_pylist()
    check_that_it_was_a_deployment(rows, over.summary, tls=bool(options.get("tls")))


def check_that_it_was_a_deployment(rows: list[dict[str, Any]], summary: Any, tls: bool) -> None:
    """Other processes trained, a new one for each message, and what was sent went over sockets."""
    answered = [row for row in rows if row["round"] and row["direction"] == "up" and row["messages"]]
    pids = [row["process"] for row in answered]
    assert len(set(pids)) == len(pids) >= 2
    assert os.getpid() not in pids
    for row in rows:
        if row["round"]:
            assert row["frame_bytes"] < row["message_bytes"] or not row["messages"]
            assert row["socket_bytes"] > row["message_bytes"]
    totals = summary["flower"]["transport"]
    counted = summary["flower"]["counted_by_flower"]
    for direction in ("up", "down"):
        assert totals[direction]["frame_bytes"] <= summary[f"{direction}link"]["n_bytes"]
        assert (
            totals[direction]["message_bytes"]
            <= counted[direction]
            <= totals[direction]["socket_bytes"] + totals[direction]["outside_rounds"]
        )
        assert totals[direction]["outside_rounds"] > (2000 if tls else 500)


class Breaking:
    """Does something to the federation when a round is over."""

    def __init__(self, what: Callable[[LocalCluster], None], after: int = 1) -> None:
        self.what = what
        self.after = after
        self.made: list[LocalCluster] = []
        self.troubles: list[str] = []
        self.rounds: list[Any] = []
        self.watched = DeploymentCallbacks(
            on_cluster_start=self.made.append, on_round=self.on_round, on_trouble=self.troubles.append
        )

    def on_round(self, record: Any) -> None:
        self.rounds.append(record)
        if record.round == self.after:
            self.what(self.made[0])


def killed(made: LocalCluster) -> None:
    made.nodes[1].kill()


def stopped(made: LocalCluster) -> None:
    """It hangs, and its connections stay open."""
    os.kill(made.nodes[1].pid, signal.SIGSTOP)


def link_stopped(made: LocalCluster) -> None:
    assert made.superlink is not None
    os.kill(made.superlink.pid, signal.SIGSTOP)


def test_the_run_goes_on_without_a_node_that_was_killed(scenario: Make, tmp_path: Path) -> None:
    s = scenario({**SMALL, "rounds": 3, "server.cohort": 8, "participation.on_failure": "continue"})
    breaking = Breaking(killed)
    over = deployed(s, tmp_path / "over", watched=breaking.watched, logs=tmp_path / "logs", round_seconds=15.0)
    pid = breaking.made[0].nodes[1].pid
    log = tmp_path / "logs" / "node-1.log"
    assert breaking.troubles == [
        f"node 1 (process {pid}) was killed by SIGKILL; its log is {log}; the run continues without its clients"
    ]
    assert [record.accepted for record in breaking.rounds] == [tuple(range(8)), (0, 2, 4, 6), (0, 2, 4, 6)]
    assert all("node 1: " in failure for failure in breaking.rounds[1].failures)
    assert over.summary["rounds"] == 3
    assert over.summary["failures"] == 8
    assert log.stat().st_size > 0


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (killed, r"node 1 \(process \d+\) was killed by SIGKILL; its log is (\S+)"),
        (stopped, r"round 2, client 1: TimeoutError: node 1: no answer within 15 s; its log is (\S+)"),
        (lambda made: made.superlink.kill(), r"the SuperLink \(process \d+\) was killed by SIGKILL; its log is (\S+)"),
        (link_stopped, r"the SuperLink \(process \d+\) does not answer after 8 s; its log is (\S+)"),
    ],
    ids=["node killed", "node hangs", "SuperLink killed", "SuperLink hangs"],
)
def test_what_died_is_said_within_a_stated_time(
    scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Callable[[LocalCluster], None], message: str
) -> None:
    if what is link_stopped:
        monkeypatch.setattr(monitor, "SILENT_SECONDS", 8.0)
    given = {"logs": None} if what is killed else {}  # nobody asked for logs: they are kept all the same
    breaking, at = Breaking(what), [0.0]
    real = breaking.what
    breaking.what = lambda made: (real(made), at.__setitem__(0, time.monotonic()))[0]
    with pytest.raises(DeploymentError) as caught:
        deployed(
            scenario({**SMALL, "rounds": 9, "server.cohort": 8}),
            tmp_path / "over",
            watched=breaking.watched,
            round_seconds=15.0,
            **given,
        )
    found = re.match(message, str(caught.value))
    assert found, str(caught.value)
    assert time.monotonic() - at[0] < 60
    assert Path(found[1]).stat().st_size > 0, "its log is still there"
    if given:
        shutil.rmtree(Path(found[1]).parent)
    ledger = frame_rows(tmp_path / "over" / "ledger.parquet")
    assert {row["round"] for row in ledger} <= {1, 2}
    assert ledger


def test_a_node_that_does_not_come(scenario: Make, tmp_path: Path) -> None:
    watched = DeploymentCallbacks(on_cluster_start=stopped)
    with pytest.raises(DeploymentError, match=r"1 of 2 nodes are ready after 25 s: node 1 did not answer"):
        deployed(scenario(SMALL), tmp_path / "over", watched=watched, start_seconds=25.0)
    with pytest.raises(ScenarioError, match="nodes: got 9, expected 1 to 8, the number of clients"):
        deployed(scenario(SMALL), tmp_path / "over", nodes=9)
    for seconds in (0, float("inf"), float("nan"), "9"):
        with pytest.raises(ScenarioError, match=r"round_seconds: got .*, expected a positive number of seconds"):
            deployed(scenario(SMALL), tmp_path / "over", round_seconds=seconds)


def test_ports_that_are_taken_are_not_insisted_on(scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, wanted = processes.find_free_port, []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        def free_port() -> int:
            wanted.append(0)
            return port if len(wanted) in (1, 3) else real()  # the SuperLink's, and the first node's

        monkeypatch.setattr(processes, "find_free_port", free_port)
        file = tmp_path / "mine.toml"  # a path will do for a scenario
        file.write_text(scenario({**SMALL, "rounds": 1}).to_toml())
        over = deployed(file, tmp_path / "over")
    assert len(wanted) == 5
    assert over.summary["failures"] == 0


def test_errors_are_those_of_a_simulation(scenario: Make, tmp_path: Path) -> None:
    """A client's, and the server's before the first round."""
    diverging = scenario({**SMALL, "client.optimizer.lr": 1e38, "client.epochs": 2})
    with pytest.raises(NonFiniteError, match=r"round 1, client \d: the update is not finite"):
        deployed(diverging, tmp_path / "over")
    without = scenario({**SMALL, "data.name": "mnist", "model.name": "softmax"})
    with pytest.raises(DataError, match=f"{tmp_path}"):
        deployed(without, tmp_path / "other", data=tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "summary.json").write_text("{}")
    (tmp_path / "mine.txt").touch()
    (tmp_path / "wrong.toml").write_text('name = "x"\nround = 3\n')
    with pytest.raises(ScenarioError, match=r"^\S+wrong.toml: round: .*did you mean") as caught:
        deployed(tmp_path / "wrong.toml", tmp_path / "over")
    assert str(caught.value).count("wrong.toml") == 1
    with pytest.raises(DataError):
        deployed(without, tmp_path / "kept", data=tmp_path, overwrite=True)
    assert (tmp_path / "kept" / "summary.json").read_text() == "{}", "what was there is there until there is something else"
    with pytest.raises(OutputError, match="logs cannot be in the run folder"):
        deployed(without, tmp_path / "over2", logs=tmp_path / "over2" / "logs")
    with pytest.raises(OutputError, match="logs cannot be written there"):
        deployed(without, tmp_path / "over3", logs=tmp_path / "mine.txt" / "logs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(OutputError, match="is not empty"):
        deployed(scenario(SMALL), tmp_path / "mine")


def test_readme_command_over_a_deployment_completes_compressed() -> None:
    run = flower_run.run_in_deployment()
    run.check()
    replies = flower_run.ROUNDS * flower_run.NODES * 2
    assert 0 < run.bytes_up < replies * 10_000, "the arrays of one reply have 220,840 bytes"


def test_example_app_on_four_forked_nodes_logs_the_bytes_of_the_sockets(tmp_path: Path) -> None:
    """Compare the bytes of the app's log with Flower's own counter and the sockets."""
    with local_cluster(ClusterConfig(4, measure_socket=True), tmp_path / "run", tmp_path / "logs") as made:
        app = write_app(made.folder / "app", compressed=True, settings={"num-server-rounds": 2, "min-nodes": 4})
        made.submit(app, stream=True).wait()
        counted, log = made.read_flower_byte_counters(), made.get_log_path("serverapp").read_text()
        seen = [seen for proxy in made.proxies.values() for seen in proxy.traffic]
    said = {what: int(n.replace(",", "")) for what, n in re.findall(r"fedsgd: (round \d.*?): ([\d,]+) bytes", log)}
    assert list(said) == ["round 1", "round 1, evaluation", "round 2", "round 2, evaluation"], log[-2000:]
    up = said["round 1"] + said["round 2"]
    assert counted is not None
    assert up < counted["up"] < up + 16 * 5000
    assert counted["up"] < sum(s.n_bytes for s in seen if s.direction == "up")
    assert up < 2 * 4 * 55_210 * 4 / 60, "a sixtieth of the arrays"
    assert "accuracy" in log


def test_ctrl_c_stops_everything(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "over"
    settings = ["--set", "rounds=200", "--set", "client.epochs=1", "--set", "server.cohort=4"]
    command = [sys.executable, "-m", "fedsgd", "flower", str(root / "scenarios" / "quickstart.toml"), *settings, "--nodes", "2"]
    with subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        said = []
        for line in running.stderr:
            said.append(line)
            if "round 1" in line:
                break
        assert len(ours()) >= 7, "a SuperLink, two SuperNodes, what they start, and the command"
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert running.returncode == 130, "".join(said) + rest
    assert rest.splitlines()[-1] == "fedsgd: interrupted"


def test_launcher_killed_by_sigkill_no_process_and_no_folder_is_left(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    settings = ["--set", "rounds=200", "--set", "client.epochs=1", "--set", "server.cohort=4", "--nodes", "2"]
    command = [sys.executable, "-m", "fedsgd", "flower", str(root / "scenarios" / "quickstart.toml"), *settings]
    with subprocess.Popen([*command, "--out", str(tmp_path / "over")], stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert any("round 1" in line for line in running.stderr)
        assert len(ours()) >= 8, "a SuperLink, two SuperNodes, the processes that they start, the command and its guard"
        assert len(list(tmp_path.glob("fedsgd-*"))) == 2, "the work folder, and that of the logs"
        running.kill()
    deadline = time.monotonic() + 30
    while (ours() or list(tmp_path.glob("fedsgd-*"))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ours() == set()
    assert list(tmp_path.glob("fedsgd-*")) == []


def test_temporary_folder_with_a_long_path_apps_are_forked(
    scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket is in another folder, private and short, which is removed."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    made: list[LocalCluster] = []
    troubles: list[str] = []
    watched = DeploymentCallbacks(on_cluster_start=made.append, on_trouble=troubles.append)
    over = deployed(scenario({**SMALL, "rounds": 1}), tmp_path / "over", watched=watched)
    assert troubles == []
    assert over.summary["flower"]["warm"]
    socket_folder = Path(made[0].env[launchers.SOCKET_VARIABLE]).parent
    assert folder not in socket_folder.parents
    assert not socket_folder.exists()
    assert list(folder.glob("fedsgd-*")) == []


def test_no_folder_for_commands_and_socket_is_reported_and_flowers_commands_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_folder, "find_problem", lambda folder: "no")
    monkeypatch.setattr(launch_folder, "_list_candidate_parents", lambda: [tmp_path])
    troubles: list[str] = []
    with local_cluster(ClusterConfig(1), tmp_path / "run", tmp_path / "logs", on_trouble=troubles.append) as made:
        assert made.fork_server is None
        assert str(tmp_path) not in made.env["PATH"]
    (line,) = troubles
    assert line.startswith("each app starts as a new process, more slowly, and the ServerApp has no log")
    assert f": {tmp_path / 'run'} (no); {tmp_path} (no); other logs are in {tmp_path / 'logs'}" in line
    assert {path.name for path in tmp_path.iterdir()} == {"run", "logs"}


def test_what_is_being_stopped_is_stopped_to_the_end_and_the_run_is_a_finished_one(root: Path, tmp_path: Path) -> None:
    """Ctrl-C comes when the results are there and the processes still are."""
    out = tmp_path / "over"
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
        said, _ = running.communicate()
    assert running.returncode in (0, 130)
    assert ours() == set()
    if running.returncode == 0:
        assert json.loads(said)["flower"]["nodes"] == 1


def test_the_command_prints_what_was_measured(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it prints as JSON is what it wrote."""
    settings = ["--set", "rounds=1", "--set", "client.epochs=1"]
    command = [sys.executable, "-m", "fedsgd", "flower", str(root / "scenarios" / "quickstart.toml"), *settings]
    options = ["--nodes", "1", "--measure-socket", "--keep-logs", str(tmp_path / "logs"), "--json", "--quiet"]
    done = subprocess.run([*command, *options, "--out", str(tmp_path / "over")], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == json.loads((tmp_path / "over" / "summary.json").read_text())
    assert done.stderr == ""
    monkeypatch.setenv("COLUMNS", "120")
    print_result(DeploymentResult(json.loads(done.stdout), tmp_path / "over"))
    shown = capsys.readouterr().out
    way = json.loads(done.stdout)["flower"]["transport"]["up"]
    for title, key in (("on sockets, in rounds", "socket_bytes"), ("in Flower's messages", "message_bytes")):
        assert re.search(rf"{title} +{way[key]:,} +×", shown), shown
    assert "a round took " in shown
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {
        "node-0.log",
        "serverapp.log",
        "submission.log",
        "superlink.log",
        "warm.log",
    }
