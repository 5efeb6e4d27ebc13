"""Benchmark of memory and time against registered clients N, clients a round m, and parameters P, with a figure.

    python -m tests.bench.growth [--clients N,N] [--cohorts M,M] [--parameters P,P] [--figure FILE] [--json FILE]

Each point is a process of its own. N and m: `scenarios/million_clients.toml`, with m = 100 where N varies, and N = 10⁶ where m
varies. P: three clients of `tests.bench.size` with top-k 1 %. Memory is the peak of the process. Time is the median round
without the first, which compiles loops, and the last, which is evaluated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tests.bench import clients, size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLIENTS, COHORTS, PARAMETERS = "1e4,1e5,1e6", "10,100,1000,10000", "1e5,1e6,1e7,1e8"
FIXED_CLIENTS, FIXED_COHORT = 1_000_000, 100
ROUND_REPLIES = 40_000
"""Client replies in a run: runs of large cohorts have fewer rounds."""
MIN_ROUNDS, MAX_ROUNDS = 4, 50
UPLINK = "top-k 1 %"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
QUANTITIES = {"N": "registered clients N", "m": "clients a round m", "P": "parameters P"}


@dataclass(frozen=True)
class Point:
    """Memory and time of a run.

    Attributes:
        quantity: key of `QUANTITIES`.
        value: value of the quantity.
        peak: peak memory of the process, bytes.
        seconds: seconds of a round.
    """

    quantity: str
    value: int
    peak: float
    seconds: float


def measure_population(quantity: str, value: int) -> Point:
    """Run the scenario of a million clients with another number of registered clients ("N") or of clients a round ("m")."""
    n_clients, cohort = (value, FIXED_COHORT) if quantity == "N" else (FIXED_CLIENTS, value)
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, ROUND_REPLIES // cohort))
    settings = {"data.clients": n_clients, "server.cohort": cohort, "rounds": rounds, "evaluation.every": rounds}
    figures = clients.measure_run_in_process(settings)
    return Point(quantity, value, figures["peak"], figures["seconds"])


def measure_model(quantity: str, value: int) -> Point:
    """Run three clients with a model of `value` parameters, up to rounding."""
    figure = size.measure_run_in_process(UPLINK, value)
    return Point(quantity, figure.parameters, figure.peak_bytes, figure.seconds)


MEASURES: dict[str, Callable[[str, int], Point]] = {"N": measure_population, "m": measure_population, "P": measure_model}


def table(points: Sequence[Point]) -> Table:
    """Return a table of the points."""
    out = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("", "value", "peak MB", "s a round"):
        out.add_column(name, justify="right" if name else "left", no_wrap=True)
    for point in points:
        cells = (f"{point.value:,}", f"{point.peak / 1e6:,.0f}", f"{point.seconds:.3f}")
        out.add_row(QUANTITIES[point.quantity], *cells)
    return out


def draw(points: Sequence[Point]) -> Figure:
    """Draw memory and seconds of a round against each quantity, with logarithmic axes. The caller sets the style."""
    from fedsgd.analysis.figures.style import COLOURS, TWO_COLUMNS

    # isort: split
    # the import above must precede that of matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(TWO_COLUMNS, 3.6), layout="constrained")
    axes = figure.subplots(2, len(QUANTITIES), sharex="col", sharey="row")
    for column, (quantity, label) in enumerate(QUANTITIES.items()):
        series = [point for point in points if point.quantity == quantity]
        values = [point.value for point in series]
        for row, heights in enumerate(([p.peak / 1e6 for p in series], [p.seconds for p in series])):
            axis = axes[row, column]
            axis.loglog(values, heights, marker="o", color=COLOURS[row])
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.xaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"10{str(round(log10(value))).translate(SUPERSCRIPTS)}")
            )
        axes[1, column].set_xlabel(label)
    axes[0, 0].set_ylabel("peak memory, MB")
    axes[1, 0].set_ylabel("seconds a round")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", default=CLIENTS, help="numbers of registered clients, separated by commas; may be empty")
    parser.add_argument("--cohorts", default=COHORTS, help="numbers of clients a round; may be empty")
    parser.add_argument("--parameters", default=PARAMETERS, help="numbers of parameters; may be empty")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="also draw the figures to FILE, .svg or .png")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    values = {"N": options.clients, "m": options.cohorts, "P": options.parameters}
    points = [
        MEASURES[quantity](quantity, round(float(value)))
        for quantity, text in values.items()
        for value in text.split(",")
        if value
    ]
    Console(width=80, highlight=False).print(table(points))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(point) for point in points], indent=1))
    if options.figure is not None:
        from fedsgd.analysis.figures.style import paper_style

        with paper_style():
            draw(points).savefig(options.figure)


if __name__ == "__main__":
    main()
