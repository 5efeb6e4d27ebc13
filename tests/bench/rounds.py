"""Benchmark of whole rounds: messages, training, compression, coding, aggregation and the ledger.

    python -m tests.bench.rounds [--rounds N] [--turns N] [--only NAME] [--json FILE]

The models are the 2NN and the CNN of McMahan et al. 2017 on random images. Each round has ten clients with 600 examples each,
one local epoch and batches of 10. Uplinks are dense float32 and top-k 1 % with error feedback, with one process and with two
workers.
They are compared with training alone: the engine and the mean of its updates, without any encoding.

The runs alternate. A time is the median over the rounds of a run without the first two and the last, which is evaluated. A
figure is the least of some such times.
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

from fedsgd import ExecutionConfig
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
    """Time of a round.

    Attributes:
        model: name of the model.
        what: "training alone", or the uplink and the number of workers.
        seconds: seconds of a round.
        to: unit of the ratio, empty if there is none.
        ratio: comparison with training alone or with one process, None if there is none.
        goal: limit for the ratio, None if there is none.
        passed: True if the ratio meets the goal, None if there is no goal.
    """

    model: str
    what: str
    seconds: float
    to: str = ""
    ratio: float | None = None
    goal: float | None = None
    passed: bool | None = None


def images(clients: int = COHORT, examples: int = EXAMPLES) -> Dataset:
    """Return random images for all clients."""
    rng = np.random.default_rng(0)
    x, y = rng.random((clients * examples, 28, 28), np.float32), rng.integers(0, 10, clients * examples)
    return Dataset(Examples(x, y), Examples(x[:100], y[:100]), 10)


def scenario(model: str, uplink: str, rounds: int) -> Scenario:
    """Return a scenario in which all ten clients take part in each round."""
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


def time_round(model: str, uplink: str, rounds: int, workers: int, data: Dataset) -> float:
    """Return the median seconds of a round."""
    history = run(scenario(model, uplink, rounds), data=data, execution=ExecutionConfig(workers=workers)).history
    return median(record.seconds for record in history[SKIPPED:-1])


def time_training(model: str, rounds: int, data: Dataset) -> float:
    """Return the median seconds of a round that only trains the clients and averages their updates."""
    experiment = build_experiment(scenario(model, "dense", rounds), dataset=data)
    weights, seconds = experiment.task.initial_parameters, []
    with use_single_thread():
        for number in range(1, rounds + 1):
            start = time.perf_counter()
            total = np.zeros(len(weights))
            for client in range(COHORT):
                job = TrainingJob(0, number, client, weights, experiment.train.examples_of(client))
                for result in experiment.engine.train([job]):
                    total += result.update
            weights = (weights + total / COHORT).astype(np.float32)
            seconds.append(time.perf_counter() - start)
    return median(seconds[SKIPPED:])


def measure(model: str, rounds: int, turns: int, data: Dataset) -> list[Figure]:
    """Time training alone and each uplink in turn, and return the least of the turns."""
    least = {(uplink, workers): float("inf") for uplink in UPLINKS for workers in (1, 2)}
    training = float("inf")
    for _ in range(turns):
        training = min(training, time_training(model, rounds, data))
        for uplink, workers in least:
            least[uplink, workers] = min(least[uplink, workers], time_round(model, uplink, rounds, workers, data))
    figures = [Figure(model, "training alone", training)]
    for uplink in UPLINKS:
        one, two = least[uplink, 1], least[uplink, 2]
        goal = CODING_GOAL if uplink != "dense" and model == "2nn" else None
        ratio = one / training
        figures.append(Figure(model, uplink, one, "× training alone", ratio, goal, None if goal is None else ratio <= goal))
        figures.append(
            Figure(model, f"{uplink}, two workers", two, "× as fast as one", one / two, WORKERS_GOAL, one / two >= WORKERS_GOAL)
        )
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rounds", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8, help="rounds of each run")
    parser.add_argument("--turns", type=int, default=2, help="number of runs of each uplink, of which the least counts")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="measure only the models whose name contains NAME: 2nn or cnn"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    data = images()
    figures = [f for m in ("2nn", "cnn") if options.only in m for f in measure(m, options.rounds, options.turns, data)]
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("model", "round", "ms", "ratio", "", "goal", ""):
        table.add_column(name, justify="right" if name in ("ms", "ratio", "goal") else "left", no_wrap=True)
    for f in figures:
        ratio = "" if f.ratio is None else f"{f.ratio:.2f}"
        goal = "" if f.goal is None else f"{'≤' if f.goal == CODING_GOAL else '≥'} {f.goal:g}"
        verdict = "" if f.passed is None else "[green]pass[/]" if f.passed else "[red]miss[/]"
        table.add_row(f.model, f.what, f"{1e3 * f.seconds:,.1f}", ratio, f.to, goal, verdict)
    Console(highlight=False).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(f) for f in figures], indent=2))


if __name__ == "__main__":
    main()
