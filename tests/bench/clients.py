"""Benchmark of registered clients that rarely take part: `scenarios/million_clients.toml` with different numbers of clients.

    python -m tests.bench.clients [--clients N,N] [--rounds R] [--turns N] [--only NAME] [--json FILE]

Each run is a separate process, and the runs alternate. The time of a round is the median over the rounds of a run without the
first two and the last, which is evaluated. Memory is the peak of the process. Each figure is the least of the turns.

With few registered clients some take part repeatedly, with many hardly any. So the number of stored states grows with the
registered clients. The bytes of the states are shown separately, and subtracted before memory is fitted as a straight line over
the registered clients. Its slope is the cost of one registered client. Times vary if other programs use the machine, so the
exit status does not depend on the verdicts.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.runner import run
from fedsgd.scenario.scenario import load

ROOT = Path(__file__).parents[2]
SCENARIO = ROOT / "scenarios" / "million_clients.toml"
CLIENTS = (10_000, 100_000, 1_000_000)
SKIPPED = 2
ROUND_GOAL = 1.15
"""Upper limit for the time of a round with the most clients, as a multiple of the time with the fewest."""


@dataclass(frozen=True)
class Variant:
    """Settings that are compared.

    Attributes:
        name: name in the table.
        settings: settings of the scenario.
        goal: upper limit for the bytes of one more registered client.
    """

    name: str
    settings: Mapping[str, Any]
    goal: float


VARIANTS = (
    Variant("uniform, states in memory", {"server.sampler.name": "uniform", "state.store": "memory"}, 16),
    Variant("uniform, states on disk", {"server.sampler.name": "uniform", "state.store": "disk"}, 16),
    Variant("weighted, states in memory", {"server.sampler.name": "weighted", "state.store": "memory"}, 48),
)


@dataclass(frozen=True)
class Figure:
    """Time and memory with one number of registered clients.

    Attributes:
        way: name of the variant.
        clients: N, number of registered clients.
        seconds: seconds of a round.
        peak: peak memory of the process in bytes.
        states: bytes of the clients' states in memory.
        seen: number of clients that took part.
    """

    way: str
    clients: int
    seconds: float
    peak: float
    states: int
    seen: int


@dataclass(frozen=True)
class Verdict:
    """Comparison of a variant with its goals.

    Attributes:
        way: name of the variant.
        ratio: time of a round with the most clients, divided by the time with the fewest.
        growth: bytes of one more registered client.
        goal: upper limit for `growth`.
    """

    way: str
    ratio: float
    growth: float
    goal: float


def measure_run(settings: Mapping[str, Any]) -> dict[str, float]:
    """Run the scenario in this process, which must run nothing else, and return the figures by name."""
    result = run(load(SCENARIO, settings))
    seconds = median(record.seconds for record in result.history[SKIPPED:-1])
    n_clients = len({client for record in result.history for client in record.cohort})
    states = build_experiment(result.scenario).state_budget
    state_bytes = n_clients * states.bytes_per_client if states.location == "memory" else 0
    peak = result.summary["peak_memory_bytes"]
    return {"seconds": seconds, "peak": math.nan if peak is None else peak, "states": state_bytes, "seen": n_clients}


def measure_run_in_process(settings: Mapping[str, Any]) -> dict[str, float]:
    """Run the scenario in a new process and return the figures by name."""
    code = (
        "import json, sys; from tests.bench.clients import measure_run; print(json.dumps(measure_run(json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, json.dumps(settings)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    figures: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return figures


def measure(variants: Sequence[Variant], clients: Sequence[int], rounds: int, turns: int) -> list[Figure]:
    """Measure every variant with every number of clients, in turn."""
    runs: dict[tuple[str, int], list[dict[str, float]]] = {(variant.name, n): [] for variant in variants for n in clients}
    for _ in range(turns):
        for variant in variants:
            for n in clients:
                settings = {**variant.settings, "data.clients": n, "rounds": rounds, "evaluation.every": rounds}
                runs[variant.name, n].append(measure_run_in_process(settings))
    return [
        Figure(
            name,
            n,
            *(min(figures[key] for figures in repetitions) for key in ("seconds", "peak")),
            int(repetitions[0]["states"]),
            int(repetitions[0]["seen"]),
        )
        for (name, n), repetitions in runs.items()
    ]


def assess(variant: Variant, figures: Sequence[Figure]) -> Verdict:
    """Compare a variant with its goals. figures: in ascending order of clients, at least two of the variant."""
    of_variant = [f for f in figures if f.way == variant.name]
    growth = np.polyfit([f.clients for f in of_variant], [f.peak - f.states for f in of_variant], 1)[0]
    return Verdict(variant.name, of_variant[-1].seconds / of_variant[0].seconds, float(growth), variant.goal)


def table(figures: Sequence[Figure]) -> Table:
    """Return a table of the figures."""
    out = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("", "registered", "took part", "ms a round", "peak MB", "states MB"):
        out.add_column(name, justify="right" if name else "left", no_wrap=True)
    for f in figures:
        cells = (f"{f.clients:,}", f"{f.seen:,}", f"{1e3 * f.seconds:,.1f}", f"{f.peak / 1e6:,.1f}", f"{f.states / 1e6:,.1f}")
        out.add_row(f.way, *cells)
    return out


def describe(verdict: Verdict) -> str:
    """Return a line that describes a verdict."""
    goals = ((verdict.ratio, ROUND_GOAL), (verdict.growth, verdict.goal))
    (time, memory) = ("pass" if figure <= goal else "miss" for figure, goal in goals)
    growth = f"{verdict.growth:+.1f} bytes for each registered client (≤ {verdict.goal:g}: {memory})"
    return f"{verdict.way}: time of a round {verdict.ratio:.2f} × (≤ {ROUND_GOAL:g}: {time}), {growth}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.clients", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--clients", default=",".join(map(str, CLIENTS)), help="numbers of registered clients, separated by commas"
    )
    parser.add_argument("--rounds", type=int, default=50, help="rounds of each run")
    parser.add_argument("--turns", type=int, default=3, help="number of runs for each figure, of which the least counts")
    parser.add_argument("--only", default="", metavar="NAME", help="measure only the variants whose name contains NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    clients = sorted(set(map(int, options.clients.split(","))))
    if len(clients) < 2 or options.rounds < SKIPPED + 2:
        parser.error(f"expected at least two numbers of clients and {SKIPPED + 2} rounds")
    variants = [variant for variant in VARIANTS if options.only in variant.name]
    figures = measure(variants, clients, options.rounds, options.turns)
    verdicts = [assess(variant, figures) for variant in variants]
    console = Console(width=120, highlight=False)
    console.print(table(figures))
    for verdict in verdicts:
        console.print(describe(verdict), soft_wrap=True, markup=False)
    if options.json is not None:
        report = {"figures": [asdict(f) for f in figures], "verdicts": [asdict(v) for v in verdicts]}
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
