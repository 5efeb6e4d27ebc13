"""Measurement of the time and memory of a command: `python -m tests.bench.peers.measure SPEC`, only on Linux.

Daemons of Ray and Flower leave their parents. This process adopts every orphan among its descendants, so that the memory of all
descendants counts and all of them are ended, by their ids. Memory is the sum of the proportional set sizes: pages that several
processes map, shared memory included, count once.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.2
MAX_SAMPLING_SHARE = 0.03
"""Largest share of the time in which sizes are read: reading those of many processes is slow, and the cores are busy."""
ROOT = Path(__file__).resolve().parents[3]
LIMIT_SECONDS = 3600.0
GRACE_SECONDS = 5.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Spec:
    """Command to measure in the root folder of the project.

    Attributes:
        command: command line.
        environment: environment variables in addition to those of this process.
        cores: ids of the cores that the command may use.
        log: path of the file for the output of the command.
    """

    command: list[str]
    environment: dict[str, str]
    cores: list[int]
    log: str


@dataclass(frozen=True)
class Usage:
    """Time and memory of a command.

    Attributes:
        status: exit status, None if the command was stopped at the time limit.
        started: time.time() before the start of the command.
        peak_bytes: peak memory of the process tree.
    """

    status: int | None
    started: float
    peak_bytes: int


def measure_command(spec: Spec) -> Usage:
    """Measure a command from a separate process, so that the calling process adopts no orphan.

    An interrupt ends the command.
    """
    command = [sys.executable, "-m", "tests.bench.peers.measure", json.dumps(asdict(spec))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    try:
        output, _ = process.communicate()
    finally:
        process.terminate()
        process.wait()
    return Usage(**json.loads(output))


def run(spec: Spec) -> Usage:
    """Run and measure the command, and end all remaining descendants."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # the calling process may be killed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    all_cores = os.sched_getaffinity(0)
    environment = {**os.environ, **spec.environment}
    try:
        with Path(spec.log).open("wb") as log:
            os.sched_setaffinity(0, spec.cores)  # children inherit them
            started = time.time()
            process = subprocess.Popen(
                spec.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=ROOT
            )
            os.sched_setaffinity(0, all_cores)
            peak = measure_peak(process)
        return Usage(process.poll(), started, peak)
    finally:
        end_all()


def measure_peak(process: subprocess.Popen[bytes]) -> int:
    """Wait for the process and return the largest sum of the sizes of all descendants in bytes."""
    peak, deadline = 0, time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        start = time.perf_counter()
        peak = max(peak, sum(map(size, descendants(os.getpid()))))
        cost = time.perf_counter() - start
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(SAMPLE_SECONDS, cost / MAX_SAMPLING_SHARE))
    return peak


def descendants(ancestor: int) -> list[int]:
    """Return the ids of all descendants of a process."""
    children: dict[int, list[int]] = {}
    for process, parent in parents():
        children.setdefault(parent, []).append(process)
    result, pending = [], [ancestor]
    while pending:
        of_process = children.get(pending.pop(), [])
        result += of_process
        pending += of_process
    return result


def parents() -> Iterator[tuple[int, int]]:
    """Yield (id, id of the parent) of every running process.

    A process in state Z with several threads counts as running: only its first thread has ended.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # the process has ended
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                state, parent, n_threads = fields[0], fields[1], fields[17]
                if state != "Z" or int(n_threads) > 1:
                    yield int(entry.name), int(parent)


def size(process: int) -> int:
    """Return the proportional set size of a process in bytes, 0 if the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def end_all() -> None:
    """End every descendant with SIGTERM, then with SIGKILL, and reap them: not every system's first process reaps orphans."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while descendants(os.getpid()) and time.monotonic() < deadline:
            time.sleep(0.05)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    print(json.dumps(asdict(run(Spec(**json.loads(sys.argv[1]))))))
