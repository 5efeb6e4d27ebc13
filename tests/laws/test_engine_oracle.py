"""Every engine against the sequential engine, on random small models, losses, batch sizes and optimizers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fedsgd.data import Dataset, Examples
from fedsgd.models import Loss, Mlp
from fedsgd.models.builder import build_task
from fedsgd.models.layers import ClassDimSecond, LstmSequence, ResidualBlock
from fedsgd.models.task import LearningTask
from fedsgd.models.transformer_layers import CharTransformer
from fedsgd.numerics.arrays import F32
from fedsgd.optim import OPTIMIZERS, Adam, Optimizer
from fedsgd.optim.schedules import ExponentialSchedule
from fedsgd.training import LastBatch, LocalTraining, TrainingJob, TrainingResult
from fedsgd.training.base import NotCapturableError
from fedsgd.training.sequential import Sequential
from tests.effort import examples
from tests.laws.engines import ENGINES, assert_agree, read_bits

pytestmark = pytest.mark.slow
CLASSES = 4
CLIENT_OPTIMIZERS = [name for name in OPTIMIZERS if not OPTIMIZERS[name].server_only]


def one_hot(target: Tensor) -> Tensor:
    return torch.eye(CLASSES)[target]


LOSSES: dict[str, Loss] = {
    "cross-entropy": functional.cross_entropy,
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 0.5, 1.0])),
    "squares": lambda output, target: functional.mse_loss(output, one_hot(target)),
    "log-likelihood": lambda output, target: functional.nll_loss(functional.log_softmax(output, dim=1), target),
    "logistic": lambda output, target: functional.binary_cross_entropy_with_logits(output, one_hot(target)),
    "huber": lambda output, target: functional.smooth_l1_loss(output, one_hot(target)),
}
ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus, lambda: nn.ReLU(inplace=True), nn.Hardtanh,
]  # fmt: skip
HIDDEN_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "nothing": lambda width: nn.Identity(),
    "layer norm": nn.LayerNorm,
    "dropout": lambda width: nn.Dropout(0.3),
}


class Tied(nn.Module):
    """Module with a tied weight, an unused parameter and a frozen parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.full((width,), 0.5), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.tanh(self.first(x))) * self.frozen
        return y


@st.composite
def perceptrons(draw: st.DrawFn) -> nn.Sequential:
    widths = [8, *draw(st.lists(st.sampled_from((4, 8, 8, 5)), max_size=2)), CLASSES]
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out, bias=draw(st.booleans()))]
        if n_out is not widths[-1] or len(layers) < len(widths) - 1:
            layers += [HIDDEN_LAYERS[draw(st.sampled_from(sorted(HIDDEN_LAYERS)))](n_out), draw(st.sampled_from(ACTIVATIONS))()]
    if draw(st.booleans()):
        layers.insert(0, Tied(8))
    return nn.Sequential(*layers)


@st.composite
def convolutional(draw: st.DrawFn) -> nn.Sequential:
    channels = draw(st.sampled_from((2, 4)))
    norm = draw(
        st.sampled_from((nn.Identity(), nn.GroupNorm(2, channels), nn.BatchNorm2d(channels, track_running_stats=False)))
    )
    pool = draw(st.sampled_from((nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3))))
    body = nn.Conv2d(channels, channels, 3, padding=1, groups=draw(st.sampled_from((1, 2))))
    middle = draw(st.sampled_from((nn.Identity(), ResidualBlock(body, 1, 0), nn.Dropout2d(0.2))))
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv2d(1, channels, 3, padding=1), norm, nn.ReLU(), pool, middle, nn.Flatten(),
        nn.Linear(9 * channels, CLASSES),
    )  # fmt: skip


@st.composite
def recurrent(draw: st.DrawFn) -> nn.Sequential:
    kind = draw(st.sampled_from((nn.LSTM, nn.GRU, nn.RNN)))
    layers = draw(st.integers(1, 2))
    cell = kind(3, 5, num_layers=layers, batch_first=True)
    if draw(st.booleans()):
        return nn.Sequential(nn.Embedding(7, 3), LstmSequence(cell), nn.Linear(5, CLASSES), ClassDimSecond(), LastPosition())
    return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(32, CLASSES))


@st.composite
def transformers(draw: st.DrawFn) -> nn.Sequential:
    heads, head_width = draw(st.sampled_from((1, 2))), draw(st.sampled_from((4, 6)))
    layers, context = draw(st.integers(1, 2)), draw(st.sampled_from((8, 11)))
    transformer = CharTransformer(7, layers, heads, heads * head_width, context, bias=draw(st.booleans()))
    return nn.Sequential(transformer, LastPosition(), nn.Linear(7, CLASSES))


