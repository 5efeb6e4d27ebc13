"""Adam and AdamW against torch.optim bit for bit, and the factors of a step with decay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsgd.aggregation.server_step import compute_server_step
from fedsgd.data import Dataset, Examples
from fedsgd.models import Mlp
from fedsgd.models.builder import build_task
from fedsgd.models.task import LearningTask
from fedsgd.optim import SGD, Adam, AdamW, ScaledStep
from fedsgd.optim.schedules import CosineSchedule
from fedsgd.training import LocalTraining, TrainingJob
from fedsgd.training.base import batches
from fedsgd.training.captured import Captured
from fedsgd.training.sequential import Sequential

SIZES = (1, 7, 33, 64, 129)
SCHEDULE = {"schedule": CosineSchedule(30, 0.1), "schedule_over": "steps"}
CASES = {
    "adam": Adam(),
    "adam with decay": Adam(lr=0.01, weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-4),
    "adamw": AdamW(),
    "adamw without decay": AdamW(lr=0.01, weight_decay=0.0, beta1=0.0),
    "adamw, clipped, scheduled": AdamW(lr=0.05, weight_decay=0.3, clip_norm=2.0, **SCHEDULE),
}
each_case = pytest.mark.parametrize("optimizer", CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_torch_optimizer(optimizer: Adam, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    make = torch.optim.AdamW if isinstance(optimizer, AdamW) else torch.optim.Adam
    return make(
        parameters,
        lr=optimizer.lr,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
    )


def make_torch_step(torch_optimizer: torch.optim.Optimizer, optimizer: Adam, step: int, n_steps: int) -> None:
    """Make a step of torch.optim with the schedule's rate, on gradients that are clipped as one vector."""
    (group,) = torch_optimizer.param_groups
    group["lr"] = optimizer.learning_rate(1, step, n_steps)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group["params"]]
    norm = float(torch.cat([g.reshape(-1) for g in gradients]).norm())
    if optimizer.clip_norm is not None and norm > optimizer.clip_norm:
        for g in gradients:
            g.mul_(optimizer.clip_norm / norm)
    torch_optimizer.step()


def draw_gradients(steps: int, size: int) -> list[Tensor]:
    """Return gradients of many magnitudes, some of them 0."""
    rng = np.random.default_rng(size)
    scales = 10.0 ** rng.integers(-6, 3, (steps, 1))
    values = rng.standard_normal((steps, size)) * scales * (rng.random((steps, size)) < 0.9)
    return list(torch.from_numpy(values.astype(np.float32)))


@pytest.mark.sampled
@each_case
@pytest.mark.parametrize("has_unused_parameter", [False, True], ids=["all used", "one unused"])
def test_steps_on_a_flat_vector_have_the_bits_of_torch(optimizer: Adam, has_unused_parameter: bool) -> None:
    """The third parameter has no gradient in every second step: torch skips it, its decay and its count."""
    w = torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(0))
    parameters = [nn.Parameter(part.clone()) for part in w.split(SIZES)]
    torch_optimizer, buffers, start = make_torch_optimizer(optimizer, parameters), optimizer.init(w), w.clone()
    training, unused = LocalTraining(optimizer, None, 40, None), slice(sum(SIZES[:2]), sum(SIZES[:3]))
    for step, g in enumerate(draw_gradients(40, len(w)), start=1):
        slices = [unused] if has_unused_parameter and step % 2 else []
        for part in slices:
            g[part] = 0
        for p, part in zip(parameters, g.split(SIZES), strict=True):
            p.grad = part.clone()
        if slices:
            parameters[2].grad = None
        make_torch_step(torch_optimizer, optimizer, step, 40)
        training.local_step(w, start, g, buffers, (1, step, 40), unused_slices=slices).add_to(w)
        assert torch.cat([p.detach() for p in parameters]).numpy().tobytes() == w.numpy().tobytes(), f"step {step}"
    counts = [float(torch_optimizer.state[p]["step"]) for p in parameters]
    assert [count.tolist() for count in buffers["steps"].split(SIZES)] == [
        [count] * size for count, size in zip(counts, SIZES, strict=True)
    ]
    assert counts[2] == (20 if has_unused_parameter else 40)


class Forked(nn.Module):
    """Module whose branch is not used by batches of an even number of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        last: Tensor = self.last(hidden if len(x) % 2 == 0 else self.branch(hidden))
        return last


def make_data() -> Dataset:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    x = (rng.standard_normal((60, 6)) + np.eye(3, 6)[y]).astype(np.float32)
    return Dataset(Examples(x, y), Examples(x[:5], y[:5]), 3)


def make_module(is_forked: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Forked() if is_forked else nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 3))


def train_with_torch(module: nn.Module, job: TrainingJob, training: LocalTraining) -> np.ndarray:
    """Return the parameters after training with torch.optim on a job's batches."""
    torch_optimizer = make_torch_optimizer(training.optimizer, list(module.train().parameters()))
    x, y = (torch.from_numpy(array) for array in job.examples.arrays())
    n_steps = training.n_steps(len(job.examples))
    for step, batch in enumerate(batches(job, training), start=1):
        torch_optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
        make_torch_step(torch_optimizer, training.optimizer, step, n_steps)
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy()


