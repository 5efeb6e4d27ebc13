"""Methods of communication-efficient training on Shakespeare's plays: tune each on one seed, then run three seeds.

    python scenarios/loco/study.py [--data DIR] [--out runs/loco] [--hours 6] [--jobs 2]

Each method of methods.toml runs with three learning rates and one seed, and then with two more seeds and the best of them.
After `--hours` no cell begins: it is printed as "not run", and the same command runs it. Then compare with

    fedsgd compare runs/loco/*
"""

from __future__ import annotations

import argparse
import math
import re
import time
from pathlib import Path
from typing import Any

import fedsgd
from fedsgd.sweeps import read_methods
from fedsgd.sweeps.cells import Sweep

FOLDER = Path(__file__).parent
LEARNING_RATES: dict[str, tuple[str, list[float]]] = {
    "FedAvg with SGD, K = 4, H = 30": ("client.optimizer.lr", [0.1, 0.3, 1.0]),
    "DDP, K = 4": ("server.optimizer.lr", [3e-4, 1e-3, 3e-3]),
    "DeMo, K = 4": ("server.optimizer.lr", [3e-4, 1e-3, 3e-3]),
}
"""Key and values of the learning rate of a method; other methods tune AdamW's at the workers."""
DEFAULT_LEARNING_RATES = ("client.optimizer.lr", [3e-4, 1e-3, 3e-3])


def select_learning_rate(sweep: Sweep, key: str) -> float | None:
    """Return the learning rate with the lowest test loss of a tuning sweep; None if a cell has not been run."""
    if any(cell.state == "waiting" for cell in sweep.cells):
        return None
    losses = {cell.tuned[key]: read_best_loss(sweep.read_summary(cell)) for cell in sweep.cells}
    return float(min(losses, key=losses.__getitem__))


def read_best_loss(summary: dict[str, Any] | None) -> float:
    """Return the lowest test loss of a finished run; infinity for a run that diverged."""
    return math.inf if summary is None else float(summary["best"]["value"])


def main() -> None:
    """Run the study, or continue it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the data files; default: FEDSGD_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/loco"), help="folder of the results")
    parser.add_argument("--hours", type=float, default=6.0, help="hours after which no cell begins")
    parser.add_argument("--jobs", type=int, default=2, help="cells that run at the same time")
    options = parser.parse_args()
    end = time.time() + 3600 * options.hours
    scenario, methods = fedsgd.load(FOLDER / "loco.toml"), read_methods(FOLDER / "methods.toml")

    def run(label: str, settings: dict[str, Any], tune: dict[str, list[float]], seeds: int) -> Sweep:
        execution = fedsgd.SweepConfig(jobs=options.jobs, data=options.data, stop_after=max(0.0, end - time.time()))
        folder = options.out / re.sub(r"\W+", "-", label)
        return fedsgd.sweep(scenario, methods={label: settings}, tune=tune, seeds=seeds, out=folder, execution=execution)

    for label, settings in methods.items():
        key, values = LEARNING_RATES.get(label, DEFAULT_LEARNING_RATES)
        sweep = run(label, settings, {key: values}, 1)
        best = select_learning_rate(sweep, key)
        if best is not None:
            sweep = run(label, settings, {key: [best]}, 3)
        for cell in sweep.cells:
            loss = read_best_loss(sweep.read_summary(cell))
            print(f"{cell}: {'not run' if cell.state == 'waiting' else f'loss {loss:.4f}'}", flush=True)


if __name__ == "__main__":
    main()
