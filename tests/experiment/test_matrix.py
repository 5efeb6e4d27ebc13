"""Small modules × engines × workers: metrics match plain PyTorch, or the run is refused before round 1."""

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
from tests.effort import EFFORT, nightly_unless
from tests.experiment import matrix
from tests.experiment.matrix import CASES, N_TRAIN, Case

pytestmark = pytest.mark.filterwarnings("ignore::fedsgd.errors.ModelWarning")  # the last test expects it

ENGINES = ("auto", "sequential", "captured", "stacked")
ROUNDS, BATCH, SEED = 3, 10, 3
RUN = [name for name, case in CASES.items() if case.refused is None]
DAILY_CASES = {
    "perceptron",
    "random buffer",
    "batch_norm, batch_norm mean",
    "batch_norm, batch_norm local",
    "dropout",
    "numpy noise",
    "generator of its own",
    "attention",
    "loss with a parameter, batch norm local",
}
"""Cases of the daily run: each kind of state, of policy and of random generator. The night has all, with all engines."""
DAILY_CASES_OF_ALL_ENGINES = {
    "perceptron",
    "random buffer",
    "batch_norm, batch_norm local",
    "dropout",
    "loss with a parameter, batch norm local",
}
DAILY_CASES_OF_WORKERS = {
    "perceptron",
    "batch_norm, batch_norm local",
    "numpy noise",
    "loss with a parameter, batch norm local",
}


def make_scenario(case: Case, path: Path, clients: int, **settings: Any) -> Scenario:
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


class PlainTraining:
    """Training loop of a tutorial: one module, one optimizer a round, batches in the client's order."""

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
        """Train for a round. Attributes return to their initial values, because a client receives parameters, not an object."""
        with use_single_thread(), isolate_generators(derive_torch_seed(SEED, "init")):
            initial = self.case.make()
        parameters = [
            p for part in (self.module, self.loss) if isinstance(part, nn.Module) for p in part.parameters() if p.requires_grad
        ]
        optimizer = torch.optim.SGD(
            parameters, lr=self.lr, momentum=0.9 * self.momentum, weight_decay=self.decay, foreach=False
        )
        job = TrainingJob(SEED, number, 0, np.zeros(1, np.float32), self.examples)
        with use_single_thread(), isolate_generators(derive_torch_seed(SEED, "module", number, 0)):
            self.module.train()
            for batch in batches(job, LocalTraining(SGD(), 1, None, BATCH)):
                optimizer.zero_grad()
                self.loss(self.module(self.x[batch]), self.y[batch]).backward()
                optimizer.step()
        for name in ("calls", "rng"):
            if hasattr(self.module, name):
                setattr(self.module, name, getattr(initial, name))

    def report(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return the loss of all examples in one call, and the accuracy computed from the outputs."""
        self.module.eval()
        calls = copy.deepcopy(getattr(self.module, "calls", None))
        with torch.no_grad(), use_single_thread(), isolate_generators(0):
            output = torch.cat([self._output(part, calls) for part in x.split(100)])
            values = {"loss": float(self.loss(output, y))}
        if output[0].numel() == 1:
            correct = (output.reshape(-1) > 0) == (y.reshape(-1) > 0)
        else:
            correct = output.argmax(1) == y.reshape(output[:, 0].shape)
        return {**values, "accuracy": float(correct.double().mean())}

    def _output(self, x: Tensor, calls: int | None) -> Tensor:
        output: Tensor = self.module(x)
        if calls is not None:
            self.module.calls = calls
        return output


@pytest.mark.sampled
@pytest.mark.slow
@pytest.mark.parametrize("name", nightly_unless(DAILY_CASES.__contains__, RUN))
def test_metrics_of_one_client_match_plain_pytorch(name: str, tmp_path: Path) -> None:
    """Each engine trains the same model, or refuses it before round 1. By day, some cases run with the selected engine only."""
    case = CASES[name]
    experiment = build_experiment(make_scenario(case, tmp_path / "data.npz", 1))
    plain = PlainTraining(case, experiment.train.examples_of(0))
    test = experiment.dataset.test if experiment.held_out is None else experiment.held_out.examples_of(0)
    reports = []
    for number in range(1, ROUNDS + 1):
        plain.round(number)
        reports.append(plain.report(*(torch.from_numpy(np.array(values)) for values in test.arrays())))
    for engine in ENGINES if EFFORT > 1 or name in DAILY_CASES_OF_ALL_ENGINES else ("auto",):
        scenario = make_scenario(case, tmp_path / "data.npz", 1, **{"engine.name": engine, "engine.update": "exact"})
        if engine in ("captured", "stacked") and not is_trainable(scenario):
            with pytest.raises(ModelError, match=f"the {engine} engine cannot train the model"):
                fedsgd.run(scenario)
            continue
        result = fedsgd.run(scenario)
        for record, report in zip(result.history, reports, strict=True):
            assert record.metrics["loss"] == pytest.approx(report["loss"], rel=2e-5)
            if case.accuracy:
                assert record.accuracy == pytest.approx(report["accuracy"], abs=1e-7)


def is_trainable(scenario: Scenario) -> bool:
    """Return whether the scenario's engine can train its model."""
    try:
        build_experiment(scenario)
    except ModelError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused is not None])
