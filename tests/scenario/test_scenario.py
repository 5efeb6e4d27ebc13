"""Scenarios: settings and defaults, round trips through TOML, settings that do not combine, and unreadable files."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsgd.compression import ErrorFeedback, MemorylessScheme
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.topk import TopK
from fedsgd.data.partitioners.iid import Iid
from fedsgd.errors import ScenarioError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.federation_plan import local_training_config
from fedsgd.optim import Momentum
from fedsgd.optim.schedules import StepSchedule
from fedsgd.scenario.scenario import ClientConfig, DataConfig, Scenario, ServerConfig, UplinkConfig, load, parse_scenario
from fedsgd.training import LocalTraining

Make = Callable[..., Scenario]


def test_quickstart_has_the_designed_settings(root: Path) -> None:
    s = load(root / "scenarios" / "quickstart.toml")
    assert (s.name, s.seed, s.rounds, s.compute_cohort_size(20)) == ("quickstart", 0, 40, 10)
    assert s.client == ClientConfig(Momentum(lr=0.05, momentum=0.9), epochs=5, batch_size=10)
    assert s.resolved_uplink.scheme == ErrorFeedback(TopK(0.01, "float32"))
    assert s.report.target_accuracy == 0.9
    assert s.stop.target_accuracy is None


def test_scenario_with_only_a_name_has_the_defaults() -> None:
    s = parse_scenario({"name": "x"})
    assert s == Scenario(name="x")
    assert s.client.epochs == 1
    assert s.compute_cohort_size(100) == 100


def test_server_schedule_over_local_steps_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"server\.optimizer\.schedule_over: got .local-steps., expected .rounds."):
        parse_scenario({"name": "x", "server": {"optimizer": {"name": "sgd", "schedule_over": "local-steps"}}})


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
    with pytest.raises(ScenarioError, match=r"server\.cohort: got 300 clients a round, expected at most 243, "):
        s.compute_cohort_size(243)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "scenarios").glob("*.toml")), ids=lambda p: p.stem)
def test_resolved_scenario_round_trips_through_toml(path: Path) -> None:
    s = load(path)
    assert parse_scenario(tomllib.loads(s.to_toml())) == s


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


def test_nested_components_are_built_from_settings_and_from_python(scenario: Make) -> None:
    s = scenario({"client.optimizer.schedule.name": "step", "client.optimizer.schedule.every": 5})
    assert s.client.optimizer.schedule == StepSchedule(every=5)
    from_python = Scenario(
        name="y", data=DataConfig(partition=Iid(clients=3)), uplink=UplinkConfig(RandK(scaled=False), "persist")
    )
    assert isinstance(from_python.resolved_uplink.scheme, ErrorFeedback)
    assert isinstance(Scenario(name="y").resolved_uplink.scheme, MemorylessScheme)


def test_both_alternatives_at_once_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"server\.cohort: got cohort = 3 and fraction = 0.5, expected only one of them"):
        parse_scenario({"name": "x", "server": {"cohort": 3, "fraction": 0.5}})


def test_scenario_name_may_have_any_letters_and_spaces() -> None:
    for name in ("größe\u00a0\U0001f600", "\u0645\u06cc\u200c\u062e", "\U0001f469\u200d\U0001f4bb"):
        assert Scenario(name=name).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "a\0b", "a\ud800", "a\u2028b", "a\u202eb", "\u200b"])
def test_scenario_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ScenarioError, match=r"scenario\.name: got .*, expected a non-empty printable text"):
        Scenario(name=name)


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


def test_missing_file_is_not_suggested_for_itself(tmp_path: Path) -> None:
    (tmp_path / "x.toml").mkdir()
    with pytest.raises(ScenarioError) as error:
        load(tmp_path / "x.toml")
    assert "did you mean" not in str(error.value)


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
