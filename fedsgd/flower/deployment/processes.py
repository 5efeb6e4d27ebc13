"""Processes of a deployment: their environment, their start, the end of their logs, and their end.

Flower's processes start others, some in sessions of their own, so they cannot be found by their parents. All of them, and no
other process, have this deployment's own FLWR_HOME in their environment.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from fedsgd.errors import DeploymentError, make_write_error
from fedsgd.system.forkserver import THREAD_COUNT_VARIABLES

TERM_TIMEOUT = 5.0
"""What nodes and server are given to end by themselves."""
KILL_TIMEOUT = 1.0
"""What all others are given: some sleep between two tries to reach who is gone."""
MAX_SEARCHES = 10
"""Searches for processes that are left, at most."""
TAIL_LINES = 8
CLOCK_TOLERANCE_SECONDS = 2.0
"""Largest difference between the clock and the time at which the system says that a process was created."""
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|^(INFO|WARNING) *: *$")


def build_environment(home: Path, launcher_folder: Path | None) -> dict[str, str]:
    """Return the environment of all processes of a deployment.

    Flower sends no telemetry and installs nothing, addresses of this machine are used without a proxy, each process has one
    thread, and a user's own modules are found in the current folder.

    Args:
        home: FLWR_HOME of the processes.
        first_on_path: folder with commands that take the place of Flower's own, None for none.
    """
    first = [] if launcher_folder is None else [str(launcher_folder)]
    path = [*first, sysconfig.get_path("scripts"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    direct = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1,localhost")))
    return {
        **os.environ,
        **dict.fromkeys(THREAD_COUNT_VARIABLES, "1"),
        "PATH": os.pathsep.join(path),
        "FEDSGD_FOLDER": str(Path.cwd()),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",  # Flower's command line prints what an ASCII stream cannot hold
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "NO_PROXY": direct,
        "no_proxy": direct,  # of the two, this one would win
    }


def start(command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, out of reach of Ctrl-C. Its output and its children's are added to the log.

    Raises:
        OutputError: the log cannot be written.
        DeploymentError: the process cannot be started.
    """
    try:
        file = log.open("ab")
    except OSError as error:
        raise make_write_error(log, error) from None
    with file:
        return popen(command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def popen(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process as `subprocess.Popen` does.

    Raises:
        DeploymentError: the system refuses; the message has the program and the system's reason.
    """
    try:
        return subprocess.Popen(command, **options)
    except OSError as error:
        program = Path(command[0])
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.ENOENT and program.exists():
            reason = "the interpreter that its first line names does not exist"
        raise DeploymentError(f"{program}: cannot be started ({reason})") from None


def find_free_port() -> int:
    """A port of the loopback that nobody listens at now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    return port


def describe_exit(process: subprocess.Popen[bytes]) -> str | None:
    """How it ended, None if it has not."""
    status = process.poll()
    if status is None:
        return None
    if status >= 0:
        return f"ended with exit status {status}"
    with suppress(ValueError):
        from signal import Signals

        return f"was killed by {Signals(-status).name}"
    return f"was killed by signal {-status}"


def read_tail(log: Path) -> str:
    """The last lines of a log, each behind a bar; nothing if there are none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [plain for line in lines if (plain := _DECORATION.sub("", _DECORATION.sub("", line)).strip())]
    return "".join(f"\n  | {line}" for line in said[-TAIL_LINES:])


def processes_of(home: Path, addresses: Collection[str] = (), start_time: float = 0.0) -> list[psutil.Process]:
    """Return all processes with this FLWR_HOME, without the calling process.

    A SuperExec hides its environment from all users but root. It is recognised by the address on its command line, and by its
    age: an older process at the same address is a process of a different deployment.

    Args:
        home: FLWR_HOME of the processes.
        addresses: addresses on which processes of the deployment serve their children.
        began: start of the deployment in seconds since the epoch.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and _belongs_to(process, str(home), addresses, start_time):
                found.append(process)
    return found


def stop(
    home: Path, child_processes: Sequence[subprocess.Popen[bytes]], addresses: Collection[str] = (), start_time: float = 0.0
) -> None:
    """End all processes of a deployment: first by SIGTERM, then by SIGKILL.

    Args:
        home: FLWR_HOME of the processes.
        started: processes that this process started; they have `TERM_TIMEOUT` to end by themselves.
        addresses: known addresses, as for `processes_of`.
        began: start of the deployment, as for `processes_of`.
    """
    for process in child_processes:
        process.terminate()
    _wait(child_processes, TERM_TIMEOUT)
    for process in child_processes:
        process.kill()
    _wait(child_processes, KILL_TIMEOUT)
    for attempt in range(MAX_SEARCHES):
        left = processes_of(home, addresses, start_time)
        if not left and attempt:  # a process that was just being started may not have been there the first time
            return
        for other in left:
            with suppress(psutil.Error):
                other.kill() if attempt else other.terminate()
        psutil.wait_procs(left, timeout=KILL_TIMEOUT)


def _wait(child_processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Until all of them have ended, for so long at most."""
    until = time.monotonic() + seconds
    for process in child_processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))


def _belongs_to(process: psutil.Process, home: str, addresses: Collection[str], start_time: float) -> bool:
    try:
        return process.environ().get("FLWR_HOME") == home
    except psutil.AccessDenied:
        return process.create_time() > start_time - CLOCK_TOLERANCE_SECONDS and not set(addresses).isdisjoint(process.cmdline())
