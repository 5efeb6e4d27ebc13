"""Settings by dotted key, as `--set` and `with_settings` apply them to a scenario."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.data.partitioners.iid import Iid
from fedsgd.errors import ScenarioError
from fedsgd.optim import SGD
from fedsgd.scenario.overrides import parse_setting
from fedsgd.scenario.scenario import Scenario, load, parse_scenario

Make = Callable[..., Scenario]


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


def test_alternative_set_to_none_keeps_the_other() -> None:
    assert Scenario(name="x").with_settings({"client.epochs": 2, "client.steps": None}).client.epochs == 2


def test_settings_of_the_caller_are_not_modified(scenario: Make) -> None:
    compressor = {"name": "dgc", "density": 0.01}
    settings = {"uplink.compressor": compressor, "uplink.compressor.momentum": 0.0, "uplink.error_feedback": "none"}
    assert scenario().with_settings(settings).uplink.compressor == DGC(density=0.01, momentum=0.0)
    assert compressor == {"name": "dgc", "density": 0.01}


def test_component_is_a_value_of_its_key() -> None:
    s = Scenario(name="x").with_settings({"uplink.compressor": RandK(0.5), "data.partition": Iid(clients=7)})
    assert (s.uplink.compressor, s.data.partition) == (RandK(0.5), Iid(clients=7))
    settings = {"uplink.compressor": TopK(0.5), "uplink.compressor.density": 0.25}
    assert s.with_settings(settings).uplink.compressor == TopK(0.25)
