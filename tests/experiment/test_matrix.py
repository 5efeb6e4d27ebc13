"""Small modules × engines × workers: what is reported is what plain PyTorch reports, or it is refused before round 1."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import fedsgd
from fedsgd.data import Examples
from fedsgd.errors import FedsgdError, ModelError, ModelWarning
from fedsgd.experiment.builder import build_experiment
from fedsgd.models.batch_norm import replace_batch_norm
from fedsgd.numerics.rng import derive_torch_seed
from fedsgd.optim import SGD
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training import LocalTraining, TrainingJob
from fedsgd.training.base import batches
from tests.experiment import matrix
from tests.experiment.matrix import CASES, N_TRAIN, Case

pytestmark = pytest.mark.filterwarnings("ignore::fedsgd.errors.ModelWarning")  # a test below is about it

ENGINES = ("auto", "sequential", "captured", "stacked")
ROUNDS, BATCH, SEED = 3, 10, 3
RUN = [name for name, case in CASES.items() if case.refused is None]


def scenario(case: Case, path: Path, clients: int, **settings: Any) -> Scenario:
    x, y = case.data()
    np.savez(path, x_train=x[:N_TRAIN], y_train=y[:N_TRAIN], x_test=x[N_TRAIN:], y_test=y[N_TRAIN:])
    model = {"name": "module", "module": f"tests.experiment.matrix:{case.make.__name__}"}
    if case.loss is not None:
        model["loss"] = f"tests.experiment.matrix:{case.loss}"
    raw = {
        "name": "matrix", "rounds": ROUNDS, "seed": SEED, "model": model, "server": {"cohort": clients},
        "data": {"name": "npz", "path": str(path), "partition": {"name": "iid", "clients": clients}},
        "client": {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": BATCH},
    }  # fmt: skip
    local = {"data.held_out": 0.25, "evaluation.clients": True} if "local" in case.settings.values() else {}
    return parse_scenario(raw).with_settings({**local, **case.settings, **settings})


# ------------------------------------------------------------------------------------------------------------- plain PyTorch


class Plain:
    """A tutorial's loop: one module, one optimizer a round, batches in the client's order."""

    def __init__(self, case: Case, examples: Examples) -> None:
        self.case = case
        with use_single_thread(), isolate_generators(derive_torch_seed(SEED, "init")):
            self.module = case.make()
        replace_batch_norm(self.module, case.settings.get("model.batch_norm", "refuse"))
        self.loss: Any = functional.cross_entropy if case.loss is None else copy.deepcopy(getattr(matrix, case.loss))
        self.lr = case.settings.get("client.optimizer.lr", 0.1)
        self.momentum = case.settings.get("client.optimizer.name", "sgd") != "sgd"
        self.decay = case.settings.get("client.optimizer.weight_decay", 0.0)
        self.x, self.y = (torch.from_numpy(np.array(values)) for values in examples.arrays())
        self.examples = examples

    def round(self, number: int) -> None:
        """Train for a round. A client is given the model, not a Python object: attributes begin as they were made."""
        with use_single_thread(), isolate_generators(derive_torch_seed(SEED, "init")):
            made = self.case.make()
        own = [
            p for part in (self.module, self.loss) if isinstance(part, nn.Module) for p in part.parameters() if p.requires_grad
        ]
        optimizer = torch.optim.SGD(own, lr=self.lr, momentum=0.9 * self.momentum, weight_decay=self.decay, foreach=False)
        work = TrainingJob(SEED, number, 0, np.zeros(1, np.float32), self.examples)
        with use_single_thread(), isolate_generators(derive_torch_seed(SEED, "module", number, 0)):
            self.module.train()
            for batch in batches(work, LocalTraining(SGD(), 1, None, BATCH)):
                optimizer.zero_grad()
                self.loss(self.module(self.x[batch]), self.y[batch]).backward()
                optimizer.step()
        for name in ("calls", "rng"):
            if hasattr(self.module, name):
                setattr(self.module, name, getattr(made, name))

    def report(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return the loss of all examples in one call and the accuracy, as they are read off the outputs."""
        self.module.eval()
        calls = copy.deepcopy(getattr(self.module, "calls", None))
        with torch.no_grad(), use_single_thread(), isolate_generators(0):
            output = torch.cat([self._output(part, calls) for part in x.split(100)])
            values = {"loss": float(self.loss(output, y))}
        if output[0].numel() == 1:
            right = (output.reshape(-1) > 0) == (y.reshape(-1) > 0)
        else:
            right = output.argmax(1) == y.reshape(output[:, 0].shape)
        return {**values, "accuracy": float(right.double().mean())}

    def _output(self, x: Tensor, calls: int | None) -> Tensor:
        output: Tensor = self.module(x)
        if calls is not None:
            self.module.calls = calls
        return output