def test_unsupported_case_is_refused_before_round_1(name: str, tmp_path: Path) -> None:
    case, rounds = CASES[name], []
    with pytest.raises(FedsgdError, match=case.refused) as error:
        fedsgd.run(make_scenario(case, tmp_path / "data.npz", 2), on_round=rounds.append)
    assert not rounds
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------- reruns, restored models


@pytest.mark.sampled
@pytest.mark.slow
@pytest.mark.parametrize("name", nightly_unless(DAILY_CASES_OF_WORKERS.__contains__, RUN))
def test_rerun_from_the_run_directory_with_two_workers_has_equal_digests(name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = fedsgd.run(make_scenario(CASES[name], tmp_path / "data.npz", 4), out=out)
    rerun = fedsgd.run(fedsgd.load(out / "scenario.toml"))
    workers = fedsgd.run(fedsgd.load(out / "scenario.toml"), execution=fedsgd.ExecutionConfig(workers=2))
    for key in ("params_sha256", "ledger_sha256", "final_metrics"):
        assert first.summary[key] == rerun.summary[key] == workers.summary[key]


@pytest.mark.sampled
@pytest.mark.slow
@pytest.mark.parametrize("name", nightly_unless(DAILY_CASES.__contains__, RUN))
def test_restored_model_has_the_reported_accuracy(name: str, tmp_path: Path) -> None:
    """The accuracy is equal to the digit after load_state_dict(strict=True) into a module with other initial values."""
    case, out = CASES[name], tmp_path / "run"
    scenario = make_scenario(case, tmp_path / "data.npz", 4)
    result = fedsgd.run(scenario, out=out)
    state = load_file(out / "params.safetensors")
    assert result.summary["reported_model"] == (
        "clients.safetensors" if "local" in case.settings.values() else "params.safetensors"
    )
    experiment = build_experiment(scenario)
    with isolate_generators(99):
        module = case.make()
    replace_batch_norm(module, case.settings.get("model.batch_norm", "refuse"))
    if experiment.held_out is None:
        module.load_state_dict(state, strict=True)
        parts = [(experiment.dataset.test, module)]
    else:
        parts = [
            (experiment.held_out.examples_of(i), client_module)
            for i, client_module in enumerate(client_models(module, state, load_file(out / "clients.safetensors")))
        ]
    if case.accuracy:
        assert result.history[-1].accuracy == pytest.approx(restored_accuracy(parts), abs=1e-7)


def client_models(module: nn.Module, state: Mapping[str, Tensor], client_state: Mapping[str, Tensor]) -> list[nn.Module]:
    models = []
    for i, _ in enumerate(client_state["clients"]):
        entries = {name: values[i] for name, values in client_state.items() if name != "clients"}
        module.load_state_dict({**state, **entries}, strict=True)
        models.append(copy.deepcopy(module))
    return models


def evaluation_copy(module: nn.Module) -> nn.Module:
    """Return the module in evaluation mode; a module that counts its calls is copied, so that its counter stays as it was."""
    return copy.deepcopy(module).eval() if hasattr(module, "calls") else module.eval()


def restored_accuracy(parts: list[tuple[Examples, nn.Module]]) -> float:
    """Return the accuracy over all examples of all parts, each part evaluated with its module."""
    correct = []
    for examples, module in parts:
        x, y = (torch.from_numpy(np.array(values)) for values in examples.arrays())
        outputs = []
        for part in x.split(100):
            with torch.no_grad(), use_single_thread(), isolate_generators(0):
                outputs.append(evaluation_copy(module)(part))
        output = torch.cat(outputs)
        if output[0].numel() == 1:
            correct.append(((output.reshape(-1) > 0) == (y.reshape(-1) > 0)).double())
        else:
            correct.append((output.argmax(1) == y.reshape(output[:, 0].shape)).double().reshape(len(y), -1).mean(1))
    return float(torch.cat(correct).mean())


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["model", "shift"])
def test_evaluated_model_that_differs_from_the_server_model_has_its_own_file(policy: str, tmp_path: Path) -> None:
    compressor = {"name": "dense", "values": "bfloat16"} if policy == "model" else {"name": "top-k", "density": 0.1}
    downlink = {f"downlink.compressor.{key}": value for key, value in compressor.items()}
    scenario = make_scenario(CASES["perceptron"], tmp_path / "data.npz", 4, **{"downlink.policy": policy}, **downlink)
    result = fedsgd.run(scenario, out=tmp_path / "run")
    assert result.summary["reported_model"] == "evaluated.safetensors"
    server, evaluated = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("params", "evaluated"))
    assert torch.cat([server[name].reshape(-1) for name in result.layout.names]).tolist() == result.parameters.tolist()
    module = matrix.perceptron()
    module.load_state_dict(evaluated, strict=True)
    parts = [(build_experiment(scenario).dataset.test, module)]
    assert result.history[-1].accuracy == restored_accuracy(parts)
    assert {name: value.tolist() for name, value in result.state_dict.items()} == {n: v.tolist() for n, v in evaluated.items()}
    assert any(not torch.equal(server[name], evaluated[name]) for name in server)


