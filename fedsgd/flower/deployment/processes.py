"""Processes of a deployment: environment, start, logs and termination.

Flower's processes start further processes, some in new sessions, so a deployment's processes cannot be found by their parents.
All of these processes, and no other process, have the deployment's FLWR_HOME in their environment.
"""

from __future__ import annotations

import errno
import os
import re
import signal
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
"""Time limit in seconds for nodes and SuperLink to end after SIGTERM."""
KILL_TIMEOUT = 1.0
"""Time limit in seconds for other processes. Some sleep between two attempts to reach a process that has ended."""
MAX_SEARCHES = 10
"""Maximum number of searches for remaining processes."""
TAIL_LINES = 8
CLOCK_TOLERANCE_SECONDS = 2.0
"""Maximum difference between the clock and the creation time that the system reports for a process."""
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|^(INFO|WARNING) *: *$")


def build_environment(home: Path, launcher_folder: Path | None) -> dict[str, str]:
    """Return the environment of a deployment's processes, with this FLWR_HOME.

    Flower sends no telemetry and installs nothing. Addresses of this machine are used without a proxy. Numerical libraries
    use one thread. The user's modules are imported from the current folder. Commands in `launcher_folder` replace Flower's own.
    """
    launcher_path = [] if launcher_folder is None else [str(launcher_folder)]
    path = [*launcher_path, sysconfig.get_path("scripts"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    no_proxy = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1,localhost")))
    return {
        **os.environ,
        **dict.fromkeys(THREAD_COUNT_VARIABLES, "1"),
        "PATH": os.pathsep.join(path),
        "FEDSGD_FOLDER": str(Path.cwd()),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",  # Flower's command line prints characters that an ASCII stream cannot encode
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,  # the lower-case variable has priority
    }


def start(command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process in a new session, which Ctrl-C does not reach. The process and its children append output to the log."""
    try:
        file = log.open("ab")
    except OSError as error:
        raise make_write_error(log, error) from None
    with file:
        return popen(command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def popen(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process as `subprocess.Popen` does. A DeploymentError names the program and the system's reason."""
    try:
        return subprocess.Popen(command, **options)
    except OSError as error:
        program = Path(command[0])
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.ENOENT and program.exists():
            reason = "the interpreter that its first line names does not exist"
        raise DeploymentError(f"{program}: cannot be started ({reason})") from None


def find_free_port() -> int:
    """Return a port of the loopback interface that no process listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def describe_exit(process: subprocess.Popen[bytes]) -> str | None:
    """Describe the end of a process. Return None while the process is running."""
    status = process.poll()
    if status is None:
        return None
    if status >= 0:
        return f"ended with exit status {status}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"


def read_tail(log: Path) -> str:
    """Return the last `TAIL_LINES` lines of a log, each after a bar; "" if the log is empty or cannot be read."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    plain_lines = [plain for line in lines if (plain := _DECORATION.sub("", _DECORATION.sub("", line)).strip())]
    return "".join(f"\n  | {line}" for line in plain_lines[-TAIL_LINES:])


def find_processes(home: Path, addresses: Collection[str] = (), start_time: float = 0.0) -> list[psutil.Process]:
    """Return all processes with this FLWR_HOME, except the calling process.

    A SuperExec hides its environment from all users but root. It is identified by its command line, which has one of the
    `addresses` at which the deployment's processes serve their children, and by its age: a process that was created before
    `start_time`, seconds since the epoch, belongs to a different deployment.
    """
    matches = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and _belongs_to(process, str(home), addresses, start_time):
                matches.append(process)
    return matches


def stop(
    home: Path, child_processes: Sequence[subprocess.Popen[bytes]], addresses: Collection[str] = (), start_time: float = 0.0
) -> None:
    """End the child processes of this process, then the other processes of a deployment, first by SIGTERM, then by SIGKILL."""
    for process in child_processes:
        process.terminate()
    _wait(child_processes, TERM_TIMEOUT)
    for process in child_processes:
        process.kill()
    _wait(child_processes, KILL_TIMEOUT)
    for attempt in range(MAX_SEARCHES):
        descendants = find_processes(home, addresses, start_time)
        if not descendants and attempt:  # the first search may miss a process that is starting
            return
        for descendant in descendants:
            with suppress(psutil.Error):
                descendant.kill() if attempt else descendant.terminate()
        psutil.wait_procs(descendants, timeout=KILL_TIMEOUT)


def _wait(child_processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Wait until all processes have ended, at most `seconds`."""
    deadline = time.monotonic() + seconds
    for process in child_processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


def _belongs_to(process: psutil.Process, home: str, addresses: Collection[str], start_time: float) -> bool:
    try:
        return process.environ().get("FLWR_HOME") == home
    except psutil.AccessDenied:
        return process.create_time() > start_time - CLOCK_TOLERANCE_SECONDS and not set(addresses).isdisjoint(process.cmdline())
