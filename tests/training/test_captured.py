"""Modules that can be captured, and modules that cannot."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError
from fedsgd.models import MODELS, Mlp
from fedsgd.models.builder import build_task
from fedsgd.optim import SGD
from fedsgd.training import LocalTraining, TrainingJob
from fedsgd.training.base import NotCapturableError
from fedsgd.training.captured import Captured
from fedsgd.training.selection import EngineChoice, make_engine, select_engine
from fedsgd.training.sequential import Sequential
from tests.training.modules import Alternating, Branching, Counting, make_images


class Masking(Branching):
    def forward(self, x: Tensor) -> Tensor:
        x[x > 1] = 0
        return self.linear(x)


class DataReading(Branching):
    """Module that reads data without an operation that the recorder sees."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * float(x.detach().numpy().sum())


class OwnGenerator(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * torch.rand(8, generator=torch.Generator().manual_seed(1)))


class Renormed(Branching):
    """Module that limits the norm of the rows of its weight, as EEGNet does; the initial rows are shorter."""

    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight.data = torch.renorm(self.linear.weight.data, 2, 0, 1.2)
        return self.linear(x)


class StochasticDepth(Branching):
    """Module with stochastic depth from Python's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x if random.random() > 1e-9 else -x)


class Bounded(Branching):
    """Module that limits the norm of .data, which has no effect before the weight has grown."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.linear.weight.data.norm()
        return functional.linear(x, self.linear.weight * (norm.clamp(max=1.5) / norm), self.linear.bias)


UNCAPTURABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a branch on data": (Branching, "reads a number of a tensor"),
    "numpy": (DataReading, "numpy reads numbers of a tensor"),
    "an attribute": (Counting, "training changes Counting.calls in Python"),
    "an attribute, every other time": (Alternating, "training changes Alternating.calls in Python"),
    "Python's generator": (StochasticDepth, "draws from numpy's or Python's global generator"),
    "a generator": (OwnGenerator, "draws from its own generator"),
    "other memory for a parameter": (Renormed, "moves a parameter or buffer to other memory"),
}


@pytest.mark.parametrize(("make", "reason"), UNCAPTURABLE.values(), ids=UNCAPTURABLE.keys())
def test_module_that_cannot_be_captured_is_trained_by_autograd(
    make: Callable[[], nn.Module], reason: str, blobs: Dataset
) -> None:
    local_training = LocalTraining(SGD(), 1, None, 10)
    with pytest.raises(NotCapturableError, match=reason):
        Captured(build_task(Mlp(), blobs, 0, module=make()), local_training, blobs.train, [10])
    task = build_task(Mlp(), blobs, 0, module=make())
    engine, choice = select_engine(EngineChoice(), task, local_training, blobs.train, [10], np.full(4, 30))
    assert isinstance(engine, Sequential)
    assert choice.name == "sequential"
    assert reason in choice.reason
    with pytest.raises(ModelError, match=f"the captured engine cannot train the model: .*{reason}"):
        make_engine(EngineChoice("captured"), [10], task, local_training, blobs.train)


def test_module_that_masks_its_input_is_captured(blobs: Dataset) -> None:
    task, local_training = build_task(Mlp(), blobs, 0, module=Masking()), LocalTraining(SGD(lr=0.1), 2, None, 10)
    job = TrainingJob(0, 1, 0, task.initial_parameters, blobs.train)
    (expected,) = Sequential(task, local_training).train([job])
    (result,) = Captured(task, local_training, blobs.train, [10], "exact").train([job])
    assert result.update.tobytes() == expected.update.tobytes()


def test_module_that_reads_its_changed_weight_is_captured(blobs: Dataset) -> None:
    torch.manual_seed(0)
    task, local_training = build_task(Mlp(), blobs, 0, module=Bounded()), LocalTraining(SGD(lr=1.0), 3, None, 10)
    job = TrainingJob(0, 1, 0, task.initial_parameters, blobs.train)
    (expected,) = Sequential(task, local_training).train([job])
    (result,) = Captured(task, local_training, blobs.train, [10], "exact").train([job])
    assert result.update.tobytes() == expected.update.tobytes()


def test_metric_that_needs_channels_first_gets_them() -> None:
    x = np.random.default_rng(0).random((20, 3, 6, 6), np.float32)
    data = Dataset(Examples(x, x), Examples(x[:5], x[:5]), None)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))

    def error(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).view(len(output), -1).square().mean(dim=1)

    task = build_task(Mlp(), data, 0, module=module, loss=functional.mse_loss, metrics={"error": error})
    local_training = LocalTraining(SGD(), 1, None, 10)
    expected = Sequential(task, local_training).evaluate(task.initial_parameters, data.test).means
    assert Captured(task, local_training, data.train, [10]).evaluate(task.initial_parameters, data.test).means == expected


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", ["cnn", "lenet", "cifar-cnn", "resnet-20"])
def test_convolutional_network_is_captured_with_channels_last(name: str) -> None:
    """The check of the captured step must not fail because of rounding."""
    data = make_images(shape=(28, 28) if name == "cnn" else (3, 32, 32))
    engine = Captured(build_task(MODELS[name](), data, 0), LocalTraining(SGD(lr=0.1), 1, None, 10), data.train, [10])
    assert engine._step_buffers.tensor_format.channels_last


@pytest.mark.slow
def test_char_gpt_of_default_size_is_captured_bit_for_bit() -> None:
    """Attention over a whole context uses other blocks of its kernel than the short sequences of the engine laws."""
    x = np.random.default_rng(0).integers(0, 65, (8, 65))
    data = Dataset(Examples(x[:, :-1], x[:, 1:]), Examples(x[:2, :-1], x[:2, 1:]), 65)
    task, local_training = build_task(MODELS["char-gpt"](), data, 0), LocalTraining(SGD(lr=0.1), 1, None, 3)
    job = TrainingJob(0, 1, 0, task.initial_parameters, data.train)
    (expected,) = Sequential(task, local_training).train([job])
    engine, choice = select_engine(EngineChoice(update="exact"), task, local_training, data.train, [3, 2], np.full(4, 5))
    (result,) = engine.train([job])
    assert (choice.name, type(engine)) == ("captured", Captured)
    assert result.update.tobytes() == expected.update.tobytes()
