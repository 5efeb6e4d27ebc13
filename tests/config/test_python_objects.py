"""Runs with Python objects: their scenario records the objects, and a rerun repeats the run or is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import fedsgd
from fedsgd.analysis import load_methods
from fedsgd.analysis.differences import describe_other_differences
from fedsgd.analysis.page.payload import ReportOptions, build_payload
from fedsgd.cli import main
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.per_layer import LayerRule, PerLayer
from fedsgd.compression.operators.topk import TopK
from fedsgd.config.python_objects import find_import_path, fingerprint
from fedsgd.data import Dataset, Examples
from fedsgd.data.base import DatasetSource
from fedsgd.errors import DeploymentError, FedsgdError, ReportError, ScenarioError
from fedsgd.experiment.runner import run
from fedsgd.flower.app.settings import parse_uplink
from fedsgd.models import Mlp
from fedsgd.models.custom import PythonObjectModule
from fedsgd.optim import SGD
from fedsgd.scenario.parsing import dump_table, flatten_settings, parse_table
from fedsgd.scenario.scenario import Scenario, load, parse_scenario
from fedsgd.scenario.sections import DownlinkConfig, UplinkConfig
from fedsgd.scenario.target import parse_target
from fedsgd.sweeps.runner import sweep
from fedsgd.trackers.base import RunStarted

Make = Callable[..., Scenario]
HERE = __name__
SHORT = {"rounds": 2, "report.target_accuracy": 0.05}


def smoothed(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target, label_smoothing=0.3)


def top2(output: Tensor, target: Tensor) -> Tensor:
    return (output.topk(2).indices == target[:, None]).any(1).float()


def make_net(width: int = 4) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))


NET = make_net()
"""Module of this file. It has no import path, because another process would import it with other initial parameters."""


@dataclass(frozen=True)
class HalfDense(Dense):
    """Compressor that another process can import."""

    name: ClassVar[str] = "half-dense"

    note: str = "half"


class Renamed(TopK):
    """Compressor that inherits the name "top-k" without being `TopK`."""


@dataclass(frozen=True)
class Waves(DatasetSource):
    """Dataset that a user defines."""

    name: ClassVar[str] = "waves"

    size: int = 40

    def load(self, folder: Path | None) -> Dataset:
        """Return sines of two frequencies."""
        y = np.arange(self.size) % 2
        x = np.sin(np.arange(64)[None] * (y[:, None] + 1)).astype(np.float32)
        return Dataset(Examples(x, y), Examples(x, y), 2)


@dataclass(frozen=True)
class Broken(Waves):
    """Dataset whose constructor fails."""

    def __post_init__(self) -> None:
        raise NameError("Unknown")


@dataclass(frozen=True)
class Nameless(DatasetSource):
    """Dataset without a name."""

    def load(self, folder: Path | None) -> Dataset:
        """Raise an error."""
        raise NotImplementedError


def digests(result: fedsgd.Result) -> tuple[str, str]:
    return result.summary["params_sha256"], result.summary["ledger_sha256"]


def digits(shift: float = 0.0) -> Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.random((90, 64)).astype(np.float32) + np.float32(shift), rng.integers(0, 10, 90)
    return Dataset(Examples(x[:60], y[:60]), Examples(x[60:], y[60:]), 10)


def single_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


# ------------------------------------------------------------------------------------------------------- importable objects


@pytest.mark.slow
def test_importable_loss_and_metric_rerun_from_the_file_alone_to_equal_digests(scenario: Make, tmp_path: Path) -> None:
    s = scenario(SHORT)
    first = fedsgd.run(s, model=fedsgd.CustomModel(loss=smoothed, metrics={"top2": top2}), out=tmp_path / "a")
    assert (first.scenario.model.loss, first.scenario.model.metrics) == (f"{HERE}:smoothed", {"top2": f"{HERE}:top2"})
    second = fedsgd.run(tmp_path / "a" / "scenario.toml", out=tmp_path / "b")
    assert digests(second) == digests(first) != digests(fedsgd.run(s))
    assert second.summary["final_metrics"] == first.summary["final_metrics"]
    assert (first.summary["given_in_python"], second.summary["given_in_python"]) == (["loss", "metrics"], [])
    assert len(load_methods([tmp_path / "a", tmp_path / "b"])) == 1, "one method for both spellings"


@pytest.mark.slow
def test_python_metrics_are_merged_into_the_metrics_of_the_scenario(scenario: Make) -> None:
    s = scenario({**SHORT, "model.metrics": {"a": f"{HERE}:top2", "b": "nowhere_at_all:f"}})
    result = fedsgd.run(s, model=fedsgd.CustomModel(metrics={"b": top2, "c": lambda o, t: o[:, 0]}))
    assert [*result.scenario.model.metrics] == ["a", "b", "c"]
    assert [*result.summary["final_metrics"]] == ["loss", "accuracy", "a", "b", "c"]
    assert result.scenario.model.metrics["b"] == f"{HERE}:top2"
    with pytest.raises(
        ScenarioError, match=r'model\.metrics\.c: .*run\(\.\.\., model=fedsgd\.CustomModel\(metrics=\{"c": \.\.\.\}\)\)'
    ) as error:
        fedsgd.run(result.scenario)
    single_line(error.value)
    assert digests(fedsgd.run(result.scenario, model=fedsgd.CustomModel(metrics={"c": lambda o, t: o[:, 0]}))) == digests(
        result
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (nn.functional.cross_entropy, "torch.nn.functional:cross_entropy"),
        (smoothed, f"{HERE}:smoothed"),
        (HalfDense, f"{HERE}:HalfDense"),
        (lambda o, t: o, None),
        (make_net().forward, None),
        (NET, None),
        (nn.MSELoss(), None),
    ],
    ids=["of torch", "function", "class", "lambda", "bound method", "module", "loss"],
)
def test_import_path_names_the_identical_object_or_is_none(value: Any, expected: str | None) -> None:
    assert find_import_path(value) == expected


def test_import_path_of_a_module_in_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    module = ModuleType("made_in_memory")
    exec("def f(output, target): return output.sum()", module.__dict__)
    monkeypatch.setitem(sys.modules, "made_in_memory", module)
    assert find_import_path(module.f) is None, "no other process can import it"


# --------------------------------------------------------------------------------------------------------------- markers


@pytest.mark.slow
def test_module_is_written_as_a_marker_and_reruns_only_with_the_module(scenario: Make, tmp_path: Path) -> None:
    s = scenario({**SHORT, "model.hidden": [7], "model.batch_norm": "group"})
    first = fedsgd.run(s, model=make_net(), out=tmp_path / "a")
    file = tmp_path / "a" / "scenario.toml"
    model = load(file).model
    assert isinstance(model, PythonObjectModule)
    assert model.batch_norm == "group", "batch_norm applies to any module"
    assert "hidden" not in file.read_text(), "hidden applies to the file's model only"
    assert model.description == "Sequential of torch.nn.modules.container, 310 parameters"
    with pytest.raises(ScenarioError) as error:
        fedsgd.run(file)
    assert "model.name: needs Python objects" in single_line(error.value)
    assert "310 parameters" in single_line(error.value)
    assert "fedsgd.run(..., model=...)" in single_line(error.value)
    second = fedsgd.run(file, model=make_net(), out=tmp_path / "b")
    assert digests(second) == digests(first)
    assert (tmp_path / "b" / "scenario.toml").read_text() == file.read_text()


@pytest.mark.slow
def test_dataset_is_written_as_a_marker_and_reruns_only_with_the_dataset(scenario: Make, tmp_path: Path) -> None:
    first = fedsgd.run(scenario({**SHORT, "data.held_out": 0.2}), data=digits(), out=tmp_path / "a")
    file = tmp_path / "a" / "scenario.toml"
    data = load(file).data
    assert (data.held_out, data.partition) == (0.2, scenario().data.partition)
    assert "60 training and 30 test examples, float32 [64]" in file.read_text()
    with pytest.raises(ScenarioError, match=r"scenario\.toml: data\.name: .*fedsgd\.run\(\.\.\., data=\.\.\.\)") as error:
        fedsgd.run(file)
    single_line(error.value)
    assert digests(fedsgd.run(file, data=digits())) == digests(first)
    other = fedsgd.run(load(file, {"data.sha256": ""}), data=digits(1e-3))
    assert other.scenario != first.scenario, "other values, another fingerprint"


@pytest.mark.slow
def test_all_missing_objects_are_named_in_one_sentence(scenario: Make) -> None:
    model = fedsgd.CustomModel(make_net(), nn.CrossEntropyLoss(), {"z": top2})
    objects: dict[str, Any] = {"data": digits(), "model": model}
    result = fedsgd.run(scenario(SHORT), **objects)
    expected = "fedsgd.run(..., data=..., model=fedsgd.CustomModel(module=..., loss=...))"
    with pytest.raises(ScenarioError, match=re.escape(expected)):
        fedsgd.run(result.scenario)
    assert digests(fedsgd.run(result.scenario, **objects)) == digests(result)
    replaced = result.scenario.with_settings({"data.name": "digits", "model.name": "mlp"})
    assert replaced.model == scenario({"model.name": "mlp"}).model, "settings replace a marker"


@pytest.mark.slow
@pytest.mark.nightly
def test_commands_refuse_a_marker_in_one_line(scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fedsgd.run(scenario(SHORT), model=make_net(), data=digits(), out=tmp_path / "a")
    file = str(tmp_path / "a" / "scenario.toml")
    commands = (["run", file], ["plan", file], ["partition", file], ["sweep", file], ["flower", file, "--nodes", "2"])
    for command in commands:
        result = CliRunner().invoke(main, [*command, "--quiet"])
        assert result.exit_code == 2, (command, result.stderr)
        assert "data.name: needs Python objects" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists(), "no run was started"
    with pytest.raises(ScenarioError, match="needs Python objects"):
        sweep(file, grid={"model.batch_norm": ["group", "mean"]})
    with pytest.raises((ScenarioError, DeploymentError), match="needs Python objects"):
        fedsgd.deploy(file, tmp_path / "d", nodes=2)


def test_tracker_settings_contain_the_marker(scenario: Make, tmp_path: Path) -> None:
    result = fedsgd.run(scenario(SHORT), model=make_net())
    settings = RunStarted(result.scenario).settings
    assert settings["model.name"] == "python-object"
    assert "310 parameters" in str(settings["model.description"])


@pytest.mark.slow
def test_marker_appears_in_no_listing_and_no_suggestion(scenario: Make) -> None:
    with pytest.raises(ScenarioError) as error:
        scenario({"model.name": "zzz"})
    assert "python-object" not in str(error.value)
    assert "python-object" not in CliRunner().invoke(main, ["list"]).output
    assert fedsgd.run(scenario({**SHORT, "name": "python-object"})).scenario.name == "python-object"


# ------------------------------------------------------------------------------------------------------------- components


def with_compressor(s: Scenario, compressor: Any) -> Scenario:
    return replace(s, uplink=replace(s.uplink, compressor=compressor, error_feedback="none"))


@pytest.mark.slow
def test_component_of_an_importable_class_is_written_by_its_path(scenario: Make, tmp_path: Path) -> None:
    s = with_compressor(scenario(SHORT), HalfDense(note="mine"))
    first = fedsgd.run(s, out=tmp_path / "a")
    text = (tmp_path / "a" / "scenario.toml").read_text()
    assert f'name = "{HERE}:HalfDense"\nvalues = "float32"\nentropy = false\nnote = "mine"' in text
    second = fedsgd.run(tmp_path / "a" / "scenario.toml")
    assert second.scenario == first.scenario
    assert second.scenario.uplink.compressor == HalfDense(note="mine")
    assert digests(second) == digests(first)
    assert load(tmp_path / "a" / "scenario.toml", {"uplink.compressor.note": "other"}).uplink.compressor == HalfDense(
        note="other"
    )


def test_source_of_an_importable_class_is_found_by_its_path(scenario: Make) -> None:
    s = scenario({**SHORT, "data.name": f"{HERE}:Waves", "data.size": 24, "data.partition": {"name": "iid", "clients": 4}})
    assert s.data.source == Waves(24)
    assert fedsgd.run(s).scenario.data.source == Waves(24)


@pytest.mark.slow
def test_component_of_a_local_class_is_written_as_a_marker_that_does_not_load(scenario: Make, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Local(TopK):
        """Compressor that no other process can import."""

        name: ClassVar[str] = "local"

    fedsgd.run(with_compressor(scenario(SHORT), Local(density=0.5)), out=tmp_path / "a")
    file = tmp_path / "a" / "scenario.toml"
    assert 'name = "python-object"\ndescription = "test_component' in file.read_text()
    with pytest.raises(ScenarioError) as error:
        load(file)
    assert f"{file}: uplink.compressor.name: needs Python objects" in single_line(error.value)
    assert "density=0.5" in str(error.value)
    assert "define the class in a module" in str(error.value)
    assert load(file, {"uplink.compressor.name": "dense"}).uplink.compressor == Dense()


@pytest.mark.slow
def test_markers_of_local_model_and_source_are_replaced_by_objects(scenario: Make, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class LocalWaves(Waves):
        """Dataset equal to its base."""

    @dataclass(frozen=True)
    class LocalMlp(Mlp):
        """Model that no other process can import."""

        name: ClassVar[str] = "local-mlp"

    s = scenario({**SHORT, "data.partition": {"name": "iid", "clients": 4}})
    s = replace(s, data=replace(s.data, source=LocalWaves()), model=LocalMlp(hidden=(5,), batch_norm="group"))
    fedsgd.run(s, out=tmp_path / "a")
    loaded = load(tmp_path / "a" / "scenario.toml")
    assert (loaded.data.partition, loaded.model.batch_norm) == (s.data.partition, "group")
    with pytest.raises(ScenarioError, match=r"LocalWaves\(size=40\).*LocalMlp\(.*run\(\.\.\., data=\.\.\., model=\.\.\.\)"):
        fedsgd.run(loaded)
    module = nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2))
    assert fedsgd.run(loaded, data=Waves().load(None), model=module).summary["parameters"] == 337


def test_nested_component_of_a_local_class_is_refused_with_its_key(scenario: Make, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Local(Dense):
        """Compressor that no other process can import."""

        name: ClassVar[str] = "local"

    rules = PerLayer(rules=(LayerRule("*bias", Local()),))
    s = with_compressor(scenario(SHORT), rules)
    with pytest.raises(ScenarioError, match=r"uplink\.compressor\.rules\[0\]\.op\.name: needs Python objects"):
        s.with_settings({"seed": 1})
    with pytest.raises(ScenarioError, match=r"uplink\.compressor\.rules\[0\]\.op\.name: needs Python objects"):
        fedsgd.deploy(s, tmp_path / "d", nodes=2)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("uplink.compressor.name", "nowhere_at_all:Mine", 'cannot import "nowhere_at_all"'),
        ("uplink.compressor.name", f"{HERE}:HalfDens", 'did you mean "HalfDense"'),
        ("uplink.compressor.name", f"{HERE}:smoothed", "that subclasses fedsgd.compression.base.Compressor"),
        ("uplink.compressor.name", f"{HERE}:Waves", "that subclasses fedsgd.compression.base.Compressor"),
        ("uplink.compressor.name", "fedsgd.compression:CompressionOperator", "does not define"),
        ("downlink.compressor.name", "fedsgd.compression.schemes.scaffold:Scaffold", "which this key does not accept"),
        ("data.name", f"{HERE}:Nameless", "has no name"),
        ("client.optimizer.name", ":", "expected"),
        ("data.name", f"{HERE}:Broken", "cannot be built: NameError"),
    ],
)
def test_class_that_cannot_be_a_component_is_refused_in_one_line(scenario: Make, key: str, value: str, problem: str) -> None:
    with pytest.raises(ScenarioError) as error:
        scenario({key: value})
    assert single_line(error.value).split(": ")[1] in (key, key.removesuffix(".name"))
    assert problem in str(error.value)


def test_class_named_by_a_server_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_by_server.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    planted = {"name": "planted_by_server:X"}
    with pytest.raises(ScenarioError, match=r'compressor\.name: got "planted_by_server:X"'):
        parse_table(UplinkConfig, {"compressor": planted}, allowed_paths=())
    with pytest.raises(ScenarioError, match=r'compressor\.name: got "planted_by_server:X"'):
        parse_table(DownlinkConfig, {"policy": "error-feedback", "compressor": planted}, allowed_paths=())
    with pytest.raises(ScenarioError, match=r'compressor\.name: ".*:Renamed" is not decorated'):
        parse_uplink(Renamed(), "none")


# ----------------------------------------------------------------------------------------------------------- fingerprints


def local_loss(weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, target: weight * smoothed(output, target)


def module_factories() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    yield "linear", lambda: nn.Linear(3, 4)
    yield "lstm", lambda: nn.LSTM(3, 4)
    yield "attention", lambda: nn.MultiheadAttention(8, 2)
    yield "spectral norm", lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
    yield "hooks", lambda: nn.utils.spectral_norm(nn.Linear(3, 4))


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in module_factories()])
def test_fingerprint_of_a_module_distinguishes_structure_and_values(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    first, second = make(), make()
    torch.manual_seed(0)
    copy_of_first = make()
    assert fingerprint(first) == fingerprint(copy_of_first) != fingerprint(second)
    assert fingerprint(first, include_values=False) == fingerprint(second, include_values=False)
    second.requires_grad_(False)
    assert fingerprint(first, include_values=False) != fingerprint(second, include_values=False), "frozen"


def test_fingerprint_distinguishes_code_closures_and_attributes() -> None:
    def net(text: str) -> type:
        names: dict[str, Any] = {"nn": nn, "__name__": "__main__"}
        exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return {text}", names)
        return names["Net"]

    assert fingerprint(net("x.relu()")()) == fingerprint(net("x.relu()")()) != fingerprint(net("x.tanh()")())
    assert fingerprint(local_loss(1.0)) == fingerprint(local_loss(1.0)) != fingerprint(local_loss(2.0))
    first, copy_of_first, second = (
        eval("lambda o, t: W * smoothed(o, t)", {"W": w, "smoothed": smoothed}) for w in (1.0, 1.0, 2.0)
    )
    assert fingerprint(first) == fingerprint(copy_of_first) != fingerprint(second), "globals"
    assert fingerprint(nn.CrossEntropyLoss(label_smoothing=0.1)) != fingerprint(nn.CrossEntropyLoss())
    assert fingerprint({1, 2, "three"}) == fingerprint({"three", 2, 1})
    assert fingerprint(SGD(lr=0.1)) == fingerprint(SGD(lr=0.1)) != fingerprint(SGD(lr=0.2))
    assert fingerprint(np.zeros((2, 3))) != fingerprint(np.zeros((3, 2)))
    assert fingerprint(x for x in ()), "an object that pickle rejects has a fingerprint too"


@pytest.mark.slow
def test_fingerprint_is_equal_in_another_process() -> None:
    code = "[np.arange(3), {'a', 'b', 'c'}, lambda o, t: o in {'x', 'y', 'z'}, range(2), Path('x')]"
    imports = "import numpy as np; from pathlib import Path; from fedsgd.config.python_objects import fingerprint"
    command = [sys.executable, "-c", f"{imports}; print(fingerprint({code}))"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert output == fingerprint(eval(code))


# ---------------------------------------------------------------------------------------------------------------- reports


@pytest.mark.slow
def test_runs_with_different_python_objects_are_separate_methods(scenario: Make, tmp_path: Path) -> None:
    s = scenario(SHORT)
    fedsgd.run(s, data=digits(), out=tmp_path / "a")
    fedsgd.run(s.with_settings({"seed": 1}), data=digits(), out=tmp_path / "b")
    fedsgd.run(s.with_settings({"seed": 2}), data=digits(0.5), out=tmp_path / "c")
    methods = load_methods([tmp_path])
    assert sorted([run.seed for run in method.runs] for method in methods) == [[0, 1], [2]]
    digests = sorted(str(method.runs[0].settings["data.sha256"])[:6] for method in methods)
    assert sorted(method.label for method in methods) == [f"top-k, error feedback, data given {digest}" for digest in digests]
    with pytest.raises(ReportError, match=r"x: the label has runs that differ in more than their seed: .*data\.sha256"):
        load_methods([("x", tmp_path)])


@pytest.mark.slow
def test_runs_with_different_initial_parameters_are_one_method_only_under_a_label(scenario: Make, tmp_path: Path) -> None:
    for seed in (0, 1):
        module = make_net()
        with torch.no_grad():
            module[1].weight.add_(seed)
        fedsgd.run(scenario({**SHORT, "seed": seed}), model=module, out=tmp_path / str(seed))
    notices: list[str] = []
    assert len(load_methods([tmp_path], on_notice=notices.append)) == 2
    assert any("LABEL=RUN" in line for line in notices)
    (method,) = load_methods([("mine", tmp_path)])
    assert [run.seed for run in method.runs] == [0, 1]
    fedsgd.run(scenario({**SHORT, "seed": 2}), model=make_net(5), out=tmp_path / "2")
    with pytest.raises(ReportError, match=r"differ in more than their seed"):
        load_methods([("mine", tmp_path)])


@pytest.mark.slow
def test_page_price_and_compare_accept_a_run_of_python_objects(scenario: Make, tmp_path: Path) -> None:
    fedsgd.run(scenario(SHORT), model=fedsgd.CustomModel(module=make_net(), loss=local_loss(1.0)), out=tmp_path / "a")
    fedsgd.run(scenario(SHORT), out=tmp_path / "b")
    from fedsgd.network import Link, Network, PricingModel, get_device

    pricing = PricingModel(Network(Link(1e6, 4e6, 0.02)), get_device("phone"), get_device("server"))
    custom, named = (
        m["runs"][0]
        for m in build_payload(
            load_methods([tmp_path / "a", tmp_path / "b"]), ReportOptions("x", parse_target(0.05), pricing, "x")
        )["methods"]
    )
    assert 'name = "python-object"' in custom["scenario"]
    assert "fedsgd.run(..., model=fedsgd.CustomModel(module=..., loss=...))" in custom["needs"]
    assert named["needs"] is None
    for command in (
        ["price", tmp_path / "a", "--network", "4g"],
        ["compare", tmp_path / "a", tmp_path / "b", "--target", "0.05"],
    ):
        result = CliRunner().invoke(main, [str(argument) for argument in command])
        assert result.exit_code == 0, result.output


# ----------------------------------------------------------------------------------------- objects other than those of a run


def python_objects(slope: float = 1.0, power: int = 1) -> dict[str, Any]:
    return {
        "data": digits(),
        "module": make_net(),
        "loss": lambda o, t: slope * nn.functional.cross_entropy(o, t),
        "metrics": {"half": lambda o, t: (o.sum(1) ** power).detach()},
    }


def run_with_objects(scenario: Scenario | Path, out: Path | None = None, **replacements: Any) -> fedsgd.Result:
    objects = {**python_objects(), **replacements}
    return fedsgd.run(scenario, data=objects.pop("data"), model=fedsgd.CustomModel(**objects), out=out)


@pytest.fixture(scope="module")
def rerun_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given") / "run"
    raw = {"name": "g", "rounds": 1, "data": {"name": "digits", "partition": {"name": "iid", "clients": 4}}}
    run_with_objects(parse_scenario(raw), out=folder)
    return folder / "scenario.toml"


def net_with_bias(bias: float) -> nn.Module:
    net = make_net()
    with torch.no_grad():
        net[3].bias.fill_(bias)
    return net


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("key", "replacements", "problem", "remedy"),
    [
        ("data.sha256", {"data": digits(1.0)}, "the dataset differs from that of the run", {"data.sha256": ""}),
        (
            "model.sha256",
            {"module": make_net(5)},
            "the module differs from that of the run",
            {"model.sha256": "", "model.initial_sha256": ""},
        ),
        (
            "model.initial_sha256",
            {"module": net_with_bias(0.5)},
            "the module (same structure, other initial parameters) differs from that of the run",
            {"model.initial_sha256": ""},
        ),
        ("model.loss", {"loss": python_objects(2.0)["loss"]}, "the loss differs from that of the run", {}),
        (
            "model.metrics.half",
            {"metrics": python_objects(power=2)["metrics"]},
            'the metric "half" differs from that of the run',
            {},
        ),
    ],
)
def test_rerun_with_another_object_is_refused_until_the_remedy_is_applied(
    rerun_folder: Path, key: str, replacements: dict[str, Any], problem: str, remedy: dict[str, str]
) -> None:
    with pytest.raises(ScenarioError) as error:
        run_with_objects(rerun_folder, **replacements)
    message = single_line(error.value)
    assert message.startswith(f"{rerun_folder}: {key}: {problem}: got sha256 ")
    marker = str(dict(flatten_settings(dump_table(load(rerun_folder))))[key])
    if not remedy:  # the remedy removes a part of the marker's text
        quoted = message.rpartition('remove "')[2].partition('"')[0]
        assert quoted in marker
        remedy = {key: marker.replace(quoted, "")}
    assert all(f"{name}" in message for name in remedy if name != key)
    result = run_with_objects(load(rerun_folder, remedy), **replacements)
    written = str(dict(flatten_settings(dump_table(result.scenario)))[key])
    assert written not in ("", marker)


@pytest.mark.slow
def test_rerun_with_equal_objects_gives_equal_digests_and_an_equal_scenario(rerun_folder: Path) -> None:
    first, second = (run_with_objects(rerun_folder) for _ in range(2))
    assert digests(first) == digests(second)
    assert first.scenario == load(rerun_folder)


@pytest.mark.slow
def test_rerun_with_a_metric_that_counts_its_calls_starts_from_its_first_state(scenario: Make, tmp_path: Path) -> None:
    def counting() -> Callable[[Tensor, Tensor], Tensor]:
        calls: list[int] = []

        def metric(output: Tensor, target: Tensor) -> Tensor:
            calls.append(len(target))
            return output[:, 0]

        return metric

    first = fedsgd.run(scenario(SHORT), model=fedsgd.CustomModel(metrics={"first": counting()}), out=tmp_path / "run")
    second = fedsgd.run(tmp_path / "run" / "scenario.toml", model=fedsgd.CustomModel(metrics={"first": counting()}))
    assert digests(first) == digests(second)


def make_named_module(name: str, width: int) -> nn.Module:
    """Return an instance of a class of this name that cannot be imported."""
    torch.manual_seed(0)
    cls = type(name, (nn.Sequential,), {"__module__": "__main__", "__qualname__": name})
    module: nn.Module = cls(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))
    return module


@pytest.mark.slow
def test_labels_of_python_objects_are_class_names_with_digests_where_names_collide(scenario: Make, tmp_path: Path) -> None:
    modules = [make_named_module(name, width) for name, width in (("My_Net", 4), ("My_Net", 5), ("Other_Net", 5))]
    first, second, _ = (PythonObjectModule.from_module(module, Mlp()) for module in modules)
    folders = [tmp_path / str(n) for n in range(3)]
    for folder, module in zip(folders, modules, strict=True):
        fedsgd.run(scenario({**SHORT, "rounds": 1}), model=fedsgd.CustomModel(module=module, loss=local_loss(1.0)), out=folder)
    assert [method.label for method in load_methods(folders[:1])] == ["top-k, error feedback"]
    assert [method.label for method in load_methods(folders[::2])] == [
        f"top-k, error feedback, model {name}" for name in ("My_Net", "Other_Net")
    ]
    digests = [marker.sha256[:6] for marker in (first, second)]
    assert [method.label for method in load_methods(folders[:2])] == [
        f"top-k, error feedback, model My_Net {digest}" for digest in digests
    ]
    assert describe_other_differences(load_methods(folders[::2])) == (
        "the runs differ in more than their method: model (My_Net, parameters 310; Other_Net, parameters 385)"
    )


def test_fingerprint_of_a_function_does_not_depend_on_globals_named_like_its_attributes() -> None:
    def make_function(**names: int) -> Any:
        namespace: dict[str, Any] = {"__name__": "__main__", "used": 1, **names}
        exec("def f(x):\n    return x.size + used", namespace)
        return namespace["f"]

    assert fingerprint(make_function(size=3)) == fingerprint(make_function())
    assert fingerprint(make_function(used=2)) != fingerprint(make_function())


SMALL = Examples(np.zeros((8, 4), np.float32), np.arange(8) % 2)
QUICKSTART = Path(__file__).parents[2] / "scenarios" / "quickstart.toml"
WRONG_ARGUMENTS: dict[str, tuple[Callable[[], object], str]] = {
    "run, metrics": (
        lambda: run(QUICKSTART, model=fedsgd.CustomModel(metrics=cast("Any", print))),
        "metrics: got a builtin_function_or_method, expected a dic",
    ),
    "run, tables": (
        lambda: run(cast("Any", {"name": "x"})),
        'scenario: got { name = "x" }, expected a fedsgd.Scenario, or the path of',
    ),
    "run, None": (lambda: run(cast("Any", None)), "scenario: got None, expected a fedsgd.Scenario, or the path of a TOML file"),
    "run, out": (lambda: run(QUICKSTART, out=cast("Any", 3)), "out: got 3, expected the path of a file or folder"),
    "run, data": (
        lambda: run(QUICKSTART, data=cast("Any", 3)),
        "data: got an int, expected the path of a folder or a fedsgd.Dataset(",
    ),
    "run, on_round": (lambda: run(QUICKSTART, on_round=cast("Any", 3)), "on_round: got 3, expected a function"),
    "run, execution": (
        lambda: run(QUICKSTART, execution=cast("Any", 4)),
        "execution: got 4, expected fedsgd.ExecutionConfig(workers=4)",
    ),
    "run, execution of a sweep": (
        lambda: run(QUICKSTART, execution=cast("Any", fedsgd.SweepConfig())),
        "expected fedsgd.ExecutionConfig(workers=...)",
    ),
    "run, model": (lambda: run(QUICKSTART, model=cast("Any", 3)), "model: got an int, expected an instance of torch.nn.Module"),
    "run, component": (
        lambda: run(QUICKSTART, model=cast("Any", Mlp())),
        "; a component goes into the scenario: fedsgd.Scenario(..., model=...)",
    ),
    "run, tracker": (
        lambda: run(QUICKSTART, callbacks=cast("Any", [3])),
        "trackers: got [3], expected a list of fedsgd.Tracker",
    ),
    "run, class of a tracker": (
        lambda: run(QUICKSTART, callbacks=cast("Any", [fedsgd.Tracker])),
        "expected a list of fedsgd.Tracker, each an instance",
    ),
    "run, profile": (
        lambda: run(QUICKSTART, execution=fedsgd.ExecutionConfig(profile=cast("Any", 1))),
        "execution.profile: got 1, expected True or False",
    ),
    "run, overwrite": (
        lambda: run(QUICKSTART, overwrite=cast("Any", "no")),
        'overwrite: got "no", expected True or False',
    ),
    "settings, array": (
        lambda: load(QUICKSTART, {"evaluation.metrics": np.array([1, 2])}),
        'evaluation.metrics: expected a list, each entry "macro-f1"',
    ),
    "sweep, execution": (
        lambda: sweep(QUICKSTART, execution=cast("Any", {"jobs": 2})),
        "execution: got { jobs = 2 }, expected fedsgd.SweepConfig(jobs=...)",
    ),
    "sweep, callbacks": (
        lambda: sweep(QUICKSTART, callbacks=cast("Any", print)),
        "callbacks: got <built-in function print>, expected fedsgd.SweepCallbacks(on_begin=...)",
    ),
    "deploy, execution": (
        lambda: fedsgd.deploy(QUICKSTART, "never", nodes=2, execution=cast("Any", True)),
        "execution: got true, expected fedsgd.DeploymentConfig(tls=true)",
    ),
    "run, trackers": (lambda: run(QUICKSTART, callbacks=cast("Any", 3)), "callbacks: got 3, expected fedsgd.RunCallbacks("),
    "load, path": (lambda: load(cast("Any", 3)), "scenario: got 3, expected the path of a file or folder"),
    "load, list": (
        lambda: load(QUICKSTART, cast("Any", ["a"])),
        'settings: got ["a"], expected a dictionary of values by dotted key',
    ),
    "load, key": (lambda: load(QUICKSTART, cast("Any", {3: None})), "settings: got the key 3, expected a dictionary of values"),
    "tables": (lambda: parse_scenario(cast("Any", 3)), "scenario: expected a table, got 3"),
    "table key": (lambda: parse_scenario(cast("Any", {3: 4})), "scenario: got the key 3, expected a text"),
    "classes": (
        lambda: Dataset(SMALL, SMALL, 10**30),
        f"classes is {10**30}, expected a whole number of at least 1 and at most 2147483647",
    ),
    "sweep": (lambda: sweep(cast("Any", 3)), "scenario: got 3, expected a fedsgd.Scenario, or the path of a TOML file"),
    "sweep, out": (lambda: sweep(QUICKSTART, out=cast("Any", 3)), "out: got 3, expected the path of a file or folder"),
    "sweep, grid": (
        lambda: sweep(QUICKSTART, grid=cast("Any", ["a"])),
        'grid: got ["a"], expected a dictionary of lists of values',
    ),
    "sweep, empty grid": (
        lambda: sweep(QUICKSTART, grid=cast("Any", [])),
        "grid: got [], expected a dictionary of lists of values",
    ),
    "sweep, key": (lambda: sweep(QUICKSTART, tune=cast("Any", {3: [1]})), "tune: got the key 3, expected a dotted key"),
    "sweep, methods": (
        lambda: sweep(QUICKSTART, methods=cast("Any", [1])),
        "methods: got [1], expected a dictionary of settings by label",
    ),
    "sweep, label": (lambda: sweep(QUICKSTART, methods=cast("Any", {3: {}})), "[3]: expected a text as the label"),
    "sweep, setting": (
        lambda: sweep(QUICKSTART, methods=cast("Any", {"a": {3: 4}})),
        "[a]: got the key 3, expected a dictionary",
    ),
}


@pytest.mark.parametrize("case", WRONG_ARGUMENTS)
def test_argument_of_a_wrong_type_is_refused_in_one_line(case: str) -> None:
    call, message = WRONG_ARGUMENTS[case]
    with pytest.raises(FedsgdError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
