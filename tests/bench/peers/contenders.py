"""Who is compared, and one measurement of one of them."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from tests.bench.peers import fedsgd
from tests.bench.peers.measure import Spec, measured
from tests.bench.peers.work import CLASSES, Report, Work, read_report

FEWEST_ROUNDS = 3
LEARNT = 2.5
"""Times chance: a model below this has not been trained."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
EXTRA = "pip install -e '.[bench]'"
FEDLAB = "pip install -e '.[test]' && pip install --no-deps fedlab==1.3.0"
LAST_LINES = 15


class PeerError(Exception):
    """A peer failed, or has not done the work."""


@dataclass(frozen=True)
class Peer:
    """cores: its budget; command: what does the work that lies in a folder; report: what it left there, None if nothing; needs:
    modules that it imports; install: how to get them."""

    name: str
    cores: int
    command: Callable[[Path, Work], list[str]]
    report: Callable[[Path], Report | None] = read_report
    needs: tuple[str, ...] = ()
    install: str = EXTRA

    @property
    def ours(self) -> bool:
        """Whether this is fedsgd."""
        return self.report is fedsgd.report

    def absent(self) -> str | None:
        """Why it cannot run here, or None."""
        if len(os.sched_getaffinity(0)) < self.cores:
            return f"needs {self.cores} cores"
        if self.ours and self.cores > 1 and not fedsgd.has_workers():
            return "this fedsgd has no --workers"
        missing = [module for module in self.needs if importlib.util.find_spec(module) is None]
        return f"no {' and no '.join(missing)} here: {self.install}" if missing else None


def _driver(module: str) -> Callable[[Path, Work], list[str]]:
    return lambda folder, work: [sys.executable, "-m", f"tests.bench.peers.{module}", str(folder)]


def _fedsgd(uplink: str, cores: int) -> Peer:
    return Peer(f"fedsgd {uplink}", cores, lambda folder, work: fedsgd.command(folder, work, uplink, cores), fedsgd.report)


PEERS = (
    _fedsgd("dense", 1),
    _fedsgd("top-k 1 %", 1),
    Peer("pfl-research", 1, _driver("pfl"), needs=("pfl",)),
    Peer("FedLab", 1, _driver("fedlab"), needs=("fedlab",), install=FEDLAB),
    _fedsgd("dense", 2),
    _fedsgd("top-k 1 %", 2),
    Peer("Flower", 2, _driver("flower"), needs=("flwr", "ray")),
)


@dataclass(frozen=True)
class Figure:
    """seconds: of a round, the median without the first and the last; first_seconds: from the start of the process to the end
    of round one; peak_bytes: of the process tree; accuracy: after the last round; uplink_bytes, downlink_bytes: of a round, None
    from who does not say; rounds: seconds of each round but the first."""

    work: str
    peer: str
    cores: int
    seconds: float
    first_seconds: float
    peak_bytes: int
    accuracy: float
    parameters: int
    uplink_bytes: float | None
    downlink_bytes: float | None
    rounds: list[float]


def figure(peer: Peer, work: Work, folder: Path) -> Figure:
    """Measure one peer in an empty folder. PeerError if it fails, or has learnt nothing."""
    (folder / "work.json").write_text(json.dumps(asdict(work)))
    log = folder / "log"
    cores = sorted(os.sched_getaffinity(0))[-peer.cores :]
    taken = measured(Spec(peer.command(folder, work), ENVIRONMENT, cores, str(log)))
    said = peer.report(folder) if taken.status == 0 else None
    if said is None:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        raise PeerError(f"{peer.name}: exit status {taken.status}, no result\n{tail}")
    if len(said.ends) != work.rounds:
        raise PeerError(f"{peer.name}: {len(said.ends)} rounds instead of {work.rounds}")
    if not said.accuracy >= LEARNT / CLASSES:
        raise PeerError(f"{peer.name}: accuracy {said.accuracy:.3f}, chance is {1 / CLASSES:g}: it has not done the work")
    rounds = [after - before for before, after in pairwise(said.ends)]
    up, down = (None if n is None else n / work.rounds for n in (said.uplink_bytes, said.downlink_bytes))
    first = said.ends[0] - taken.started
    seconds, peak = median(rounds[:-1]), taken.peak_bytes
    return Figure(work.name, peer.name, peer.cores, seconds, first, peak, said.accuracy, said.parameters, up, down, rounds)
