"""Selection of the engine, and the order of batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from torch import Tensor, nn
from torch.nn import functional

from fedsgd.data import Dataset
from fedsgd.errors import ModelError
from fedsgd.models import MODELS, Mlp
from fedsgd.models.builder import build_task
from fedsgd.numerics.arrays import F32
from fedsgd.optim import SGD, Momentum
from fedsgd.training import LocalTraining, TrainingJob
from fedsgd.training.base import NotCapturableError
from fedsgd.training.client_stack import ClientStack
from fedsgd.training.selection import EngineChoice, choose_typical_cohort, rank_batch_sizes, select_engine
from fedsgd.training.sequential import Sequential
from fedsgd.training.stacked import Stacked
from tests.training.modules import Alternating, Branching, make_images


@pytest.mark.parametrize(
    ("model", "cohort", "expected", "reason"),
    [
        ("softmax", 100, EngineChoice("stacked", "fused", 50), "7,850 parameters in linear layers, 100 clients a round"),
        ("softmax", 20, EngineChoice("stacked", "fused", 20), "linear layers"),
        ("softmax", 7, EngineChoice("captured"), "a cohort of 7 is smaller than 8"),
        ("2nn", 100, EngineChoice("captured"), "199,210 parameters, more than 65,536"),
        ("lenet", 100, EngineChoice("captured"), "a layer is neither linear nor an embedding"),
    ],
)
def test_auto_selects_the_engine_by_its_rule(model: str, cohort: int, expected: EngineChoice, reason: str) -> None:
    data = make_images(shape=(28, 28))
    task = build_task(MODELS[model](), data, 0)
    _, choice = select_engine(EngineChoice(), task, LocalTraining(SGD(), 1, None, 10), data.train, [10], np.full(cohort, 30))
    assert (choice.name, choice.update, choice.stack) == (expected.name, expected.update, expected.stack)
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("cohort", "clients_per_step"),
    [
        ([200, *[10] * 11], 1.6),  # 20 + 11 steps, of which 20 have the first client
        ([60, 60, *[10] * 10], 3.7),  # 22 steps of six calls
        ([60, 60, *[20] * 10], None),  # 32 steps of six calls
        ([*[200] * 16, *[10] * 16], None),  # two stacks of clients with equal sizes
    ],
)
def test_clients_that_would_mostly_train_alone_are_not_stacked(
    cohort: list[int], clients_per_step: float | None, blobs: Dataset
) -> None:
    task = build_task(Mlp(), blobs, 0)
    training, request = LocalTraining(SGD(), 1, None, 10), EngineChoice(stack=16)
    _, choice = select_engine(request, task, training, blobs.train, [10], np.array(cohort))
    assert choice.name == ("stacked" if clients_per_step is None else "captured")
    assert clients_per_step is None or f"would have {clients_per_step} clients on average, fewer than 4" in choice.reason


@pytest.mark.parametrize(
    ("sizes", "clients", "cohort_size", "expected"),
    [([7], [100], 3, [7, 7, 7]), ([0, 5, 9], [1, 2, 1], 4, [0, 5, 5, 9]), ([1, 5, 90], [2, 7, 1], 5, [1, 5, 5, 5, 90])],
)
def test_typical_cohort_has_clients_of_all_sizes(
    sizes: list[int], clients: list[int], cohort_size: int, expected: list[int]
) -> None:
    assert choose_typical_cohort(np.array(sizes), np.array(clients), cohort_size).tolist() == expected


def test_stack_with_dependent_clients_is_not_selected(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some processors round products of a few columns by their place in the stack; the patch does so on any processor."""
    task = build_task(Mlp(), blobs, 0, module=nn.Sequential(nn.Linear(8, 32), nn.Sigmoid(), nn.Linear(32, 4)))
    training = LocalTraining(SGD(), 1, None, 8)
    _, choice = select_engine(EngineChoice(), task, training, blobs.train, [8, 1], np.full(40, 9))
    assert choice.name == "stacked"
    load_models = ClientStack.load_models

    def load_by_place(stack: ClientStack, models: Sequence[F32]) -> None:
        load_models(stack, models)
        for w in stack.w:
            w[1 : len(models)] *= 1 + 2e-7

    monkeypatch.setattr(ClientStack, "load_models", load_by_place)
    _, choice = select_engine(EngineChoice(), task, training, blobs.train, [8, 1], np.full(40, 9))
    assert choice.name == "captured"
    assert "a client's result depends on the other clients in its stack" in choice.reason


