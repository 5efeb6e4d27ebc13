"""Running statistics of batch norm: which numbers they are, whose, and that an engine keeps them as PyTorch does."""

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


def convolutional() -> nn.Module:
    """Batch norms of planes and of vectors; what is not theirs stands between and after them."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, affine=False), nn.Flatten(),
        nn.Linear(20, 6), nn.BatchNorm1d(6, momentum=None), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.BatchNorm1d(8, momentum=0.3), nn.ReLU(), nn.Linear(8, 3))


MODULES = {"convolutional": convolutional, "perceptron": perceptron}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset(Examples(X[:40], Y[:40]), Examples(X[40:], Y[40:]), 3)


def task_of(make: Callable[[], nn.Module], policy: str, data: Dataset) -> LearningTask:
    """Parameters and statistics that are not what they are made as."""
    generator = torch.Generator().manual_seed(1)
    module = make()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.add_(7) if tensor.dtype == torch.int64 else tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return build_task(Mlp(batch_norm=policy), data, 0, module=module)


def some(task: LearningTask, seed: int) -> F32:
    """Statistics of another client."""
    values = task.initial_buffers + np.random.default_rng(seed).random(task.buffers.size, np.float32)
    return np.where(
        ["tracked" in n for n, where, _ in task.buffers.list_slices() for _ in range(where.stop - where.start)], 9, values
    ).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------- what is described


def test_the_mean_policy_describes_statistics_in_the_modules_order(data: Dataset) -> None:
    task = task_of(convolutional, "mean", data)
    assert task.buffers.names == (
        *(f"{i}.running_{what}" for i in (1, 4, 7) for what in ("mean", "var")),
        "7.num_batches_tracked",
    )
    assert task.buffers.shapes == ((4,), (4,), (5,), (5,), (6,), (6,), ())
    state = task.module.state_dict()
    assert task.initial_buffers.tolist() == torch.cat([state[name].reshape(-1) for name in task.buffers.names]).tolist()
    assert task.initial_buffers.dtype == np.float32
    assert (task.n_local_parameters, task.shared_layout) == (0, task.layout)
    assert task.layout.names == tuple(dict(task.module.named_parameters()))


def test_the_local_policy_puts_batch_norms_parameters_last(data: Dataset) -> None:
    task = task_of(convolutional, "local", data)
    shared = ("0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias", "9.weight", "9.bias")
    assert task.shared_layout.names == shared
    assert task.layout.names == (*shared, "1.weight", "1.bias", "7.weight", "7.bias")
    assert task.n_local_parameters == 4 + 4 + 6 + 6
    assert task.shared_layout.size == task.layout.size - task.n_local_parameters
    assert task.buffers == task_of(convolutional, "mean", data).buffers
    values = dict(task.module.named_parameters())
    for name, where, shape in task.layout.list_slices():
        assert task.initial_parameters[where].reshape(shape).tolist() == values[name].tolist()


def test_frozen_scales_are_nowhere_and_norms_of_each_batch_have_local_ones(data: Dataset) -> None:
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(108), nn.BatchNorm1d(108, track_running_stats=False), nn.Linear(108, 3))
    module[1].weight.requires_grad_(False)
    task = build_task(Mlp(batch_norm="local"), data, 0, module=module)
    assert task.layout.names == ("3.weight", "3.bias", "1.bias", "2.weight", "2.bias")
    assert task.n_local_parameters == 3 * 108
    assert task.buffers.names == ("1.running_mean", "1.running_var")


@pytest.mark.parametrize("policy", ["mean", "local"])
def test_without_batch_norm_nothing_changes(policy: str, data: Dataset) -> None:
    class Shifted(nn.Linear):
        """A buffer that training leaves alone."""

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
def test_a_task_in_another_process_is_the_same(policy: str, data: Dataset) -> None:
    task = task_of(convolutional, policy, data)
    twin: LearningTask = pickle.loads(pickle.dumps(task))
    assert (twin.layout, twin.n_local_parameters, twin.shared_layout, twin.buffers) == (
        task.layout, task.n_local_parameters, task.shared_layout, task.buffers,
    )  # fmt: skip
    assert (twin.initial_parameters.tobytes(), twin.initial_buffers.tobytes()) == (
        task.initial_parameters.tobytes(),
        task.initial_buffers.tobytes(),
    )
    recipe, job = LocalTraining(SGD(), 1, None, 10), replace(job_of(task, data), buffers=some(task, 1))
    (here,), (there,) = (Sequential(t, recipe).train([job]) for t in (task, twin))
    assert (here.update.tobytes(), here.buffers.tobytes()) == (there.update.tobytes(), there.buffers.tobytes())


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], str]] = {
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
    ("make", "policy", "message"), [(make, p, m) for make, policies, m in REFUSED.values() for p in policies]
)
def test_what_no_policy_handles_is_refused(make: Callable[[], nn.Module], policy: str, message: str, data: Dataset) -> None:
    with pytest.raises(ModelError, match=message):
        build_task(Mlp(batch_norm=policy), data, 0, module=nn.Sequential(nn.Conv2d(3, 3, 1), make(), nn.Flatten()))


def test_statistics_that_are_not_initialised_are_refused(data: Dataset) -> None:
    @dataclass(frozen=True)
    class Lazy(Mlp):
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 3, 1), nn.LazyBatchNorm2d(affine=False))

    with pytest.raises(ModelError, match=r"1\.running_mean is not initialised yet"):
        build_task(Lazy(batch_norm="mean"), data, 0)


def test_a_model_of_which_nothing_would_be_sent_is_refused(data: Dataset) -> None:
    with pytest.raises(ModelError, match="there is nothing to send"):
        build_task(Mlp(batch_norm="local"), data, 0, module=nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()))


# ---------------------------------------------------------------------------------------------------------------- how it is trained


def job_of(task: LearningTask, data: Dataset, client: int = 0, n: int = 40) -> TrainingJob:
    return TrainingJob(0, 1, client, task.initial_parameters, data.train.slice(0, n))


def by_pytorch(task: LearningTask, job: TrainingJob, recipe: LocalTraining) -> tuple[np.ndarray, np.ndarray, dict[str, Tensor]]:
    """(the parameters in the layout's order, the statistics, the module's state) after plain training."""
    module = copy.deepcopy(task.module)
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    with torch.no_grad():
        for named, layout, values in ((parameters, task.layout, job.weights), (buffers, task.buffers, job.buffers)):
            for name, where, shape in layout.list_slices() if values is not None else ():
                named[name].copy_(torch.from_numpy(values[where].reshape(shape).copy()))
    train_by_pytorch(module, job, recipe)
    flat = [
        np.concatenate([named[name].detach().numpy().reshape(-1) for name in layout.names])
        for named, layout in ((parameters, task.layout), (buffers, task.buffers))
    ]
    return flat[0], flat[1].astype(np.float32), module.state_dict()


@pytest.mark.parametrize("policy", ["mean", "local"])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("given", [False, True])
def test_statistics_are_pytorchs_bit_for_bit(name: str, policy: str, given: bool, data: Dataset) -> None:
    """And no client sees those of another, or how many batches it counted."""
    task, recipe = task_of(MODULES[name], policy, data), LocalTraining(PyTorchMomentum(lr=0.1), 2, None, 7)
    jobs = [job_of(task, data, client, 40 - 5 * client) for client in range(3)]
    if given:
        jobs = [replace(job, buffers=some(task, job.client)) for job in jobs]
        for job in jobs:
            job.buffers.flags.writeable = False
    engine = Sequential(task, recipe)
    before = {key: value.clone() for key, value in task.module.named_buffers()}
    for job, local in zip([*jobs, jobs[0]], engine.train([*jobs, jobs[0]]), strict=True):
        weights, statistics, state = by_pytorch(task, job, recipe)
        assert local.update.tobytes() == (weights - task.initial_parameters).tobytes()
        assert local.buffers.tobytes() == statistics.tobytes()
        assert local.buffers.dtype == np.float32
        assert not any(np.shares_memory(local.buffers, b.numpy()) for b in task.module.buffers())
        counted = [int(v) for k, v in state.items() if k.endswith("tracked")]
        assert counted[:2] == [7 + local.n_steps] * min(2, len(counted))
        assert counted[2:] == [(9 if given else 7) + local.n_steps] * (len(counted) > 2)
    after = dict(task.module.named_buffers())
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("n", [0, 40])
def test_clients_of_no_step_and_of_one(n: int, data: Dataset) -> None:
    task, recipe = task_of(convolutional, "mean", data), LocalTraining(PyTorchMomentum(lr=0.1), None, 1, None)
    for buffers in (None, some(task, 0)):
        job = replace(job_of(task, data, n=n), buffers=buffers)
        (local,) = Sequential(task, recipe).train([job])
        expected = by_pytorch(task, job, recipe)[1]
        assert local.buffers.tobytes() == expected.tobytes()
    assert (local.buffers.tobytes() == job.buffers.tobytes()) == (n == 0)


def test_evaluation_is_with_the_statistics_that_are_given(data: Dataset) -> None:
    task = task_of(convolutional, "mean", data)
    engine = Sequential(task, LocalTraining(SGD(lr=0.1), 1, None, 10))
    for seed in (1, 2):
        statistics = some(task, seed)
        statistics.flags.writeable = False
        module = copy.deepcopy(task.module).eval()
        buffers = dict(module.named_buffers())
        for name, where, shape in task.buffers.list_slices():
            buffers[name].copy_(torch.from_numpy(statistics[where].reshape(shape).copy()))
        with torch.no_grad():
            expected = nn.functional.cross_entropy(module(torch.from_numpy(X[40:])), torch.from_numpy(Y[40:]))
        assert engine.evaluate(task.initial_parameters, data.test, statistics).loss == pytest.approx(float(expected), rel=1e-6)
    made = engine.evaluate(task.initial_parameters, data.test)
    list(engine.train([job_of(task, data)]))
    assert engine.evaluate(task.initial_parameters, data.test).losses == made.losses
    assert engine.evaluate(task.initial_parameters, data.test, statistics).losses != made.losses
    assert engine.evaluate(task.initial_parameters, data.test, task.initial_buffers).losses == made.losses


def test_statistics_of_another_size_are_an_error(data: Dataset) -> None:
    task = task_of(perceptron, "mean", data)
    engine = Sequential(task, LocalTraining(SGD(), 1, None, 10))
    with pytest.raises(ValueError, match=r"buffers of shape \[3\], this model has \[16\]"):
        engine.evaluate(task.initial_parameters, data.test, np.zeros(3, np.float32))
    none = build_task(Mlp(), data, 0, module=nn.Sequential(nn.Flatten(), nn.Linear(108, 3)))
    with pytest.raises(ValueError, match="this model has none"):
        Sequential(none, engine.local_training).evaluate(none.initial_parameters, data.test, np.zeros(3, np.float32))


# --------------------------------------------------------------------------------------------------------------- by which engine


@pytest.mark.parametrize("policy", ["mean", "local"])
def test_only_the_sequential_engine_keeps_statistics(policy: str, data: Dataset) -> None:
    task, recipe = task_of(convolutional, policy, data), LocalTraining(SGD(), 1, None, 10)
    for engine in (Captured, Stacked):
        with pytest.raises(NotCapturableError, match=r"training changes the buffer 1\.running_mean"):
            engine(task, recipe, data.train, [10])
    chosen_engine, chosen = select_engine(EngineChoice(), task, recipe, data.train, [10], 40)
    assert (type(chosen_engine), chosen.name) == (Sequential, "sequential")
    assert chosen.reason == "it cannot be captured: training changes the buffer 1.running_mean"
    for name in ("captured", "stacked"):
        with pytest.raises(
            ModelError, match=f"the {name} engine cannot train it: training changes the buffer 1.running_mean; the seq"
        ):
            make_engine(EngineChoice(name), [10], task, recipe, data.train)


def test_local_parameters_without_statistics_are_captured(data: Dataset) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    task, recipe = (
        build_task(Mlp(batch_norm="local"), data, 0, module=module),
        LocalTraining(PyTorchMomentum(lr=0.1), 2, None, 10),
    )
    assert (task.n_local_parameters, task.buffers) == (8, None)
    (expected,) = Sequential(task, recipe).train([job_of(task, data)])
    (got,) = Captured(task, recipe, data.train, [10], "exact").train([job_of(task, data)])
    assert got.update.tobytes() == expected.update.tobytes()
    assert expected.update[-8:].all()
