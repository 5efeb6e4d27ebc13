"""Trained parameters and buffers in a torch module: values, buffers, tensors of clients, and tensors that differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fedsgd
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import FedsgdError, ModelError, ReportError
from fedsgd.experiment.trained_model import load_model, load_parameters
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.sections import UplinkConfig

SHORT = {"rounds": 2, "client.epochs": 1, "data.partition.clients": 4, "server.cohort": 2}


def make_net(width: int = 6, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.Linear(width, 10)).to(dtype)


def run_net(tmp_path: Path, **settings: Any) -> fedsgd.Result:
    scenario = Scenario(name="net").with_settings({**SHORT, "model.batch_norm": "mean", **settings})
    return fedsgd.run(scenario, model=make_net(), out=tmp_path / "run")


def equal_states(module: nn.Module, state: Any) -> bool:
    own_state = module.state_dict()
    return own_state.keys() == state.keys() and all(torch.equal(own_state[name].float(), state[name].float()) for name in state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_and_buffers_of_a_result_are_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    result = run_net(tmp_path)
    module = make_net(dtype=dtype)
    assert result.load_into(module) is module
    assert equal_states(module, result.state_dict)
    assert not torch.equal(module[2].running_mean, torch.zeros(6, dtype=dtype)), "buffers are trained"


@pytest.mark.slow
def test_parameters_of_a_run_directory_are_those_of_the_evaluated_model(tmp_path: Path) -> None:
    settings = {"downlink.policy": "model", "downlink.compressor": {"name": "dense", "values": "bfloat16"}}
    result = run_net(tmp_path, **settings)
    assert result.summary["reported_model"] == "evaluated.safetensors"
    module = load_parameters(tmp_path / "run", make_net())
    assert equal_states(module, load_file(tmp_path / "run" / "evaluated.safetensors"))
    assert equal_states(module, result.state_dict)


@pytest.mark.slow
def test_tensors_of_a_client_are_loaded_on_request(tmp_path: Path) -> None:
    settings = {"model.batch_norm": "local", "data.held_out": 0.2, "evaluation.clients": True}
    result = run_net(tmp_path, **settings)
    tensors = load_file(tmp_path / "run" / "clients.safetensors")
    client = int(tensors["clients"][1])
    module = load_parameters(tmp_path / "run", make_net(), client=client)
    assert torch.equal(module[2].running_mean, tensors["2.running_mean"][1])
    assert torch.equal(module[1].weight, result.state_dict["1.weight"])
    assert equal_states(load_parameters(tmp_path / "run", make_net()), result.state_dict)
    with pytest.raises(ReportError, match=r"clients\.safetensors: has no client 77, expected one of the 4 clients with test"):
        load_parameters(tmp_path / "run", make_net(), client=77)


def test_named_model_is_built_with_the_trained_parameters(tmp_path: Path) -> None:
    scenario = Scenario(name="named").with_settings({**SHORT, "model": {"name": "mlp", "hidden": [5]}})
    result = fedsgd.run(scenario, out=tmp_path / "run")
    module = load_model(tmp_path / "run")
    assert equal_states(module, result.state_dict)
    assert module(torch.zeros(1, 8, 8)).shape == (1, 10)


def test_named_model_needs_no_class_of_another_section(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class LocalTopK(TopK):
        name: ClassVar[str] = "local-top-k"

    uplink = UplinkConfig(LocalTopK(0.1), error_feedback="persist")
    result = fedsgd.run(replace(Scenario(name="named").with_settings(SHORT), uplink=uplink), out=tmp_path / "run")
    assert equal_states(load_model(tmp_path / "run"), result.state_dict)


@pytest.mark.slow
def test_module_of_python_is_not_built_again(tmp_path: Path) -> None:
    run_net(tmp_path)
    with pytest.raises(ModelError, match=r"the model is a Python object, expected fedsgd\.load_parameters\('.*run', module\)"):
        load_model(tmp_path / "run")


WRONG_MODULES: dict[str, tuple[Callable[[], Any], str]] = {
    "shapes": (
        lambda: make_net(7),
        "the module differs from the run's model: it has 1.weight of shape [7, 64], expected [6, 64]; has 1.bias of shape [7], "
        "expected [6]; has 2.weight of shape [7], expected [6]; and 4 more",
    ),
    "missing": (
        lambda: make_net()[:3],
        "the module differs from the run's model: it has no tensor 3.bias, 3.weight",
    ),
    "additional": (
        lambda: nn.Sequential(*make_net(), nn.PReLU()),
        "the module differs from the run's model: it has the additional tensor 4.weight",
    ),
    "both": (
        lambda: nn.ModuleDict({"net": make_net()}),
        "it has no tensor 1.bias, 1.weight, 2.bias and 6 more; has the additional tensor net.1.bias, net.1.weight, ",
    ),
    "class": (lambda: nn.PReLU, "module: got the class PReLU, expected an instance of torch.nn.Module"),
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("net")
    run_net(folder)
    return folder / "run"


@pytest.mark.parametrize("case", WRONG_MODULES)
def test_other_module_is_refused_in_one_line(run_folder: Path, case: str) -> None:
    make, message = WRONG_MODULES[case]
    module = make()
    with pytest.raises(ModelError) as error:
        load_parameters(run_folder, module)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_refused_module_keeps_its_values(run_folder: Path) -> None:
    module = nn.Sequential(*make_net(), nn.PReLU())
    state = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ModelError):
        load_parameters(run_folder, module)
    assert equal_states(module, state)


def test_folder_without_a_finished_run_is_refused(run_folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        (tmp_path / "none", "none: has no finished run (summary.json: "),
        (3, "run: got 3, expected the path of a file or folder"),
    ]
    for folder, message in cases:
        with pytest.raises(FedsgdError) as error:
            load_parameters(folder, make_net())
        assert message in str(error.value)
    with pytest.raises(ReportError, match=r"has no clients\.safetensors: no tensors stay at the clients, expected client=None"):
        load_parameters(run_folder, make_net(), client=cast("Any", 0))
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "params.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ReportError, match=r"params\.safetensors: cannot be read"):
        load_parameters(tmp_path, make_net())
