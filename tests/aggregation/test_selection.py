"""Selection of the aggregator: `[server] aggregator` of a scenario, server halves of schemes, and weights of a rule."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import fedsgd
from fedsgd.aggregation import AGGREGATORS, Aggregator, WeightedMean, select_aggregator
from fedsgd.aggregation.clipping import CenteredClipping, NormClipping
from fedsgd.aggregation.coordinate_wise import Median, TrimmedMean
from fedsgd.aggregation.geometric_median import GeometricMedian
from fedsgd.aggregation.krum import Krum, MultiKrum
from fedsgd.aggregation.mean import MeanOfSenders
from fedsgd.compression import COMPRESSORS, CompressionScheme, ErrorFeedback, MemorylessScheme, StaleResidualPolicy
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.cafe import CAFe
from fedsgd.compression.schemes.ef21 import EF21
from fedsgd.config.component import Component, FieldError
from fedsgd.errors import ScenarioError
from fedsgd.scenario.scenario import Scenario, parse_scenario

Make = Callable[..., Scenario]

UNIFORM = {"server.weighting": "uniform"}
SCHEMES = ("cafe", "ef21", "fetch-sgd", "scaffold")
"""Schemes with a server half, whose aggregator has the scheme's name."""
ACCEPTED_WEIGHTS = {
    **dict.fromkeys(("weighted-mean", "mean-of-senders", "norm-clipping", "fetch-sgd"), "any"),
    **dict.fromkeys(("geometric-median", "centered-clipping", "cafe"), "normalized"),
    **dict.fromkeys(("median", "trimmed-mean", "krum", "multi-krum", "ef21", "scaffold"), "equal"),
}
RULES = [name for name in ACCEPTED_WEIGHTS if name not in SCHEMES]
EQUAL = [name for name in ACCEPTED_WEIGHTS if ACCEPTED_WEIGHTS[name] == "equal"]
NORMALIZED = [name for name in ACCEPTED_WEIGHTS if ACCEPTED_WEIGHTS[name] != "any"]


def settings_of(name: str, **options: Any) -> dict[str, Any]:
    """Return settings that select an aggregator, with the compressor of a scheme that owns it and weights that it accepts."""
    settings: dict[str, Any] = {"server.aggregator": {"name": name, **options}}
    if name in SCHEMES:
        settings |= {"uplink.compressor": name, "uplink.error_feedback": "none"}
    if name == "scaffold":
        settings["client.optimizer"] = {"name": "sgd", "lr": 0.05}
    return settings | (UNIFORM if ACCEPTED_WEIGHTS[name] == "equal" else {})


def selected(scenario: Scenario) -> Aggregator:
    return scenario.resolved_uplink.aggregator