@pytest.mark.sampled
@each_case
@pytest.mark.parametrize("is_forked", [False, True], ids=["plain", "unused branch"])
def test_exact_engine_has_the_bits_of_torch(optimizer: Adam, is_forked: bool) -> None:
    """Three epochs of batches of 8 and a last batch of 5, in which the branch is used."""
    data, training = make_data(), LocalTraining(optimizer, 3, None, 8)
    task = build_task(Mlp(), data, 0, module=make_module(is_forked))
    job = TrainingJob(0, 1, 0, task.initial_parameters, data.train.slice(0, 53))
    expected = train_with_torch(make_module(is_forked), job, training) - task.initial_parameters
    engines = Sequential(task, training), Captured(task, training, data.train, [8, 5], "exact")
    for engine in engines:
        (result,) = engine.train([job])
        assert result.update.tobytes() == expected.tobytes(), type(engine).__name__


def make_task() -> tuple[LearningTask, TrainingJob]:
    data = make_data()
    task = build_task(Mlp(), data, 0, module=make_module(False))
    return task, TrainingJob(0, 1, 0, task.initial_parameters, data.train)


def test_only_step_of_a_round_is_the_sign_step_and_the_decay() -> None:
    task, job = make_task()
    (step,) = Sequential(task, LocalTraining(AdamW(lr=1e-3, weight_decay=0.1), None, 1, None)).train([job])
    (descent,) = Sequential(task, LocalTraining(SGD(lr=1.0), None, 1, None)).train([job])
    expected = 1e-3 * descent.update / (np.abs(descent.update) + 1e-8) - 1e-4 * task.initial_parameters.astype(np.float64)
    assert step.update == pytest.approx(expected, rel=1e-5, abs=1e-10)


def test_carried_state_continues_as_torch_over_two_rounds() -> None:
    task, job = make_task()
    training = LocalTraining(AdamW(lr=0.01), None, 3, 10, keep_optimizer_state=True)
    engine = Sequential(task, training)
    (first,) = engine.train([job])
    weights = task.initial_parameters + first.update
    (second,) = engine.train([replace(job, weights=weights, optimizer_state=first.optimizer_state, round=2)])
    assert sorted(first.optimizer_state) == ["first_moment", "second_moment", "steps"]
    assert (first.optimizer_state["steps"] == 3).all()
    assert (second.optimizer_state["steps"] == 6).all()
    module = make_module(False)
    torch_optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    x, y = (torch.from_numpy(array) for array in job.examples.arrays())
    for batch in [*batches(job, training), *batches(replace(job, round=2), training)]:
        torch_optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
        torch_optimizer.step()
    expected = torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy()
    assert weights + second.update == pytest.approx(expected, abs=1e-6)  # w + (w_local − w) is rounded


def test_server_step_has_the_bits_of_torch_and_returns_the_step() -> None:
    optimizer, rng = AdamW(lr=0.1, weight_decay=0.2), np.random.default_rng(0)
    weights, state = rng.standard_normal(50).astype(np.float32), {}
    parameter = nn.Parameter(torch.from_numpy(weights.copy()))
    torch_optimizer = make_torch_optimizer(optimizer, [parameter])
    for round in range(1, 22):
        update = rng.standard_normal(50).astype(np.float32)
        parameter.grad = torch.from_numpy(-update)
        torch_optimizer.step()
        after, step, state = compute_server_step(optimizer, weights, update, state, round)
        assert after.tobytes() == parameter.detach().numpy().tobytes()
        assert step == pytest.approx(after.astype(np.float64) - weights, abs=1e-6)
        weights = after


def test_step_without_decay_unpacks_and_step_with_decay_does_not() -> None:
    w, direction = torch.ones(2), torch.tensor([1.0, 2.0])
    assert tuple(ScaledStep(direction, -0.5)) == (direction, -0.5)
    step = ScaledStep(direction, -0.5, decay=0.75, fixed_slices=(slice(1, 2),))
    with pytest.raises(ValueError, match=r"the step has a decay of 0\.75 besides direction and alpha; use its method add_to"):
        tuple(step)
    assert step.compute_difference(w).tolist() == [-0.75, 0.0]
    step.add_to(w)
    assert w.tolist() == [0.25, 0.0]