class LastPosition(nn.Module):
    """Layer that selects the outputs at the last position of a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, -1]


@st.composite
def training_settings(draw: st.DrawFn) -> LocalTraining:
    name = draw(st.sampled_from(CLIENT_OPTIMIZERS))
    settings: dict[str, object] = {
        "lr": draw(st.sampled_from((0.05, 0.01))),
        "weight_decay": draw(st.sampled_from((0.0, 0.0, 0.01))),
        "clip_norm": draw(st.sampled_from((None, None, 0.5))),
        "schedule": draw(st.sampled_from((OPTIMIZERS[name]().schedule, ExponentialSchedule(gamma=0.9)))),
        "schedule_over": draw(st.sampled_from(("rounds", "steps", "local-steps"))),
    }
    if issubclass(OPTIMIZERS[name], Adam):  # a small eps turns gradients that are only rounding into whole steps
        settings["eps"] = 0.1
    optimizer: Optimizer = OPTIMIZERS[name](**settings)
    epochs, steps = draw(st.sampled_from(((1, None), (2, None), (None, 1), (None, 5))))
    size, proximal = draw(st.sampled_from((None, 1, 2, 3, 7))), draw(st.sampled_from((0.0, 0.0, 0.1)))
    keep_state, uses_correction, last_batch = (
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from(get_args(LastBatch))),
    )
    return LocalTraining(optimizer, epochs, steps, size, proximal, keep_state, uses_correction, last_batch)


@dataclass(frozen=True, eq=False)
class Case:
    task: LearningTask
    data: Dataset
    local_training: LocalTraining
    jobs: list[TrainingJob]

    def __repr__(self) -> str:
        return (
            f"{self.task.module}, {self.task.loss}, {self.local_training}, examples {[len(job.examples) for job in self.jobs]}"
        )


@st.composite
def cases(draw: st.DrawFn, modules: st.SearchStrategy[nn.Sequential], words: bool = False, image: bool = False) -> Case:
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    shape = (6, 6) if image else (8,)
    x = rng.integers(0, 7, (40, *shape)) if words else rng.standard_normal((40, *shape)).astype(np.float32)
    y = rng.integers(0, CLASSES, 40)
    data = Dataset(Examples(x, y), Examples(x[:5], y[:5]), CLASSES)
    torch_state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # for the module's initial parameters; strategies do not draw from torch
    try:
        module = draw(modules)
    finally:
        torch.set_rng_state(torch_state)
    task = build_task(Mlp(), data, seed, module=module, loss=LOSSES[draw(st.sampled_from(sorted(LOSSES)))])
    ns = draw(st.lists(st.integers(0, 16), min_size=1, max_size=5))
    local_training, jobs = draw(training_settings()), []
    for client, n in enumerate(ns):
        job = TrainingJob(
            seed, 3, client, task.initial_parameters, Examples(data.train.x, data.train.y, rng.permutation(40)[:n])
        )
        if draw(st.booleans()):  # engines ignore both unless the settings use them
            buffers, w = local_training.optimizer.init(torch.zeros(task.layout.size)), torch.zeros(task.layout.size)
            local_training.optimizer.step(w, torch.from_numpy(draw_small(rng, task)), buffers, 1.0)
            job = replace(
                job,
                optimizer_state={name: value.numpy() for name, value in buffers.items()},
                correction=draw_small(rng, task),
            )
        jobs.append(job)
    return Case(task, data, local_training, jobs)


def draw_small(rng: np.random.Generator, task: LearningTask) -> F32:
    return (0.01 * rng.standard_normal(task.layout.size)).astype(np.float32)


def compare_with_sequential(case: Case, name: str) -> None:
    """Compare the results of an engine with those of the sequential engine, of both rounds if clients have states."""
    try:
        engine = ENGINES[name](case.task, case.local_training, case.data)
        results = {result.client: result for result in engine.train(case.jobs)}
    except NotCapturableError:
        if "stacked" in name:
            return
        raise
    sequential = Sequential(case.task, case.local_training)
    expected = {result.client: result for result in sequential.train(case.jobs)}
    assert_results_agree(name, case, results, expected)
    single_results = {job.client: read_bits(next(iter(engine.train([job])))) for job in case.jobs}
    assert single_results == {client: read_bits(result) for client, result in results.items()}
    if case.local_training.keep_optimizer_state:  # a second round, with each engine's own states
        results = {result.client: result for result in engine.train(next_round(case.jobs, results))}
        assert_results_agree(
            name, case, results, {result.client: result for result in sequential.train(next_round(case.jobs, expected))}
        )


def next_round(jobs: list[TrainingJob], results: dict[int, TrainingResult]) -> list[TrainingJob]:
    return [replace(job, round=job.round + 1, optimizer_state=results[job.client].optimizer_state) for job in jobs]


def assert_results_agree(
    name: str, case: Case, results: dict[int, TrainingResult], expected: dict[int, TrainingResult]
) -> None:
    assert results.keys() == expected.keys()
    for client, reference in expected.items():
        result = results[client]
        assert (result.n_examples, result.n_steps) == (reference.n_examples, reference.n_steps)
        assert result.optimizer_state.keys() == reference.optimizer_state.keys()
        assert_agree(name, result.update, reference.update, case.task.initial_parameters)
        for key, value in reference.optimizer_state.items():
            assert_agree(name, result.optimizer_state[key], value, case.task.initial_parameters)


OTHER_ENGINES = [name for name in ENGINES if name != "sequential"]


@pytest.mark.sampled
@pytest.mark.parametrize("name", OTHER_ENGINES)
@examples(4, nightly=10)
@given(case=cases(perceptrons()))
def test_engine_on_perceptrons_agrees_with_sequential(name: str, case: Case) -> None:
    compare_with_sequential(case, name)


@pytest.mark.sampled
@pytest.mark.parametrize("name", OTHER_ENGINES)
@examples(3, nightly=6)
@given(case=cases(convolutional(), image=True))
def test_engine_on_convolutional_networks_agrees_with_sequential(name: str, case: Case) -> None:
    compare_with_sequential(case, name)


@pytest.mark.sampled
@pytest.mark.parametrize("name", OTHER_ENGINES)
@examples(3, nightly=6)
@given(case=cases(recurrent(), words=True))
def test_engine_on_sequences_agrees_with_sequential(name: str, case: Case) -> None:
    compare_with_sequential(case, name)


@pytest.mark.sampled
@pytest.mark.parametrize("name", OTHER_ENGINES)
@examples(2, nightly=4)
@given(case=cases(transformers(), words=True))
def test_engine_on_transformers_agrees_with_sequential(name: str, case: Case) -> None:
    compare_with_sequential(case, name)
