"""Engines that begin with what an optimiser remembers and that correct gradients; how far a recipe moves a client."""

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
from fedsgd.optim import OPTIMIZERS, SGD, Momentum, Optimizer, PyTorchMomentum
from fedsgd.optim.schedules import ExponentialSchedule
from fedsgd.training import LocalTraining, TrainingJob
from fedsgd.training.base import batches
from fedsgd.training.sequential import Sequential
from tests.laws.engines import ENGINES, EXACT, bits
from tests.laws.test_engine_laws import dropout_module, work

CLIENT_OPTIMIZERS = [name for name in OPTIMIZERS if not OPTIMIZERS[name].server_only]


def remembering(task: LearningTask, optimizer: Optimizer, job: TrainingJob, seed: int = 0) -> TrainingJob:
    """The same client with some memory and a correction."""
    rng = np.random.default_rng([seed, job.client])
    names = optimizer.init(torch.zeros(1))
    memory = {name: rng.standard_normal(task.layout.size).astype(np.float32) for name in names}
    return replace(job, optimizer_state=memory, correction=rng.standard_normal(task.layout.size).astype(np.float32))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("optimizer", CLIENT_OPTIMIZERS)
@pytest.mark.parametrize("steps", [None, 1])
def test_memory_and_correction_are_each_clients_own(name: str, optimizer: str, steps: int | None, blobs: Dataset) -> None:
    """Every other client has neither."""
    rule = OPTIMIZERS[optimizer](lr=0.1)
    task = build_task(Mlp(), blobs, 0, module=None if "stacked" in name else dropout_module())
    recipe = LocalTraining(rule, None if steps else 2, steps, 7, keep_optimizer_state=True, uses_correction=True)
    works = [work(task, blobs, c, rows=slice(10 * c, 10 * c + 5 + 10 * (c // 2))) for c in range(5)]
    works = [remembering(task, rule, w) if w.client % 2 else w for w in works]
    engine = ENGINES[name](task, recipe, blobs)
    together = {local.client: bits(local) for local in engine.train(works)}
    backwards = {local.client: bits(local) for local in engine.train(works[::-1])}
    alone = {w.client: bits(next(iter(ENGINES[name](task, recipe, blobs).train([w])))) for w in works}
    assert together == backwards == alone
    assert len({update for update, _ in alone.values()}) == 5
    assert all(memory.keys() == rule.init(torch.zeros(1)).keys() for _, memory in alone.values())


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("optimizer", CLIENT_OPTIMIZERS)
@pytest.mark.parametrize("size", [1, 7])
def test_zeros_are_nothing_to_the_bit(name: str, optimizer: str, size: int, blobs: Dataset) -> None:
    """With batches of one, gradients have zeros of both signs."""
    rule = OPTIMIZERS[optimizer](lr=0.1)
    task = build_task(Mlp(), blobs, 0)
    recipe = LocalTraining(rule, 1, None, size, keep_optimizer_state=True, uses_correction=True)
    bare = [work(task, blobs, 0, rows=slice(0, 20)), work(task, blobs, 1, rows=slice(20, 21))]
    zero = np.zeros(task.layout.size, np.float32)
    works = [replace(w, optimizer_state=dict.fromkeys(rule.init(torch.zeros(1)), zero), correction=zero) for w in bare]
    engine = ENGINES[name](task, recipe, blobs)
    expected = {local.client: bits(local) for local in engine.train(bare)}
    assert {local.client: bits(local) for local in engine.train(works)} == expected
    if name in EXACT:
        plain = ENGINES[name](task, replace(recipe, keep_optimizer_state=False, uses_correction=False), blobs)
        assert {local.client: bits(local) for local in plain.train([remembering(task, rule, w) for w in bare])} == {
            client: (update, {}) for client, (update, _) in expected.items()
        }


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("optimizer", CLIENT_OPTIMIZERS)
def test_a_second_round_goes_on_where_the_first_one_ended(name: str, optimizer: str, blobs: Dataset) -> None:
    """Four passes over full batches are two rounds of two."""
    rule, task = OPTIMIZERS[optimizer](lr=0.1), build_task(Softmax(), blobs, 0)
    job = remembering(task, rule, work(task, blobs, 1))
    twice = ENGINES[name](task, LocalTraining(rule, 4, None, None, keep_optimizer_state=True, uses_correction=True), blobs)
    once = ENGINES[name](task, LocalTraining(rule, 2, None, None, keep_optimizer_state=True, uses_correction=True), blobs)
    (expected,) = twice.train([job])
    (first,) = once.train([job])
    (second,) = once.train([replace(job, round=2, weights=job.weights + first.update, optimizer_state=first.optimizer_state)])
    assert first.update + second.update == pytest.approx(expected.update, abs=2e-6)
    for key, value in expected.optimizer_state.items():
        assert second.optimizer_state[key] == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_a_correction_is_added_after_the_proximal_term_and_before_clipping(name: str, blobs: Dataset) -> None:
    """Steps so short that gradient and proximal term do not matter beside a correction of norm 50, which is clipped to 2."""
    task = build_task(Softmax(), blobs, 0)
    correction = np.zeros(task.layout.size, np.float32)
    correction[:2] = 3e4, 4e4
    job = replace(work(task, blobs, 0), correction=correction)
    recipe = LocalTraining(SGD(lr=1e-3, clip_norm=2.0), 1, None, 10, 0.5, uses_correction=True)
    (local,) = ENGINES[name](task, recipe, blobs).train([job])
    assert local.update == pytest.approx(-3 * 1e-3 * 2 * correction / 5e4, abs=1e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_scaffolds_step_is_a_few_lines_of_float64(name: str, blobs: Dataset) -> None:
    """y ← y − η(g(y) − c_i + c) on softmax regression."""
    task = build_task(Softmax(), blobs, 0)
    job, recipe = work(task, blobs, 1), LocalTraining(SGD(lr=0.3), 2, None, 10, uses_correction=True)
    job = remembering(task, recipe.optimizer, job)
    (local,) = ENGINES[name](task, recipe, blobs).train([job])
    y = task.initial_parameters.astype(np.float64)
    inputs, targets = job.examples.arrays()
    for batch in batches(job, recipe):
        logits = inputs[batch] @ y[:24].reshape(3, 8).T + y[24:]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = p / p.sum(axis=1, keepdims=True) - np.eye(3)[targets[batch]]
        gradient = np.concatenate([(error.T @ inputs[batch] / len(batch)).ravel(), error.mean(axis=0)])
        y = y - 0.3 * (gradient + job.correction)
    assert local.update == pytest.approx(y - task.initial_parameters, abs=2e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_a_client_without_examples_keeps_its_memory(name: str, blobs: Dataset) -> None:
    rule, task = Momentum(), build_task(Softmax(), blobs, 0)
    jobs = [remembering(task, rule, work(task, blobs, c, rows=slice(0, 30 * c))) for c in range(2)]
    trained = {
        x.client: x for x in ENGINES[name](task, LocalTraining(rule, 1, None, 10, keep_optimizer_state=True), blobs).train(jobs)
    }
    assert trained[0].optimizer_state["velocity"].tobytes() == jobs[0].optimizer_state["velocity"].tobytes()
    assert trained[1].optimizer_state["velocity"].tobytes() != jobs[1].optimizer_state["velocity"].tobytes()


def test_memory_is_in_the_layouts_order_whatever_the_engines() -> None:
    """Channels last: the fused engine's own order is another one."""
    rng = np.random.default_rng(0)
    x, y = rng.random((30, 3, 8, 8), np.float32), rng.integers(0, 3, 30)
    data = Dataset(Examples(x, y), Examples(x[:5], y[:5]), 3)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    task, rule = build_task(Mlp(), data, 0, module=module), PyTorchMomentum(lr=0.01)
    recipe = LocalTraining(rule, 2, None, 10, keep_optimizer_state=True, uses_correction=True)
    for tried in (recipe, replace(recipe, uses_correction=False), replace(recipe, epochs=None, steps=1)):
        job = remembering(task, rule, TrainingJob(0, 1, 0, task.initial_parameters, data.train))
        fused = ENGINES["captured, fused"](task, tried, data)
        assert fused._step_buffers.tensor_format.channels_last
        (got,), (expected,) = fused.train([job]), Sequential(task, tried).train([job])
        assert got.update == pytest.approx(expected.update, abs=1e-5)
        assert got.optimizer_state["velocity"] == pytest.approx(expected.optimizer_state["velocity"], abs=1e-5)


# ------------------------------------------------------------------------------------------------------- how far a client is moved


def recipe_of(rule: Optimizer, steps: int, proximal: float = 0.0) -> LocalTraining:
    return LocalTraining(rule, None, steps, 10, proximal)


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_displacement_has_fednovas_closed_forms(steps: int) -> None:
    """Wang et al. 2020, section 4: vanilla SGD, momentum, a proximal term."""
    eta, beta, mu = 0.1, 0.9, 0.5
    by_momentum = eta * (steps - beta * (1 - beta**steps) / (1 - beta)) / (1 - beta)
    assert recipe_of(SGD(lr=eta), steps).fednova_normalizer(30, 1) == pytest.approx(steps * eta, rel=1e-12)
    for rule in (Momentum(lr=eta, momentum=beta), PyTorchMomentum(lr=eta, momentum=beta)):
        assert recipe_of(rule, steps).fednova_normalizer(30, 1) == pytest.approx(by_momentum, rel=1e-12)
    proximal = recipe_of(SGD(lr=eta), steps, mu)
    assert proximal.fednova_normalizer(30, 1) == pytest.approx((1 - (1 - eta * mu) ** steps) / mu, rel=1e-12)


def test_displacement_of_nesterov_and_schedules() -> None:
    nesterov = recipe_of(OPTIMIZERS["nesterov"](lr=0.1, momentum=0.5), 2)
    assert nesterov.fednova_normalizer(30, 1) == pytest.approx(0.1 * (1.5 + 1.75))
    scheduled = SGD(lr=1.0, schedule=ExponentialSchedule(gamma=0.5), schedule_over="steps")
    assert recipe_of(scheduled, 2).fednova_normalizer(30, 2) == pytest.approx(0.25 + 0.125)
    assert recipe_of(scheduled, 2).learning_rate_sum(30, 2) == pytest.approx(0.25 + 0.125)


def test_displacement_leaves_out_clipping_decay_and_correction_and_counts_epochs() -> None:
    rule = SGD(lr=0.1, clip_norm=1e-3, weight_decay=0.5)
    recipe = LocalTraining(rule, 2, None, 10, keep_optimizer_state=True, uses_correction=True)
    assert recipe.fednova_normalizer(25, 1) == pytest.approx(0.6)
    assert recipe.learning_rate_sum(25, 1) == pytest.approx(0.6)
    assert recipe.fednova_normalizer(0, 1) == recipe.learning_rate_sum(0, 1) == 0
    assert LocalTraining(SGD(lr=0.3), None, 1, None).fednova_normalizer(25, 4) == 0.3
    assert recipe_of(Momentum(lr=0.1), 4).learning_rate_sum(25, 1) == pytest.approx(0.4)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("optimizer", CLIENT_OPTIMIZERS)
def test_displacement_is_what_an_engine_does_with_a_constant_gradient(name: str, optimizer: str, blobs: Dataset) -> None:
    """The gradient is as good as constant: the correction is that much larger."""
    task = build_task(Softmax(), blobs, 0)
    job = replace(work(task, blobs, 0), correction=np.full(task.layout.size, 1e4, np.float32))
    recipe = LocalTraining(OPTIMIZERS[optimizer](lr=0.01), 2, None, 7, 0.3, uses_correction=True)
    (local,) = ENGINES[name](task, recipe, blobs).train([job])
    assert -local.update / 1e4 == pytest.approx(recipe.fednova_normalizer(30, 1), rel=1e-3)
