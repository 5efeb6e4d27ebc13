"""Buffers of batch norm: description, owner, training by each engine, and equality with PyTorch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError
from fedsgd.models import Mlp
from fedsgd.models.builder import build_task
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32
from fedsgd.optim import SGD, PyTorchMomentum
from fedsgd.training import LocalTraining, TrainingJob
from fedsgd.training.base import NotCapturableError
from fedsgd.training.captured import Captured
from fedsgd.training.selection import EngineChoice, make_engine, select_engine
from fedsgd.training.sequential import Sequential
from fedsgd.training.stacked import Stacked
from tests.laws.engines import train_by_pytorch

RNG = np.random.default_rng(3)
X = RNG.random((60, 3, 6, 6), np.float32)
Y = RNG.integers(0, 3, 60)


def make_convolutional() -> nn.Module:
    """Return a network with batch norms of planes and of vectors, between and after other layers."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, affine=False), nn.Flatten(),
        nn.Linear(20, 6), nn.BatchNorm1d(6, momentum=None), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


def make_perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.BatchNorm1d(8, momentum=0.3), nn.ReLU(), nn.Linear(8, 3))


MODULES = {"convolutional": make_convolutional, "perceptron": make_perceptron}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset(Examples(X[:40], Y[:40]), Examples(X[40:], Y[40:]), 3)


def build_norm_task(make: Callable[[], nn.Module], policy: str, data: Dataset) -> LearningTask:
    """Return a task whose parameters and buffers differ from their initial values."""
    generator = torch.Generator().manual_seed(1)
    module = make()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.add_(7) if tensor.dtype == torch.int64 else tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return build_task(Mlp(batch_norm=policy), data, 0, module=module)


def sample_buffers(task: LearningTask, seed: int) -> F32:
    """Return buffers of another client."""
    values = task.initial_buffers + np.random.default_rng(seed).random(task.buffers.size, np.float32)
    return np.where(
        ["tracked" in n for n, part, _ in task.buffers.list_slices() for _ in range(part.stop - part.start)], 9, values
    ).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- description of buffers


def test_mean_policy_buffers_follow_the_module_order(data: Dataset) -> None:
    task = build_norm_task(make_convolutional, "mean", data)
    assert task.buffers.names == (
        *(f"{i}.running_{statistic}" for i in (1, 4, 7) for statistic in ("mean", "var")),
        "7.num_batches_tracked",
    )
    assert task.buffers.shapes == ((4,), (4,), (5,), (5,), (6,), (6,), ())
    state = task.module.state_dict()
    assert task.initial_buffers.tolist() == torch.cat([state[name].reshape(-1) for name in task.buffers.names]).tolist()
    assert task.initial_buffers.dtype == np.float32
    assert (task.n_local_parameters, task.shared_layout) == (0, task.layout)
    assert task.layout.names == tuple(dict(task.module.named_parameters()))


def test_local_policy_batch_norm_parameters_come_last(data: Dataset) -> None:
    task = build_norm_task(make_convolutional, "local", data)
    shared = ("0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias", "9.weight", "9.bias")
    assert task.shared_layout.names == shared
    assert task.layout.names == (*shared, "1.weight", "1.bias", "7.weight", "7.bias")
    assert task.n_local_parameters == 4 + 4 + 6 + 6
    assert task.shared_layout.size == task.layout.size - task.n_local_parameters
    assert task.buffers == build_norm_task(make_convolutional, "mean", data).buffers
    values = dict(task.module.named_parameters())
    for name, part, shape in task.layout.list_slices():
        assert task.initial_parameters[part].reshape(shape).tolist() == values[name].tolist()


