"""Tables of a scenario: components by name, nested tables, and messages for invalid keys and values."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedsgd.cli import main
from fedsgd.compression import CompressionOperator
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import ScenarioError
from fedsgd.models.custom import CustomModule
from fedsgd.optim import SGD, Optimizer, PyTorchMomentum
from fedsgd.optim.adaptive import FedAdam
from fedsgd.scenario.family_listing import describe_registry
from fedsgd.scenario.parsing import REGISTRIES
from fedsgd.scenario.scenario import Scenario, load, parse_scenario

Make = Callable[..., Scenario]


REQUIRED = {
    "cafe": {"uplink.compressor.name": "cafe"},
    "ef21": {"uplink.compressor.name": "ef21", "server.weighting": "uniform"},
    "fetch-sgd": {"uplink.compressor.name": "fetch-sgd"},
    **{rule: {"server.weighting": "uniform"} for rule in ("median", "trimmed-mean", "krum", "multi-krum")},
    "module": {"model.module": "m:f"},
    "npz": {"data.path": "f"},
    "hugging-face": {"data.path": "f"},
    "flwr-datasets": {"data.partition.partitioner": "IidPartitioner"},
    "trace": {"server.sampler.file": "f"},
    "scaffold": {"uplink.compressor.name": "scaffold", "server.weighting": "uniform"},
}
"""Settings that a component needs, by its name. An aggregator of a scheme has the scheme's name."""


@pytest.mark.slow
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
        "Aggregator": "server.aggregator",
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


def test_key_that_implies_a_component_replaces_the_named_component(scenario: Make) -> None:
    """The quickstart's model is an MLP with hidden layers."""
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


def test_message_for_a_nested_operator_offers_only_operators(scenario: Make) -> None:
    with pytest.raises(ScenarioError) as error:
        scenario({"uplink.compressor": {"name": "scheduled", "op": {"density": 0.5}}})
    assert "missing, expected one of" in str(error.value)
    assert '"dgc"' not in str(error.value)


def test_registry_description_lists_keys_and_options() -> None:
    for registry in REGISTRIES.values():
        for member in describe_registry(registry):
            assert member["summary"].endswith(".")
    (topk,) = (m for m in describe_registry(REGISTRIES[CompressionOperator]) if m["name"] == "top-k")
    assert topk["keys"] == {"density": 0.01, "values": "float32", "chunk": None, "scales": None}
    assert topk["options"] == {
        "values": ["float32", "bfloat16", "float16", "natural", "int8", "int4", "ternary", "2bit"],
        "scales": ["vector", "chunk"],
    }


def test_listed_options_begin_with_the_default() -> None:
    output = " ".join(CliRunner().invoke(main, ["list", "models"]).output.split())
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
    ("settings", "suggestion", "absent"),
    [
        ({"client.optimizer": "lion"}, '"sgd"', "fedadam"),
        ({"client.optimizer": "fedyogy"}, 'did you mean "fedavg"?', "fedyogi"),
        ({"client.optimizer": {}}, '"sgd"', "fedadam"),
        ({"server.optimizer": "fedadm"}, 'did you mean "fedadam"?', "sgd"),
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


def test_string_is_read_as_a_table_with_a_name() -> None:
    assert parse_scenario({"name": "x", "uplink": {"compressor": "top-k"}}).uplink.compressor == TopK()


def test_model_with_a_module_needs_no_name() -> None:
    s = parse_scenario({"name": "x", "model": {"module": "a.b:c", "arguments": {"width": 3}}})
    assert s.model.name == "module"
    assert parse_scenario(tomllib.loads(s.to_toml())) == s


def test_server_optimizer_aliases_keep_their_own_learning_rate() -> None:
    def server(optimizer: object) -> Optimizer:
        return parse_scenario({"name": "x", "server": {"optimizer": optimizer}}).server.optimizer

    assert server("fedadam") == FedAdam(lr=0.01)
    assert server("fedavgm") == PyTorchMomentum(lr=1.0)
    assert server({"name": "fedavg", "lr": 0.5}) == SGD(lr=0.5)
    with pytest.raises(ScenarioError, match=r'server\.optimizer.name: got "fedavgn", did you mean "fedavg"'):
        server("fedavgn")


def test_server_learning_rate_defaults_to_one() -> None:
    assert parse_scenario({"name": "x", "server": {"optimizer": {"name": "momentum"}}}).server.optimizer.lr == 1.0
    assert parse_scenario({"name": "x", "client": {"optimizer": {"name": "momentum"}}}).client.optimizer.lr == 0.1
    assert parse_scenario({"name": "x", "server": {"optimizer": {"name": "sgd", "lr": 0.5}}}).server.optimizer.lr == 0.5


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "near name": ({"uplink.compressor.name": "topkk"}, 'uplink.compressor.name: got "topkk", did you mean "top-k"?'),
    "far name": (
        {"uplink.compressor.name": "zip"},
        'got "zip", expected one of: "cafe", "count-sketch", "demo", "dense", "dgc"',
    ),
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
    "cohort": ({"server.cohort": 30, "rounds": 40}, "server.cohort: got 30 clients a round, expected at most 8"),
    "schedule": ({"client.optimizer.schedule.name": "stp"}, 'client.optimizer.schedule.name: got "stp", did you mean "step"?'),
    "inline": ({"data.partitoin": 3}, 'data.partitoin: unknown key, did you mean "partition"?'),
    "inline, far": ({"data.alpha": 3}, 'data.alpha: unknown key, expected one of: "held_out", "name", "partition"'),
    "seed": ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
    "folder": ({"name": "a/b"}, "name: got 'a/b', expected a non-empty printable text without "),
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