@pytest.mark.parametrize(
    ("activation", "width", "stacks"), [(nn.Sigmoid, 5, False), (nn.ReLU, 5, True), (nn.Sigmoid, 32, True)]
)
def test_activation_that_rounds_by_position_is_stacked_only_at_full_width(
    activation: Callable[[], nn.Module], width: int, stacks: bool, blobs: Dataset
) -> None:
    """The end of a tensor, where vectors of numbers do not fit, rounds differently."""
    task = build_task(Mlp(), blobs, 0, module=nn.Sequential(nn.Linear(8, width), activation(), nn.Linear(width, 4)))
    _, choice = select_engine(EngineChoice(), task, LocalTraining(SGD(), 1, None, 8), blobs.train, [8, 1], np.full(40, 9))
    assert (choice.name == "stacked") == stacks
    assert stacks or "aten.sigmoid.default rounds a number by its position" in choice.reason


class DirectParameter(Branching):
    """Module that uses a parameter through a list instead of its name."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = [self.linear.weight]

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weights[0], self.linear.bias)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        # the step multiplies all clients by one matrix, which some processors round by the number of clients
        (DirectParameter, "differs from autograd's|depends on the other clients"),
        (Alternating, "training changes Alternating.calls"),
    ],
)
def test_stacked_step_that_differs_from_autograd_is_rejected(
    make: Callable[[], nn.Module], reason: str, blobs: Dataset
) -> None:
    task = build_task(Mlp(), blobs, 0, module=make())
    with pytest.raises(NotCapturableError, match=reason):
        Stacked(task, LocalTraining(SGD(), 1, None, 10), blobs.train, [10])


def test_dropout_is_not_stacked(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0, module=nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3)))
    _, choice = select_engine(EngineChoice(), task, LocalTraining(SGD(), 1, None, 10), blobs.train, [10], np.full(40, 30))
    assert choice.name == "captured"
    assert "draws random numbers" in choice.reason


def test_auto_without_examples_selects_sequential(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    engine, choice = select_engine(EngineChoice(), task, LocalTraining(SGD(), 1, None, 10), blobs.train, [], np.full(40, 0))
    assert (type(engine), choice.name, choice.reason) == (Sequential, "sequential", "no client has any examples")


def test_invalid_loss_under_auto_is_an_error_of_the_sequential_engine(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0, loss=lambda output, target: functional.cross_entropy(output, target, reduction="none"))
    engine, choice = select_engine(EngineChoice(), task, LocalTraining(SGD(), 1, None, 10), blobs.train, [10], np.full(4, 30))
    assert choice.name == "sequential"
    with pytest.raises(ModelError, match="expected a tensor that is a scalar"):
        list(engine.train([TrainingJob(0, 1, 0, task.initial_parameters, blobs.train)]))


def test_batch_sizes_are_ranked_by_frequency() -> None:
    counts = np.array([25, 25, 10, 7, 0])
    assert rank_batch_sizes(counts, LocalTraining(SGD(), 1, None, 10)) == [10, 5, 7]
    assert rank_batch_sizes(counts, LocalTraining(SGD(), 1, None, None)) == [25, 10, 7]
    assert rank_batch_sizes(counts, LocalTraining(SGD(), None, 1, 10)) == [10, 7]
    assert rank_batch_sizes(np.array([0, 0]), LocalTraining(SGD(), 1, None, 10)) == []
    assert len(rank_batch_sizes(np.arange(1, 90), LocalTraining(Momentum(), 1, None, None))) == 32
