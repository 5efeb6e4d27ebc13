"""Tests of the processes of a cluster: ports that are in use, and the end of the fork server."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from fedsgd.flower.deployment import launchers, processes
from fedsgd.flower.deployment.cluster import ClusterConfig, LocalCluster
from tests.flower.deployment.stubs import port_number, start_stub


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ports that `find_free_port` returns, one after the other."""
    ports = [port_number(number) for number in range(1, 10)]
    monkeypatch.setattr(processes, "find_free_port", lambda: ports.pop(0))
    return ports


@pytest.fixture
def port_conflicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace Flower's commands by a command that ends because its port is in use."""
    program = tmp_path / "port-in-use"
    program.write_text("#!/bin/sh\necho Address already in use\n")
    program.chmod(0o700)
    monkeypatch.setattr(launchers, "find_flower_command", lambda name: str(program))


@pytest.mark.usefixtures("hidden_environments", "port_conflicts", "ports")
def test_process_at_a_port_that_a_node_lost_is_not_ended(tmp_path: Path) -> None:
    cluster = LocalCluster(ClusterConfig(1), tmp_path, tmp_path, dict(os.environ))
    cluster.start_node(0)
    cluster.nodes[0].wait()
    assert cluster.restart_after_port_conflict(0)
    cluster.nodes[0].wait()
    with start_stub(1) as first_stub, start_stub(2) as second_stub:
        cluster.stop()
        assert (first_stub.poll(), second_stub.poll()) == (None, None)
        for stub in (first_stub, second_stub):
            stub.kill()


@pytest.mark.usefixtures("hidden_environments", "ports")
def test_process_at_the_port_of_a_running_node_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "find_flower_command", lambda name: "/bin/cat")
    cluster = LocalCluster(ClusterConfig(1), tmp_path, tmp_path, dict(os.environ))
    cluster.start_node(0)
    cluster.get_log_path("node-0").write_text("Address already in use\n")  # at the first start
    cluster.nodes[0] = cluster.start_process("node-0", [sys.executable, "-c", "import time; time.sleep(99)"])
    with start_stub(1) as stub:
        cluster.stop()
        assert stub.poll() is not None


def test_fork_server_that_ends_is_reported_once_with_the_end_of_its_log(tmp_path: Path) -> None:
    troubles: list[str] = []
    cluster = LocalCluster(
        ClusterConfig(1), tmp_path, tmp_path, {launchers.SOCKET_VARIABLE: str(tmp_path / "warm")}, on_trouble=troubles.append
    )
    cluster.check_fork_server()
    (tmp_path / "warm.starting").touch()
    cluster.fork_server = cluster.start_process("warm", ["/bin/sh", "-c", "echo no module named fedsgd; exit 3"])
    cluster.fork_server.wait()
    pid = cluster.fork_server.pid
    for _ in range(2):
        cluster.check_fork_server()
    assert troubles == [
        f"the fork server (process {pid}) ended with exit status 3; its log is {tmp_path / 'warm.log'}; "
        "from now on each app starts as a new process, more slowly\n  | no module named fedsgd"
    ]
    assert not (tmp_path / "warm.starting").exists()


@pytest.mark.nightly
def test_fork_server_imports_installed_modules_before_those_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise ImportError('the json of a user')\n")
    monkeypatch.chdir(tmp_path)
    cluster = LocalCluster(ClusterConfig(1), tmp_path, tmp_path, dict(os.environ))
    cluster.start_fork_server(tmp_path)
    assert cluster.fork_server is not None
    try:
        while cluster.fork_server.poll() is None and (tmp_path / "warm.starting").exists():
            time.sleep(0.05)
        assert cluster.fork_server.poll() is None, (tmp_path / "warm.log").read_text()
    finally:
        cluster.fork_server.kill()
        cluster.fork_server.wait()
