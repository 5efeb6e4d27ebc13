"""Comparison of fedsgd with other simulators on the same work.

    python -m tests.bench.peers [--workload 2nn,cnn] [--rounds N] [--only NAME] [--cold] [--json FILE] [--data DIR]

All peers do the same work: FedAvg on MNIST as in McMahan et al. 2017, with 100 clients of 600 examples each, 10 clients a
round, one local epoch, batches of 10, and plain SGD with learning rate 0.1 in float32. The model is the 2NN (199,210
parameters) or the CNN (1,663,370). All peers read the same arrays from files. fedsgd loads its file completely; the others map
the files into memory, so that unused examples take no memory. Each peer runs with its recommended interface, which its module
describes:

- fedsgd (fedsgd.py): the command; every frame is encoded, decoded and written to the ledger. The uplink is dense, or top-k 1 %
  with error feedback.
- pfl-research (pfl.py), FedLab (fedlab.py): one process without messages.
- Flower (flower.py, flower_app.py): the simulation engine, a SuperLink and Ray with one CPU for each client.

Peers run one after the other, in new processes bound to their cores: one core, or two for Flower and for fedsgd with two
workers. BLAS and torch have one thread in each process. Before the measurement each peer runs once on a small work, so that
files are in the page cache and bytecode and the loops of fedsgd are compiled, as in a user's second run.

- s/round: median without the first and the last round. The rounds between do not evaluate. fedsgd evaluates in the last round,
  so the last round does not count for any peer.
- start: seconds from the start of the process to the end of round one
- MiB: peak of the sum of proportional set sizes over all processes, shared memory included, sampled up to five times a second
- ×: the figure divided by that of dense fedsgd with the same number of cores, else with one core; below 1, fedsgd is worse
- accuracy: on the 10,000 test examples after the last round. If it is near chance, the peer and the command fail.
- up, down: bytes of all clients in a round, if the peer counts them

Peers that are not installed are skipped, and the command prints how to install them. Times depend on the machine and its load.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.codec import machine
from tests.bench.peers.contenders import FEWEST_ROUNDS, PEERS, Figure, Peer, PeerError, measure_peer
from tests.bench.peers.work import WORKS, Work, prepare

WIDTH = 120
LIBRARIES = ("fedsgd", "flwr", "ray", "pfl", "fedlab")


def measure(work: Work, peers: Sequence[Peer], data: Path | None, console: Console) -> tuple[list[Figure], list[str]]:
    """Measure each peer in turn, in its own folder.

    Returns:
        The figures, and the errors of the peers that failed.
    """
    figures: list[Figure] = []
    errors: list[str] = []
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        work = prepare(work, data, Path(folder))
        for n, peer in enumerate(peers):
            console.print(f"{work.name}: {peer.name}, {_cores(peer.cores)}", style="dim")
            peer_folder = Path(folder, str(n))
            peer_folder.mkdir()
            try:
                figures.append(measure_peer(peer, work, peer_folder))
            except PeerError as error:
                errors.append(f"{work.name}: {error}")
    return figures, errors


def baseline(figure: Figure, figures: Sequence[Figure]) -> Figure | None:
    """Return the figure of dense fedsgd on the same number of cores, else on one core, else None."""
    dense = {f.cores: f for f in figures if f.peer == PEERS[0].name}
    return dense.get(figure.cores, dense.get(1))


def table(title: str, figures: Sequence[Figure]) -> Table:
    """Return a table of the figures."""
    out = Table(title=title, title_justify="left", width=WIDTH, padding=(0, 1), box=None, header_style="bold")
    for name in ("", "cores", "s/round", "×", "start", "×", "MiB", "×", "accuracy", "up", "down"):
        out.add_column(name, justify="right" if name else "left", no_wrap=True)
    for f in figures:
        base = baseline(f, figures)
        cells: list[str] = []
        for field, scale, digits in (("seconds", 1, 3), ("first_seconds", 1, 1), ("peak_bytes", 2**20, 0)):
            value = getattr(f, field)
            cells += [f"{value / scale:,.{digits}f}", "" if base in (None, f) else _ratio(value / getattr(base, field))]
        traffic = ("" if n is None else f"{n:,.0f}" for n in (f.uplink_bytes, f.downlink_bytes))
        out.add_row(f.peer, str(f.cores), *cells, f"{f.accuracy:.4f}", *traffic)
    return out


def _ratio(ratio: float) -> str:
    return f"[red]{ratio:.2f}[/]" if ratio < 1 else f"{ratio:.2f}"


def _cores(n: int) -> str:
    return "one core" if n == 1 else f"{n} cores"


def describe_machine() -> dict[str, str | float | None]:
    """Return the machine and the versions of the libraries."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {**machine(), "usable cores": len(os.sched_getaffinity(0)), "GiB": round(memory, 1), **_versions()}


def _versions() -> dict[str, str]:
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.peers", description="Compare fedsgd with other simulators on the same work."
    )
    parser.add_argument("--workload", default="2nn,cnn", help=f"works, separated by commas: {', '.join(WORKS)}")
    parser.add_argument("--rounds", type=int, default=Work.rounds, help=f"rounds of each run, at least {FEWEST_ROUNDS}")
    parser.add_argument("--only", default="", metavar="NAME", help="measure only the peers whose name contains NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("FEDSGD_DATA"), metavar="DIR", help="folder of the MNIST files"
    )
    parser.add_argument("--cold", action="store_true", help="omit the small run of each peer before the measurement")
    options = parser.parse_args(arguments)
    if options.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds is {options.rounds}, expected at least {FEWEST_ROUNDS}: the first and the last do not count")
    names = options.workload.split(",")
    if unknown := set(names) - set(WORKS):
        parser.error(f"--workload has {', '.join(sorted(unknown))}, expected some of {', '.join(WORKS)}")
    if not options.data and any(WORKS[name].data == "mnist" for name in names):
        parser.error("the MNIST files are missing: set --data DIR or FEDSGD_DATA")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, 1 if a peer failed."""
    options = parse(arguments)
    console = Console(width=WIDTH, highlight=False)
    matches = [peer for peer in PEERS if options.only.lower() in peer.name.lower()]
    skipped = {f"{peer.name}, {_cores(peer.cores)}": reason for peer in matches if (reason := peer.reason_to_skip())}
    peers = [peer for peer in matches if not peer.reason_to_skip()]
    if not options.cold:
        console.print("small run of each peer, not measured", style="dim")
        measure(replace(WORKS["tiny"], rounds=FEWEST_ROUNDS), peers, None, console)
    figures: list[Figure] = []
    errors: list[str] = []
    for name in options.workload.split(","):
        of_work, errors_of_work = measure(replace(WORKS[name], rounds=options.rounds), peers, options.data, console)
        figures, errors = figures + of_work, errors + errors_of_work
        if of_work:
            console.print(table(f"{name}: {of_work[0].parameters:,} parameters, {options.rounds} rounds", of_work))
    facts = describe_machine()
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), markup=False, soft_wrap=True)
    for name, reason in skipped.items():
        console.print(f"skipped {name}: {reason}", markup=False, soft_wrap=True)
    for error in errors:
        console.print(f"FAILED {error}", style="red", markup=False, soft_wrap=True)
    if options.json:
        report = {"machine": facts, "figures": [asdict(f) for f in figures], "skipped": skipped, "failed": errors}
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
