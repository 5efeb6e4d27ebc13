"""Strategies like those of users: with their own `start`, for personal layers, and with measured norms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result


class CheckpointFedAvg(FedAvg):
    """FedAvg with its own `start`, which saves the model of each round and the metrics of all rounds."""

    def set_save_path(self, folder: Path) -> None:
        """Set the folder of the checkpoints."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds and save them."""
        result = Result(arrays=initial_arrays)
        for number in range(1, num_rounds + 1):
            messages = self.configure_train(number, result.arrays, train_config or ConfigRecord(), grid)
            arrays, metrics = self.aggregate_train(number, grid.send_and_receive(messages, timeout=timeout))
            result.arrays = arrays or result.arrays
            result.train_metrics_clientapp[number] = metrics or MetricRecord()
            messages = self.configure_evaluate(number, result.arrays, evaluate_config or ConfigRecord(), grid)
            metrics = self.aggregate_evaluate(number, grid.send_and_receive(messages, timeout=timeout))
            result.evaluate_metrics_clientapp[number] = metrics or MetricRecord()
            values = {name: array.numpy() for name, array in result.arrays.items()}
            np.savez(self.folder / f"round-{number}.npz", **values)
        rounds = {number: dict(metrics) for number, metrics in result.evaluate_metrics_clientapp.items()}
        (self.folder / "results.json").write_text(json.dumps(rounds))
        return result


class PersonalFedAvg(FedAvg):
    """FedAvg of the arrays that clients send. The other arrays of the model do not change."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Store the model, and send it."""
        self.model = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model with the mean of the arrays that clients sent."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        return None if arrays is None else ArrayRecord({**self.model, **arrays}), metrics


class NormFedAvg(FedAvg):
    """FedAvg that stores the L2 norm of each update that it averages."""

    def __init__(self, **settings: float) -> None:
        super().__init__(**settings)
        self.norms: list[float] = []

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Store the model, and send it."""
        self.model = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Store the norms, and return the mean."""
        replies = list(replies)
        for reply in replies:
            if reply.has_content():
                arrays = reply.content["arrays"]
                changes = (array.numpy().astype(np.float64) - self.model[name].numpy() for name, array in arrays.items())
                self.norms.append(float(np.sqrt(sum((change**2).sum() for change in changes))))
        return super().aggregate_train(server_round, replies)
