"""fedsgd beside its peers: `python -m tests.bench.peers [--workload 2nn,cnn] [--rounds N] [--only NAME] [--json FILE] [--data DIR]`.

The same work for everybody: FedAvg on MNIST as in McMahan et al. 2017, 100 clients with the same 600 examples each, 10 of them a
round, one local epoch of batches of 10, plain SGD at 0.1, float32; the 2NN (199,210 parameters) or the CNN (1,663,370). All read
the same arrays from files; the peers map them, so that what they do not use takes no memory, while fedsgd loads its file whole.
Each is run as its users run it; how, its module says:

- fedsgd (fedsgd.py): the command, every frame really encoded, decoded and in the ledger; dense, and top-k 1 % with error feedback
- pfl-research (pfl.py), FedLab (fedlab.py): one process; they make no messages
- Flower (flower.py, flower_app.py): its simulation engine, a SuperLink and Ray with one CPU a client

One after the other, each in fresh processes bound to its cores: one, or two for Flower and for fedsgd with two workers. BLAS and
torch have one thread a process. Before anything is timed each runs once on a small work of its own, so that files are in memory
and bytecode and fedsgd's loops are compiled, as from anybody's second run on.

- s/round: the median without the first round and the last. Nobody evaluates in between; fedsgd does in its last round, so
  nobody's last round is timed.
- start: seconds from the start of the process to the end of round one
- MiB: the peak of the sum of proportional set sizes over all processes, shared memory included, sampled up to five times a second
- ×: that figure divided by fedsgd's dense one with as many cores (one, if it has not the other): below 1, fedsgd loses
- accuracy: on the 10,000 test examples after the last round; whoever has learnt nothing fails, and so does the command
- up, down: bytes a round in all, from who can say

Peers that are not installed are skipped, and the command says how to install them. Times are those of this machine in this hour.
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
from tests.bench.peers.contenders import FEWEST_ROUNDS, PEERS, Figure, Peer, PeerError, figure
from tests.bench.peers.work import WORKS, Work, prepare

WIDTH = 120
LIBRARIES = ("fedsgd", "flwr", "ray", "pfl", "fedlab")


def measure(work: Work, peers: Sequence[Peer], data: Path | None, console: Console) -> tuple[list[Figure], list[str]]:
    """Each peer in turn, in a folder of its own beside the arrays: figures, and what went wrong."""
    figures: list[Figure] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        work = prepare(work, data, Path(folder))
        for n, peer in enumerate(peers):
            console.print(f"{work.name}: {peer.name}, {_cores(peer.cores)}", style="dim")
            own = Path(folder, str(n))
            own.mkdir()
            try:
                figures.append(figure(peer, work, own))
            except PeerError as error:
                failed.append(f"{work.name}: {error}")
    return figures, failed


def baseline(one: Figure, figures: Sequence[Figure]) -> Figure | None:
    """fedsgd's dense run on as many cores, or on one."""
    dense = {f.cores: f for f in figures if f.peer == PEERS[0].name}
    return dense.get(one.cores, dense.get(1))


def table(title: str, figures: Sequence[Figure]) -> Table:
    """Figures for people."""
    out = Table(title=title, title_justify="left", width=WIDTH, padding=(0, 1), box=None, header_style="bold")
    for name in ("", "cores", "s/round", "×", "start", "×", "MiB", "×", "accuracy", "up", "down"):
        out.add_column(name, justify="right" if name else "left", no_wrap=True)
    for f in figures:
        base = baseline(f, figures)
        pairs: list[str] = []
        for what, scale, digits in (("seconds", 1, 3), ("first_seconds", 1, 1), ("peak_bytes", 2**20, 0)):
            value = getattr(f, what)
            pairs += [f"{value / scale:,.{digits}f}", "" if base in (None, f) else _ratio(value / getattr(base, what))]
        sent = ("" if n is None else f"{n:,.0f}" for n in (f.uplink_bytes, f.downlink_bytes))
        out.add_row(f.peer, str(f.cores), *pairs, f"{f.accuracy:.4f}", *sent)
    return out


def _ratio(ratio: float) -> str:
    return f"[red]{ratio:.2f}[/]" if ratio < 1 else f"{ratio:.2f}"


def _cores(n: int) -> str:
    return "one core" if n == 1 else f"{n} cores"


def machine_here() -> dict[str, str | float | None]:
    """Where it was measured, and what with."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {**machine(), "usable cores": len(os.sched_getaffinity(0)), "GiB": round(memory, 1), **_versions()}


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.peers", description="fedsgd beside its peers, on the same work."
    )
    parser.add_argument("--workload", default="2nn,cnn", help=f"with commas between them: {', '.join(WORKS)}")
    parser.add_argument("--rounds", type=int, default=Work.rounds, help=f"of each run, at least {FEWEST_ROUNDS}")
    parser.add_argument("--only", default="", metavar="NAME", help="peers with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument("--data", type=Path, default=os.environ.get("FEDSGD_DATA"), metavar="DIR", help="of the MNIST files")
    parser.add_argument("--cold", action="store_true", help="without the small run of each beforehand")
    given = parser.parse_args(arguments)
    if given.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds is {given.rounds}, expected at least {FEWEST_ROUNDS}: the first and the last are not timed")
    names = given.workload.split(",")
    if unknown := set(names) - set(WORKS):
        parser.error(f"--workload has {', '.join(sorted(unknown))}, expected some of {', '.join(WORKS)}")
    if not given.data and any(WORKS[name].data == "mnist" for name in names):
        parser.error("needs the MNIST files: --data DIR or FEDSGD_DATA")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 if a peer failed."""
    given = parse(arguments)
    console = Console(width=WIDTH, highlight=False)
    asked = [peer for peer in PEERS if given.only.lower() in peer.name.lower()]
    absent = {f"{peer.name}, {_cores(peer.cores)}": why for peer in asked if (why := peer.absent())}
    peers = [peer for peer in asked if not peer.absent()]
    if not given.cold:
        console.print("first a small run of each, not timed", style="dim")
        measure(replace(WORKS["tiny"], rounds=FEWEST_ROUNDS), peers, None, console)
    figures: list[Figure] = []
    failed: list[str] = []
    for name in given.workload.split(","):
        found, wrong = measure(replace(WORKS[name], rounds=given.rounds), peers, given.data, console)
        figures, failed = figures + found, failed + wrong
        if found:
            console.print(table(f"{name}: {found[0].parameters:,} parameters, {given.rounds} rounds", found))
    where = machine_here()
    console.print(", ".join(f"{name} {value}" for name, value in where.items()), markup=False, soft_wrap=True)
    for what, why in absent.items():
        console.print(f"skipped {what}: {why}", markup=False, soft_wrap=True)
    for problem in failed:
        console.print(f"FAILED {problem}", style="red", markup=False, soft_wrap=True)
    if given.json:
        report = {"machine": where, "figures": [asdict(f) for f in figures], "skipped": absent, "failed": failed}
        given.json.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
