"""Peers that are compared, and the measurement of one peer."""

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
from tests.bench.peers.measure import Spec, measure_command
from tests.bench.peers.work import CLASSES, Report, Work, read_report

FEWEST_ROUNDS = 3
MIN_ACCURACY = 2.5
"""Smallest accuracy of a trained model, as a multiple of the accuracy by chance."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
INSTALL_EXTRA = "pip install -e '.[bench]'"
INSTALL_FEDLAB = "pip install -e '.[test]' && pip install --no-deps fedlab==1.3.0"
LOG_LINES = 15


class PeerError(Exception):
    """A peer failed or did not do the work."""


@dataclass(frozen=True)
class Peer:
    """A program that is compared.

    Attributes:
        name: name in the table.
        cores: number of cores that the peer may use.
        command: returns the command that does the work in a folder.
        report: reads the report in that folder; returns None if there is none.
        needs: modules that the peer imports.
        install: command that installs these modules.
    """

    name: str
    cores: int
    command: Callable[[Path, Work], list[str]]
    report: Callable[[Path], Report | None] = read_report
    needs: tuple[str, ...] = ()
    install: str = INSTALL_EXTRA

    @property
    def is_fedsgd(self) -> bool:
        """True if the peer is fedsgd."""
        return self.report is fedsgd.report

    def reason_to_skip(self) -> str | None:
        """Return the reason that the peer cannot run on this machine, None if it can."""
        if len(os.sched_getaffinity(0)) < self.cores:
            return f"needs {self.cores} cores"
        if self.is_fedsgd and self.cores > 1 and not fedsgd.has_workers():
            return "this version of fedsgd has no --workers"
        missing = [module for module in self.needs if importlib.util.find_spec(module) is None]
        return f"{' and '.join(missing)} not installed; to install: {self.install}" if missing else None


def _driver(module: str) -> Callable[[Path, Work], list[str]]:
    return lambda folder, work: [sys.executable, "-m", f"tests.bench.peers.{module}", str(folder)]


def _fedsgd(uplink: str, cores: int) -> Peer:
    return Peer(f"fedsgd {uplink}", cores, lambda folder, work: fedsgd.command(folder, work, uplink, cores), fedsgd.report)


PEERS = (
    _fedsgd("dense", 1),
    _fedsgd("top-k 1 %", 1),
    Peer("pfl-research", 1, _driver("pfl"), needs=("pfl",)),
    Peer("FedLab", 1, _driver("fedlab"), needs=("fedlab",), install=INSTALL_FEDLAB),
    _fedsgd("dense", 2),
    _fedsgd("top-k 1 %", 2),
    Peer("Flower", 2, _driver("flower"), needs=("flwr", "ray")),
)


@dataclass(frozen=True)
class Figure:
    """Measurement of one peer.

    Attributes:
        work: name of the work.
        peer: name of the peer.
        cores: number of cores that the peer may use.
        seconds: median seconds of a round, without the first and the last.
        first_seconds: seconds from the start of the process to the end of round one.
        peak_bytes: peak memory of the process tree.
        accuracy: accuracy after the last round.
        parameters: P.
        uplink_bytes: bytes of a round, None if the peer does not count them.
        downlink_bytes: bytes of a round, None if the peer does not count them.
        rounds: seconds of each round but the first.
    """

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


def measure_peer(peer: Peer, work: Work, folder: Path) -> Figure:
    """Measure one peer in an empty folder; PeerError if it fails, or if the accuracy is near chance."""
    (folder / "work.json").write_text(json.dumps(asdict(work)))
    log = folder / "log"
    cores = sorted(os.sched_getaffinity(0))[-peer.cores :]
    usage = measure_command(Spec(peer.command(folder, work), ENVIRONMENT, cores, str(log)))
    report = peer.report(folder) if usage.status == 0 else None
    if report is None:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise PeerError(f"{peer.name}: exit status {usage.status}, no result\n{tail}")
    if len(report.ends) != work.rounds:
        raise PeerError(f"{peer.name}: got {len(report.ends)} rounds, expected {work.rounds}")
    if not report.accuracy >= MIN_ACCURACY / CLASSES:
        raise PeerError(f"{peer.name}: accuracy is {report.accuracy:.3f}, chance is {1 / CLASSES:g}: the model is not trained")
    rounds = [after - before for before, after in pairwise(report.ends)]
    up, down = (None if n is None else n / work.rounds for n in (report.uplink_bytes, report.downlink_bytes))
    first = report.ends[0] - usage.started
    seconds, peak = median(rounds[:-1]), usage.peak_bytes
    return Figure(work.name, peer.name, peer.cores, seconds, first, peak, report.accuracy, report.parameters, up, down, rounds)
