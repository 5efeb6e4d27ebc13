"""Benchmark of the codec against its goals: `python -m tests.bench.codec [--sizes P,P] [--only NAME] [--json FILE]`.

With `--write` the command measures the costs of encoding and decoding that `fedsgd price` reads, and not the goals: see
`tests.bench.codec_costs`.

The unit of time is a memcpy of the dense float32 vector into initialized memory. It alternates with the measured function, on
one thread; both times are medians over repetitions. The pool holds at least 160 MiB of Gaussian vectors, and at least 4
vectors, which is more than the last-level cache. As many destinations rotate with them, so that a memcpy copies from memory to
memory. A memcpy within the cache is four times as fast (40 instead of 11 GB/s on one machine). A memcpy into a single
destination that stays in the cache is one and a half times as fast. Relative to either, every measured function would look
slow.

- numba compiles before the clock starts.
- An encoding includes the frame and its checksum; a decoding includes the check of the checksum.
- "smaller" compares a message with 4P bytes.
- The DGC step is a send minus the encoding of a support of the same size; the two alternate.
- Compared with torch and with DGC's sampling, "µs" is the time of the other selection, and the note has the number of its
  coordinates as a multiple of k.
- FedLab's compressors return tensors. Their bytes are those of the tensors, indices included, without a frame. They decompress
  to a dense tensor, which is not added to a sum.

Ratios at 10,000 parameters are mostly the fixed cost of calls from Python. Times vary from run to run, so the exit status does
not depend on the verdicts.
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

from fedsgd.numerics.kernels import use_loops
from fedsgd.system.torch_threads import use_single_thread
from tests.bench.codec_costs import COST_TABLE_PATH, write_cost_table
from tests.bench.goals import CASES, Case, UnavailableError
from tests.bench.measure import Bench, Effort

SIZES = (10_000, 200_000, 1_663_370, 25_000_000)
WIDTH = 120
COST_EFFORT = Effort(pool_mib=64, seconds=0.3, fewest=4, most=12)
"""Effort for each case of `--write`."""
COLOURS = {"pass": "green", "miss": "red"}


@dataclass(frozen=True)
class Figure:
    """One line of the report.

    Attributes:
        size: P.
        what: name of the case.
        measured: the figure in `unit`, None if the compressor or library is unavailable.
        unit: unit of the figure and of the goal.
        goal: limit for the figure, None if there is none at this size.
        at_least: True if the goal is a lower limit, False if it is an upper limit.
        verdict: "pass", "miss", "no goal" or "unavailable".
        microseconds: median time of a call.
        memcpy_microseconds: median time of a memcpy of the dense vector.
        n_bytes: bytes of a message, None if the case has none.
        note: further results for the table.
    """

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


def measure_case(case: Case, bench: Bench) -> Figure:
    """Measure one case."""
    goal = case.goal if case.applies(bench.size) else None
    try:
        reading = case.measure(bench)
    except UnavailableError:
        return Figure(bench.size, case.name, None, case.unit, goal, case.at_least, "unavailable")
    verdict = "no goal"
    if goal is not None:
        verdict = "pass" if (reading.measured >= goal if case.at_least else reading.measured <= goal) else "miss"
    microseconds, memcpy = reading.seconds * 1e6, reading.memcpy * 1e6
    measured, n_bytes = reading.measured, reading.n_bytes
    return Figure(
        bench.size, case.name, measured, case.unit, goal, case.at_least, verdict, microseconds, memcpy, n_bytes, reading.note
    )


def measure(size: int, effort: Effort, only: str, console: Console) -> list[Figure]:
    """Measure all cases at one size, print a table, and return the figures."""
    use_loops()
    bench = Bench(size, effort)
    figures = [measure_case(case, bench) for case in CASES if only in case.name]
    seconds = median(bench.copy_seconds) if bench.copy_seconds else math.nan
    mib = 4 * size * len(bench.vectors) / 2**20
    title = f"P = {size:,}: memcpy {seconds * 1e6:.1f} µs, {4 * size / seconds / 1e9:.1f} GB/s"
    console.print(table(f"{title} ({len(bench.vectors)} vectors, {mib:.0f} MiB)", figures))
    return figures


def table(title: str, figures: Sequence[Figure]) -> Table:
    """Return a table of the figures."""
    out = Table(title=title, title_justify="left", width=WIDTH, padding=(0, 1), box=None, header_style="bold")
    for name in ("case", "µs", "measured", "", "goal", "", "bytes", "note"):
        right = name in ("µs", "measured", "goal", "bytes")
        out.add_column(name, justify="right" if right else "left", no_wrap=name != "note")
    for f in figures:
        goal = "" if f.goal is None else f"{'≥' if f.at_least else '≤'} {f.goal:g}"
        verdict = "" if f.verdict == "no goal" else f.verdict
        if f.measured is None or f.microseconds is None:
            out.add_row(f.what, "", "", "", goal, "", "", verdict)
            continue
        style = COLOURS.get(f.verdict, "")
        styled_verdict = f"[{style}]{verdict}[/]" if style else verdict
        n_bytes = "" if f.n_bytes is None else f"{f.n_bytes:,}"
        digits = ".4f" if f.unit in ("× log₂C", "× entropy") else ".2f"
        out.add_row(f.what, f"{f.microseconds:,.1f}", f"{f.measured:{digits}}", f.unit, goal, styled_verdict, n_bytes, f.note)
    return out


def summary(figures: Sequence[Figure]) -> str:
    """Return the numbers of passes and misses of each size."""
    return "; ".join(_summarize_size(size, figures) for size in dict.fromkeys(f.size for f in figures))


def _summarize_size(size: int, figures: Sequence[Figure]) -> str:
    counts = Counter(f.verdict for f in figures if f.size == size and f.goal is not None)
    unavailable = f", {counts['unavailable']} unavailable" if counts["unavailable"] else ""
    return f"P = {size:,}: {counts['pass']} pass, {counts['miss']} miss{unavailable}"


def machine() -> dict[str, str | int | None]:
    """Return the processor and the versions of Python and the libraries."""
    libraries = {name: version(name) for name in ("numpy", "numba", "torch")}
    return {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version(), **libraries}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines: Iterator[str] = iter(cpuinfo.read_text().splitlines() if cpuinfo.exists() else ())
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.codec", description="Measure the codec and compare it with its goals."
    )
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of parameters, separated by commas")
    parser.add_argument("--only", default="", metavar="NAME", help="measure only the cases whose name contains NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument(
        "--repetitions", type=int, help="number for each figure; by default as many as fit into 0.7 s, 5 to 400"
    )
    parser.add_argument(
        "--write", action="store_true", help=f"measure the costs of codecs instead and write {COST_TABLE_PATH.name}"
    )
    parser.add_argument(
        "--pool", type=float, default=Effort.pool_mib, metavar="MIB", help="size of the pool of vectors, by default 160"
    )
    options = parser.parse_args(arguments)
    console = Console(width=WIDTH, highlight=False)
    if options.write:
        origin = {"command": "python -m tests.bench.codec --write", "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        write_cost_table({**origin, **machine()}, COST_EFFORT)
        console.print(f"wrote {COST_TABLE_PATH}", soft_wrap=True)
        return
    effort = Effort(options.pool, repetitions=options.repetitions)
    figures: list[Figure] = []
    with use_single_thread():
        for size in options.sizes.split(","):
            figures += measure(int(size), effort, options.only, console)
            console.print()
    if options.json:
        report = {"machine": machine(), "figures": [asdict(f) for f in figures]}
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    console.print(summary(figures), soft_wrap=True)


if __name__ == "__main__":
    main()
