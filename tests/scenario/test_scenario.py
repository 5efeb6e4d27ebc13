"""Scenarios: what they hold, what their TOML may say, and what is said when it is wrong."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from torch import nn

from fedsgd.cli import main
from fedsgd.compression import CompressionOperator, ErrorFeedback, MemorylessScheme
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.config.component import FieldError, ValidatedConfig, field_types, import_by_path, validate_value
from fedsgd.data.partitioners.iid import Iid
from fedsgd.errors import ScenarioError, suggest_name
from fedsgd.experiment.builder import build_experiment, local_training_config
from fedsgd.models.custom import CustomModule
from fedsgd.optim import SGD, Momentum, Optimizer, PyTorchMomentum
from fedsgd.optim.adaptive import FedAdam
from fedsgd.optim.schedules import StepSchedule
from fedsgd.scenario.overrides import parse_setting
from fedsgd.scenario.parsing import REGISTRIES, describe_registry
from fedsgd.scenario.scenario import ClientConfig, DataConfig, Scenario, ServerConfig, UplinkConfig, load, parse_scenario
from fedsgd.training import LocalTraining

Make = Callable[..., Scenario]


def test_quickstart_has_the_designed_settings(root: Path) -> None:
    s = load(root / "scenarios" / "quickstart.toml")
    assert (s.name, s.seed, s.rounds, s.compute_cohort_size(20)) == ("quickstart", 0, 40, 10)
    assert s.client == ClientConfig(Momentum(lr=0.05, momentum=0.9), epochs=5, batch_size=10)
    assert s.uplink.build_scheme() == ErrorFeedback(TopK(0.01, "float32"))
    assert s.report.target_accuracy == 0.9
    assert s.stop.target_accuracy is None


def test_scenario_with_only_a_name_has_the_defaults() -> None:
    s = parse_scenario({"name": "x"})
    assert s == Scenario(name="x")
    assert s.client.epochs == 1
    assert s.compute_cohort_size(100) == 100


def test_server_learning_rate_defaults_to_one() -> None:
    assert parse_scenario({"name": "x", "server": {"optimizer": {"name": "momentum"}}}).server.optimizer.lr == 1.0
    assert parse_scenario({"name": "x", "client": {"optimizer": {"name": "momentum"}}}).client.optimizer.lr == 0.1
    assert parse_scenario({"name": "x", "server": {"optimizer": {"name": "sgd", "lr": 0.5}}}).server.optimizer.lr == 0.5


def test_server_optimizer_aliases_keep_their_own_learning_rate() -> None:
    def server(optimizer: object) -> Optimizer:
        return parse_scenario({"name": "x", "server": {"optimizer": optimizer}}).server.optimizer

    assert server("fedadam") == FedAdam(lr=0.01)
    assert server("fedavgm") == PyTorchMomentum(lr=1.0)
    assert server({"name": "fedavg", "lr": 0.5}) == SGD(lr=0.5)
    with pytest.raises(ScenarioError, match=r'server\.optimizer.name: got "fedavgn", did you mean "fedavg"'):
        server("fedavgn")


def test_server_schedule_over_local_steps_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"server\.optimizer\.schedule_over: got .local-steps., expected .rounds."):
        parse_scenario({"name": "x", "server": {"optimizer": {"name": "sgd", "schedule_over": "local-steps"}}})


def test_key_that_implies_a_component_replaces_the_named_component(scenario: Make) -> None:
    """The quickstart names an MLP with hidden layers."""
    custom = scenario({"model.module": "m:f", "model.arguments.width": 3, "model.loss": "m:loss"})
    assert custom.model == CustomModule(loss="m:loss", module="m:f", arguments={"width": 3})
    changed = custom.with_settings({"model.module": "m:g"})
    assert changed.model == CustomModule(loss="m:loss", module="m:g", arguments={"width": 3})


def test_missing_required_key_is_named_with_an_example() -> None:
    with pytest.raises(ScenarioError, match=r"^data\.path: missing, expected for example path = "):
        parse_scenario({"name": "x", "data": {"name": "npz"}})
    with pytest.raises(ScenarioError, match=r"^model\.module: missing, expected for example module = "):
        parse_scenario({"name": "x", "model": {"name": "module"}})
    keys = {m["name"]: m["keys"] for registry in REGISTRIES.values() for m in describe_registry(registry)}
    assert keys["npz"] == {"path": "required", "classes": None, "test_share": 0.2}


def test_engine_settings_that_do_not_combine_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r'engine\.stack: got 8 with captured, expected it with "stacked" or "auto" only'):
        parse_scenario({"name": "x", "engine": {"name": "captured", "stack": 8}})
    with pytest.raises(ScenarioError, match=r'engine\.name: got "serial", did you mean "sequential"'):
        parse_scenario({"name": "x", "engine": {"name": "serial"}})
    resolved = parse_scenario({"name": "x", "engine": {"name": "stacked", "update": "exact", "stack": 8}})
    assert parse_scenario(tomllib.loads(resolved.to_toml())) == resolved


def test_cohort_larger_than_the_natural_partition_is_refused() -> None:
    s = parse_scenario({"name": "x", "data": {"name": "shakespeare", "partition": "natural"}, "server": {"cohort": 300}})
    assert s.compute_cohort_size(300) == 300
    with pytest.raises(ScenarioError, match=r"server\.cohort: got 300 clients a round, but data.partition gives 243"):
        s.compute_cohort_size(243)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "scenarios").glob("*.toml")), ids=lambda p: p.stem)
def test_resolved_scenario_round_trips_through_toml(path: Path) -> None:
    s = load(path)
    assert parse_scenario(tomllib.loads(s.to_toml())) == s


REQUIRED = {
    "ef21": {"server.weighting": "uniform"},
    "module": {"model.module": "m:f"},
    "npz": {"data.path": "f"},
    "hugging-face": {"data.path": "f"},
}
REQUIRED["flwr-datasets"] = {"data.partition.partitioner": "IidPartitioner"}
REQUIRED["trace"] = {"server.sampler.file": "f"}
REQUIRED["scaffold"] = REQUIRED["ef21"]


def test_every_component_round_trips_through_toml() -> None:
    keys = {
        "DatasetSource": "data",
        "Partitioner": "data.partition",
        "Model": "model",
        "Optimizer": "client.optimizer",
        "Schedule": "client.optimizer.schedule",
        "Compressor": "uplink.compressor",
        "Sampler": "server.sampler",
        "DurationModel": "participation.durations",
    }
    assert {base.__name__ for base in REGISTRIES} - {*keys} == {"CompressionOperator"}
    for base, registry in REGISTRIES.items():
        for name in registry if base.__name__ in keys else ():
            key = "server.optimizer" if getattr(registry[name], "server_only", False) else keys[base.__name__]
            s = Scenario(name="x").with_settings({f"{key}.name": name, **REQUIRED.get(name, {})})
            assert parse_scenario(tomllib.loads(s.to_toml())) == s
            assert f'name = "{name}"' in s.to_toml()


def test_layer_rules_are_a_list_of_tables(scenario: Make) -> None:
    rules = [{"pattern": "1.*", "op": {"name": "top-k", "density": 0.5}}, {"pattern": "3.*", "op": "sign"}]
    s = scenario({"uplink.compressor.name": "per-layer", "uplink.compressor.rules": rules})
    assert parse_scenario(tomllib.loads(s.to_toml())) == s
    bad = [{"pattern": "1.*", "op": {"name": "top-k", "density": 5}}]
    with pytest.raises(
        ScenarioError, match=r"uplink\.compressor\.rules\[0\]\.op\.density: expected a number above 0 and at most 1, got 5"
    ):
        scenario({"uplink.compressor.name": "per-layer", "uplink.compressor.rules": bad})
    with pytest.raises(ScenarioError, match=r"uplink\.compressor\.rules: expected a list of tables, got \"x\""):
        scenario({"uplink.compressor.name": "per-layer", "uplink.compressor.rules": "x"})
    with pytest.raises(
        ScenarioError, match=r'uplink\.compressor\.op\.name: got "dgc", which this key does not accept, expected one of'
    ):
        scenario({"uplink.compressor.name": "per-layer", "uplink.compressor.op": "dgc"})


@pytest.mark.parametrize(("outer", "inner"), [("ef21", "op"), ("cafe", "op"), ("scheduled", "op"), ("per-layer", "biases")])
def test_settings_reach_a_nested_compressor(scenario: Make, outer: str, inner: str) -> None:
    key = f"uplink.compressor.{inner}"
    base = {"uplink.compressor.name": outer, "uplink.error_feedback": "none", "server.weighting": "uniform"}
    s = scenario({**base, f"{key}.name": "top-k", f"{key}.density": 0.5})
    assert getattr(s.uplink.compressor, inner) == TopK(0.5)
    changed = s.with_settings({f"{key}.name": "rand-k", f"{key}.scaled": False})
    assert getattr(changed.uplink.compressor, inner) == RandK(scaled=False), "a new name takes its own defaults"
    if inner == "op":
        assert scenario({**base, "uplink.compressor.op.density": 0.25}).uplink.compressor.op == TopK(0.25)


def test_message_for_a_nested_operator_offers_only_operators(scenario: Make) -> None:
    with pytest.raises(ScenarioError) as error:
        scenario({"uplink.compressor": {"name": "scheduled", "op": {"density": 0.5}}})
    assert "missing, expected one of" in str(error.value)
    assert '"dgc"' not in str(error.value)


def test_layer_rule_without_a_matching_tensor_is_refused(scenario: Make) -> None:
    s = scenario({"uplink.compressor": {"name": "per-layer", "rules": [{"pattern": "1.wieght", "op": "dense"}]}})
    with pytest.raises(
        ScenarioError, match=r'^uplink\.compressor\.rules: pattern "1\.wieght" matches no tensor.*did you mean "1\.weight"'
    ):
        build_experiment(s)


def test_cohort_of_any_fraction_has_at_least_one_client() -> None:
    for fraction, m in ((0.0, 1), (0.1, 10), (0.014, 1), (0.016, 2), (1.0, 100)):
        assert Scenario(name="x", server=ServerConfig(fraction=fraction)).compute_cohort_size(100) == m


def test_local_training_config_follows_the_client_table(scenario: Make) -> None:
    s = scenario({"client.optimizer.weight_decay": 0.1, "client.optimizer.schedule.name": "step", "client.batch_size": "full"})
    assert local_training_config(s) == LocalTraining(s.client.optimizer, 1, None, None)
    assert local_training_config(scenario({"client.steps": 7})) == LocalTraining(scenario().client.optimizer, None, 7, 10)


def test_string_is_read_as_a_table_with_a_name() -> None:
    assert parse_scenario({"name": "x", "uplink": {"compressor": "top-k"}}).uplink.compressor == TopK()


def test_model_with_a_module_needs_no_name() -> None:
    s = parse_scenario({"name": "x", "model": {"module": "a.b:c", "arguments": {"width": 3}}})
    assert s.model.name == "module"
    assert parse_scenario(tomllib.loads(s.to_toml())) == s


def test_nested_components_are_built_from_settings_and_from_python(scenario: Make) -> None:
    s = scenario({"client.optimizer.schedule.name": "step", "client.optimizer.schedule.every": 5})
    assert s.client.optimizer.schedule == StepSchedule(every=5)
    from_python = Scenario(
        name="y", data=DataConfig(partition=Iid(clients=3)), uplink=UplinkConfig(RandK(scaled=False), "persist")
    )
    assert isinstance(from_python.uplink.build_scheme(), ErrorFeedback)
    assert isinstance(Scenario(name="y").uplink.build_scheme(), MemorylessScheme)


# ------------------------------------------------------------------------------------------------------------------- --set


def test_name_setting_resets_the_other_keys_of_the_component(scenario: Make) -> None:
    assert scenario({"uplink.compressor.density": 0.5}).uplink.compressor == TopK(0.5)
    settings = {"uplink.error_feedback": "none", "uplink.compressor.density": 0.2, "uplink.compressor.name": "rand-k"}
    assert scenario(settings).uplink.compressor == RandK(0.2)
    assert scenario({"client.optimizer.name": "sgd"}).client.optimizer == SGD()
    assert scenario({"uplink.compressor.name": "top-k"}).uplink.compressor == TopK()


def test_settings_in_any_order_give_the_same_scenario(scenario: Make) -> None:
    for settings in (
        {"uplink.compressor": "top-k", "uplink.compressor.density": 0.5},
        {"uplink.compressor.density": 0.5, "uplink.compressor": "top-k"},
    ):
        assert scenario(settings).uplink.compressor == TopK(0.5)


def test_key_called_name_in_plain_data_resets_nothing() -> None:
    s = parse_scenario({"name": "x", "model": {"module": "a:b", "arguments": {"width": 3, "name": "p"}}})
    assert s.with_settings({"model.arguments.name": "q"}).model.arguments == {"width": 3, "name": "q"}


def test_setting_of_a_table_absent_from_the_file_starts_from_the_default(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('name = "x"')
    settings = {
        "client.optimizer.lr": 0.2,
        "data.partition.clients": 7,
        "model.hidden": [3],
        "server.optimizer.momentum": 0.5,
        "server.optimizer.name": "nesterov",
    }
    assert load(path, settings) == load(path).with_settings(settings)
    s = load(path, settings)
    assert (s.client.optimizer.lr, s.data.partition, s.model.hidden) == (0.2, Iid(clients=7), (3,))
    assert s.server.optimizer.lr == 1.0


def test_dataset_setting_keeps_the_partition(scenario: Make) -> None:
    assert scenario({"data.name": "mnist"}).data.partition == scenario().data.partition


def test_setting_one_alternative_unsets_the_other(scenario: Make) -> None:
    s = scenario({"server.fraction": 0.5, "client.steps": 3})
    assert (s.server.cohort, s.server.fraction) == (None, 0.5)
    assert (s.client.epochs, s.client.steps) == (None, 3)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a.b=1", ("a.b", 1)),
        ("a=1.5e-3", ("a", 0.0015)),
        ("a=.01", ("a", 0.01)),
        ("a=true", ("a", True)),
        ("a=top-k", ("a", "top-k")),
        ('a="x y"', ("a", "x y")),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=2nn", ("a", "2nn")),
        ("a = b=c", ("a", "b=c")),
        ("a=", ("a", "")),
    ],
)
def test_settings_are_toml_values_or_plain_words(text: str, parsed: tuple[str, Any]) -> None:
    assert parse_setting(text) == parsed


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1"])
def test_malformed_setting_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError, match="expected KEY=VALUE"):
        parse_setting(text)


# ---------------------------------------------------------------------------------------------------------------- messages

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "near name": ({"uplink.compressor.name": "topkk"}, 'uplink.compressor.name: got "topkk", did you mean "top-k"?'),
    "far name": ({"uplink.compressor.name": "zip"}, 'got "zip", expected one of: "cafe", "count-sketch", "dense", "dgc"'),
    "unknown key": ({"uplink.compressor.densty": 1}, 'uplink.compressor.densty: unknown key, did you mean "density"?'),
    "unknown section": ({"uplnk.x": 1}, 'uplnk: unknown key, did you mean "uplink"?'),
    "too large": (
        {"uplink.compressor.density": 5},
        "uplink.compressor.density: expected a number above 0 and at most 1, got 5",
    ),
    "wrong type": ({"rounds": "40"}, 'rounds: expected a whole number of at least 1, got "40"'),
    "not whole": ({"rounds": 2.5}, "rounds: expected a whole number of at least 1, got 2.5"),
    "a flag for a number": ({"rounds": True}, "rounds: expected a whole number of at least 1, got true"),
    "not a number": ({"client.optimizer.lr": float("nan")}, "client.optimizer.lr: expected "),
    "infinite": ({"client.optimizer.lr": float("inf")}, "client.optimizer.lr: expected a finite number, got inf"),
    "in a list": ({"model.hidden": [3, "a"]}, 'model.hidden: expected a whole number of at least 1 at [1], got [3, "a"]'),
    "literal": ({"uplink.error_feedback": "persit"}, 'uplink.error_feedback: got "persit", did you mean "persist"?'),
    "word or number": ({"client.batch_size": "ful"}, 'client.batch_size: got "ful", did you mean "full"?'),
    "table": ({"server": 3}, "server: expected a table, got 3"),
    "component": ({"uplink.compressor": 3}, "uplink.compressor: expected a table with a name"),
    "no name": ({"uplink.compressor": {}}, "uplink.compressor.name: missing, expected one of"),
    "name not a word": ({"uplink.compressor": {"name": 3}}, "uplink.compressor.name: expected the name of a compressor, got 3"),
    "below a value": ({"rounds.x": 1}, "rounds.x: rounds is 40, which has no keys"),
    "cohort": ({"server.cohort": 30, "rounds": 40}, "server.cohort: got 30 clients a round, but data.partition gives 8"),
    "schedule": ({"client.optimizer.schedule.name": "stp"}, 'client.optimizer.schedule.name: got "stp", did you mean "step"?'),
    "inline": ({"data.partitoin": 3}, 'data.partitoin: unknown key, did you mean "partition"?'),
    "inline, far": ({"data.alpha": 3}, 'data.alpha: unknown key, expected one of: "held_out", "name", "partition"'),
    "seed": ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
    "folder": ({"name": "a/b"}, "name: got 'a/b', expected a word that is valid as the name of a folder"),
    "memory": ({"uplink.compressor.name": "rand-k"}, "uplink.error_feedback: error-feedback needs a contractive compressor"),
    "downlink": ({"downlink.compressor.name": "top-k"}, 'downlink.compressor.name: got "top-k", expected "dense"'),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG.keys())
def test_invalid_setting_is_reported_with_file_and_key(root: Path, settings: dict[str, Any], message: str) -> None:
    path = root / "scenarios" / "quickstart.toml"
    base_settings = {"data.partition.clients": 8} if "cohort" in str(settings) else {}
    with pytest.raises(ScenarioError) as error:
        load(path, {**base_settings, **settings})
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_both_alternatives_at_once_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"server\.cohort: got cohort = 3 and fraction = 0.5, expected only one of them"):
        parse_scenario({"name": "x", "server": {"cohort": 3, "fraction": 0.5}})


def test_missing_scenario_name_is_refused() -> None:
    with pytest.raises(ScenarioError, match="name: missing"):
        parse_scenario({})


def test_unreadable_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "quickstart.toml").write_text("name = ")
    with pytest.raises(ScenarioError, match=r'quikstart.toml: cannot be read .*did you mean "quickstart.toml"\?'):
        load(tmp_path / "quikstart.toml")
    with pytest.raises(ScenarioError, match=r"quickstart\.toml: not valid TOML: "):
        load(tmp_path / "quickstart.toml")
    with pytest.raises(ScenarioError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ScenarioError, match="not valid TOML"):
        load(tmp_path / "latin.toml")


def test_registry_description_lists_keys_and_options() -> None:
    for registry in REGISTRIES.values():
        for member in describe_registry(registry):
            assert member["summary"].endswith(".")
    (topk,) = (m for m in describe_registry(REGISTRIES[CompressionOperator]) if m["name"] == "top-k")
    assert topk["keys"] == {"density": 0.01, "values": "float32"}
    assert topk["options"] == {"values": ["float32", "bfloat16", "float16", "natural", "int8", "int4", "ternary"]}


@pytest.mark.parametrize(
    ("settings", "suggestion", "absent"),
    [
        ({"client.optimizer": "adam"}, '"sgd"', "fedadam"),
        ({"client.optimizer": "fedyogy"}, 'did you mean "fedavg"?', "fedyogi"),
        ({"client.optimizer": {}}, '"sgd"', "fedadam"),
        ({"server.optimizer": "adam"}, 'did you mean "fedadam"?', "sgd"),
        ({"server.optimizer": "fedavgmm"}, 'did you mean "fedavgm"?', "sgd"),
        ({"downlink.compressor": "scafold"}, '"top-k"', "scaffold"),
        ({"uplink.compressor": "scafold"}, 'did you mean "scaffold"?', "top-k"),
        ({"uplink.compressor": {"name": "ef21", "op": "qsg"}}, '"top-k"', "qsgd"),
        ({"uplink.compressor": {"name": "cafe", "op": "randk"}}, 'did you mean "rand-k"?', "dense"),
        ({"uplink.compressor": {"name": "scheduled", "op": "sgn"}}, '"rand-k"', "sign"),
        ({"uplink.compressor": {"name": "per-layer", "op": "per-layr"}}, '"top-k"', "per-layer"),
        ({"uplink.compressor": {"name": "per-layer", "rules": [{"pattern": "*", "op": "per-layr"}]}}, '"top-k"', "per-layer"),
        ({"data.partition": "cyclik"}, '"iid"', "cyclic"),
        ({"server.sampler": "iid"}, '"uniform"', "dirichlet"),
        ({"client.optimizer.momentun": 0.9}, '"lr"', "momentum"),
        ({"model": {"modul": "m:f"}}, 'model.modul: unknown key, did you mean "module"?', "mlp"),
    ],
)
def test_suggestion_names_only_what_is_valid_there(settings: dict[str, Any], suggestion: str, absent: str) -> None:
    with pytest.raises(ScenarioError) as error:
        Scenario(name="x").with_settings(settings)
    hint = str(error.value).partition("got ")[2] or str(error.value)
    assert suggestion in hint
    assert f'"{absent}"' not in hint


def test_suggestion_for_a_missing_attribute_names_callables_only() -> None:
    with pytest.raises(ScenarioError, match='"math" has no "sqroot", did you mean "sqrt"'):
        import_by_path("math:sqroot")
    with pytest.raises(ScenarioError) as error:
        import_by_path("torch.nn:zzz")
    assert "__" not in str(error.value)
    assert len(str(error.value)) < 1000
    with pytest.raises(ScenarioError, match=r"expected one of: .*acos.* and \d+ more$"):
        import_by_path("math:p")  # a number of the module is no function


def test_missing_file_is_not_suggested_for_itself(tmp_path: Path) -> None:
    (tmp_path / "x.toml").mkdir()
    with pytest.raises(ScenarioError) as error:
        load(tmp_path / "x.toml")
    assert "did you mean" not in str(error.value)


INSTANCE = nn.Identity()
WRONG_VALUES: dict[str, Any] = {
    "word": "huge",
    "number": 1.5,
    "negative": -1,
    "flag": True,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "list": [None],
    "list of lists": [[1], ["a"]],
    "table": {"a": None},
    "lines": np.zeros((3, 3)),
    "bytes": b"\n",
    "long": "x" * 1000,
}
JARGON = re.compile(
    r"\b(null|int|float|str|bool|array|object|Literal|enum|Invalid|NoneType|dict|tuple)\b|[<>]=|Annotated|msgspec"
)


def _checked_classes() -> list[type[ValidatedConfig]]:
    """Every registered component, every table of a scenario, and every other checked class that fedsgd defines."""
    members = [registry[name] for registry in REGISTRIES.values() for name in registry]
    classes, queue = dict.fromkeys(members), [ValidatedConfig]
    while queue:
        subclasses = queue.pop().__subclasses__()
        queue += subclasses
        classes.update(dict.fromkeys(cls for cls in subclasses if cls.__module__.startswith("fedsgd.")))
    return [cls for cls in classes if not inspect.isabstract(cls)]


def test_invalid_value_for_any_field_is_refused_in_plain_words() -> None:
    n_refused, kinds = 0, set()
    for cls in _checked_classes():
        for key, annotation in field_types(cls).items():
            for value in WRONG_VALUES.values():
                try:
                    validate_value(value, annotation)
                except ValueError as problem:
                    message, n_refused = str(FieldError(cls.__name__, key, str(problem))), n_refused + 1
                    kinds.add(str(annotation))
                    expectation = message.rpartition(", got ")[0] or message  # without the value
                    assert message.startswith(f"{cls.__name__}.{key}: "), message
                    assert "expected " in expectation, message
                    assert not JARGON.search(expectation), message
                    assert "\n" not in message, message
                    assert len(message) < 260, message
    assert n_refused > 1000
    assert {str(annotation) for cls in _checked_classes() for annotation in field_types(cls).values()} == kinds


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (["a", "y"], 'data.x: names "y", which is data.y: the model would be given its target'),
        ("y", 'data.x: names "y", which is data.y: the model would be given its target'),
        (["a", "b", "a"], 'data.x: names "a" twice, expected each column once'),
    ],
)
def test_feature_columns_with_the_target_or_duplicates_are_refused(x: Any, message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        Scenario(name="x").with_settings({"data": {"name": "hugging-face", "path": "p", "x": x, "y": "y"}})
    assert str(error.value) == message


@pytest.mark.parametrize("field", ["lr", "weight_decay", "clip_norm"])
def test_largest_float32_number_is_accepted(field: str) -> None:
    largest = float(np.finfo(np.float32).max)
    scenario = Scenario(name="x").with_settings({f"client.optimizer.{field}": largest})
    assert getattr(scenario.client.optimizer, field) == largest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"client.batch_size": "huge"}, 'client.batch_size: expected a whole number of at least 1 or "full", got "huge"'),
        ({"client.steps": 0}, "client.steps: expected a whole number of at least 1, or the key left out, got 0"),
        ({"server.fraction": 2}, "server.fraction: expected a number from 0 to 1, or the key left out, got 2"),
        ({"evaluation.clients": 1}, "evaluation.clients: expected true or false, got 1"),
        ({"state.folder": 3}, "state.folder: expected a text in quotes, or the key left out, got 3"),
        ({"state.store": 3}, 'state.store: expected "auto", "memory" or "disk", got 3'),
        ({"model.hidden": 3}, "model.hidden: expected a list, each entry a whole number of at least 1, got 3"),
        ({"model.metrics": 3}, "model.metrics: expected a table, each value a text in quotes, got 3"),
        ({"model.metrics": {"top": 3}}, "model.metrics: expected a text in quotes at top, got { top = 3 }"),
        ({"data.held_out": 1}, "data.held_out: expected a number of at least 0 and below 1, got 1"),
        (
            {"uplink.compressor": {"name": "qsgd", "levels": 128}},
            "uplink.compressor.levels: expected a whole number from 1 to 127, got 128",
        ),
        (
            {"client.optimizer.lr": 1e39},
            "client.optimizer.lr: expected a number above 0 and at most 3.4e38, the largest number of float32, got 1e+39",
        ),
        (
            {"client.proximal": 10**400},
            "client.proximal: expected a number from 0 to 3.4e38, the largest number of float32, got 1" + "0" * 76 + "...",
        ),
        ({"server.optimizer.lr": float("inf")}, "server.optimizer.lr: expected a finite number, got inf"),
        ({"uplink.compressor": {"name": "eden", "bits": 9}}, "uplink.compressor.bits: expected 1, 2, 3 or 4, got 9"),
    ],
)
def test_invalid_value_is_reported_with_key_and_options(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        Scenario(name="x").with_settings(settings)
    assert str(error.value) == message


def test_listed_options_begin_with_the_default() -> None:
    output = CliRunner().invoke(main, ["list", "models"]).output
    assert (
        'batch_norm = "refuse" | "batch" | "group" | "mean" | "local" | "frozen", buffers = "refuse" | "mean" | "local"'
        in output
    )
    assert "loss_parameters = false" in output
    for registry in REGISTRIES.values():
        for member in describe_registry(registry):
            for key, options in member["options"].items():
                default = member["keys"][key]
                assert len(options) > 1
                assert default is None or default == "required" or options[0] == default


@pytest.mark.parametrize(
    ("word", "options", "hint"),
    [
        ("noniid", ["iid", "dirichlet"], ', expected one of: "dirichlet", "iid"'),
        ("quick.toml", ["div.toml"], ', expected one of: "div.toml"'),
        ("quick.toml", ["div.toml", "quickstart.toml"], ', did you mean "quickstart.toml"?'),
        ("TopK", ["top-k", "dense"], ', did you mean "top-k"?'),
        ("otpk", ["top-k", "topk"], ', did you mean "topk"?'),
    ],
)
def test_suggestion_is_a_similar_name(word: str, options: list[str], hint: str) -> None:
    assert suggest_name(word, options) == hint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"client.optimizer.name": 3}, "client.optimizer.name: expected the name of an optimizer, got 3"),
        ({"rounds": True}, "rounds: expected a whole number of at least 1, got true"),
        ({"rounds": {"a": [1, "b"]}}, 'rounds: expected a whole number of at least 1, got { a = [1, "b"] }'),
        (
            {"client.steps": "null"},
            'client.steps: expected a whole number of at least 1, or the key left out, got "null"; to leave a key out, delete its line',
        ),
        (
            {"model": {"name": "module"}},
            'model.module: missing, expected for example module = "my_package.my_module:make_model"',
        ),
        (
            {"client.steps": 5, "client.epochs": 1},
            "client.epochs: is set together with client.steps, expected only one of them",
        ),
    ],
)
def test_invalid_setting_is_quoted_as_in_toml(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        Scenario(name="x").with_settings(settings)
    assert str(error.value) == message


def test_alternative_set_to_none_keeps_the_other() -> None:
    assert Scenario(name="x").with_settings({"client.epochs": 2, "client.steps": None}).client.epochs == 2


def test_missing_module_is_reported_with_the_searched_folder() -> None:
    with pytest.raises(ScenarioError) as error:
        import_by_path("nowhere_at_all:make")
    assert f"searched the current folder {Path.cwd()} and Python's path; run from its folder" in str(error.value)


def test_instance_in_place_of_a_factory_is_refused() -> None:
    with pytest.raises(FieldError, match=f'"{__name__}:INSTANCE" is an instance, an Identity, expected a function or class'):
        CustomModule(module=f"{__name__}:INSTANCE").build((4,), 2)


def test_settings_of_the_caller_are_not_modified(scenario: Make) -> None:
    compressor = {"name": "dgc", "density": 0.01}
    settings = {"uplink.compressor": compressor, "uplink.compressor.momentum": 0.0, "uplink.error_feedback": "none"}
    assert scenario().with_settings(settings).uplink.compressor == DGC(density=0.01, momentum=0.0)
    assert compressor == {"name": "dgc", "density": 0.01}
