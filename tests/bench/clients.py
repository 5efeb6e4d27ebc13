"""What clients cost that are registered and hardly ever take part: `scenarios/million_clients.toml`, with fewer of them and with all.

    python -m tests.bench.clients [--clients N,N] [--rounds R] [--turns N] [--only NAME] [--json FILE]

Each run is a process of its own, and they are made in turn. A round: the median over a run's rounds but the first two and the
last, which is evaluated; the least of the turns. Memory: the peak of the process, the least of the turns. Of few clients some take
part again, of many hardly any, so more of them remember something: what states take is told apart, and taken off before memory is
fitted as a straight line over the clients that are registered. Its slope is what one of them costs. Times are noisy on a machine
that others use; a miss is no failure.
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
"""A round among the most clients: at most so many times one among the fewest."""


@dataclass(frozen=True)
class Way:
    """goal: the bytes that one more registered client may cost at most."""

    name: str
    settings: Mapping[str, Any]
    goal: float


WAYS = (
    Way("uniform, states in memory", {"server.sampler.name": "uniform", "state.store": "memory"}, 16),
    Way("uniform, states on disk", {"server.sampler.name": "uniform", "state.store": "disk"}, 16),
    Way("weighted, states in memory", {"server.sampler.name": "weighted", "state.store": "memory"}, 48),
)


@dataclass(frozen=True)
class Figure:
    """seconds: of a round; peak, states: bytes, of the process and of what clients remember in it; seen: clients that took
    part."""

    way: str
    clients: int
    seconds: float
    peak: float
    states: int
    seen: int


@dataclass(frozen=True)
class Verdict:
    """ratio: a round among the most clients to one among the fewest; growth: bytes for each registered client."""

    way: str
    ratio: float
    growth: float
    goal: float


def alone(settings: Mapping[str, Any]) -> dict[str, float]:
    """One run, in this process and nothing else in it: the figures but for what they are of."""
    result = run(load(SCENARIO, settings))
    seconds = median(record.seconds for record in result.history[SKIPPED:-1])
    seen = len({client for record in result.history for client in record.cohort})
    states = build_experiment(result.scenario).state_budget
    held = seen * states.bytes_per_client if states.location == "memory" else 0
    peak = result.summary["peak_memory_bytes"]
    return {"seconds": seconds, "peak": math.nan if peak is None else peak, "states": held, "seen": seen}


def in_a_process(settings: Mapping[str, Any]) -> dict[str, float]:
    """The same in a fresh one."""
    code = "import json, sys; from tests.bench.clients import alone; print(json.dumps(alone(json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(settings)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(ways: Sequence[Way], clients: Sequence[int], rounds: int, turns: int) -> list[Figure]:
    """Every way with every number of clients, in turn."""
    runs: dict[tuple[str, int], list[dict[str, float]]] = {(way.name, n): [] for way in ways for n in clients}
    for _ in range(turns):
        for way in ways:
            for n in clients:
                settings = {**way.settings, "data.clients": n, "rounds": rounds, "evaluation.every": rounds}
                runs[way.name, n].append(in_a_process(settings))
    return [
        Figure(
            way,
            n,
            *(min(one[key] for one in made) for key in ("seconds", "peak")),
            int(made[0]["states"]),
            int(made[0]["seen"]),
        )
        for (way, n), made in runs.items()
    ]


def verdict(way: Way, figures: Sequence[Figure]) -> Verdict:
    """What the figures of one way say. figures: ascending by clients, two or more."""
    mine = [f for f in figures if f.way == way.name]
    growth = np.polyfit([f.clients for f in mine], [f.peak - f.states for f in mine], 1)[0]
    return Verdict(way.name, mine[-1].seconds / mine[0].seconds, float(growth), way.goal)


def table(figures: Sequence[Figure]) -> Table:
    """Figures for people."""
    out = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("", "registered", "took part", "ms a round", "peak MB", "of it states"):
        out.add_column(name, justify="right" if name else "left", no_wrap=True)
    for f in figures:
        cells = (f"{f.clients:,}", f"{f.seen:,}", f"{1e3 * f.seconds:,.1f}", f"{f.peak / 1e6:,.1f}", f"{f.states / 1e6:,.1f}")
        out.add_row(f.way, *cells)
    return out


def line(told: Verdict) -> str:
    """A verdict in words."""
    goals = ((told.ratio, ROUND_GOAL), (told.growth, told.goal))
    (time, memory) = ("pass" if measured <= goal else "miss" for measured, goal in goals)
    growth = f"{told.growth:+.1f} bytes a registered client (≤ {told.goal:g}: {memory})"
    return f"{told.way}: a round {told.ratio:.2f} × (≤ {ROUND_GOAL:g}: {time}), {growth}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.clients", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", default=",".join(map(str, CLIENTS)), help="how many, with commas between them")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default="", metavar="NAME", help="ways with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args(arguments)
    clients = sorted(set(map(int, given.clients.split(","))))
    if len(clients) < 2 or given.rounds < SKIPPED + 2:
        parser.error(f"two numbers of clients and {SKIPPED + 2} rounds at least")
    ways = [way for way in WAYS if given.only in way.name]
    figures = measure(ways, clients, given.rounds, given.turns)
    verdicts = [verdict(way, figures) for way in ways]
    console = Console(width=120, highlight=False)
    console.print(table(figures))
    for told in verdicts:
        console.print(line(told), soft_wrap=True, markup=False)
    if given.json is not None:
        report = {"figures": [asdict(f) for f in figures], "verdicts": [asdict(v) for v in verdicts]}
        given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
