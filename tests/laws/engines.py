"""Engines that the laws are tested with, as functions of task, settings of result training and data."""

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
from fedsgd.training.device import EngineDevice
from fedsgd.training.sequential import Sequential
from fedsgd.training.stacked import Stacked


class ReplayingCpu(EngineDevice):
    """CPU on which engines run what they run on a GPU: replayed steps, and stacks that are computed as a whole."""

    replays_steps = True  # type: ignore[assignment]


EngineMaker = Callable[[LearningTask, LocalTraining, Dataset], TrainingEngine]


def _list_batch_sizes(local_training: LocalTraining, data: Dataset) -> list[int]:
    most_frequent = min(local_training.batch_size or 30, len(data.train))
    return [most_frequent, *(size for size in range(1, 51) if size != most_frequent)]


ENGINES: dict[str, EngineMaker] = {
    "sequential": lambda task, local_training, data: Sequential(task, local_training),
    "captured, exact": lambda task, local_training, data: Captured(
        task, local_training, data.train, _list_batch_sizes(local_training, data), "exact"
    ),
    "captured, fused": lambda task, local_training, data: Captured(
        task, local_training, data.train, _list_batch_sizes(local_training, data), "fused"
    ),
    "captured, one size": lambda task, local_training, data: Captured(
        task, local_training, data.train, _list_batch_sizes(local_training, data)[:1], "fused"
    ),
    "stacked, exact": lambda task, local_training, data: Stacked(
        task, local_training, data.train, _list_batch_sizes(local_training, data)[:1], "exact", 3
    ),
    "stacked, fused": lambda task, local_training, data: Stacked(
        task, local_training, data.train, _list_batch_sizes(local_training, data)[:1], "fused", 3
    ),
    "captured, replayed": lambda task, local_training, data: Captured(
        task, local_training, data.train, _list_batch_sizes(local_training, data)[:3], "fused", ReplayingCpu()
    ),
    "stacked, replayed": lambda task, local_training, data: Stacked(
        task, local_training, data.train, _list_batch_sizes(local_training, data)[:1], "fused", 3, ReplayingCpu()
    ),
}
EXACT = ("sequential", "captured, exact")
"""Engines whose results have the bits of the sequential engine."""
UPDATE_TOLERANCE, MODEL_TOLERANCE = 2e-5, 1e-6
"""Largest error of other engines after about twenty steps of a small model, relative to the norm of the update and of the model.

The model counts because a parameter is rounded whenever it changes.
"""


def assert_agree(name: str, update: np.ndarray, expected: np.ndarray, model: np.ndarray) -> None:
    """Compare the update of an engine with that of the sequential engine, for a model of these parameters."""
    if name in EXACT:
        assert update.tobytes() == expected.tobytes()
    else:
        bound = UPDATE_TOLERANCE * np.linalg.norm(expected) + MODEL_TOLERANCE * np.linalg.norm(model)
        assert np.linalg.norm(update - expected) <= bound


def read_bits(result: TrainingResult) -> tuple[bytes, dict[str, bytes]]:
    """Return the update and the optimizer's buffers of a result as bytes."""
    return result.update.tobytes(), {name: value.tobytes() for name, value in result.optimizer_state.items()}


def train_by_pytorch(module: nn.Module, job: TrainingJob, local_training: LocalTraining) -> None:
    """Train a module with plain PyTorch on a job's batches, with momentum 0.9 and one thread."""
    optimizer = torch.optim.SGD(module.train().parameters(), lr=local_training.optimizer.lr, momentum=0.9, foreach=False)
    x, y = (torch.from_numpy(array) for array in job.examples.arrays())
    with use_single_thread():
        for batch in batches(job, local_training):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
