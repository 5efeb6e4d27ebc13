"""Tests of the processes of a deployment: environment, start, logs and termination."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedsgd.errors import DeploymentError, OutputError
from fedsgd.flower.deployment import processes
from tests.flower.deployment.stubs import build_address, start_stub


@pytest.mark.slow
def test_stop_ends_all_processes_of_the_deployment_and_no_other(tmp_path: Path) -> None:
    """The processes include one that another process started in a new session. They ignore SIGTERM."""
    home, code = (
        tmp_path / "home",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(99)",
    )
    parent_code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True); {code}"
    env = processes.build_environment(home, tmp_path)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as foreign_process:
        child_process = processes.start([sys.executable, "-c", parent_code], env, tmp_path / "log")
        while (tmp_path / "log").read_text() != "1\n1\n":
            time.sleep(0.02)
        assert len(matches := processes.find_processes(home)) == 2
        processes.stop(home, [child_process])
        assert processes.find_processes(home) == []
        assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in matches)
        assert processes.describe_exit(child_process) == "was killed by SIGKILL"
        assert foreign_process.poll() is None
        foreign_process.kill()


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (None, 0, "No such file or directory"),
        ("#!/nowhere/python\n", 0o700, "the interpreter that its first line names does not exist"),
        ("#!/bin/sh\n", 0o600, "Permission denied"),
        ("\0\1\2", 0o700, "Exec format error"),
    ],
    ids=["missing", "no interpreter", "not executable", "not a program"],
)
def test_program_that_cannot_be_started_is_named_in_one_line(
    tmp_path: Path, content: str | None, mode: int, reason: str
) -> None:
    program = tmp_path / "flower-superlink"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    with pytest.raises(DeploymentError) as caught:
        processes.start([str(program)], {}, tmp_path / "log")
    assert str(caught.value) == f"{program}: cannot be started ({reason})"


def test_exhausted_process_limit_is_a_deployment_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(DeploymentError, match=r"^/bin/true: cannot be started \(Resource temporarily unavailable\)$"):
        processes.start(["/bin/true"], {}, tmp_path / "log")


def test_log_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^\S+: cannot be written \(Is a directory\)$"):
        processes.start(["/bin/true"], {}, tmp_path)


@pytest.mark.usefixtures("hidden_environments")
def test_process_with_hidden_environment_is_found_by_its_address(tmp_path: Path) -> None:
    with start_stub(1) as stub:
        assert [process.pid for process in processes.find_processes(tmp_path, [build_address(1)])] == [stub.pid]
        assert processes.find_processes(tmp_path, [build_address(2)]) == []
        stub.kill()


@pytest.mark.usefixtures("hidden_environments")
def test_process_older_than_the_deployment_is_not_found_by_its_address(tmp_path: Path) -> None:
    with start_stub(1) as stub:
        create_time = psutil.Process(stub.pid).create_time()
        for age, expected in ((3600, []), (-1, [stub.pid])):
            matches = processes.find_processes(tmp_path, [build_address(1)], start_time=create_time + age)
            assert [process.pid for process in matches] == expected
        stub.kill()


def test_tail_of_a_log_has_its_last_lines_without_decoration(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert processes.read_tail(log) == ""
    log.write_text(
        "".join(f"line {i}\n" for i in range(20)) + "\x1b[92mINFO \x1b[0m:      \n\x1b[92mINFO \x1b[0m:      the end\n\n"
    )
    lines = processes.read_tail(log).splitlines()
    assert lines[1] == "  | line 13"
    assert lines[-1] == "  | INFO :      the end"


def test_environment_excludes_this_machine_from_proxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", ".corp.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    env = processes.build_environment(tmp_path, tmp_path)
    assert env["no_proxy"] == env["NO_PROXY"] == ".corp.example,127.0.0.1,localhost"
    assert env.get("PYTHONPATH") == os.environ.get("PYTHONPATH"), "a user's random.py must not replace the standard library's"
    assert env["FEDSGD_FOLDER"] == str(Path.cwd())
