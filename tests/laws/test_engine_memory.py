"""Optimizer states and corrections in engines; the normalizer of FedNova."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedsgd.data import Dataset, Examples
from fedsgd.models import Mlp
from fedsgd.models.builder import build_task
from fedsgd.models.perceptrons import Softmax
from fedsgd.models.task import LearningTask
from fedsgd.optim import OPTIMIZERS, SGD, Adam, AdamW, Momentum, Optimizer, PyTorchMomentum
from fedsgd.optim.schedules import ExponentialSchedule
from fedsgd.training import LocalTraining, TrainingJob
from fedsgd.training.base import batches
from fedsgd.training.sequential import Sequential
from tests.effort import nightly_unless, slow_unless
from tests.laws.engines import ENGINES, EXACT, read_bits
from tests.laws.test_engine_laws import dropout_module, make_job

CLIENT_OPTIMIZERS = [name for name in OPTIMIZERS if not OPTIMIZERS[name].server_only]
DAILY_OPTIMIZERS = ("momentum", "adamw")
OPTIMIZER_NAMES = nightly_unless(DAILY_OPTIMIZERS.__contains__, slow_unless("momentum".__eq__, CLIENT_OPTIMIZERS))
"""By day, one optimizer without state, one with a vector, and one with two vectors; nightly, all."""
each_optimizer = pytest.mark.parametrize("optimizer_name", OPTIMIZER_NAMES)


def add_state(task: LearningTask, optimizer: Optimizer, job: TrainingJob, seed: int = 0) -> TrainingJob:
    """Return the job with the optimizer state after a step on a random gradient, and a random correction."""
    rng = np.random.default_rng([seed, job.client])
    gradient, correction = rng.standard_normal((2, task.layout.size)).astype(np.float32)
    buffers = optimizer.init(torch.zeros(task.layout.size))
    optimizer.step(torch.zeros(task.layout.size), torch.from_numpy(gradient), buffers, optimizer.lr)
    return replace(job, optimizer_state={name: value.numpy() for name, value in buffers.items()}, correction=correction)


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", ENGINES)
@each_optimizer
@pytest.mark.parametrize("steps", nightly_unless(lambda steps: steps is None, [None, 1]))
def test_state_and_correction_do_not_depend_on_other_clients(
    name: str, optimizer_name: str, steps: int | None, blobs: Dataset
) -> None:
    """Every second client has a state and a correction."""
    optimizer = OPTIMIZERS[optimizer_name](lr=0.1)
    task = build_task(Mlp(), blobs, 0, module=None if "stacked" in name else dropout_module())
    local_training = LocalTraining(optimizer, None if steps else 2, steps, 7, keep_optimizer_state=True, uses_correction=True)
    jobs = [make_job(task, blobs, c, rows=slice(10 * c, 10 * c + 5 + 10 * (c // 2))) for c in range(5)]
    jobs = [add_state(task, optimizer, job) if job.client % 2 else job for job in jobs]
    engine = ENGINES[name](task, local_training, blobs)
    results = {result.client: read_bits(result) for result in engine.train(jobs)}
    reversed_results = {result.client: read_bits(result) for result in engine.train(jobs[::-1])}
    other_engine = ENGINES[name](task, local_training, blobs)
    single_results = {job.client: read_bits(next(iter(other_engine.train([job])))) for job in jobs}
    assert results == reversed_results == single_results
    assert len({update for update, _ in single_results.values()}) == 5
    assert all(state.keys() == optimizer.init(torch.zeros(1)).keys() for _, state in single_results.values())


@pytest.mark.sampled
@pytest.mark.parametrize("name", ENGINES)
@each_optimizer
@pytest.mark.parametrize("size", [1, 7])
def test_zero_state_and_correction_change_no_bit(name: str, optimizer_name: str, size: int, blobs: Dataset) -> None:
    """In batches of one example, gradients have zeros of both signs."""
    optimizer = OPTIMIZERS[optimizer_name](lr=0.1)
    task = build_task(Mlp(), blobs, 0)
    local_training = LocalTraining(optimizer, 1, None, size, keep_optimizer_state=True, uses_correction=True)
    bare_jobs = [make_job(task, blobs, 0, rows=slice(0, 20)), make_job(task, blobs, 1, rows=slice(20, 21))]
    zero = np.zeros(task.layout.size, np.float32)
    zero_state = dict.fromkeys(optimizer.init(torch.zeros(1)), zero)
    jobs = [replace(job, optimizer_state=zero_state, correction=zero) for job in bare_jobs]
    engine = ENGINES[name](task, local_training, blobs)
    expected = {result.client: read_bits(result) for result in engine.train(bare_jobs)}
    assert {result.client: read_bits(result) for result in engine.train(jobs)} == expected
    if name in EXACT:
        stateless_engine = ENGINES[name](
            task, replace(local_training, keep_optimizer_state=False, uses_correction=False), blobs
        )
        assert {
            result.client: read_bits(result)
            for result in stateless_engine.train([add_state(task, optimizer, job) for job in bare_jobs])
        } == {client: (update, {}) for client, (update, _) in expected.items()}


@pytest.mark.sampled
@pytest.mark.parametrize("name", ENGINES)
@each_optimizer
def test_two_rounds_with_kept_state_equal_one_round_of_twice_the_epochs(name: str, optimizer_name: str, blobs: Dataset) -> None:
    """Four passes over full batches equal two rounds of two passes."""
    optimizer, task = OPTIMIZERS[optimizer_name](lr=0.1), build_task(Softmax(), blobs, 0)
    job = add_state(task, optimizer, make_job(task, blobs, 1))
    four_passes = ENGINES[name](
        task, LocalTraining(optimizer, 4, None, None, keep_optimizer_state=True, uses_correction=True), blobs
    )
    two_passes = ENGINES[name](
        task, LocalTraining(optimizer, 2, None, None, keep_optimizer_state=True, uses_correction=True), blobs
    )
    (expected,) = four_passes.train([job])
    (first,) = two_passes.train([job])
    (second,) = two_passes.train(
        [replace(job, round=2, weights=job.weights + first.update, optimizer_state=first.optimizer_state)]
    )
    assert first.update + second.update == pytest.approx(expected.update, abs=2e-6)
    for key, value in expected.optimizer_state.items():
        assert second.optimizer_state[key] == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_correction_is_added_before_clipping(name: str, blobs: Dataset) -> None:
    """Gradient and proximal term are negligible against a correction of norm 50,000, which is clipped to 2."""
    task = build_task(Softmax(), blobs, 0)
    correction = np.zeros(task.layout.size, np.float32)
    correction[:2] = 3e4, 4e4
    job = replace(make_job(task, blobs, 0), correction=correction)
    local_training = LocalTraining(SGD(lr=1e-3, clip_norm=2.0), 1, None, 10, 0.5, uses_correction=True)
    (result,) = ENGINES[name](task, local_training, blobs).train([job])
    assert result.update == pytest.approx(-3 * 1e-3 * 2 * correction / 5e4, abs=1e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_scaffold_step_equals_its_rule_in_float64(name: str, blobs: Dataset) -> None:
    """y ← y − η(g(y) − c_i + c) on softmax regression."""
    task = build_task(Softmax(), blobs, 0)
    job, local_training = make_job(task, blobs, 1), LocalTraining(SGD(lr=0.3), 2, None, 10, uses_correction=True)
    job = add_state(task, local_training.optimizer, job)
    (result,) = ENGINES[name](task, local_training, blobs).train([job])
    y = task.initial_parameters.astype(np.float64)
    inputs, targets = job.examples.arrays()
    for batch in batches(job, local_training):
        logits = inputs[batch] @ y[:24].reshape(3, 8).T + y[24:]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = p / p.sum(axis=1, keepdims=True) - np.eye(3)[targets[batch]]
        gradient = np.concatenate([(error.T @ inputs[batch] / len(batch)).ravel(), error.mean(axis=0)])
        y = y - 0.3 * (gradient + job.correction)
    assert result.update == pytest.approx(y - task.initial_parameters, abs=2e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_client_without_examples_returns_its_state_unchanged(name: str, blobs: Dataset) -> None:
    optimizer, task = Momentum(), build_task(Softmax(), blobs, 0)
    jobs = [add_state(task, optimizer, make_job(task, blobs, c, rows=slice(0, 30 * c))) for c in range(2)]
    results = {
        result.client: result
        for result in ENGINES[name](task, LocalTraining(optimizer, 1, None, 10, keep_optimizer_state=True), blobs).train(jobs)
    }
    assert results[0].optimizer_state["velocity"].tobytes() == jobs[0].optimizer_state["velocity"].tobytes()
    assert results[1].optimizer_state["velocity"].tobytes() != jobs[1].optimizer_state["velocity"].tobytes()


@pytest.mark.slow
def test_state_of_the_fused_engine_is_in_wire_order() -> None:
    """The fused engine stores channels last."""
    rng = np.random.default_rng(0)
    x, y = rng.random((30, 3, 8, 8), np.float32), rng.integers(0, 3, 30)
    data = Dataset(Examples(x, y), Examples(x[:5], y[:5]), 3)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    task, optimizer = build_task(Mlp(), data, 0, module=module), PyTorchMomentum(lr=0.01)
    local_training = LocalTraining(optimizer, 2, None, 10, keep_optimizer_state=True, uses_correction=True)
    for settings in (
        local_training,
        replace(local_training, uses_correction=False),
        replace(local_training, epochs=None, steps=1),
    ):
        job = add_state(task, optimizer, TrainingJob(0, 1, 0, task.initial_parameters, data.train))
        fused = ENGINES["captured, fused"](task, settings, data)
        assert fused._step_buffers.tensor_format.channels_last
        (result,), (expected,) = fused.train([job]), Sequential(task, settings).train([job])
        assert result.update == pytest.approx(expected.update, abs=1e-5)
        assert result.optimizer_state["velocity"] == pytest.approx(expected.optimizer_state["velocity"], abs=1e-5)


# ------------------------------------------------------------------------------------------------------- normalizer of FedNova


def make_local_training(optimizer: Optimizer, steps: int, proximal: float = 0.0) -> LocalTraining:
    return LocalTraining(optimizer, None, steps, 10, proximal)


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_fednova_normalizer_equals_closed_forms(steps: int) -> None:
    """Forms of Wang et al. 2020, section 4: vanilla SGD, momentum, a proximal term."""
    eta, beta, mu = 0.1, 0.9, 0.5
    expected = eta * (steps - beta * (1 - beta**steps) / (1 - beta)) / (1 - beta)
    assert make_local_training(SGD(lr=eta), steps).fednova_normalizer(30, 1) == pytest.approx(steps * eta, rel=1e-12)
    for optimizer in (Momentum(lr=eta, momentum=beta), PyTorchMomentum(lr=eta, momentum=beta)):
        assert make_local_training(optimizer, steps).fednova_normalizer(30, 1) == pytest.approx(expected, rel=1e-12)
    proximal = make_local_training(SGD(lr=eta), steps, mu)
    assert proximal.fednova_normalizer(30, 1) == pytest.approx((1 - (1 - eta * mu) ** steps) / mu, rel=1e-12)


def test_fednova_normalizer_of_nesterov_and_schedules() -> None:
    nesterov = make_local_training(OPTIMIZERS["nesterov"](lr=0.1, momentum=0.5), 2)
    assert nesterov.fednova_normalizer(30, 1) == pytest.approx(0.1 * (1.5 + 1.75))
    scheduled = SGD(lr=1.0, schedule=ExponentialSchedule(gamma=0.5), schedule_over="steps")
    assert make_local_training(scheduled, 2).fednova_normalizer(30, 2) == pytest.approx(0.25 + 0.125)
    assert make_local_training(scheduled, 2).learning_rate_sum(30, 2) == pytest.approx(0.25 + 0.125)


def test_fednova_normalizer_of_adam_is_the_sum_of_the_learning_rates() -> None:
    """A constant gradient moves a coordinate by η/(1 + ε) in each step; decoupled decay does not count."""
    scheduled = AdamW(lr=1.0, eps=1e-12, schedule=ExponentialSchedule(gamma=0.5), schedule_over="local-steps")
    assert make_local_training(scheduled, 3).fednova_normalizer(30, 1) == pytest.approx(1.75, rel=1e-9)


def test_fednova_normalizer_ignores_clipping_decay_and_correction() -> None:
    optimizer = SGD(lr=0.1, clip_norm=1e-3, weight_decay=0.5)
    local_training = LocalTraining(optimizer, 2, None, 10, keep_optimizer_state=True, uses_correction=True)
    assert local_training.fednova_normalizer(25, 1) == pytest.approx(0.6)
    assert local_training.learning_rate_sum(25, 1) == pytest.approx(0.6)
    assert local_training.fednova_normalizer(0, 1) == local_training.learning_rate_sum(0, 1) == 0
    assert LocalTraining(SGD(lr=0.3), None, 1, None).fednova_normalizer(25, 4) == 0.3
    assert make_local_training(Momentum(lr=0.1), 4).learning_rate_sum(25, 1) == pytest.approx(0.4)


@pytest.mark.sampled
@pytest.mark.parametrize("name", ENGINES)
@each_optimizer
def test_fednova_normalizer_equals_the_update_for_a_constant_gradient(name: str, optimizer_name: str, blobs: Dataset) -> None:
    """The gradient is almost constant, because the correction is much larger."""
    task = build_task(Softmax(), blobs, 0)
    job = replace(make_job(task, blobs, 0), correction=np.full(task.layout.size, 1e4, np.float32))
    optimizer = OPTIMIZERS[optimizer_name](lr=0.01, weight_decay=0.0)
    local_training = LocalTraining(optimizer, 2, None, 7, 0.3, uses_correction=True)
    (result,) = ENGINES[name](task, local_training, blobs).train([job])
    scale = 1.0 if isinstance(optimizer, Adam) else 1e4  # Adam's steps do not depend on the gradient's scale
    assert -result.update / scale == pytest.approx(local_training.fednova_normalizer(30, 1), rel=1e-3)