@pytest.mark.slow
def test_loss_with_parameters_has_its_own_file(tmp_path: Path) -> None:
    scenario = make_scenario(CASES["loss with a parameter"], tmp_path / "data.npz", 4)
    result = fedsgd.run(scenario, out=tmp_path / "run")
    module, loss = matrix.perceptron(), matrix.Temperature()
    module.load_state_dict(load_file(tmp_path / "run" / "params.safetensors"), strict=True)
    loss.load_state_dict(load_file(tmp_path / "run" / "loss.safetensors"), strict=True)
    assert loss.t.item() == result.parameters[-1] != 0.0
    assert result.summary["uplink"]["kept"] == ROUNDS * 4 * (8 * 12 + 12 + 12 * 3 + 3 + 1)
    assert matrix.temperature.t.item() == 0.0
    x, y = (torch.from_numpy(values) for values in build_experiment(scenario).dataset.test.arrays())
    with torch.no_grad():
        assert float(loss(module(x), y)) == pytest.approx(result.history[-1].metrics["loss"], rel=1e-6)


@pytest.mark.slow
def test_state_in_an_attribute_raises_a_warning_with_its_name(tmp_path: Path) -> None:
    scenario = make_scenario(CASES["counter"], tmp_path / "data.npz", 4)
    with pytest.warns(ModelWarning, match="training changes Counter.calls in Python, which is reset for each client"):
        fedsgd.run(scenario)
    for engine in ("auto", "sequential"):
        reasons: list[str] = []
        fedsgd.run(
            scenario.with_settings({"engine.name": engine}),
            callbacks=fedsgd.RunCallbacks(on_engine=lambda choice, reasons=reasons: reasons.append(choice.reason)),
        )
        assert "training changes Counter.calls in Python" in reasons[0]
