"""Targets: their texts, their tables in a scenario, and wrong ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedsgd
from fedsgd.errors import ScenarioError
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.scenario.target import Criterion, Target, parse_target

BASE = {"name": "x"}


@pytest.mark.parametrize(
    ("value", "target"),
    [
        (0.9, Target("accuracy", above=0.9)),
        (1, Target("accuracy", above=1.0)),
        (np.float32(0.5), Target("accuracy", above=0.5)),
        ("0.9", Target("accuracy", above=0.9)),
        (" accuracy >= 0.9 ", Target("accuracy", above=0.9)),
        ("loss<0.3", Target("loss", below=0.3)),
        ("loss<=3e-1", Target("loss", below=0.3)),
        ("macro-f1>0.8", Target("macro-f1", above=0.8)),
        ("train_top_5>0.5", Target("train_top_5", above=0.5)),
        ("p>q<-2.5", Target("p>q", below=-2.5)),
        ("mean error<1000000.5", Target("mean error", below=1000000.5)),
    ],
)
def test_target_is_parsed_from_numbers_and_texts(value: Any, target: Target) -> None:
    assert parse_target(value) == target
    assert parse_target(target) is target
    assert parse_target(str(target)) == parse_target(target.short_form) == target


@given(st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_text_of_a_target_has_all_digits(threshold: float, is_above: bool) -> None:
    target = Target("loss", **{"above" if is_above else "below": threshold})
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("loss<abc", 'got "loss<abc", expected a number after "<", such as "loss<0.3"'),
        ("loss<", 'got "loss<", expected a number after "<", such as "loss<0.3"'),
        ("<0.3", 'got "<0.3", expected a metric before "<", such as "loss<0.3"'),
        ("loss", 'got "loss", expected a target such as 0.9, "accuracy>0.9" or "loss<0.3"'),
        ("loss=0.3", 'got "loss=0.3", expected a target such as 0.9, "accuracy>0.9" or "loss<0.3"'),
        ("", 'got "", expected a target such as 0.9, "accuracy>0.9" or "loss<0.3"'),
        ("accuracy>1.5", "got an accuracy of 1.5, expected a number above 0 and at most 1"),
        ("accuracy<0", "got an accuracy of 0, expected a number above 0 and at most 1"),
        (90, "got an accuracy of 90, expected a number above 0 and at most 1, did you mean 0.9?"),
        ("loss<nan", "expected a finite number, got nan"),
        (math.inf, "expected a finite number, got inf"),
        pytest.param(
            10**400,
            'got a number beyond those of float64, expected a target such as 0.9, "accuracy>0.9" or "loss<0.3"',
            id="beyond float64",
        ),
        (True, 'got true, expected a target such as 0.9, "accuracy>0.9" or "loss<0.3"'),
        (["loss", 0.3], 'got ["loss", 0.3], expected a target such as 0.9, "accuracy>0.9" or "loss<0.3"'),
    ],
)
def test_wrong_target_names_the_nearest_form(value: Any, problem: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse_target(value)
    assert str(error.value) == problem


def test_target_is_reached_at_its_threshold_and_not_by_nan() -> None:
    falling, rising = Target("loss", below=0.3), Target("f1", above=0.3)
    assert [falling.is_reached_by(value) for value in (0.31, 0.3, -1.0, math.nan)] == [False, True, True, False]
    assert [rising.is_reached_by(value) for value in (0.31, 0.3, -1.0, math.nan)] == [True, True, False, False]


def test_criterion_finds_and_names_the_best_value() -> None:
    values = [math.nan, 0.4, 0.2, math.inf, -math.inf, 0.3]
    assert [Criterion("loss", "below").find_best(values), Criterion("f1", "above").find_best(values)] == [0.2, 0.4]
    assert Criterion().find_best([math.nan]) is None
    assert [Criterion.default(names).best_name for names in (("loss", "accuracy"), ("loss", "f1"))] == [
        "best accuracy",
        "lowest loss",
    ]
    assert Target("f1", above=0.5).criterion.best_name == "highest f1"


@pytest.mark.parametrize("value", [{"metric": "loss", "below": 0.3}, "loss<0.3", Target("loss", below=0.3)])
@pytest.mark.parametrize("section", ["report", "stop"])
def test_section_accepts_a_table_a_text_or_a_target(section: str, value: Any) -> None:
    target = Target("loss", below=0.3)
    scenario = parse_scenario({**BASE, section: {"target": value}})
    assert getattr(scenario, section).resolved_target == target
    assert parse_scenario({**BASE}).with_settings({f"{section}.target": value}) == scenario
    assert f'[{section}.target]\nmetric = "loss"\nbelow = 0.3\n' in scenario.to_toml()
    if not isinstance(value, dict):
        assert Scenario("x", report=fedsgd.TargetConfig(target=value)).report == fedsgd.TargetConfig(target=target)


def test_target_accuracy_is_a_short_form() -> None:
    short, long = (parse_scenario({**BASE, "report": {key: 0.9}}).report for key in ("target_accuracy", "target"))
    assert short.resolved_target == long.resolved_target == fedsgd.Target("accuracy", above=0.9)
    assert [config.target_key for config in (short, long)] == ["target_accuracy", "target"]
    assert parse_scenario(BASE).report.resolved_target is None


def test_override_of_one_key_unsets_the_other() -> None:
    scenario = parse_scenario({**BASE, "report": {"target_accuracy": 0.9}}).with_settings({"report.target": "loss<0.3"})
    assert (scenario.report.target_accuracy, str(scenario.report.target)) == (None, "loss<0.3")
    with pytest.raises(ScenarioError, match="is set together with"):
        scenario.with_settings({"report.target": "loss<0.3", "report.target_accuracy": 0.9})


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        ({"target": "loss<abc"}, 'report.target: got "loss<abc", expected a number after "<", such as "loss<0.3"'),
        ({"target": {"metric": "loss"}}, "report.target.above: missing, expected above or below, for example below = 0.3"),
        ({"target": {"below": 2.0}}, 'report.target.metric: missing, expected for example metric = "loss"'),
        ({"target": {"metric": " ", "below": 2.0}}, 'report.target.metric: got " ", expected the name of a metric'),
        (
            {"target": {"metric": "loss", "above": 1, "below": 2}},
            "report.target.above: got above = 1 and below = 2, expected only one of them",
        ),
        ({"target": {"metric": "loss", "under": 1}}, "report.target.under: unknown key"),
        (
            {"target": "loss<0.3", "target_accuracy": 0.9},
            "report.target_accuracy: got target_accuracy = 0.9 and target = loss<0.3, expected only one of them",
        ),
        ({"target": {"metric": "accuracy", "above": 90.0}}, "report.target.above: got an accuracy of 90, expected"),
    ],
)
def test_wrong_target_of_a_section_is_one_line(report: dict[str, Any], problem: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse_scenario({**BASE, "report": report})
    assert str(error.value).startswith(problem)
    assert "\n" not in str(error.value)
