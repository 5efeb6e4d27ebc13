"""ServerApp that runs a shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedsgd.flower import CompressedStrategy

from .shapes import SHAPES

OUTCOME = "outcome.json"
app = ServerApp()


@dataclass(frozen=True, eq=False)
class Outcome:
    """Outcome of a run.

    Attributes:
        accuracies: mean accuracy of all nodes, by round.
        arrays: final model.
        strategy: strategy of the run, compressed or not.
    """

    accuracies: list[float]
    arrays: ArrayRecord
    strategy: Strategy


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a shape and write its accuracies to a file."""
    folder = Path(str(context.run_config["folder"]))
    outcome = federate(grid, context.run_config)
    (folder / OUTCOME).write_text(json.dumps({"accuracies": outcome.accuracies}))


def federate(grid: Grid, settings: Mapping[str, Any]) -> Outcome:
    """Run a shape.

    Args:
        grid: grid of the nodes.
        settings: run configuration: "shape", "compressed", "rounds", and "folder" for checkpoints.

    Returns:
        The outcome of the run.
    """
    shape = SHAPES[settings["shape"]]
    np.random.seed(0)  # noqa: NPY002  Flower draws the noise of differential privacy from the global generator
    strategy: Any = shape.strategy()
    if settings["compressed"]:
        strategy = CompressedStrategy(strategy, **shape.compression)
    if settings["shape"] == "own-start":
        strategy.set_save_path(Path(settings["folder"]) / "checkpoints")
    result = strategy.start(grid, shape.load_model().initial(), num_rounds=settings["rounds"])
    accuracies = [float(metrics["accuracy"]) for metrics in result.evaluate_metrics_clientapp.values()]
    return Outcome(accuracies, result.arrays, strategy)
