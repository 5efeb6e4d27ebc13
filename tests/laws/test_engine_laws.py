"""Laws of engines, and the sequential engine against plain PyTorch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError
from fedsgd.models import Mlp
from fedsgd.models.builder import build_task
from fedsgd.models.perceptrons import Softmax
from fedsgd.models.task import LearningTask
from fedsgd.optim import OPTIMIZERS, SGD, Momentum, PyTorchMomentum, ScaledStep
from fedsgd.optim.schedules import ExponentialSchedule, InverseSqrtSchedule
from fedsgd.training import LastBatch, LocalTraining, TrainingJob, TrainingResult
from fedsgd.training.base import batches
from fedsgd.training.sequential import Sequential
from tests.effort import examples, nightly_unless, slow_unless
from tests.laws.engines import ENGINES, EngineMaker, assert_agree, train_by_pytorch


def make_job(task: LearningTask, data: Dataset, client: int, round: int = 1, rows: slice = slice(0, 30)) -> TrainingJob:
    return TrainingJob(0, round, client, task.initial_parameters, Examples(data.train.x, data.train.y, np.arange(120)[rows]))


def dropout_module() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 3))


DAILY_OPTIMIZERS = ("momentum", "adamw")
"""Optimizers without a state, with one vector, and with two vectors and a number of steps."""


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("optimizer", nightly_unless(DAILY_OPTIMIZERS.__contains__, slow_unless("momentum".__eq__, OPTIMIZERS)))
def test_result_does_not_depend_on_other_clients_and_their_order(name: str, optimizer: str, blobs: Dataset) -> None:
    engine = functools.partial(ENGINES[name], data=blobs)
    task = build_task(Mlp(), blobs, 0, module=None if "stacked" in name else dropout_module())
    local_training = LocalTraining(OPTIMIZERS[optimizer](lr=0.1), 2, None, 7)
    jobs = [make_job(task, blobs, c, rows=slice(10 * c, 10 * c + 5 + 10 * c)) for c in range(4)]
    updates = {result.client: result.update.tobytes() for result in engine(task, local_training).train(jobs)}
    other_engine = engine(task, local_training)
    single_updates = {job.client: next(iter(other_engine.train([job]))).update.tobytes() for job in jobs}
    reversed_updates = {result.client: result.update.tobytes() for result in other_engine.train(jobs[::-1])}
    assert updates == reversed_updates == single_updates
    assert len(set(single_updates.values())) == 4


def read_numpy_state() -> str:
    """Return key and position of numpy's global generator; a few draws change only the position."""
    state = np.random.get_bit_generator().state["state"]
    return f"{state['key'].tobytes().hex()} {state['pos']}"