@pytest.mark.parametrize("name", RUN)
def test_metrics_of_one_client_match_plain_pytorch(name: str, tmp_path: Path) -> None:
    """And each engine trains the same model, or refuses before round 1."""
    case = CASES[name]
    made = build_experiment(scenario(case, tmp_path / "data.npz", 1))
    plain = Plain(case, made.train.examples_of(0))
    test = made.dataset.test if made.held_out is None else made.held_out.examples_of(0)
    reports = []
    for number in range(1, ROUNDS + 1):
        plain.round(number)
        reports.append(plain.report(*(torch.from_numpy(np.array(values)) for values in test.arrays())))
    for engine in ENGINES:
        asked = scenario(case, tmp_path / "data.npz", 1, **{"engine.name": engine, "engine.update": "exact"})
        if engine in ("captured", "stacked") and not trainable(asked):
            with pytest.raises(ModelError, match=f"the {engine} engine cannot train the model"):
                fedsgd.run(asked)
            continue
        result = fedsgd.run(asked)
        for record, report in zip(result.history, reports, strict=True):
            assert record.metrics["loss"] == pytest.approx(report["loss"], rel=2e-5)
            if case.accuracy:
                assert record.accuracy == pytest.approx(report["accuracy"], abs=1e-7)


def trainable(asked: Scenario) -> bool:
    """Whether the engine that is asked for can train it."""
    try:
        build_experiment(asked)
    except ModelError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused is not None])
def test_unsupported_case_is_refused_before_round_1(name: str, tmp_path: Path) -> None:
    case, rounds = CASES[name], []
    with pytest.raises(FedsgdError, match=case.refused) as caught:
        fedsgd.run(scenario(case, tmp_path / "data.npz", 2), on_round=rounds.append)
    assert not rounds
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- reruns, restored models


