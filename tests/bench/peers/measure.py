"""Runs a command in a fresh process and says what it took: `python -m tests.bench.peers.measure SPEC`, Linux only.

This process adopts every orphan among its descendants (Ray's and Flower's daemons leave their parents), so that the memory of
all of them is counted, and all of them are ended, by their ids. Memory is the sum of their proportional set sizes: pages that
several map, shared memory included, count once.
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
MOST_SAMPLING = 0.03
"""Of the time: reading the sizes of many processes takes a while, and the cores are busy."""
ROOT = Path(__file__).resolve().parents[3]
LIMIT_SECONDS = 3600.0
GRACE_SECONDS = 5.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Spec:
    """What to run, from the project's root. cores: those it may use; log: the file its output goes to."""

    command: list[str]
    environment: dict[str, str]
    cores: list[int]
    log: str


@dataclass(frozen=True)
class Taken:
    """status: the exit status, None if it had to be stopped; started: time.time() before its start; peak_bytes: of the tree."""

    status: int | None
    started: float
    peak_bytes: int


def measured(spec: Spec) -> Taken:
    """Measure in a process of its own, so that nothing is adopted here. Interrupted, it ends what it has started."""
    command = [sys.executable, "-m", "tests.bench.peers.measure", json.dumps(asdict(spec))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    try:
        said, _ = process.communicate()
    finally:
        process.terminate()
        process.wait()
    return Taken(**json.loads(said))


def run(spec: Spec) -> Taken:
    """Run, watch, and end whatever is left."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # whoever asked for this may be killed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    everywhere = os.sched_getaffinity(0)
    environment = {**os.environ, **spec.environment}
    try:
        with Path(spec.log).open("wb") as log:
            os.sched_setaffinity(0, spec.cores)  # children inherit it
            started = time.time()
            process = subprocess.Popen(
                spec.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=ROOT
            )
            os.sched_setaffinity(0, everywhere)
            peak = watch(process)
        return Taken(process.poll(), started, peak)
    finally:
        end_all()


def watch(process: subprocess.Popen[bytes]) -> int:
    """The largest sum of sizes seen until the process ends."""
    peak, deadline = 0, time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        began = time.perf_counter()
        peak = max(peak, sum(map(size, descendants(os.getpid()))))
        cost = time.perf_counter() - began
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(SAMPLE_SECONDS, cost / MOST_SAMPLING))
    return peak


def descendants(ancestor: int) -> list[int]:
    """The ids of all processes below this one."""
    children: dict[int, list[int]] = {}
    for process, parent in parents():
        children.setdefault(parent, []).append(process)
    found, ahead = [], [ancestor]
    while ahead:
        below = children.get(ahead.pop(), [])
        found += below
        ahead += below
    return found


def parents() -> Iterator[tuple[int, int]]:
    """(process, its parent) for every process that has not ended. One whose first thread has ended may live on in others."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it is gone
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                state, parent, n_threads = fields[0], fields[1], fields[17]
                if state != "Z" or int(n_threads) > 1:
                    yield int(entry.name), int(parent)


def size(process: int) -> int:
    """Its proportional set size in bytes; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def end_all() -> None:
    """End every process below this one, politely first, and collect them: not every system's first process does that."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        for process in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, kind)
        deadline = time.monotonic() + GRACE_SECONDS
        while descendants(os.getpid()) and time.monotonic() < deadline:
            time.sleep(0.05)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    print(json.dumps(asdict(run(Spec(**json.loads(sys.argv[1]))))))
