"""The laws of engines, and the oracle against torch itself."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
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
from tests.laws.engines import ENGINES, Make, assert_agree, train_by_pytorch


def work(task: LearningTask, data: Dataset, client: int, round: int = 1, rows: slice = slice(0, 30)) -> TrainingJob:
    return TrainingJob(0, round, client, task.initial_parameters, Examples(data.train.x, data.train.y, np.arange(120)[rows]))


def dropout_module() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_result_does_not_depend_on_who_else_is_in_the_cohort(name: str, optimizer: str, blobs: Dataset) -> None:
    engine = functools.partial(ENGINES[name], data=blobs)
    task = build_task(Mlp(), blobs, 0, module=None if "stacked" in name else dropout_module())
    recipe = LocalTraining(OPTIMIZERS[optimizer](lr=0.1), 2, None, 7)
    works = [work(task, blobs, c, rows=slice(10 * c, 10 * c + 5 + 10 * c)) for c in range(4)]
    together = {local.client: local.update.tobytes() for local in engine(task, recipe).train(works)}
    backwards = {local.client: local.update.tobytes() for local in engine(task, recipe).train(works[::-1])}
    alone = {w.client: next(iter(engine(task, recipe).train([w]))).update.tobytes() for w in works}
    assert together == backwards == alone
    assert len(set(alone.values())) == 4


def numpy_global_state() -> str:
    """Key and position: a few draws move only the position."""
    state = np.random.get_bit_generator().state["state"]
    return f"{state['key'].tobytes().hex()} {state['pos']}"


def test_the_watch_on_numpys_global_generator_sees_a_single_draw() -> None:
    before = numpy_global_state()
    np.random.get_bit_generator().random_raw()
    assert numpy_global_state() != before


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
def test_threads_and_global_generators_are_left_as_they_were(engine: Make, blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(5)
        before = torch.get_rng_state(), numpy_global_state()
        list(engine(task, LocalTraining(SGD(), 1, None, 10), blobs).train([work(task, blobs, 0)]))
        engine(task, LocalTraining(SGD(), 1, None, 10), blobs).evaluate(task.initial_parameters, blobs.test)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert numpy_global_state() == before[1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
def test_nothing_that_was_handed_over_is_written_to(engine: Make, blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    memory, correction = np.ones((2, task.layout.size), np.float32)
    given_work = replace(work(task, blobs, 0), optimizer_state={"velocity": memory}, correction=correction)
    for array in (given_work.weights, memory, correction, blobs.train.x):
        array.flags.writeable = False
    try:
        recipe = LocalTraining(Momentum(), 1, None, 10, keep_optimizer_state=True, uses_correction=True)
        (local,) = engine(task, recipe, blobs).train([given_work])
        assert not np.shares_memory(local.optimizer_state["velocity"], memory)
        list(engine(task, LocalTraining(Momentum(), 1, None, 10), blobs).train([given_work]))
        engine(task, LocalTraining(Momentum(), 1, None, 10), blobs).evaluate(
            given_work.weights, Examples(blobs.train.x, blobs.train.y)
        )
    finally:
        blobs.train.x.flags.writeable = True


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=25)
@given(
    n=st.integers(0, 40),
    size=st.one_of(st.none(), st.integers(1, 50)),
    epochs=st.integers(1, 3),
    hidden=st.integers(1, 9),
    last_batch=st.sampled_from(get_args(LastBatch)),
)
def test_the_plain_torch_loop_gives_the_same(
    name: str, blobs: Dataset, n: int, size: int | None, epochs: int, hidden: int, last_batch: LastBatch
) -> None:
    """DataLoader-free, but nn.Module, backward() and torch.optim.SGD as in any tutorial; the empty client included."""
    hidden *= 4 if "stacked" in name else 1  # else products in a stack are not to the bit what they are alone
    task = build_task(Mlp(hidden=(hidden,)), blobs, 0)
    recipe = LocalTraining(PyTorchMomentum(lr=0.1), epochs, None, size, last_batch=last_batch)
    job = work(task, blobs, 3, rows=slice(0, n))
    (local,) = ENGINES[name](task, recipe, blobs).train([job])
    if recipe.n_steps(n) != 1:
        expected = tutorial_loop(task, job, recipe) - task.initial_parameters
        assert_agree(name, local.update, expected, task.initial_parameters)
    assert (local.n_examples, local.n_steps) == (n, recipe.n_steps(n))


def tutorial_loop(task: LearningTask, job: TrainingJob, recipe: LocalTraining) -> np.ndarray:
    engine = Sequential(task, recipe)
    engine._flat_module.bind_parameters(engine._tensor_format.view_tensors(torch.from_numpy(task.initial_parameters.copy())))
    train_by_pytorch(task.module, job, recipe)
    return torch.cat([p.detach().reshape(-1) for p in task.module.parameters()]).numpy()


# ------------------------------------------------------------------------------------------------------- batches, exact numbers


def steps_of(recipe: LocalTraining, n: int) -> list[int]:
    data = Examples(np.zeros((n, 1)), np.zeros(n))
    return [len(b) for b in batches(TrainingJob(0, 1, 0, np.zeros(1, np.float32), data), recipe)]


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
def test_steps_and_batch_sizes(epochs: int | None, steps: int | None, size: int | None, expected: list[int]) -> None:
    recipe = LocalTraining(SGD(), epochs, steps, size)
    assert steps_of(recipe, 25) == expected
    assert recipe.n_steps(25) == len(expected)
    assert recipe.n_steps(0) == 0


def test_each_pass_sees_each_example_once_in_an_order_of_its_own(blobs: Dataset) -> None:
    data = Examples(np.zeros((25, 1)), np.zeros(25))
    job = TrainingJob(0, 1, 0, np.zeros(1, np.float32), data)
    rows = np.concatenate(list(batches(job, LocalTraining(SGD(), 2, None, 10))))
    assert sorted(rows[:25]) == sorted(rows[25:]) == list(range(25))
    assert rows[:25].tolist() != rows[25:].tolist()
    other_round = TrainingJob(0, 2, 0, np.zeros(1, np.float32), data)
    assert rows.tolist() != np.concatenate(list(batches(other_round, LocalTraining(SGD(), 2, None, 10)))).tolist()


# ------------------------------------------------------------------------------------------------------------- one-step clients


def test_a_one_step_client_hands_over_the_step_itself() -> None:
    """w = 2^24, gradient 1, η = 1: w − 1 − w is -1 here, but with η = 0.25 the sum would swallow the step."""

    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([2.0**24]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w

    data = Dataset(Examples(np.ones((4, 1), np.float32), np.zeros(4)), Examples(np.ones((1, 1), np.float32), np.zeros(1)), None)
    task = build_task(Mlp(), data, 0, module=Scalar(), loss=lambda output, target: output.mean())
    one = Sequential(task, LocalTraining(SGD(lr=0.25), None, 1, None))
    (local,) = one.train([TrainingJob(0, 1, 0, task.initial_parameters, data.train)])
    assert local.update.tolist() == [-0.25]
    two = Sequential(task, LocalTraining(SGD(lr=0.25), None, 2, None))
    (local,) = two.train([TrainingJob(0, 1, 0, task.initial_parameters, data.train)])
    assert local.update.tolist() == [0.0]


# --------------------------------------------------------------------------------------------------------------- modules of users


def train_once(task: LearningTask, data: Dataset) -> TrainingResult:
    return next(iter(Sequential(task, LocalTraining(SGD(lr=0.1), 1, None, 10)).train([work(task, data, 0)])))


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


def test_the_users_module_is_left_alone(blobs: Dataset) -> None:
    module = nn.Linear(8, 3)
    before = module.weight.detach().clone()
    train_once(build_task(Mlp(), blobs, 0, module=module), blobs)
    assert torch.equal(module.weight, before)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("offset", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += int(self.training)
        return self.linear(x + self.offset) * (1 + self.calls)


def test_buffer_that_training_changes_is_refused_by_name(blobs: Dataset) -> None:
    with pytest.raises(ModelError, match=r"training changes the buffer calls, .* set model.buffers to"):
        build_task(Mlp(), blobs, 0, module=Counter())


@pytest.mark.parametrize("policy", ["mean", "local"])
def test_buffer_under_a_policy_goes_on_from_the_work_and_constants_stay(policy: str, blobs: Dataset) -> None:
    task = build_task(Mlp(buffers=policy), blobs, 0, module=Counter())
    assert (task.buffers.names, task.n_local_buffers) == (("calls",), int(policy == "local"))
    engine = Sequential(task, LocalTraining(SGD(lr=0.001), 1, None, 10))
    first, second = (next(iter(engine.train([work(task, blobs, 0)]))) for _ in range(2))
    assert first.update.tobytes() == second.update.tobytes()
    assert (first.buffers.tolist(), int(task.module.calls)) == ([3.0], 0)
    later = next(iter(engine.train([replace(work(task, blobs, 0), buffers=first.buffers)])))
    assert later.buffers.tolist() == [6.0]
    assert later.update.tobytes() != first.update.tobytes()


class Late(Counter):
    """Changes its buffer from the third call on: later than the trial before round 1 looks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += int(self.training)
        self.calls += int(self.training and self.seen > 2)
        return self.linear(x + self.offset)


