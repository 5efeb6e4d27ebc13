"""Parameters that a batch does not use: as in torch, neither momentum nor weight decay changes them."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsgd.data import Dataset, Examples
from fedsgd.models import Mlp
from fedsgd.models.builder import build_task
from fedsgd.optim import OPTIMIZERS, PyTorchMomentum
from fedsgd.training import LocalTraining, TrainingJob
from fedsgd.training.base import batches
from fedsgd.training.sequential import Sequential
from tests.laws.engines import ENGINES, assert_agree

CLIENT_OPTIMIZERS = [name for name in OPTIMIZERS if not OPTIMIZERS[name].server_only]


class Branch(nn.Module):
    """Module that uses one of two layers, by the sign of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) if x.sum() > 0 else self.b(x)
        return y


class Spare(nn.Module):
    """Module with an unused layer between two used layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.spare, self.last = nn.Linear(4, 8), nn.Linear(4, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.first(x)))
        return y


def make_dataset() -> Dataset:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((12, 4)) + np.where(np.arange(12) % 3, 2, -2)[:, None]).astype(np.float32)
    examples = Examples(x, rng.integers(0, 2, 12))
    return Dataset(examples, examples, 2)


def train_with_torch(module: nn.Module, job: TrainingJob, local_training: LocalTraining) -> np.ndarray:
    copied = copy.deepcopy(module)
    optimizer = torch.optim.SGD(
        copied.parameters(), lr=local_training.optimizer.lr, momentum=0.9, weight_decay=0.1, foreach=False
    )
    x, y = (torch.from_numpy(array) for array in job.examples.arrays())
    for batch in batches(job, local_training):
        optimizer.zero_grad()
        nn.functional.cross_entropy(copied(x[batch]), y[batch]).backward()
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in copied.parameters()]).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("make", "size"), [(Branch, 1), (Spare, 4)])
def test_unused_parameter_under_momentum_and_decay_changes_as_in_torch(make: type[nn.Module], size: int) -> None:
    torch.manual_seed(0)
    module = make()
    task = build_task(Mlp(), make_dataset(), 0, module=module)
    local_training = LocalTraining(PyTorchMomentum(lr=0.1, momentum=0.9, weight_decay=0.1), 3, None, size)
    job = TrainingJob(0, 1, 0, task.initial_parameters, make_dataset().train)
    (result,) = Sequential(task, local_training).train([job])
    assert np.abs(task.initial_parameters + result.update - train_with_torch(module, job, local_training)).max() < 1e-6


@pytest.mark.sampled
@pytest.mark.parametrize("optimizer", CLIENT_OPTIMIZERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_unused_layer_and_its_state_do_not_change(engine: str, optimizer: str) -> None:
    task = build_task(Mlp(), make_dataset(), 0, module=Spare())
    local_training = LocalTraining(OPTIMIZERS[optimizer](lr=0.1, weight_decay=0.1), 2, None, 4, keep_optimizer_state=True)
    state = {
        name: np.ones(task.layout.size, np.float32) for name in local_training.optimizer.init(torch.zeros(task.layout.size))
    }
    job = TrainingJob(0, 1, 0, task.initial_parameters, make_dataset().train, state)
    (result,) = ENGINES[engine](task, local_training, make_dataset()).train([job])
    (expected,) = Sequential(task, local_training).train([job])
    assert_agree(engine, result.update, expected.update, task.initial_parameters)
    segments = [segment for name, segment, _ in task.layout.list_slices() if name.startswith("spare")]
    for segment in segments:
        assert not result.update[segment].any()
        for value in result.optimizer_state.values():
            assert (value[segment] == 1).all()
    assert result.update[: segments[0].start].all()


@pytest.mark.parametrize("engine", ENGINES)
def test_unused_layer_under_a_proximal_term_decays(engine: str) -> None:
    """The term μ/2 |w − w_received|² has a gradient for all parameters, so weight decay changes them too, as in torch."""
    task = build_task(Mlp(), make_dataset(), 0, module=Spare())
    local_training = LocalTraining(PyTorchMomentum(lr=0.1, weight_decay=0.1), 2, None, 4, proximal=0.5)
    job = TrainingJob(0, 1, 0, task.initial_parameters, make_dataset().train)
    (result,) = ENGINES[engine](task, local_training, make_dataset()).train([job])
    segment = next(segment for name, segment, _ in task.layout.list_slices() if name == "spare.weight")
    assert (np.sign(result.update[segment]) == -np.sign(task.initial_parameters[segment])).all()


@pytest.mark.slow
def test_unused_layer_after_one_step_has_a_zero_update() -> None:
    task = build_task(Mlp(), make_dataset(), 0, module=Spare())
    local_training = LocalTraining(PyTorchMomentum(lr=0.1, weight_decay=0.1), None, 1, None)
    job = replace(TrainingJob(0, 1, 0, task.initial_parameters, make_dataset().train))
    for make in ENGINES.values():
        (result,) = make(task, local_training, make_dataset()).train([job])
        assert [n for n, segment, _ in task.layout.list_slices() if not result.update[segment].any()] == [
            "spare.weight",
            "spare.bias",
        ]