def test_numpy_state_after_one_draw_differs() -> None:
    before = read_numpy_state()
    np.random.get_bit_generator().random_raw()
    assert read_numpy_state() != before


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
def test_threads_and_global_generators_after_training_are_restored(engine: EngineMaker, blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(5)
        before = torch.get_rng_state(), read_numpy_state()
        list(engine(task, LocalTraining(SGD(), 1, None, 10), blobs).train([make_job(task, blobs, 0)]))
        engine(task, LocalTraining(SGD(), 1, None, 10), blobs).evaluate(task.initial_parameters, blobs.test)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert read_numpy_state() == before[1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.sampled
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
def test_arrays_of_a_job_are_not_written_to(engine: EngineMaker, blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    velocity, correction = np.ones((2, task.layout.size), np.float32)
    job = replace(make_job(task, blobs, 0), optimizer_state={"velocity": velocity}, correction=correction)
    for array in (job.weights, velocity, correction, blobs.train.x):
        array.flags.writeable = False
    try:
        local_training = LocalTraining(Momentum(), 1, None, 10, keep_optimizer_state=True, uses_correction=True)
        (result,) = engine(task, local_training, blobs).train([job])
        assert not np.shares_memory(result.optimizer_state["velocity"], velocity)
        list(engine(task, LocalTraining(Momentum(), 1, None, 10), blobs).train([job]))
        engine(task, LocalTraining(Momentum(), 1, None, 10), blobs).evaluate(
            job.weights, Examples(blobs.train.x, blobs.train.y)
        )
    finally:
        blobs.train.x.flags.writeable = True


@pytest.mark.sampled
@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
@examples(4, nightly=10)
@given(
    n=st.integers(0, 40),
    size=st.one_of(st.none(), st.integers(1, 50)),
    epochs=st.integers(1, 3),
    hidden=st.integers(1, 9),
    last_batch=st.sampled_from(get_args(LastBatch)),
)
def test_update_equals_that_of_a_plain_pytorch_loop(
    name: str, blobs: Dataset, n: int, size: int | None, epochs: int, hidden: int, last_batch: LastBatch
) -> None:
    """The loop uses nn.Module, backward() and torch.optim.SGD; clients may have no examples."""
    hidden *= 4 if "stacked" in name else 1  # other widths round differently in a stack
    task = build_task(Mlp(hidden=(hidden,)), blobs, 0)
    local_training = LocalTraining(PyTorchMomentum(lr=0.1), epochs, None, size, last_batch=last_batch)
    job = make_job(task, blobs, 3, rows=slice(0, n))
    (result,) = ENGINES[name](task, local_training, blobs).train([job])
    if local_training.n_steps(n) != 1:
        expected = train_module_by_pytorch(task, job, local_training) - task.initial_parameters
        assert_agree(name, result.update, expected, task.initial_parameters)
    assert (result.n_examples, result.n_steps) == (n, local_training.n_steps(n))


def train_module_by_pytorch(task: LearningTask, job: TrainingJob, local_training: LocalTraining) -> np.ndarray:
    """Return the parameters after plain PyTorch's training of the task's module."""
    engine = Sequential(task, local_training)
    engine._flat_module.bind_parameters(engine._tensor_format.view_tensors(torch.from_numpy(task.initial_parameters.copy())))
    train_by_pytorch(task.module, job, local_training)
    return torch.cat([p.detach().reshape(-1) for p in task.module.parameters()]).numpy()


# ------------------------------------------------------------------------------------------------------- batches, exact numbers


def list_batch_lengths(local_training: LocalTraining, n: int) -> list[int]:
    data = Examples(np.zeros((n, 1)), np.zeros(n))
    return [len(b) for b in batches(TrainingJob(0, 1, 0, np.zeros(1, np.float32), data), local_training)]


@pytest.mark.parametrize(
    ("epochs", "steps", "size", "expected"),
    [
        (1, None, 10, [10, 10, 5]),
        (2, None, 10, [10, 10, 5, 10, 10, 5]),
        (1, None, None, [25]),
        (3, None, 100, [25, 25, 25]),
        (None, 1, None, [25]),
        (None, 4, 10, [10, 10, 5, 10]),
        (None, 1, 10, [10]),
    ],
)
def test_steps_of_25_examples_have_these_batch_sizes(
    epochs: int | None, steps: int | None, size: int | None, expected: list[int]
) -> None:
    local_training = LocalTraining(SGD(), epochs, steps, size)
    assert list_batch_lengths(local_training, 25) == expected
    assert local_training.n_steps(25) == len(expected)
    assert local_training.n_steps(0) == 0


def test_pass_has_each_example_once_in_its_own_order(blobs: Dataset) -> None:
    data = Examples(np.zeros((25, 1)), np.zeros(25))
    job = TrainingJob(0, 1, 0, np.zeros(1, np.float32), data)
    rows = np.concatenate(list(batches(job, LocalTraining(SGD(), 2, None, 10))))
    assert sorted(rows[:25]) == sorted(rows[25:]) == list(range(25))
    assert rows[:25].tolist() != rows[25:].tolist()
    other_round = TrainingJob(0, 2, 0, np.zeros(1, np.float32), data)
    assert rows.tolist() != np.concatenate(list(batches(other_round, LocalTraining(SGD(), 2, None, 10)))).tolist()


# ------------------------------------------------------------------------------------------------------------- one-step clients


def test_update_of_one_step_is_the_step_itself() -> None:
    """At w = 2^24, a step of 0.25 is rounded away: (w − 0.25) − w = 0 in float32."""

    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([2.0**24]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w

    data = Dataset(Examples(np.ones((4, 1), np.float32), np.zeros(4)), Examples(np.ones((1, 1), np.float32), np.zeros(1)), None)
    task = build_task(Mlp(), data, 0, module=Scalar(), loss=lambda output, target: output.mean())
    one_step = Sequential(task, LocalTraining(SGD(lr=0.25), None, 1, None))
    (result,) = one_step.train([TrainingJob(0, 1, 0, task.initial_parameters, data.train)])
    assert result.update.tolist() == [-0.25]
    two_steps = Sequential(task, LocalTraining(SGD(lr=0.25), None, 2, None))
    (result,) = two_steps.train([TrainingJob(0, 1, 0, task.initial_parameters, data.train)])
    assert result.update.tolist() == [0.0]


# --------------------------------------------------------------------------------------------------------------- modules of users


def train_once(task: LearningTask, data: Dataset) -> TrainingResult:
    return next(iter(Sequential(task, LocalTraining(SGD(lr=0.1), 1, None, 10)).train([make_job(task, data, 0)])))


def test_frozen_parameters_are_neither_trained_nor_sent(blobs: Dataset) -> None:
    module = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))
    module[0].weight.requires_grad_(False)
    frozen = module[0].weight.detach().clone()
    task = build_task(Mlp(), blobs, 0, module=module)
    assert task.layout.names == ("0.bias", "1.weight", "1.bias")
    assert len(train_once(task, blobs).update) == task.layout.size == 4 + 12 + 3
    assert torch.equal(task.module[0].weight, frozen)


def test_tied_parameters_are_sent_once_and_stay_tied(blobs: Dataset) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(8, 8, bias=False)
            self.decode = nn.Linear(8, 8, bias=False)
            self.decode.weight = self.encode.weight
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.decode(self.encode(x)))

    task = build_task(Mlp(), blobs, 0, module=Tied())
    assert task.layout.size == 64 + 24 + 3
    train_once(task, blobs)
    assert task.module.encode.weight is task.module.decode.weight


def test_module_of_the_user_is_not_trained(blobs: Dataset) -> None:
    module = nn.Linear(8, 3)
    initial_weight = module.weight.detach().clone()
    train_once(build_task(Mlp(), blobs, 0, module=module), blobs)
    assert torch.equal(module.weight, initial_weight)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("offset", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += int(self.training)
        return self.linear(x + self.offset) * (1 + self.calls)


def test_buffer_that_training_changes_is_rejected_by_name(blobs: Dataset) -> None:
    with pytest.raises(ModelError, match=r"training changes the buffer calls, .* set model.buffers to"):
        build_task(Mlp(), blobs, 0, module=Counter())


@pytest.mark.parametrize("policy", ["mean", "local"])
def test_buffer_under_a_policy_starts_from_the_job(policy: str, blobs: Dataset) -> None:
    task = build_task(Mlp(buffers=policy), blobs, 0, module=Counter())
    assert (task.buffers.names, task.n_local_buffers) == (("calls",), int(policy == "local"))
    engine = Sequential(task, LocalTraining(SGD(lr=0.001), 1, None, 10))
    first, second = (next(iter(engine.train([make_job(task, blobs, 0)]))) for _ in range(2))
    assert first.update.tobytes() == second.update.tobytes()
    assert (first.buffers.tolist(), int(task.module.calls)) == ([3.0], 0)
    third = next(iter(engine.train([replace(make_job(task, blobs, 0), buffers=first.buffers)])))
    assert third.buffers.tolist() == [6.0]
    assert third.update.tobytes() != first.update.tobytes()


class LateCounter(Counter):
    """Module that changes its buffer from the third call on, after the trial before round 1."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += int(self.training)
        self.calls += int(self.training and self.n_calls > 2)
        return self.linear(x + self.offset)


def test_buffer_that_changes_after_the_trial_is_an_error(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0, module=LateCounter())
    with pytest.raises(ModelError, match="calls changed while a client trained"):
        list(Sequential(task, LocalTraining(SGD(), 1, None, 10)).train([make_job(task, blobs, 0)]))


class CenteredLoss(nn.Module):
    """Loss with a running mean in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(output - self.mean, target)
        self.mean.mul_(0.9).add_(output.detach().mean(0), alpha=0.1)
        return loss


@pytest.mark.slow
def test_buffers_of_a_loss_have_the_policy_of_the_module(blobs: Dataset) -> None:
    with pytest.raises(ModelError, match=r"training changes the buffer loss\.mean"):
        build_task(Mlp(), blobs, 0, loss=CenteredLoss())
    task, local_training = (
        build_task(Mlp(buffers="mean"), blobs, 0, loss=CenteredLoss()),
        LocalTraining(SGD(lr=0.5), 2, None, 10),
    )
    assert task.buffers.names == ("loss.mean",)
    engine = Sequential(task, local_training)
    initial_loss = engine.evaluate(task.initial_parameters, blobs.test).loss
    module, loss, job = copy.deepcopy(task.module), CenteredLoss(), make_job(task, blobs, 0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for batch in batches(job, local_training):
        x, y = map(torch.from_numpy, job.examples.select(batch).arrays())
        optimizer.zero_grad()
        loss(module(x), y).backward()
        optimizer.step()
    for _ in range(2):
        (result,) = engine.train([job])
        assert result.buffers == pytest.approx(loss.mean.numpy(), abs=1e-6)
        assert engine.evaluate(task.initial_parameters, blobs.test).loss == initial_loss


def test_parameter_outside_the_loss_has_a_zero_update(blobs: Dataset) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    update = train_once(build_task(Mlp(), blobs, 0, module=Half()), blobs).update
    assert np.abs(update[:27]).min() > 0
    assert not update[27:].any()


def add_hook(module: nn.Linear) -> nn.Linear:
    module.weight.register_hook(lambda gradient: gradient.clamp(-1, 1))
    return module


def make_infinite() -> nn.Linear:
    module = nn.Linear(8, 3)
    nn.init.constant_(module.weight[1:2, 4:], torch.inf)
    return module


INVALID_MODULES: dict[str, tuple[Callable[[], object], str]] = {
    "batch norm": (lambda: nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3)), "1 is a BatchNorm1d with running statistics"),
    "sparse gradients": (lambda: nn.Sequential(nn.Embedding(5, 2, sparse=True)), "0 gives sparse gradients"),
    "no parameters": (nn.ReLU, "nothing to train"),
    "all frozen": (lambda: nn.Linear(8, 3).requires_grad_(False), "nothing to train"),
    "double precision": (lambda: nn.Linear(8, 3).double(), "weight is torch.float64"),
    "lazy": (lambda: nn.LazyLinear(3), "weight is not initialised yet"),
    "infinite": (make_infinite, r"weight is initially inf at \[1, 4\], expected finite numbers"),
    "a hook": (lambda: add_hook(nn.Linear(8, 3)), "weight has a hook"),
    "not a module": (lambda: 7, "model: got an int, expected an instance of torch.nn.Module"),
}


@pytest.mark.parametrize(("make", "message"), INVALID_MODULES.values(), ids=INVALID_MODULES.keys())
def test_invalid_module_is_rejected(make: Callable[[], nn.Module], message: str, blobs: Dataset) -> None:
    with pytest.raises(ModelError, match=message):
        build_task(Mlp(), blobs, 0, module=make())


def test_loss_per_example_is_rejected(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0, loss=lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"))
    with pytest.raises(ModelError, match=r"the loss is of shape \[10\], expected a tensor that is a scalar"):
        train_once(task, blobs)


def test_evaluation_in_slices_is_the_mean_over_all_examples(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    task = build_task(Mlp(), blobs, 0, metrics={"first": lambda output, target: output[:, 0]})
    engine = Sequential(task, LocalTraining(SGD(), 1, None, 10))
    whole = engine.evaluate(task.initial_parameters, blobs.test).means
    monkeypatch.setattr("fedsgd.training.flat_module.EVALUATION_SLICE_SIZE", 7)
    sliced = engine.evaluate(task.initial_parameters, blobs.test).means
    assert set(whole) == {"loss", "accuracy", "first"}
    assert sliced == pytest.approx(whole, rel=1e-6)
    with torch.no_grad():
        output = task.module(torch.from_numpy(blobs.test.x))
    assert whole["accuracy"] == pytest.approx(float((output.argmax(1).numpy() == blobs.test.y).mean()))


def test_loss_or_metric_that_is_not_a_tensor_is_rejected(blobs: Dataset) -> None:
    with pytest.raises(ModelError, match="the loss is a float, expected a tensor"):
        train_once(build_task(Mlp(), blobs, 0, loss=lambda o, t: 0.5), blobs)
    with pytest.raises(ModelError, match=r"loss: got the class CrossEntropyLoss, .*or an instance: CrossEntropyLoss\(\)"):
        build_task(Mlp(), blobs, 0, loss=nn.CrossEntropyLoss)
    task = build_task(Mlp(), blobs, 0, metrics={"half": lambda o, t: 0.5})
    with pytest.raises(ModelError, match="metric half is a float"):
        Sequential(task, LocalTraining(SGD(), 1, None, 10)).evaluate(task.initial_parameters, blobs.test)
    with pytest.raises(ModelError, match='cannot be called "loss"'):
        build_task(Mlp(), blobs, 0, metrics={"loss": lambda o, t: t})


def test_module_that_works_in_place_does_not_change_the_data(blobs: Dataset) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.mul_(0.5))

    test_x, train_x = blobs.test.x.copy(), blobs.train.x.copy()
    task = build_task(Mlp(), blobs, 0, module=InPlace())
    engine = Sequential(task, LocalTraining(SGD(), 3, None, None))
    assert (
        engine.evaluate(task.initial_parameters, blobs.test).means == engine.evaluate(task.initial_parameters, blobs.test).means
    )
    list(engine.train([TrainingJob(0, 1, 0, task.initial_parameters, blobs.train)]))
    assert (blobs.test.x == test_x).all()
    assert (blobs.train.x == train_x).all()


def test_buffer_may_be_reassigned_but_not_added(blobs: Dataset) -> None:
    class Masked(nn.Module):
        def __init__(self, has_mask: bool) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)
            if has_mask:
                self.register_buffer("mask", torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "mask"):
                self.register_buffer("mask", torch.ones(8))
            if self.training:
                self.mask = self.mask * 0.5
            return self.linear(x * self.mask)

    task = build_task(Mlp(buffers="local"), blobs, 0, module=Masked(has_mask=True))
    engine = Sequential(task, LocalTraining(SGD(), 1, None, 10))
    engine.evaluate(task.initial_parameters, blobs.test)
    updates = {next(iter(engine.train([make_job(task, blobs, 0)]))).update.tobytes() for _ in range(2)}
    assert len(updates) == 1
    with pytest.raises(ModelError, match="buffer mask appeared"):
        train_once(build_task(Mlp(), blobs, 0, module=Masked(has_mask=False)), blobs)


def test_parameter_whose_data_is_assigned_trains_from_the_new_value(blobs: Dataset) -> None:
    """EEGNet scales its weights down to a norm in every step."""

    class Renormed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.5)
            return super().forward(x)

    task = build_task(Mlp(), blobs, 0, module=Renormed(8, 3))
    local_training, job = LocalTraining(SGD(lr=0.5), 2, None, 10), make_job(task, blobs, 0)
    (result,) = Sequential(task, local_training).train([job])
    weight, bias = (torch.from_numpy(part.copy()) for part in np.split(task.initial_parameters, [24]))
    for batch in batches(job, local_training):
        x, y = (torch.from_numpy(part) for part in job.examples.select(batch).arrays())
        weight = torch.renorm(weight.view(3, 8), 2, 0, 0.5).requires_grad_()
        loss = nn.functional.cross_entropy(nn.functional.linear(x, weight, bias.requires_grad_()), y)
        weight_gradient, bias_gradient = torch.autograd.grad(loss, (weight, bias))
        weight, bias = (weight - 0.5 * weight_gradient).detach(), (bias - 0.5 * bias_gradient).detach()
    expected = np.concatenate([weight.numpy().ravel(), bias.numpy()]) - task.initial_parameters
    assert result.update == pytest.approx(expected, abs=1e-5)


