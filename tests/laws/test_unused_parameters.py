"""A parameter that a batch does not use: as in torch, neither momentum nor weight decay moves it, in any engine."""

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
    """One of two layers, by the sign of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) if x.sum() > 0 else self.b(x)
        return y


class Spare(nn.Module):
    """A layer that nothing uses, between two that are used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.spare, self.last = nn.Linear(4, 8), nn.Linear(4, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.first(x)))
        return y


def data() -> Dataset:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((12, 4)) + np.where(np.arange(12) % 3, 2, -2)[:, None]).astype(np.float32)
    examples = Examples(x, rng.integers(0, 2, 12))
    return Dataset(examples, examples, 2)


def by_torch(module: nn.Module, job: TrainingJob, recipe: LocalTraining) -> np.ndarray:
    net = copy.deepcopy(module)
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.optimizer.lr, momentum=0.9, weight_decay=0.1, foreach=False)
    x, y = (torch.from_numpy(array) for array in job.examples.arrays())
    for batch in batches(job, recipe):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy()


@pytest.mark.parametrize(("make", "size"), [(Branch, 1), (Spare, 4)])
def test_unused_parameter_under_momentum_and_decay_moves_as_in_torch(make: type[nn.Module], size: int) -> None:
    torch.manual_seed(0)
    module = make()
    task = build_task(Mlp(), data(), 0, module=module)
    recipe = LocalTraining(PyTorchMomentum(lr=0.1, momentum=0.9, weight_decay=0.1), 3, None, size)
    job = TrainingJob(0, 1, 0, task.initial_parameters, data().train)
    (local,) = Sequential(task, recipe).train([job])
    assert np.abs(task.initial_parameters + local.update - by_torch(module, job, recipe)).max() < 1e-6


@pytest.mark.parametrize("optimizer", CLIENT_OPTIMIZERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_spare_layer_and_its_remembered_velocity_stay_in_every_engine(engine: str, optimizer: str) -> None:
    task = build_task(Mlp(), data(), 0, module=Spare())
    recipe = LocalTraining(OPTIMIZERS[optimizer](lr=0.1, weight_decay=0.1), 2, None, 4, keep_optimizer_state=True)
    memory = {name: np.ones(task.layout.size, np.float32) for name in recipe.optimizer.init(torch.zeros(task.layout.size))}
    job = TrainingJob(0, 1, 0, task.initial_parameters, data().train, memory)
    (local,) = ENGINES[engine](task, recipe, data()).train([job])
    (expected,) = Sequential(task, recipe).train([job])
    assert_agree(engine, local.update, expected.update, task.initial_parameters)
    spare = [where for name, where, _ in task.layout.list_slices() if name.startswith("spare")]
    for where in spare:
        assert not local.update[where].any()
        for value in local.optimizer_state.values():
            assert (value[where] == 1).all()
    assert local.update[: spare[0].start].all()


@pytest.mark.parametrize("engine", ENGINES)
def test_proximal_term_reaches_a_spare_layer(engine: str) -> None:
    """The term μ/2 |w − w_received|² has a gradient for all parameters, so weight decay moves them too, as in torch."""
    task = build_task(Mlp(), data(), 0, module=Spare())
    recipe = LocalTraining(PyTorchMomentum(lr=0.1, weight_decay=0.1), 2, None, 4, proximal=0.5)
    job = TrainingJob(0, 1, 0, task.initial_parameters, data().train)
    (local,) = ENGINES[engine](task, recipe, data()).train([job])
    where = next(where for name, where, _ in task.layout.list_slices() if name == "spare.weight")
    assert (np.sign(local.update[where]) == -np.sign(task.initial_parameters[where])).all()


def test_single_step_leaves_the_spare_layer_in_the_update_at_zero() -> None:
    task = build_task(Mlp(), data(), 0, module=Spare())
    recipe = LocalTraining(PyTorchMomentum(lr=0.1, weight_decay=0.1), None, 1, None)
    job = replace(TrainingJob(0, 1, 0, task.initial_parameters, data().train))
    for make in ENGINES.values():
        (local,) = make(task, recipe, data()).train([job])
        assert [n for n, where, _ in task.layout.list_slices() if not local.update[where].any()] == [
            "spare.weight",
            "spare.bias",
        ]
