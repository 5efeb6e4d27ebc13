"""What a whole round costs, everything on: messages, training, compression, coding, aggregation, the ledger.

    python -m tests.bench.rounds [--rounds N] [--only NAME] [--json FILE]

Of McMahan's 2NN and CNN on random images, ten clients of 600 examples a round, E = 1, B = 10: dense float32 and top-k 1 % with
error feedback, by one process and by two workers, beside training alone: the engine, and the mean of what it gives, with nothing
encoded. Runs are made in turn; a figure is the median over rounds after the first two. Nothing is evaluated but the last model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fedsgd.data import Dataset, Examples
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.runner import run
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training import TrainingJob

COHORT, EXAMPLES, SKIPPED = 10, 600, 2
WORKERS_GOAL, CODING_GOAL = 1.8, 1.25
UPLINKS: dict[str, dict[str, Any]] = {
    "dense": {"compressor": {"name": "dense"}},
    "top-k 1 %": {"compressor": {"name": "top-k", "density": 0.01}, "error_feedback": "persist"},
}


@dataclass(frozen=True)
class Figure:
    """seconds: a round; ratio: to what `to` names; goal: None, or what the ratio is to be."""

    model: str
    what: str
    seconds: float
    to: str = ""
    ratio: float | None = None
    goal: float | None = None
    passed: bool | None = None


def images(clients: int = COHORT, examples: int = EXAMPLES) -> Dataset:
    """Random ones, as many as there are clients for."""
    rng = np.random.default_rng(0)
    x, y = rng.random((clients * examples, 28, 28), np.float32), rng.integers(0, 10, clients * examples)
    return Dataset(Examples(x, y), Examples(x[:100], y[:100]), 10)


def scenario(model: str, uplink: str, rounds: int) -> Scenario:
    """Ten clients, all of them in each round."""
    partition = {"name": "iid", "clients": COHORT}
    return parse_scenario(
        {
            "name": "bench",
            "rounds": rounds,
            "data": {"partition": partition},
            "model": {"name": model},
            "client": {"optimizer": {"name": "sgd", "lr": 0.01}, "epochs": 1, "batch_size": 10},
            "uplink": UPLINKS[uplink],
            "evaluation": {"every": rounds},
        }
    )


def seconds_of(model: str, uplink: str, rounds: int, workers: int, data: Dataset) -> float:
    """A round, the median."""
    history = run(scenario(model, uplink, rounds), dataset=data, workers=workers).history
    return median(record.seconds for record in history[SKIPPED:-1])


def training_alone(model: str, rounds: int, data: Dataset) -> float:
    """The engine, and the mean of its updates."""
    experiment = build_experiment(scenario(model, "dense", rounds), dataset=data)
    weights, seconds = experiment.task.initial_parameters, []
    with use_single_thread():
        for number in range(1, rounds + 1):
            begun = time.perf_counter()
            total = np.zeros(len(weights))
            for client in range(COHORT):
                for local in experiment.engine.train(
                    [TrainingJob(0, number, client, weights, experiment.train.examples_of(client))]
                ):
                    total += local.update
            weights = (weights + total / COHORT).astype(np.float32)
            seconds.append(time.perf_counter() - begun)
    return median(seconds[SKIPPED:])


def measure(model: str, rounds: int, turns: int, data: Dataset) -> list[Figure]:
    """Each way in turn, the least of the turns."""
    ways = {(uplink, workers): float("inf") for uplink in UPLINKS for workers in (1, 2)}
    alone = float("inf")
    for _ in range(turns):
        alone = min(alone, training_alone(model, rounds, data))
        for uplink, workers in ways:
            ways[uplink, workers] = min(ways[uplink, workers], seconds_of(model, uplink, rounds, workers, data))
    figures = [Figure(model, "training alone", alone)]
    for uplink in UPLINKS:
        one, two = ways[uplink, 1], ways[uplink, 2]
        goal = CODING_GOAL if uplink != "dense" and model == "2nn" else None
        ratio = one / alone
        figures.append(Figure(model, uplink, one, "× training alone", ratio, goal, None if goal is None else ratio <= goal))
        figures.append(
            Figure(model, f"{uplink}, two workers", two, "× as fast as one", one / two, WORKERS_GOAL, one / two >= WORKERS_GOAL)
        )
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rounds", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", default="", help="2nn or cnn")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args(arguments)
    data = images()
    figures = [f for m in ("2nn", "cnn") if given.only in m for f in measure(m, given.rounds, given.turns, data)]
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("model", "round", "ms", "ratio", "", "goal", ""):
        table.add_column(name, justify="right" if name in ("ms", "ratio", "goal") else "left", no_wrap=True)
    for f in figures:
        ratio = "" if f.ratio is None else f"{f.ratio:.2f}"
        goal = "" if f.goal is None else f"{'≤' if f.goal == CODING_GOAL else '≥'} {f.goal:g}"
        verdict = "" if f.passed is None else "[green]pass[/]" if f.passed else "[red]miss[/]"
        table.add_row(f.model, f.what, f"{1e3 * f.seconds:,.1f}", ratio, f.to, goal, verdict)
    Console(highlight=False).print(table)
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(f) for f in figures], indent=2))


if __name__ == "__main__":
    main()
