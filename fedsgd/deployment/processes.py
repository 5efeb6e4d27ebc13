"""The processes of a deployment: how they are started, what they left in their logs, and that none of them is left.

Flower's processes start others, some in sessions of their own, so they are not found by who started them: all of them, and
nothing else, have this deployment's own FLWR_HOME in their environment.
"""

from __future__ import annotations

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

import psutil

from fedsgd.forking import THREADS

POLITE_SECONDS = 5.0
"""What nodes and server are given to end by themselves."""
LEFT_SECONDS = 1.0
"""What all others are given: some sleep between two tries to reach who is gone."""
TAIL_LINES = 8
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|^(INFO|WARNING) *: *$")


def environment(home: Path, first_on_path: Path) -> dict[str, str]:
    """Of all processes of a deployment whose FLWR_HOME this is: nothing phones home, nothing is installed, no proxy is asked
    for what is on this machine, one thread each; and a user's own modules are found where they stand. first_on_path: where
    commands are looked for before the environment's own."""
    path = [str(first_on_path), sysconfig.get_path("scripts"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    direct = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1,localhost")))
    return {
        **os.environ,
        **dict.fromkeys(THREADS, "1"),
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
    """The process, which Ctrl-C in our terminal does not reach. What it and its children print is added to the log."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def free_port() -> int:
    """A port of the loopback that nobody listens at now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    return port


def ended(process: subprocess.Popen[bytes]) -> str | None:
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


def tail(log: Path) -> str:
    """The last lines of a log, each behind a bar; nothing if there are none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [plain for line in lines if (plain := _DECORATION.sub("", _DECORATION.sub("", line)).strip())]
    return "".join(f"\n  | {line}" for line in said[-TAIL_LINES:])


def of(home: Path, addresses: Collection[str] = ()) -> list[psutil.Process]:
    """All processes that run with this FLWR_HOME, but for this one. A SuperExec hides its environment from all but root: it is
    known by the address that it was told to serve, one of these."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and _belongs(process, str(home), addresses):
                found.append(process)
    return found


def stop(home: Path, started: Sequence[subprocess.Popen[bytes]], addresses: Collection[str] = ()) -> None:
    """End all processes of a deployment: those that we started politely, and whatever they left."""
    for process in started:
        process.terminate()
    _wait(started, POLITE_SECONDS)
    for process in started:
        process.kill()
    _wait(started, LEFT_SECONDS)
    for kill in (False, True, True):  # one that was just being started may not have been there the first time
        left = of(home, addresses)
        for other in left:
            with suppress(psutil.Error):
                other.kill() if kill else other.terminate()
        psutil.wait_procs(left, timeout=LEFT_SECONDS)


def _wait(started: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Until all of them have ended, for so long at most."""
    until = time.monotonic() + seconds
    for process in started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))


def _belongs(process: psutil.Process, home: str, addresses: Collection[str]) -> bool:
    try:
        return process.environ().get("FLWR_HOME") == home
    except psutil.AccessDenied:
        return not set(addresses).isdisjoint(process.cmdline())