def test_training_under_no_grad_is_equal(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    with torch.no_grad():
        result = train_once(task, blobs)
    assert result.update.tobytes() == train_once(task, blobs).update.tobytes()


def test_module_that_cannot_be_copied_is_rejected(blobs: Dataset) -> None:
    module = nn.Linear(8, 3)
    module.extra = module.weight * 2
    with pytest.raises(ModelError, match="cannot be copied"):
        build_task(Mlp(), blobs, 0, module=module)


@pytest.mark.parametrize("name", ENGINES)
def test_learning_rate_under_a_schedule_is_that_of_the_round(name: str, blobs: Dataset) -> None:
    """A quarter of 0.4 in round 3 is exactly 0.1."""
    engine, task = ENGINES[name], build_task(Mlp(), blobs, 0)
    scheduled_engine = engine(task, LocalTraining(SGD(lr=0.4, schedule=ExponentialSchedule(gamma=0.5)), 1, None, 10), blobs)
    constant_engine = engine(task, LocalTraining(SGD(lr=0.1), 1, None, 10), blobs)
    third = make_job(task, blobs, 0, round=3)
    scheduled, constant = (next(iter(e.train([third]))).update for e in (scheduled_engine, constant_engine))
    if name == "captured, replayed":  # fuses only updates of a constant rate
        assert_agree(name, scheduled, constant, task.initial_parameters)
    else:
        assert scheduled.tobytes() == constant.tobytes()
    second = make_job(task, blobs, 0, round=2)
    assert (
        next(iter(scheduled_engine.train([second]))).update.tobytes()
        != next(iter(constant_engine.train([second]))).update.tobytes()
    )


def test_batches_differ_between_seeds_rounds_and_clients() -> None:
    data = Examples(np.zeros((25, 1)), np.zeros(25))
    orders = {
        tuple(
            np.concatenate(
                list(
                    batches(TrainingJob(seed, round, client, np.zeros(1, np.float32), data), LocalTraining(SGD(), 1, None, 10))
                )
            )
        )
        for seed in (0, 1)
        for round in (1, 2)
        for client in (0, 1)
    }
    assert len(orders) == 8


def test_dropout_differs_between_clients_and_rounds_and_is_off_in_evaluation(blobs: Dataset) -> None:
    """All clients have full batches of the same data, so that only dropout can differ."""
    task = build_task(Mlp(), blobs, 0, module=dropout_module())
    engine = Sequential(task, LocalTraining(SGD(lr=0.1), 2, None, None))
    updates = [
        result.update.tobytes() for result in engine.train([make_job(task, blobs, c, r) for c in (0, 1) for r in (1, 2)])
    ]
    assert len(set(updates)) == 4
    module = task.module.eval()
    engine._flat_module.bind_parameters(engine._tensor_format.view_tensors(torch.from_numpy(task.initial_parameters.copy())))
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(module(torch.from_numpy(blobs.test.x)), torch.from_numpy(blobs.test.y)))
    task.module.train()
    assert engine.evaluate(task.initial_parameters, blobs.test).loss == pytest.approx(expected, rel=1e-6)
    repeated_updates = [result.update.tobytes() for result in engine.train([make_job(task, blobs, 0, 1)])]
    assert repeated_updates == updates[:1], "an evaluation must not leave the module in evaluation mode"