@pytest.mark.parametrize("name", RUN)
def test_rerun_from_the_run_directory_with_two_workers_has_equal_digests(name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = fedsgd.run(scenario(CASES[name], tmp_path / "data.npz", 4), out=out)
    again = fedsgd.run(fedsgd.load(out / "scenario.toml"))
    workers = fedsgd.run(fedsgd.load(out / "scenario.toml"), workers=2)
    for key in ("params_sha256", "ledger_sha256", "final_metrics"):
        assert first.summary[key] == again.summary[key] == workers.summary[key]


@pytest.mark.parametrize("name", RUN)
def test_restored_model_has_the_reported_accuracy(name: str, tmp_path: Path) -> None:
    """To the digit, by load_state_dict(strict=True) into a module that was made with other numbers."""
    case, out = CASES[name], tmp_path / "run"
    asked = scenario(case, tmp_path / "data.npz", 4)
    result = fedsgd.run(asked, out=out)
    state = load_file(out / "params.safetensors")
    assert result.summary["reported_model"] == (
        "clients.safetensors" if "local" in case.settings.values() else "params.safetensors"
    )
    made = build_experiment(asked)
    with isolate_generators(99):
        module = case.make()
    replace_batch_norm(module, case.settings.get("model.batch_norm", "refuse"))
    if made.held_out is None:
        module.load_state_dict(state, strict=True)
        parts = [(made.dataset.test, module)]
    else:
        parts = [
            (made.held_out.examples_of(i), own)
            for i, own in enumerate(models_of_clients(module, state, load_file(out / "clients.safetensors")))
        ]
    if case.accuracy:
        assert result.history[-1].accuracy == pytest.approx(restored_accuracy(parts), abs=1e-7)


def models_of_clients(module: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[nn.Module]:
    models = []
    for i, _ in enumerate(own["clients"]):
        mine = {name: values[i] for name, values in own.items() if name != "clients"}
        module.load_state_dict({**state, **mine}, strict=True)
        models.append(copy.deepcopy(module))
    return models


def fresh(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, with its attributes as they were made where it counts its calls."""
    return copy.deepcopy(module).eval() if hasattr(module, "calls") else module.eval()


def restored_accuracy(parts: list[tuple[Examples, nn.Module]]) -> float:
    """Over all examples of all parts, each with its model."""
    right = []
    for examples, module in parts:
        x, y = (torch.from_numpy(np.array(values)) for values in examples.arrays())
        outputs = []
        for part in x.split(100):
            with torch.no_grad(), use_single_thread(), isolate_generators(0):
                outputs.append(fresh(module)(part))
        output = torch.cat(outputs)
        if output[0].numel() == 1:
            right.append(((output.reshape(-1) > 0) == (y.reshape(-1) > 0)).double())
        else:
            right.append((output.argmax(1) == y.reshape(output[:, 0].shape)).double().reshape(len(y), -1).mean(1))
    return float(torch.cat(right).mean())


@pytest.mark.parametrize("policy", ["model", "shift"])
def test_evaluated_model_that_differs_from_the_server_model_has_its_own_file(policy: str, tmp_path: Path) -> None:
    compressor = {"name": "dense", "values": "bfloat16"} if policy == "model" else {"name": "top-k", "density": 0.1}
    downlink = {f"downlink.compressor.{key}": value for key, value in compressor.items()}
    asked = scenario(CASES["perceptron"], tmp_path / "data.npz", 4, **{"downlink.policy": policy}, **downlink)
    result = fedsgd.run(asked, out=tmp_path / "run")
    assert result.summary["reported_model"] == "evaluated.safetensors"
    server, evaluated = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("params", "evaluated"))
    assert torch.cat([server[name].reshape(-1) for name in result.layout.names]).tolist() == result.parameters.tolist()
    module = matrix.perceptron()
    module.load_state_dict(evaluated, strict=True)
    parts = [(build_experiment(asked).dataset.test, module)]
    assert result.history[-1].accuracy == restored_accuracy(parts)
    assert {name: value.tolist() for name, value in result.state_dict.items()} == {n: v.tolist() for n, v in evaluated.items()}
    assert any(not torch.equal(server[name], evaluated[name]) for name in server)


def test_loss_with_parameters_has_its_own_file(tmp_path: Path) -> None:
    asked = scenario(CASES["loss with a parameter"], tmp_path / "data.npz", 4)
    result = fedsgd.run(asked, out=tmp_path / "run")
    module, loss = matrix.perceptron(), matrix.Temperature()
    module.load_state_dict(load_file(tmp_path / "run" / "params.safetensors"), strict=True)
    loss.load_state_dict(load_file(tmp_path / "run" / "loss.safetensors"), strict=True)
    assert loss.t.item() == result.parameters[-1] != 0.0
    assert result.summary["uplink"]["kept"] == ROUNDS * 4 * (8 * 12 + 12 + 12 * 3 + 3 + 1)
    assert matrix.temperature.t.item() == 0.0
    x, y = (torch.from_numpy(values) for values in build_experiment(asked).dataset.test.arrays())
    with torch.no_grad():
        assert float(loss(module(x), y)) == pytest.approx(result.history[-1].metrics["loss"], rel=1e-6)


def test_state_in_an_attribute_raises_a_warning_with_its_name(tmp_path: Path) -> None:
    asked = scenario(CASES["counter"], tmp_path / "data.npz", 4)
    with pytest.warns(ModelWarning, match="training changes Counter.calls in Python, which is reset for each client"):
        fedsgd.run(asked)
    for engine in ("auto", "sequential"):
        told: list[str] = []
        fedsgd.run(asked.with_settings({"engine.name": engine}), on_engine=lambda chosen, told=told: told.append(chosen.reason))
        assert "training changes Counter.calls in Python" in told[0]
