"""The engines that the laws are tried on: from (task, recipe, data) to an engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fedsgd.data import Dataset
from fedsgd.models.task import LearningTask
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training import LocalTraining, TrainingEngine, TrainingJob, TrainingResult
from fedsgd.training.base import batches
from fedsgd.training.captured import Captured
from fedsgd.training.sequential import Sequential
from fedsgd.training.stacked import Stacked

Make = Callable[[LearningTask, LocalTraining, Dataset], TrainingEngine]


def _sizes(recipe: LocalTraining, data: Dataset) -> list[int]:
    first = min(recipe.batch_size or 30, len(data.train))
    return [first, *(size for size in range(1, 51) if size != first)]


ENGINES: dict[str, Make] = {
    "sequential": lambda task, recipe, data: Sequential(task, recipe),
    "captured, exact": lambda task, recipe, data: Captured(task, recipe, data.train, _sizes(recipe, data), "exact"),
    "captured, fused": lambda task, recipe, data: Captured(task, recipe, data.train, _sizes(recipe, data), "fused"),
    "captured, one size": lambda task, recipe, data: Captured(task, recipe, data.train, _sizes(recipe, data)[:1], "fused"),
    "stacked, exact": lambda task, recipe, data: Stacked(task, recipe, data.train, _sizes(recipe, data)[:1], "exact", 3),
    "stacked, fused": lambda task, recipe, data: Stacked(task, recipe, data.train, _sizes(recipe, data)[:1], "fused", 3),
}
EXACT = ("sequential", "captured, exact")
"""These have the oracle's bits."""
OF_UPDATE, OF_MODEL = 2e-5, 1e-6
"""How far the others may be after some twenty steps of a small model: the norm of the difference, as a share of the update's, and
of the model's, since a parameter is rounded whenever it changes."""


def assert_agree(name: str, update: np.ndarray, expected: np.ndarray, model: np.ndarray) -> None:
    """The engine of that name gave this update for that model, the oracle the expected one."""
    if name in EXACT:
        assert update.tobytes() == expected.tobytes()
    else:
        bound = OF_UPDATE * np.linalg.norm(expected) + OF_MODEL * np.linalg.norm(model)
        assert np.linalg.norm(update - expected) <= bound


def bits(local: TrainingResult) -> tuple[bytes, dict[str, bytes]]:
    """All numbers of a result."""
    return local.update.tobytes(), {name: value.tobytes() for name, value in local.optimizer_state.items()}


def train_by_pytorch(module: nn.Module, job: TrainingJob, recipe: LocalTraining) -> None:
    """A tutorial's loop on a job's batches, with momentum 0.9, on one thread: the module is left as it is after training."""
    optimizer = torch.optim.SGD(module.train().parameters(), lr=recipe.optimizer.lr, momentum=0.9, foreach=False)
    x, y = (torch.from_numpy(array) for array in job.examples.arrays())
    with use_single_thread():
        for batch in batches(job, recipe):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
