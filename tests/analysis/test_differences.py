"""Differences of compared methods."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedsgd.analysis import Run, load_methods
from fedsgd.analysis.differences import describe_other_differences
from tests.analysis.helpers import invoke


def edit_run(run: Run, summary: dict[str, Any] | None = None, **settings: Any) -> Run:
    """Return a run with other settings, "." written as "__", and other keys in its summary."""
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return replace(run, settings={**run.settings, **dotted}, summary={**run.summary, **(summary or {})})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"data__name": "mnist"}, "dataset (digits; mnist)"),
        ({"data__held_out": 0.25}, "dataset (held out 0; held out 0.25)"),
        ({"evaluation__test": "clients"}, "dataset (test dataset; test clients)"),
        ({"evaluation__every": 3}, "evaluation (every 1; every 3)"),
        ({"data__partition__name": "dirichlet", "data__partition__alpha": 0.1}, "partition (iid; dirichlet, alpha 0.1)"),
        ({"model__hidden": [32, 16], "summary": {"parameters": 3000}}, "model (hidden 64, parameters 4810; hidden 32 16, parameters 3000)"),
        ({"model__name": "cnn", "rounds": 9}, "model (mlp; cnn), rounds (6; 9)"),
        ({"data__partition__clients": 30, "summary": {"clients": 30}}, "clients (20; 30)"),
        ({"summary": {"parameters": 4811}}, "model (parameters 4810; parameters 4811)"),
        ({"client__optimizer__lr": 0.3, "uplink__error_feedback": "none", "server__cohort": 3}, None),
    ],
)  # fmt: skip
def test_other_differences_name_settings_that_are_not_of_the_method(
    runs: Path, change: dict[str, Any], expected: str | None
) -> None:
    methods = load_methods([("one", runs / "topk-0"), ("other", runs / "dense-0")])
    variant = replace(methods[1].best_variant, runs=(edit_run(methods[1].runs[0], **change),))
    sentence = describe_other_differences([methods[0], replace(methods[1], best_variant=variant)])
    assert sentence == (None if expected is None else f"the runs differ in more than their method: {expected}")


def test_other_differences_of_many_values_name_the_first_three(runs: Path) -> None:
    (method,) = load_methods([("one", runs / "topk-0")])
    variants = [replace(method.best_variant, runs=(edit_run(method.runs[0], rounds=n),)) for n in (1, 2, 2, 3, 4, 5)]
    sentence = describe_other_differences([replace(method, best_variant=variant) for variant in variants])
    assert sentence == "the runs differ in more than their method: rounds (1; 2; 3; 2 more)"


@pytest.mark.slow
def test_compare_mentions_only_runs_of_different_experiments(runs: Path, stragglers: Path) -> None:
    equal = invoke("compare", runs)
    mixed = invoke("compare", runs, stragglers)
    assert "differ in more than their method" not in equal.stdout
    assert (
        "the runs differ in more than their method: partition (iid; dirichlet, alpha 0.5), rounds (6; 3), clients (20; 40)"
        in mixed.stdout
    )
    assert json.loads(invoke("compare", runs, stragglers, "--json").stdout)["mixture"].startswith("the runs differ in more")
    assert json.loads(invoke("compare", runs, "--json").stdout)["mixture"] is None