def test_local_policy_frozen_scales_are_omitted_and_batch_statistics_have_local_scales(data: Dataset) -> None:
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(108), nn.BatchNorm1d(108, track_running_stats=False), nn.Linear(108, 3))
    module[1].weight.requires_grad_(False)
    task = build_task(Mlp(batch_norm="local"), data, 0, module=module)
    assert task.layout.names == ("3.weight", "3.bias", "1.bias", "2.weight", "2.bias")
    assert task.n_local_parameters == 3 * 108
    assert task.buffers.names == ("1.running_mean", "1.running_var")


@pytest.mark.parametrize("policy", ["mean", "local"])
def test_task_without_batch_norm_is_the_same_under_each_policy(policy: str, data: Dataset) -> None:
    class Shifted(nn.Linear):
        """Layer with a buffer that training does not change."""

        def __init__(self) -> None:
            super().__init__(108, 3)
            self.register_buffer("offset", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)) + self.offset

    torch_state = torch.get_rng_state()
    module = Shifted()
    torch.set_rng_state(torch_state)
    task, plain = (build_task(Mlp(batch_norm=p), data, 0, module=module) for p in (policy, "refuse"))
    assert (task.layout, task.n_local_parameters, task.shared_layout, task.buffers, task.initial_buffers) == (
        plain.layout, 0, plain.layout, None, None,
    )  # fmt: skip
    engine, recipe = Sequential(task, LocalTraining(SGD(), 1, None, 10)), LocalTraining(SGD(), 1, None, 10)
    job = TrainingJob(0, 1, 0, task.initial_parameters, data.train)
    updates = {next(iter(e.train([job]))).update.tobytes() for e in (engine, engine, Sequential(plain, recipe))}
    assert len(updates) == 1
    assert next(iter(engine.train([job]))).buffers is None


@pytest.mark.parametrize("policy", ["mean", "local"])
def test_pickled_task_trains_to_the_same_bits(policy: str, data: Dataset) -> None:
    task = build_norm_task(make_convolutional, policy, data)
    restored: LearningTask = pickle.loads(pickle.dumps(task))
    assert (restored.layout, restored.n_local_parameters, restored.shared_layout, restored.buffers) == (
        task.layout, task.n_local_parameters, task.shared_layout, task.buffers,
    )  # fmt: skip
    assert (restored.initial_parameters.tobytes(), restored.initial_buffers.tobytes()) == (
        task.initial_parameters.tobytes(),
        task.initial_buffers.tobytes(),
    )
    recipe, job = LocalTraining(SGD(), 1, None, 10), replace(make_job(task, data), buffers=sample_buffers(task, 1))
    (result,), (restored_result,) = (Sequential(t, recipe).train([job]) for t in (task, restored))
    assert (result.update.tobytes(), result.buffers.tobytes()) == (
        restored_result.update.tobytes(),
        restored_result.buffers.tobytes(),
    )


UNSUPPORTED_MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], str]] = {
    "batch norm": (lambda: nn.BatchNorm2d(3), ("refuse",), r'1 is a BatchNorm2d .* "group", "batch", "mean", "local" or "frozen"'),
    "instance norm": (
        lambda: nn.InstanceNorm2d(3, track_running_stats=True),
        ("refuse", "batch", "group", "mean", "local"),
        r"training changes the buffers 1\.running_mean, 1\.running_var, .* set model.buffers",
    ),
    "double precision": (
        lambda: nn.BatchNorm2d(3, affine=False).double(), ("mean", "local"), "1.running_mean is torch.float64",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "policy", "message"), [(make, p, m) for make, policies, m in UNSUPPORTED_MODULES.values() for p in policies]
)
def test_unsupported_buffers_raise_model_error(make: Callable[[], nn.Module], policy: str, message: str, data: Dataset) -> None:
    with pytest.raises(ModelError, match=message):
        build_task(Mlp(batch_norm=policy), data, 0, module=nn.Sequential(nn.Conv2d(3, 3, 1), make(), nn.Flatten()))