def test_module_runs_on_one_thread(blobs: Dataset) -> None:
    thread_counts: set[int] = set()

    class ThreadCounter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            thread_counts.add(torch.get_num_threads())
            return self.linear(x)

    task = build_task(Mlp(), blobs, 0, module=ThreadCounter())
    engine = Sequential(task, LocalTraining(SGD(), 1, None, 10))
    n_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    list(engine.train([make_job(task, blobs, 0)]))
    engine.evaluate(task.initial_parameters, blobs.test)
    torch.set_num_threads(n_threads)
    assert thread_counts == {1}


@pytest.mark.parametrize(("name", "multiple"), [("sgd", 1), ("momentum", 1), ("momentum-pytorch", 1), ("nesterov", 1.5)])
def test_first_step_is_the_gradient_times_the_learning_rate(name: str, multiple: float, blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    job = TrainingJob(0, 1, 0, task.initial_parameters, blobs.train)
    options = {} if name == "sgd" else {"momentum": 0.5}
    step = next(iter(Sequential(task, LocalTraining(OPTIMIZERS[name](lr=0.2, **options), None, 1, None)).train([job]))).update
    gradient = -next(iter(Sequential(task, LocalTraining(SGD(lr=1.0), None, 1, None)).train([job]))).update
    assert step == pytest.approx(-0.2 * multiple * gradient, rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_fedprox_equals_its_rule_in_float64(engine: EngineMaker, proximal: float, blobs: Dataset) -> None:
    """In softmax regression, the gradient of a batch is (p − 1_y) xᵀ; μ(w − w_received) is added."""
    task = build_task(Softmax(), blobs, 0)
    job, local_training = make_job(task, blobs, 1), LocalTraining(SGD(lr=0.3), 2, None, 10, proximal)
    (result,) = engine(task, local_training, blobs).train([job])
    received = task.initial_parameters.astype(np.float64)
    weight, bias = received[:24].reshape(3, 8), received[24:]
    x, y = job.examples.arrays()
    for batch in batches(job, local_training):
        logits = x[batch] @ weight.T + bias
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = p / p.sum(axis=1, keepdims=True) - np.eye(3)[y[batch]]
        weight_gradient, bias_gradient = error.T @ x[batch] / len(batch), error.mean(axis=0)
        weight = weight - 0.3 * (weight_gradient + proximal * (weight - received[:24].reshape(3, 8)))
        bias = bias - 0.3 * (bias_gradient + proximal * (bias - received[24:]))
    assert result.update == pytest.approx(np.concatenate([weight.ravel(), bias]) - received, abs=2e-6)


@pytest.mark.parametrize("unit", ["steps", "local-steps"])
def test_schedule_over_steps_changes_the_learning_rate_within_a_round(unit: str, blobs: Dataset) -> None:
    """Three steps in round 2 have times 4, 5, 6 over "steps", and 1, 2, 3 over "local-steps"."""
    task = build_task(Softmax(), blobs, 0)
    rates: list[float] = []

    @dataclass(frozen=True)
    class RecordedSGD(SGD):
        def update_rule(self, g: Tensor, buffers: dict[str, Tensor], lr: float) -> ScaledStep:
            rates.append(lr)
            return super().update_rule(g, buffers, lr)

    local_training = LocalTraining(RecordedSGD(lr=1.0, schedule=InverseSqrtSchedule(), schedule_over=unit), 1, None, 10)
    list(Sequential(task, local_training).train([make_job(task, blobs, 0, round=2)]))
    assert rates == pytest.approx([t**-0.5 for t in ((4, 5, 6) if unit == "steps" else (1, 2, 3))])
