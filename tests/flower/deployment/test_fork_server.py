"""Tests of the fork server and of its client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedsgd.flower.deployment import launchers
from fedsgd.flower.deployment.fork_server import ForkServer

ForkServerProcess = tuple[Path, subprocess.Popen[bytes]]
"""(socket of a fork server, its process)."""
FORK_CLIENT = Path(launchers.__file__).with_name("fork_client.py")
COMMAND_CODE = """
import os, sys
print(os.getpid(), os.getppid(), *sys.argv[1:], os.environ["NAME"], os.getcwd(), flush=True)
if sys.argv[1] == "raise":
    raise KeyError("gone")
if sys.argv[1] == "wait":
    import time
    time.sleep(99)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def fork_server(tmp_path: Path) -> Iterator[ForkServerProcess]:
    """Run a fork server with one command."""
    (tmp_path / "command.py").write_text(COMMAND_CODE)
    code = f"""
import os, runpy, socket, sys
from fedsgd.flower.deployment.fork_server import ForkServer
listener = socket.socket(socket.AF_UNIX)
listener.bind("{tmp_path}/s")
listener.listen()
run = lambda: runpy.run_path("{tmp_path}/command.py", run_name="__main__")
ForkServer(listener, {{"flwr-clientapp": run}}, os.getppid()).serve()
"""
    (tmp_path / "s.starting").touch()
    process = subprocess.Popen([sys.executable, "-c", code])
    yield tmp_path / "s", process
    process.kill()
    process.wait()


def start_client(address: Path, *arguments: str, name: str = "me", **options: Any) -> subprocess.Popen[str]:
    """Start a client that requests the command with these arguments."""
    command = [sys.executable, "-I", "-S", str(FORK_CLIENT), str(address), "/nowhere/flwr-clientapp", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, env={**os.environ, "NAME": name}, **options)


@pytest.mark.slow
def test_forked_process_has_arguments_environment_and_folder_of_its_client(
    fork_server: ForkServerProcess, tmp_path: Path
) -> None:
    address, process = fork_server
    (tmp_path / "folder").mkdir()
    pids = set()
    for status in (0, 3, 0):
        client = start_client(address, "a b", str(status), name=f"me {status}", cwd=tmp_path / "folder")
        out, err = client.communicate(timeout=60)
        assert (client.returncode, err) == (status, "")
        pid, parent, rest = out.strip().split(" ", 2)
        assert rest == f"a b {status} me {status} {tmp_path / 'folder'}"
        assert int(parent) == process.pid
        pids.add(int(pid))
    assert len(pids) == 3
    assert process.pid not in pids
    client = start_client(address, "raise")
    _, err = client.communicate(timeout=60)
    assert client.returncode == 1
    assert "KeyError: 'gone'" in err


@pytest.mark.nightly
def test_forked_process_of_a_killed_client_is_ended(fork_server: ForkServerProcess) -> None:
    client = start_client(fork_server[0], "wait")
    assert client.stdout is not None
    fork = psutil.Process(int(client.stdout.readline().split()[0]))
    client.kill()
    client.communicate()
    fork.wait(10)


@pytest.mark.nightly
def test_client_of_a_killed_fork_server_fails(fork_server: ForkServerProcess) -> None:
    client = start_client(fork_server[0], "wait")
    assert client.stdout is not None
    fork = psutil.Process(int(client.stdout.readline().split()[0]))
    fork_server[1].send_signal(signal.SIGSTOP)  # so that it does not report the end of the fork
    fork.kill()
    fork_server[1].kill()
    client.communicate(timeout=30)
    assert client.returncode == 1


@pytest.mark.nightly
def test_incomplete_request_does_not_block_the_fork_server(fork_server: ForkServerProcess) -> None:
    for data in (b"", b"\xff\0\0\0\0\0\0\0", b"\xff\0\0\0\0\0\0\0{"):
        connection = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 30
        while connection.connect_ex(str(fork_server[0])) and time.monotonic() < deadline:
            time.sleep(0.05)
        if data:
            socket.send_fds(connection, [data], [0, 1, 2])
        connection.close()
    out, _ = start_client(fork_server[0], "a", "0").communicate(timeout=60)
    assert " a 0 me " in out


def test_client_without_fork_server_executes_the_command(tmp_path: Path) -> None:
    command = tmp_path / "flwr-clientapp"
    command.write_text('#!/bin/sh\necho own "$@"\n')
    command.chmod(0o700)
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(FORK_CLIENT), str(tmp_path / "s"), str(command), "a", "b c"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "own a b c\n"


@pytest.mark.slow
def test_fork_server_ends_with_its_parent(tmp_path: Path) -> None:
    assert ForkServer.serve.__doc__
    code = f"""
import subprocess, sys, time
server_code = '''
import os, socket
parent = os.getppid()
from fedsgd.flower.deployment.fork_server import ForkServer
listener = socket.socket(socket.AF_UNIX)
listener.bind("{tmp_path}/s")
listener.listen()
print("listening", flush=True)
ForkServer(listener, {{}}, parent).serve()
'''
child = subprocess.Popen([sys.executable, "-c", server_code], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    try:
        psutil.Process(int(result.stdout)).wait(10)
    except psutil.NoSuchProcess:
        return