def test_buffer_that_changes_after_the_trial_ends_the_training(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0, module=Late())
    with pytest.raises(ModelError, match="calls changed while a client trained"):
        list(Sequential(task, LocalTraining(SGD(), 1, None, 10)).train([work(task, blobs, 0)]))


class Centred(nn.Module):
    """A loss with a running mean of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(output - self.mean, target)
        self.mean.mul_(0.9).add_(output.detach().mean(0), alpha=0.1)
        return loss


def test_buffers_of_a_loss_have_the_policy_of_the_modules(blobs: Dataset) -> None:
    with pytest.raises(ModelError, match=r"training changes the buffer loss\.mean"):
        build_task(Mlp(), blobs, 0, loss=Centred())
    task, recipe = build_task(Mlp(buffers="mean"), blobs, 0, loss=Centred()), LocalTraining(SGD(lr=0.5), 2, None, 10)
    assert task.buffers.names == ("loss.mean",)
    trained = Sequential(task, recipe)
    before = trained.evaluate(task.initial_parameters, blobs.test).loss
    module, loss, job = copy.deepcopy(task.module), Centred(), work(task, blobs, 0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for batch in batches(job, recipe):
        x, y = map(torch.from_numpy, job.examples.select(batch).arrays())
        optimizer.zero_grad()
        loss(module(x), y).backward()
        optimizer.step()
    for _ in range(2):
        (local,) = trained.train([job])
        assert local.buffers == pytest.approx(loss.mean.numpy(), abs=1e-6)
        assert trained.evaluate(task.initial_parameters, blobs.test).loss == before


def test_a_parameter_that_the_loss_does_not_reach_has_a_zero_gradient(blobs: Dataset) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    update = train_once(build_task(Mlp(), blobs, 0, module=Half()), blobs).update
    assert np.abs(update[:27]).min() > 0
    assert not update[27:].any()


def hooked(module: nn.Linear) -> nn.Linear:
    module.weight.register_hook(lambda gradient: gradient.clamp(-1, 1))
    return module


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "batch norm": (lambda: nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3)), "1 is a BatchNorm1d with running statistics"),
    "sparse gradients": (lambda: nn.Sequential(nn.Embedding(5, 2, sparse=True)), "0 gives sparse gradients"),
    "no parameters": (nn.ReLU, "nothing to train"),
    "all frozen": (lambda: nn.Linear(8, 3).requires_grad_(False), "nothing to train"),
    "double precision": (lambda: nn.Linear(8, 3).double(), "weight is torch.float64"),
    "lazy": (lambda: nn.LazyLinear(3), "weight is not initialised yet"),
    "a hook": (lambda: hooked(nn.Linear(8, 3)), "weight has a hook"),
    "not a module": (lambda: 7, "module: got an int, expected an instance of torch.nn.Module"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_modules_that_cannot_be_run_are_refused(make: Callable[[], nn.Module], message: str, blobs: Dataset) -> None:
    with pytest.raises(ModelError, match=message):
        build_task(Mlp(), blobs, 0, module=make())


def test_a_loss_that_is_not_a_mean_is_refused(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0, loss=lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"))
    with pytest.raises(ModelError, match=r"the loss is of shape \[10\], expected a tensor that is a scalar"):
        train_once(task, blobs)


def test_evaluation_is_the_mean_over_all_examples_whatever_the_slices(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_loss_or_metric_that_is_no_tensor_is_refused(blobs: Dataset) -> None:
    with pytest.raises(ModelError, match="the loss is a float, expected a tensor"):
        train_once(build_task(Mlp(), blobs, 0, loss=lambda o, t: 0.5), blobs)
    with pytest.raises(ModelError, match=r"loss: got the class CrossEntropyLoss, .*or an instance: CrossEntropyLoss\(\)"):
        build_task(Mlp(), blobs, 0, loss=nn.CrossEntropyLoss)
    task = build_task(Mlp(), blobs, 0, metrics={"half": lambda o, t: 0.5})
    with pytest.raises(ModelError, match="metric half is a float"):
        Sequential(task, LocalTraining(SGD(), 1, None, 10)).evaluate(task.initial_parameters, blobs.test)
    with pytest.raises(ModelError, match='cannot be called "loss"'):
        build_task(Mlp(), blobs, 0, metrics={"loss": lambda o, t: t})


def test_a_module_that_works_in_place_changes_nobodys_data(blobs: Dataset) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.mul_(0.5))

    before = blobs.test.x.copy(), blobs.train.x.copy()
    task = build_task(Mlp(), blobs, 0, module=InPlace())
    engine = Sequential(task, LocalTraining(SGD(), 3, None, None))
    assert (
        engine.evaluate(task.initial_parameters, blobs.test).means == engine.evaluate(task.initial_parameters, blobs.test).means
    )
    list(engine.train([TrainingJob(0, 1, 0, task.initial_parameters, blobs.train)]))
    assert (blobs.test.x == before[0]).all()
    assert (blobs.train.x == before[1]).all()


def test_buffers_may_be_reassigned_but_not_appear(blobs: Dataset) -> None:
    class Moody(nn.Module):
        def __init__(self, early: bool) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)
            if early:
                self.register_buffer("mask", torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "mask"):
                self.register_buffer("mask", torch.ones(8))
            if self.training:
                self.mask = self.mask * 0.5
            return self.linear(x * self.mask)

    task = build_task(Mlp(buffers="local"), blobs, 0, module=Moody(early=True))
    engine = Sequential(task, LocalTraining(SGD(), 1, None, 10))
    engine.evaluate(task.initial_parameters, blobs.test)
    updates = {next(iter(engine.train([work(task, blobs, 0)]))).update.tobytes() for _ in range(2)}
    assert len(updates) == 1
    with pytest.raises(ModelError, match="buffer mask appeared"):
        train_once(build_task(Mlp(), blobs, 0, module=Moody(early=False)), blobs)


def test_a_parameter_whose_data_is_assigned_to_goes_on_from_there(blobs: Dataset) -> None:
    """As in EEGNet, whose weights are scaled down to a norm in every step."""

    class Renormed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.5)
            return super().forward(x)

    task = build_task(Mlp(), blobs, 0, module=Renormed(8, 3))
    recipe, job = LocalTraining(SGD(lr=0.5), 2, None, 10), work(task, blobs, 0)
    (local,) = Sequential(task, recipe).train([job])
    weight, bias = (torch.from_numpy(part.copy()) for part in np.split(task.initial_parameters, [24]))
    for batch in batches(job, recipe):
        x, y = (torch.from_numpy(part) for part in job.examples.select(batch).arrays())
        weight = torch.renorm(weight.view(3, 8), 2, 0, 0.5).requires_grad_()
        loss = nn.functional.cross_entropy(nn.functional.linear(x, weight, bias.requires_grad_()), y)
        by_weight, by_bias = torch.autograd.grad(loss, (weight, bias))
        weight, bias = (weight - 0.5 * by_weight).detach(), (bias - 0.5 * by_bias).detach()
    expected = np.concatenate([weight.numpy().ravel(), bias.numpy()]) - task.initial_parameters
    assert local.update == pytest.approx(expected, abs=1e-5)


def test_training_works_where_gradients_are_switched_off(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    with torch.no_grad():
        inside = train_once(task, blobs)
    assert inside.update.tobytes() == train_once(task, blobs).update.tobytes()


def test_a_module_that_cannot_be_copied_is_refused(blobs: Dataset) -> None:
    module = nn.Linear(8, 3)
    module.extra = module.weight * 2
    with pytest.raises(ModelError, match="cannot be copied"):
        build_task(Mlp(), blobs, 0, module=module)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
def test_the_step_size_is_that_of_the_round(engine: Make, blobs: Dataset) -> None:
    """0.4 quartered in round 3 is exactly 0.1."""
    task = build_task(Mlp(), blobs, 0)
    scheduled = engine(task, LocalTraining(SGD(lr=0.4, schedule=ExponentialSchedule(gamma=0.5)), 1, None, 10), blobs)
    constant = engine(task, LocalTraining(SGD(lr=0.1), 1, None, 10), blobs)
    third = work(task, blobs, 0, round=3)
    assert next(iter(scheduled.train([third]))).update.tobytes() == next(iter(constant.train([third]))).update.tobytes()
    second = work(task, blobs, 0, round=2)
    assert next(iter(scheduled.train([second]))).update.tobytes() != next(iter(constant.train([second]))).update.tobytes()


def test_batches_are_drawn_anew_for_each_seed_round_and_client() -> None:
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


def test_dropout_differs_between_clients_and_rounds_and_rests_in_evaluation(blobs: Dataset) -> None:
    """Full batches of the same data, so that nothing else can differ."""
    task = build_task(Mlp(), blobs, 0, module=dropout_module())
    engine = Sequential(task, LocalTraining(SGD(lr=0.1), 2, None, None))
    updates = [local.update.tobytes() for local in engine.train([work(task, blobs, c, r) for c in (0, 1) for r in (1, 2)])]
    assert len(set(updates)) == 4
    output = task.module.eval()
    engine._flat_module.bind_parameters(engine._tensor_format.view_tensors(torch.from_numpy(task.initial_parameters.copy())))
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(output(torch.from_numpy(blobs.test.x)), torch.from_numpy(blobs.test.y)))
    task.module.train()
    assert engine.evaluate(task.initial_parameters, blobs.test).loss == pytest.approx(expected, rel=1e-6)
    again = [local.update.tobytes() for local in engine.train([work(task, blobs, 0, 1)])]
    assert again == updates[:1], "an evaluation in between must not leave the module in evaluation mode"


def test_modules_run_on_one_thread(blobs: Dataset) -> None:
    seen: set[int] = set()

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            seen.add(torch.get_num_threads())
            return self.linear(x)

    task = build_task(Mlp(), blobs, 0, module=Watching())
    engine = Sequential(task, LocalTraining(SGD(), 1, None, 10))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    list(engine.train([work(task, blobs, 0)]))
    engine.evaluate(task.initial_parameters, blobs.test)
    torch.set_num_threads(before)
    assert seen == {1}


@pytest.mark.parametrize(("name", "multiple"), [("sgd", 1), ("momentum", 1), ("momentum-pytorch", 1), ("nesterov", 1.5)])
def test_a_first_step_is_the_gradient_times_the_step_size(name: str, multiple: float, blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    job = TrainingJob(0, 1, 0, task.initial_parameters, blobs.train)
    options = {} if name == "sgd" else {"momentum": 0.5}
    step = next(iter(Sequential(task, LocalTraining(OPTIMIZERS[name](lr=0.2, **options), None, 1, None)).train([job]))).update
    gradient = -next(iter(Sequential(task, LocalTraining(SGD(lr=1.0), None, 1, None)).train([job]))).update
    assert step == pytest.approx(-0.2 * multiple * gradient, rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_fedprox_is_a_few_lines_of_float64(engine: Make, proximal: float, blobs: Dataset) -> None:
    """Softmax regression by hand: the gradient of a batch is (p − 1_y) xᵀ, and μ(w − w_received) is added to it."""
    task = build_task(Softmax(), blobs, 0)
    job, recipe = work(task, blobs, 1), LocalTraining(SGD(lr=0.3), 2, None, 10, proximal)
    (local,) = engine(task, recipe, blobs).train([job])
    received = task.initial_parameters.astype(np.float64)
    weight, bias = received[:24].reshape(3, 8), received[24:]
    x, y = job.examples.arrays()
    for batch in batches(job, recipe):
        logits = x[batch] @ weight.T + bias
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = p / p.sum(axis=1, keepdims=True) - np.eye(3)[y[batch]]
        by_weight, by_bias = error.T @ x[batch] / len(batch), error.mean(axis=0)
        weight = weight - 0.3 * (by_weight + proximal * (weight - received[:24].reshape(3, 8)))
        bias = bias - 0.3 * (by_bias + proximal * (bias - received[24:]))
    assert local.update == pytest.approx(np.concatenate([weight.ravel(), bias]) - received, abs=2e-6)


@pytest.mark.parametrize("over", ["steps", "local-steps"])
def test_a_schedule_over_steps_changes_the_step_size_within_a_round(over: str, blobs: Dataset) -> None:
    """Three steps in round 2: by all steps so far the rates are those of t = 4, 5, 6, by local steps those of 1, 2, 3."""
    task = build_task(Softmax(), blobs, 0)
    seen: list[float] = []

    @dataclass(frozen=True)
    class Watched(SGD):
        def update_rule(self, g: Tensor, buffers: dict[str, Tensor], lr: float) -> ScaledStep:
            seen.append(lr)
            return super().update_rule(g, buffers, lr)

    recipe = LocalTraining(Watched(lr=1.0, schedule=InverseSqrtSchedule(), schedule_over=over), 1, None, 10)
    list(Sequential(task, recipe).train([work(task, blobs, 0, round=2)]))
    assert seen == pytest.approx([t**-0.5 for t in ((4, 5, 6) if over == "steps" else (1, 2, 3))])