def test_uninitialised_buffers_raise_model_error(data: Dataset) -> None:
    @dataclass(frozen=True)
    class Lazy(Mlp):
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 3, 1), nn.LazyBatchNorm2d(affine=False))

    with pytest.raises(ModelError, match=r"1\.running_mean is not initialised yet"):
        build_task(Lazy(batch_norm="mean"), data, 0)


def test_model_without_shared_parameters_raises_model_error(data: Dataset) -> None:
    with pytest.raises(ModelError, match="there is nothing to send"):
        build_task(Mlp(batch_norm="local"), data, 0, module=nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()))


# ----------------------------------------------------------------------------------------------------------- training with buffers


def make_job(task: LearningTask, data: Dataset, client: int = 0, n: int = 40) -> TrainingJob:
    return TrainingJob(0, 1, client, task.initial_parameters, data.train.slice(0, n))


def train_with_pytorch(
    task: LearningTask, job: TrainingJob, recipe: LocalTraining
) -> tuple[np.ndarray, np.ndarray, dict[str, Tensor]]:
    """Return parameters in the layout's order, buffers, and the module's state after plain training."""
    module = copy.deepcopy(task.module)
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    with torch.no_grad():
        for tensors, layout, values in ((parameters, task.layout, job.weights), (buffers, task.buffers, job.buffers)):
            for name, part, shape in layout.list_slices() if values is not None else ():
                tensors[name].copy_(torch.from_numpy(values[part].reshape(shape).copy()))
    train_by_pytorch(module, job, recipe)
    flat = [
        np.concatenate([tensors[name].detach().numpy().reshape(-1) for name in layout.names])
        for tensors, layout in ((parameters, task.layout), (buffers, task.buffers))
    ]
    return flat[0], flat[1].astype(np.float32), module.state_dict()


@pytest.mark.sampled
@pytest.mark.parametrize("policy", ["mean", "local"])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("passes_buffers", [False, True])
def test_trained_buffers_equal_pytorch_bit_for_bit(name: str, policy: str, passes_buffers: bool, data: Dataset) -> None:
    """No client sees the buffers of another client, or the number of its batches."""
    task, recipe = build_norm_task(MODULES[name], policy, data), LocalTraining(PyTorchMomentum(lr=0.1), 2, None, 7)
    jobs = [make_job(task, data, client, 40 - 5 * client) for client in range(3)]
    if passes_buffers:
        jobs = [replace(job, buffers=sample_buffers(task, job.client)) for job in jobs]
        for job in jobs:
            job.buffers.flags.writeable = False
    engine = Sequential(task, recipe)
    before = {key: value.clone() for key, value in task.module.named_buffers()}
    for job, result in zip([*jobs, jobs[0]], engine.train([*jobs, jobs[0]]), strict=True):
        weights, expected_buffers, state = train_with_pytorch(task, job, recipe)
        assert result.update.tobytes() == (weights - task.initial_parameters).tobytes()
        assert result.buffers.tobytes() == expected_buffers.tobytes()
        assert result.buffers.dtype == np.float32
        assert not any(np.shares_memory(result.buffers, b.numpy()) for b in task.module.buffers())
        batch_counts = [int(v) for k, v in state.items() if k.endswith("tracked")]
        assert batch_counts[:2] == [7 + result.n_steps] * min(2, len(batch_counts))
        assert batch_counts[2:] == [(9 if passes_buffers else 7) + result.n_steps] * (len(batch_counts) > 2)
    after = dict(task.module.named_buffers())
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("n", [0, 40])
def test_buffers_of_clients_with_no_step_or_one_step_equal_pytorch(n: int, data: Dataset) -> None:
    task, recipe = build_norm_task(make_convolutional, "mean", data), LocalTraining(PyTorchMomentum(lr=0.1), None, 1, None)
    for buffers in (None, sample_buffers(task, 0)):
        job = replace(make_job(task, data, n=n), buffers=buffers)
        (result,) = Sequential(task, recipe).train([job])
        expected = train_with_pytorch(task, job, recipe)[1]
        assert result.buffers.tobytes() == expected.tobytes()
    assert (result.buffers.tobytes() == job.buffers.tobytes()) == (n == 0)


