"""The goals of the codec, measured: `python -m tests.bench.codec [--sizes P,P] [--only NAME] [--json FILE]`.

`python -m tests.bench.codec --write` measures what `fedsgd price` counts for encoding and decoding: see `tests.bench.codec_costs`.

The unit of time is a memcpy of the dense float32 vector into a destination that has been touched, run in turn with what is
measured, on one thread; both are medians over repetitions. The vectors are Gaussian, and rotate through a pool of at least
160 MiB and at least 4 of them, more than the last-level cache holds, and so do the destinations: a memcpy is from memory to
memory. Within the cache it is four times as fast (40 instead of 11 GB/s on the machine where this was written), into one
destination that stays in the cache one and a half times, and everything would look slow beside it.

numba compiles before the clock starts. An encoding ends with the frame and its checksum, and a decoding begins with checking
it; "smaller" compares a message with 4P bytes. The DGC step is a send less the encoding of a support of the same size, both
timed in turn. Against torch and DGC's sampling "µs" is the rival's time, and the note says how many × k it found. FedLab's
compressors return tensors: their bytes are those of the tensors, indices included, and no frame is made of them; they
decompress to a dense tensor, which is added to nothing.

Ratios at 10,000 parameters are mostly the fixed cost of calls in Python. Machines are noisy: a miss is no failure.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from fedsgd.system.torch_threads import use_single_thread
from tests.bench.codec_costs import COST_TABLE_PATH, write
from tests.bench.goals import CASES, Case, NotThereError
from tests.bench.measure import Bench, Effort

SIZES = (10_000, 200_000, 1_663_370, 25_000_000)
WIDTH = 120
COSTS = Effort(pool_mib=64, seconds=0.3, fewest=4, most=12)
"""Of each case of `--write`."""
COLOURS = {"pass": "green", "miss": "red"}


@dataclass(frozen=True)
class Figure:
    """One line of the report. size: P; measured: in `unit`, None if there is nothing to measure; verdict: pass, miss, "no goal"
    or "not there yet"; microseconds, memcpy_microseconds: medians."""

    size: int
    what: str
    measured: float | None
    unit: str
    goal: float | None
    at_least: bool
    verdict: str
    microseconds: float | None = None
    memcpy_microseconds: float | None = None
    n_bytes: int | None = None
    note: str = ""


def figure(case: Case, bench: Bench) -> Figure:
    """Measures one case."""
    goal = case.goal if case.applies(bench.size) else None
    try:
        reading = case.measure(bench)
    except NotThereError:
        return Figure(bench.size, case.what, None, case.unit, goal, case.at_least, "not there yet")
    verdict = "no goal"
    if goal is not None:
        verdict = "pass" if (reading.measured >= goal if case.at_least else reading.measured <= goal) else "miss"
    microseconds, memcpy = reading.seconds * 1e6, reading.memcpy * 1e6
    measured, n_bytes = reading.measured, reading.n_bytes
    return Figure(
        bench.size, case.what, measured, case.unit, goal, case.at_least, verdict, microseconds, memcpy, n_bytes, reading.note
    )


def measure(size: int, effort: Effort, only: str, console: Console) -> list[Figure]:
    """All figures of one size, printed as a table."""
    bench = Bench(size, effort)
    figures = [figure(case, bench) for case in CASES if only in case.what]
    seconds = median(bench.copies) if bench.copies else math.nan
    mib = 4 * size * len(bench.vectors) / 2**20
    title = f"P = {size:,}: memcpy {seconds * 1e6:.1f} µs, {4 * size / seconds / 1e9:.1f} GB/s"
    console.print(table(f"{title} ({len(bench.vectors)} vectors, {mib:.0f} MiB)", figures))
    return figures


def table(title: str, figures: Sequence[Figure]) -> Table:
    """Figures for people."""
    out = Table(title=title, title_justify="left", width=WIDTH, padding=(0, 1), box=None, header_style="bold")
    for name in ("what", "µs", "measured", "", "goal", "", "bytes", "note"):
        right = name in ("µs", "measured", "goal", "bytes")
        out.add_column(name, justify="right" if right else "left", no_wrap=name != "note")
    for f in figures:
        goal = "" if f.goal is None else f"{'≥' if f.at_least else '≤'} {f.goal:g}"
        verdict = "" if f.verdict == "no goal" else f.verdict
        if f.measured is None or f.microseconds is None:
            out.add_row(f.what, "", "", "", goal, "", "", verdict)
            continue
        style = COLOURS.get(f.verdict, "")
        shown = f"[{style}]{verdict}[/]" if style else verdict
        n_bytes = "" if f.n_bytes is None else f"{f.n_bytes:,}"
        digits = ".4f" if f.unit in ("× log₂C", "× entropy") else ".2f"
        out.add_row(f.what, f"{f.microseconds:,.1f}", f"{f.measured:{digits}}", f.unit, goal, shown, n_bytes, f.note)
    return out


def summary(figures: Sequence[Figure]) -> str:
    """Passes and misses by size."""
    return "; ".join(_counts(size, figures) for size in dict.fromkeys(f.size for f in figures))


def _counts(size: int, figures: Sequence[Figure]) -> str:
    counts = Counter(f.verdict for f in figures if f.size == size and f.goal is not None)
    missing = f", {counts['not there yet']} not there yet" if counts["not there yet"] else ""
    return f"P = {size:,}: {counts['pass']} pass, {counts['miss']} miss{missing}"


def machine() -> dict[str, str | int | None]:
    """Where it was measured."""
    libraries = {name: version(name) for name in ("numpy", "numba", "torch")}
    return {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version(), **libraries}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines: Iterator[str] = iter(cpuinfo.read_text().splitlines() if cpuinfo.exists() else ())
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.codec", description="Measures the goals of the codec.")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of parameters, with commas between them")
    parser.add_argument("--only", default="", metavar="NAME", help="figures with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument("--repetitions", type=int, help="of each figure; by default as many as go into 0.7 s, 5 to 400")
    parser.add_argument(
        "--write", action="store_true", help=f"measure the costs of codecs instead, and write {COST_TABLE_PATH.name}"
    )
    parser.add_argument("--pool", type=float, default=Effort.pool_mib, metavar="MIB", help="of vectors; 160 by default")
    given = parser.parse_args(arguments)
    console = Console(width=WIDTH, highlight=False)
    if given.write:
        made_by = {"command": "python -m tests.bench.codec --write", "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        write({**made_by, **machine()}, COSTS)
        console.print(f"written to {COST_TABLE_PATH}", soft_wrap=True)
        return
    effort = Effort(given.pool, repetitions=given.repetitions)
    figures: list[Figure] = []
    with use_single_thread():
        for size in given.sizes.split(","):
            figures += measure(int(size), effort, given.only, console)
            console.print()
    if given.json:
        report = {"machine": machine(), "figures": [asdict(f) for f in figures]}
        given.json.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    console.print(summary(figures), soft_wrap=True)


if __name__ == "__main__":
    main()
