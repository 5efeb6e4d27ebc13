"""Methods of communication-efficient training on Shakespeare's plays: tune each on one seed, then run three other seeds.

    python scenarios/loco/study.py [--data DIR] [--out runs/loco] [--hours 6] [--jobs 2]

Each method of methods.toml runs with three learning rates and seed 0, in the folder "tuning". The learning rate with the lowest
test loss runs with seeds 1, 2 and 3, in the folder "final". After `--hours` no cell begins: it is printed as "not run", and the
same command runs it. Then compare with

    fedsgd compare runs/loco/final/* --target "loss<2.0" --up 10Mbit/s --down 10Mbit/s
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import fedsgd
from fedsgd.sweeps import Cell, Sweep, read_methods

FOLDER = Path(__file__).parent
LEARNING_RATES: dict[str, tuple[str, list[float]]] = {
    "FedAvg with SGD, K = 4, H = 30": ("client.optimizer.lr", [0.1, 0.3, 1.0]),
    "DDP, K = 4": ("server.optimizer.lr", [3e-4, 1e-3, 3e-3]),
    "DeMo, K = 4": ("server.optimizer.lr", [3e-4, 1e-3, 3e-3]),
}
"""Key and values of the learning rate of a method; other methods tune AdamW's at the workers."""
DEFAULT_LEARNING_RATES = ("client.optimizer.lr", [3e-4, 1e-3, 3e-3])
SEEDS = 3


def read_best_loss(sweep: Sweep, cell: Cell) -> float:
    """Return the lowest test loss of a finished cell; infinity for a cell that failed or has no finite loss."""
    best = (sweep.read_summary(cell) or {}).get("best", {}).get("value")
    return math.inf if best is None else float(best)


def select_learning_rate(sweep: Sweep, key: str) -> float | None:
    """Return the learning rate with the lowest test loss of a tuning sweep; None if a cell has not been run."""
    if any(cell.state == "waiting" for cell in sweep.cells):
        return None
    return float(min(sweep.cells, key=lambda cell: read_best_loss(sweep, cell)).tuned[key])


def describe(sweep: Sweep, cell: Cell) -> str:
    """Return the line of a cell: its loss, "not run", or its error."""
    texts = {"waiting": "not run", "failed": f"failed: {cell.error}", "finished": f"loss {read_best_loss(sweep, cell):.4f}"}
    return f"{cell}: {texts[cell.state]}"


def run_study(data: Path | None, out: Path, hours: float, jobs: int) -> None:
    """Run the study, or continue it, and print a line for each cell."""
    end = time.time() + 3600 * hours
    scenario = fedsgd.load(FOLDER / "loco.toml")
    final_scenario = scenario.with_settings({"seed": scenario.seed + 1})

    def run(base: fedsgd.Scenario, folder: str, method: dict[str, Any], tune: dict[str, list[float]], seeds: int) -> Sweep:
        execution = fedsgd.SweepConfig(jobs=jobs, data=data, stop_after=max(0.0, end - time.time()))
        return fedsgd.sweep(base, methods=method, tune=tune, seeds=seeds, out=out / folder, execution=execution)

    for label, settings in read_methods(FOLDER / "methods.toml").items():
        key, values = LEARNING_RATES.get(label, DEFAULT_LEARNING_RATES)
        method, name = {label: settings}, re.sub(r"\W+", "-", label)
        tuning = run(scenario, f"tuning/{name}", method, {key: values}, 1)
        print(*(describe(tuning, cell) for cell in tuning.cells), sep="\n", flush=True)
        best = select_learning_rate(tuning, key)
        if best is None:
            print(f"{label}, seeds 1 to {SEEDS}: not run", flush=True)
            continue
        final = run(final_scenario, f"final/{name}", method, {key: [best]}, SEEDS)
        print(*(describe(final, cell) for cell in final.cells), sep="\n", flush=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the data files; default: FEDSGD_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/loco"), help="folder of the results")
    parser.add_argument("--hours", type=float, default=6.0, help="hours after which no cell begins")
    parser.add_argument("--jobs", type=int, default=2, help="cells that run at the same time")
    options = parser.parse_args()
    try:
        run_study(options.data, options.out, options.hours, options.jobs)
    except fedsgd.FedsgdError as error:
        sys.exit(f"study: {error}")


if __name__ == "__main__":
    main()