def test_evaluation_uses_the_passed_buffers(data: Dataset) -> None:
    task = build_norm_task(make_convolutional, "mean", data)
    engine = Sequential(task, LocalTraining(SGD(lr=0.1), 1, None, 10))
    for seed in (1, 2):
        client_buffers = sample_buffers(task, seed)
        client_buffers.flags.writeable = False
        module = copy.deepcopy(task.module).eval()
        buffers = dict(module.named_buffers())
        for name, part, shape in task.buffers.list_slices():
            buffers[name].copy_(torch.from_numpy(client_buffers[part].reshape(shape).copy()))
        with torch.no_grad():
            expected = nn.functional.cross_entropy(module(torch.from_numpy(X[40:])), torch.from_numpy(Y[40:]))
        assert engine.evaluate(task.initial_parameters, data.test, client_buffers).loss == pytest.approx(
            float(expected), rel=1e-6
        )
    initial = engine.evaluate(task.initial_parameters, data.test)
    list(engine.train([make_job(task, data)]))
    assert engine.evaluate(task.initial_parameters, data.test).losses == initial.losses
    assert engine.evaluate(task.initial_parameters, data.test, client_buffers).losses != initial.losses
    assert engine.evaluate(task.initial_parameters, data.test, task.initial_buffers).losses == initial.losses


def test_buffers_of_wrong_size_raise_value_error(data: Dataset) -> None:
    task = build_norm_task(make_perceptron, "mean", data)
    engine = Sequential(task, LocalTraining(SGD(), 1, None, 10))
    with pytest.raises(ValueError, match=r"got buffers of shape \[3\], expected \[16\] for this model"):
        engine.evaluate(task.initial_parameters, data.test, np.zeros(3, np.float32))
    task_without_buffers = build_task(Mlp(), data, 0, module=nn.Sequential(nn.Flatten(), nn.Linear(108, 3)))
    with pytest.raises(ValueError, match="expected none for this model"):
        Sequential(task_without_buffers, engine.local_training).evaluate(
            task_without_buffers.initial_parameters, data.test, np.zeros(3, np.float32)
        )


# ------------------------------------------------------------------------------------------------------------ choice of an engine


@pytest.mark.parametrize("policy", ["mean", "local"])
def test_buffers_that_change_require_the_sequential_engine(policy: str, data: Dataset) -> None:
    task, recipe = build_norm_task(make_convolutional, policy, data), LocalTraining(SGD(), 1, None, 10)
    for engine in (Captured, Stacked):
        with pytest.raises(NotCapturableError, match=r"training changes the buffer 1\.running_mean"):
            engine(task, recipe, data.train, [10])
    chosen_engine, choice = select_engine(EngineChoice(), task, recipe, data.train, [10], np.full(40, 30))
    assert (type(chosen_engine), choice.name) == (Sequential, "sequential")
    assert choice.reason == "the model cannot be captured: training changes the buffer 1.running_mean"
    for name in ("captured", "stacked"):
        with pytest.raises(
            ModelError, match=f"the {name} engine cannot train the model: training changes the buffer 1.running_mean; the seq"
        ):
            make_engine(EngineChoice(name), [10], task, recipe, data.train)


def test_local_parameters_without_buffers_can_be_captured(data: Dataset) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    task, recipe = (
        build_task(Mlp(batch_norm="local"), data, 0, module=module),
        LocalTraining(PyTorchMomentum(lr=0.1), 2, None, 10),
    )
    assert (task.n_local_parameters, task.buffers) == (8, None)
    (expected,) = Sequential(task, recipe).train([make_job(task, data)])
    (captured,) = Captured(task, recipe, data.train, [10], "exact").train([make_job(task, data)])
    assert captured.update.tobytes() == expected.update.tobytes()
    assert expected.update[-8:].all()
