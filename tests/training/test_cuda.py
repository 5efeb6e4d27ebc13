"""Engines on a GPU. Everything else about devices is tested on the CPU, in test_device.py and by the laws of engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsgd
from fedsgd.errors import ModelError
from fedsgd.experiment.options import ExecutionConfig
from fedsgd.scenario.scenario import Scenario
from tests.bench.gpu import WORKS, GpuWork, build_scenario, make_data, shrink

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

Make = Callable[..., Scenario]
TOLERANCE = 1e-3
"""Largest distance of the final models of a GPU and of the CPU, relative to the norm of the change during the run."""
DROPOUT = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))


@pytest.mark.parametrize("engine", ["sequential", "captured", "stacked"])
def test_results_are_those_of_the_cpu_up_to_rounding(scenario: Make, engine: str) -> None:
    settings = {"rounds": 2, "model": {"name": "2nn"}, "engine": {"name": engine, "update": "exact"}}
    expected, start = fedsgd.run(scenario(settings)), fedsgd.run(scenario({**settings, "server.optimizer.lr": 1e-30}))
    result = fedsgd.run(scenario({**settings, "engine.device": "cuda"}))
    change = np.linalg.norm(expected.parameters - start.parameters)
    assert np.linalg.norm(result.parameters - expected.parameters) <= TOLERANCE * change
    assert result.summary["engine"]["device"] == "cuda:0"
    assert result.summary["engine"]["gpu"] == torch.cuda.get_device_name(0)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_digests_do_not_depend_on_the_number_of_workers(scenario: Make, workers: int) -> None:
    s = scenario({"rounds": 3, "engine": {"device": "cuda", "stack": 4}, "uplink.compressor.name": "top-k"})
    expected, result = fedsgd.run(s), fedsgd.run(s, execution=ExecutionConfig(workers=workers))
    for key in ("params_sha256", "ledger_sha256"):
        assert result.summary[key] == expected.summary[key]


@pytest.mark.parametrize("engine", ["sequential", "captured"])
def test_digests_of_a_module_that_draws_numbers_repeat(scenario: Make, engine: str) -> None:
    s = scenario({"rounds": 2, "engine": {"name": engine, "device": "cuda"}})
    first, second = (fedsgd.run(s, model=DROPOUT).summary["params_sha256"] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("model", ["cnn", "lenet", "resnet-20", "char-lstm", "char-gpt"])
def test_built_in_models_train_and_repeat(model: str) -> None:
    work = next(work for work in WORKS if work.load.model == model) if model != "lenet" else replace_model(WORKS[3], model)
    small = shrink(work)
    s, data = build_scenario(small, "top-k 1 %", 1, "cuda", 2), make_data(small)
    first, second = (fedsgd.run(s, data=data).summary["params_sha256"] for _ in range(2))
    assert first == second


def replace_model(work: GpuWork, model: str) -> GpuWork:
    return replace(work, load=replace(work.load, model=model))


class Pooled(nn.Module):
    """Network with a layer whose gradient has no deterministic form in CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveMaxPool2d(4)
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        scaled = x.reshape(len(x), 1, 8, 8) * self.last.bias.sum().exp()
        return self.last(self.pool(scaled).flatten(1))


def test_operation_without_a_deterministic_form_is_refused_or_allowed_by_a_key(scenario: Make) -> None:
    with pytest.raises(ModelError, match=r"engine\.deterministic: adaptive_max_pool2d\S* has no deterministic form"):
        fedsgd.run(scenario({"engine.device": "cuda"}), model=Pooled())
    result = fedsgd.run(scenario({"engine": {"device": "cuda", "deterministic": False}}), model=Pooled())
    assert result.summary["engine"]["deterministic"] is False


def test_settings_of_torch_are_restored(scenario: Make) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled()
    fedsgd.run(scenario({"rounds": 1, "engine.device": "cuda"}))
    assert (torch.backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled()) == before