# --------------------------------------------------------------------------------------------------------- rules of a scenario


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, WeightedMean()),
        ({"server.aggregator": "weighted-mean"}, WeightedMean()),
        ({"server.aggregator": "mean-of-senders"}, MeanOfSenders()),
        ({"server.aggregator": "median", **UNIFORM}, Median()),
        ({"server.aggregator": "trimmed-mean", **UNIFORM}, TrimmedMean()),
        ({"server.aggregator": {"name": "trimmed-mean", "trim": 0.25}, **UNIFORM}, TrimmedMean(0.25)),
        ({"server.aggregator.name": "krum", "server.aggregator.hostile": 0, **UNIFORM}, Krum(0)),
        ({"server.aggregator.name": "multi-krum", "server.aggregator.keep": 2, **UNIFORM}, MultiKrum(0, 2)),
        ({"server.aggregator": {"name": "geometric-median", "iterations": 3}}, GeometricMedian(iterations=3)),
        ({"server.aggregator.name": "norm-clipping", "server.aggregator.max_norm": 2.0}, NormClipping(2.0)),
        ({"server.aggregator.name": "centered-clipping", "server.aggregator.radius": 0.5}, CenteredClipping(0.5)),
    ],
    ids=str,
)
def test_scenario_selects_the_rule_by_name_with_its_keys(scenario: Make, settings: dict[str, Any], rule: Aggregator) -> None:
    assert selected(scenario(settings)) == rule


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"server.aggregator": "mediann"}, 'server.aggregator.name: got "mediann", did you mean "median"?'),
        ({"server.aggregator": {"name": "trimmed-mean", "trim": 0.5}}, "server.aggregator.trim: expected a number"),
        ({"server.aggregator": {"name": "median", "trim": 0.1}}, "server.aggregator.trim: unknown key"),
        ({"server.aggregator": {"name": "krum", "hostile": -1}}, "server.aggregator.hostile: expected a whole number"),
    ],
    ids=str,
)
def test_unknown_rule_or_setting_is_reported_with_its_key(scenario: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        scenario({**UNIFORM, **settings})
    assert message in str(error.value)


@pytest.mark.parametrize("name", ACCEPTED_WEIGHTS)
def test_scenario_with_aggregator_round_trips_through_toml(scenario: Make, name: str) -> None:
    s = scenario(settings_of(name))
    assert tomllib.loads(s.to_toml())["server"]["aggregator"]["name"] == name
    assert parse_scenario(tomllib.loads(s.to_toml())) == s
    assert isinstance(s.server.aggregator, AGGREGATORS[name])


def test_scenario_without_aggregator_round_trips_without_the_key(scenario: Make) -> None:
    s = scenario()
    assert "aggregator" not in s.to_toml()
    assert parse_scenario(tomllib.loads(s.to_toml())) == s
    assert s.server.aggregator is None


def test_settings_of_the_aggregator_round_trip_through_toml(scenario: Make) -> None:
    s = scenario(settings_of("multi-krum", hostile=0, keep=3))
    assert tomllib.loads(s.to_toml())["server"]["aggregator"] == {"name": "multi-krum", "hostile": 0, "keep": 3}
    assert parse_scenario(tomllib.loads(s.to_toml())).server.aggregator == MultiKrum(0, 3)


# ---------------------------------------------------------------------------------------------------- server halves of schemes


def test_every_aggregator_of_a_scheme_has_the_name_of_its_scheme() -> None:
    owned = {name: AGGREGATORS[name].scheme_type for name in AGGREGATORS if AGGREGATORS[name].scheme_type is not None}
    assert owned == {name: COMPRESSORS[name] for name in SCHEMES}
    assert {name: AGGREGATORS[name].accepted_weights for name in AGGREGATORS} == ACCEPTED_WEIGHTS


@pytest.mark.parametrize("name", SCHEMES)
def test_aggregator_of_the_scheme_is_selected_without_a_key_and_by_name(scenario: Make, name: str) -> None:
    settings = settings_of(name)
    by_name = scenario(settings)
    del settings["server.aggregator"]
    without_key = scenario(settings)
    assert without_key.server.aggregator is None
    assert selected(without_key) == selected(by_name) == AGGREGATORS[name]()


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("rule", ["weighted-mean", "median", "geometric-median"])
def test_another_rule_for_a_scheme_with_a_server_half_is_refused(scenario: Make, name: str, rule: str) -> None:
    with pytest.raises(ScenarioError) as error:
        scenario({**settings_of(name), "server.aggregator": rule, **UNIFORM})
    problem = f'got "{rule}", expected "{name}" or the key left out: the server half of {name} aggregates'
    assert str(error.value).endswith(f"server.aggregator: {problem}")


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("compressor", ["top-k", "dgc"])
def test_aggregator_of_a_scheme_with_another_compressor_is_refused(scenario: Make, name: str, compressor: str) -> None:
    feedback = {"top-k": "persist", "dgc": "none"}[compressor]
    with pytest.raises(ScenarioError) as error:
        scenario({"server.aggregator": name, "uplink.compressor": compressor, "uplink.error_feedback": feedback, **UNIFORM})
    assert f'server.aggregator: got "{name}" with the compressor ' in str(error.value)
    assert str(error.value).endswith(f", expected the compressor {name}")


@pytest.mark.parametrize(
    ("scheme", "aggregator"),
    [
        (MemorylessScheme(Dense()), None),
        (ErrorFeedback(TopK(0.1)), None),
        (StaleResidualPolicy(ErrorFeedback(TopK(0.1))), None),
        (CAFe(), "cafe"),
        (EF21(), "ef21"),
    ],
    ids=str,
)
def test_scheme_has_the_aggregator_of_the_scheme_that_it_wraps(scheme: CompressionScheme, aggregator: str | None) -> None:
    assert scheme.aggregator == aggregator
    assert selected_name(scheme) == (aggregator or "weighted-mean")


def selected_name(scheme: CompressionScheme) -> str:
    return select_aggregator(None, scheme).name


@dataclass(frozen=True)
class MedianOwner(MemorylessScheme):
    """Scheme that names its aggregator by the class."""

    name: ClassVar[str] = "median-owner"
    aggregator: ClassVar[type[Component]] = Median


@dataclass(frozen=True)
class OperatorOwner(MemorylessScheme):
    """Scheme whose aggregator is no aggregator."""

    name: ClassVar[str] = "operator-owner"
    aggregator: ClassVar[type[Component]] = TopK


def test_scheme_names_its_aggregator_by_the_class() -> None:
    assert select_aggregator(None, MedianOwner(Dense())) == Median()
    assert select_aggregator(Median(), MedianOwner(Dense())) == Median()
    with pytest.raises(FieldError, match=r'got "weighted-mean", expected "median" or the key left out'):
        select_aggregator(WeightedMean(), MedianOwner(Dense()))


def test_scheme_whose_aggregator_is_no_aggregator_is_refused() -> None:
    with pytest.raises(FieldError, match=r"the aggregator of operator-owner is .*TopK.*, expected a subclass of Aggregator"):
        select_aggregator(None, OperatorOwner(Dense()))


# --------------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", ACCEPTED_WEIGHTS)
def test_rule_with_equal_weights_alone_refuses_weights_by_examples(scenario: Make, name: str) -> None:
    settings = {**settings_of(name), "server.weighting": "examples"}
    if name not in EQUAL:
        assert scenario(settings).server.weighting == "examples"
        return
    with pytest.raises(ScenarioError) as error:
        scenario(settings)
    problem = f'got "examples", expected "uniform": {name} gives all clients equal weights'
    assert str(error.value).endswith(f"server.weighting: {problem}")


@pytest.mark.parametrize(
    ("settings", "key", "problem"),
    [
        ({"server.sampler": "weighted"}, "sampler", 'got "weighted", expected a sampler without inclusion probabilities'),
        ({"server.normalisation": "fednova"}, "normalisation", 'got "fednova", expected "none"'),
    ],
    ids=["inclusion probabilities", "FedNova"],
)
@pytest.mark.parametrize("name", ACCEPTED_WEIGHTS)
def test_rule_with_weights_that_add_up_to_1_alone_refuses_corrected_weights(
    scenario: Make, name: str, settings: dict[str, Any], key: str, problem: str
) -> None:
    if name not in NORMALIZED:
        scenario({**settings_of(name), **settings})
        return
    with pytest.raises(ScenarioError) as error:
        scenario({**settings_of(name), **settings})
    assert str(error.value).endswith(f"server.{key}: {problem}: {name} needs aggregation weights that sum to 1")


# ------------------------------------------------------------------------------------------------------------------------ runs


@pytest.mark.slow
def test_robust_rules_end_a_run_with_other_parameters_than_the_weighted_mean(scenario: Make) -> None:
    """In a cohort of four, the trimmed mean of two values is the median."""
    base = {"rounds": 2, "server.cohort": 5, "uplink.compressor": "dense", "uplink.error_feedback": "none", **UNIFORM}
    rules = ({"name": "median"}, {"name": "trimmed-mean", "trim": 0.25}, {"name": "krum", "hostile": 0})
    mean = fedsgd.run(scenario(base))
    results = [mean, *(fedsgd.run(scenario({**base, "server.aggregator": rule})) for rule in rules)]
    for result in results:
        assert len(result.history) == 2
        assert np.isfinite(result.parameters).all()
    assert len({result.summary["params_sha256"] for result in results}) == len(results)


@pytest.mark.slow
def test_named_weighted_mean_ends_a_run_with_the_parameters_of_the_default(scenario: Make) -> None:
    default, named = (fedsgd.run(scenario({"rounds": 2, **s})) for s in ({}, {"server.aggregator": "weighted-mean"}))
    assert named.summary["params_sha256"] == default.summary["params_sha256"]


def test_krum_that_does_not_fit_the_cohort_is_refused(scenario: Make) -> None:
    with pytest.raises(ScenarioError, match=r"server\.aggregator\.hostile: got 1, expected at most 0 in a cohort of 4"):
        fedsgd.run(scenario({"rounds": 1, **settings_of("krum", hostile=1)}))
