"""Selection of tuned values by the figures on validation examples, and the notes about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import fedsgd
from fedsgd.analysis import compare, load_methods
from fedsgd.analysis.differences import describe_other_differences
from fedsgd.analysis.methods import Method
from fedsgd.analysis.tables import collect_notes, to_json, to_latex
from tests.analysis.helpers import copy_run, edit_summary, invoke

LR = "client.optimizer.lr"
FIGURES: dict[str, dict[str, list[float]]] = {
    "0.05": {"accuracy": [0.5, 0.6, 0.7, 0.75, 0.8, 0.8], "validation_accuracy": [0.4, 0.7, 0.8, 0.85, 0.9, 0.9]},
    "0.07": {"accuracy": [0.6, 0.7, 0.8, 0.85, 0.9, 0.95], "validation_accuracy": [0.4, 0.5, 0.6, 0.65, 0.7, 0.75]},
}
"""The second learning rate is better on the test examples, the first on validation examples."""
TEST_NOTE = (
    "tuned values were chosen on the test examples (accuracy) and the seeds reported here, so the figures are optimistic"
)
VALIDATION_NOTE = "tuned values were chosen on validation examples (validation_accuracy); figures are of the test examples"


@pytest.fixture
def tuned_runs(runs: Path, tmp_path: Path) -> Path:
    """Folder of runs with two learning rates, and with planted figures."""
    for rate, figures in FIGURES.items():
        folder = copy_run(runs / "topk-0", tmp_path / "tuned" / rate, "lr = 0.05", f"lr = {rate}")
        text = (folder / "scenario.toml").read_text()
        assert "[evaluation]\n" in text
        (folder / "scenario.toml").write_text(text.replace("[evaluation]\n", "[evaluation]\nvalidation = 0.1\n"))
        edit_rounds(folder, figures)
    return tmp_path / "tuned"


def edit_rounds(folder: Path, figures: dict[str, Any]) -> None:
    rounds = pd.read_parquet(folder / "rounds.parquet")
    rounds.assign(**figures).to_parquet(folder / "rounds.parquet")


def drop_validation(folder: Path) -> None:
    rounds = pd.read_parquet(folder / "rounds.parquet")
    rounds.drop(columns="validation_accuracy").to_parquet(folder / "rounds.parquet")


def load_tuned(*paths: Any, target: Any = None) -> list[Method]:
    return load_methods([*paths], target, [LR])


def test_best_value_is_selected_on_validation_and_reported_on_test_examples(tuned_runs: Path) -> None:
    (method,) = load_tuned(tuned_runs)
    assert (method.best_variant.tuned, method.tuned_on) == ({LR: 0.05}, "validation_accuracy")
    comparison = compare([method])
    (row,) = comparison.rows
    assert row.best_value is not None
    assert (row.best_value.median, row.tuned_on, comparison.criterion.metric) == (0.8, "validation_accuracy", "accuracy")
    assert [note for note in collect_notes(comparison) if "tuned values were" in note] == [VALIDATION_NOTE]
    content = json.loads(to_json(comparison))["methods"][0]
    assert (content["tuned"], content["tuned_on"], content["best"]["median"]) == ({LR: 0.05}, "validation_accuracy", 0.8)
    assert "Tuned values were chosen on validation examples" in to_latex(comparison)
    result = invoke("compare", tuned_runs, "--tune", LR)
    assert VALIDATION_NOTE in " ".join(result.stdout.split())


def test_target_is_that_of_the_validation_figures_in_the_selection(tuned_runs: Path) -> None:
    """The second rate reaches 0.7 first on test examples, the first rate on validation examples."""
    (method,) = load_tuned(tuned_runs, target=0.7)
    assert (method.best_variant.tuned, method.tuned_on) == ({LR: 0.05}, "validation_accuracy")
    assert compare([method], 0.7).rows[0].rounds.median == pytest.approx(3.0), "rounds of the test accuracy"
    (by_loss,) = load_tuned(tuned_runs, target="loss<9")
    assert by_loss.tuned_on == "loss", "the runs have no validation loss"
    (given,) = load_tuned(tuned_runs, target="validation_accuracy>0.7")
    assert (given.best_variant.tuned, given.tuned_on) == ({LR: 0.05}, "validation_accuracy")
    notes = " ".join(collect_notes(compare([given], "validation_accuracy>0.7")))
    assert "on validation examples (validation_accuracy); figures are of them, too, so they are optimistic" in notes


def test_runs_without_validation_figures_are_tuned_on_the_test_examples(tuned_runs: Path) -> None:
    drop_validation(tuned_runs / "0.07")
    (method,) = load_tuned(tuned_runs)
    assert (method.best_variant.tuned, method.tuned_on) == ({LR: 0.07}, "accuracy")
    assert [note for note in collect_notes(compare([method])) if "tuned values were" in note] == [TEST_NOTE]


def test_run_that_stopped_at_its_test_target_is_tuned_on_the_test_examples(tuned_runs: Path) -> None:
    """Rounds to the target on validation examples are unknown, because the run ended before."""
    (method,) = load_tuned(tuned_runs, target=0.8)
    assert method.tuned_on == "validation_accuracy"
    edit_summary(tuned_runs / "0.07", stopped_by="target_accuracy")
    (method,) = load_tuned(tuned_runs, target=0.8)
    assert (method.best_variant.tuned, method.tuned_on) == ({LR: 0.07}, "accuracy")
    (method,) = load_tuned(tuned_runs)
    assert method.tuned_on == "validation_accuracy", "without a target, the best values count"


def test_notes_name_the_methods_of_each_kind(tuned_runs: Path, runs: Path, tmp_path: Path) -> None:
    dense = copy_run(runs / "dense-0", tmp_path / "dense", "lr = 0.05", "lr = 0.2")
    methods = load_tuned(("split", tuned_runs), ("plain", dense))
    notes = [note for note in collect_notes(compare(methods)) if "tuned values were" in note]
    assert notes == [f"plain: {TEST_NOTE}", f"split: {VALIDATION_NOTE}"]
    assert "dataset (validation 0.1; default)" in str(describe_other_differences(methods))
    (untuned,) = load_methods([runs / "dense-0"])
    assert untuned.tuned_on is None


def test_share_of_zero_is_the_method_of_runs_without_the_key(runs: Path, tmp_path: Path) -> None:
    zero = copy_run(runs / "dense-1", tmp_path / "zero", "[evaluation]\n", "[evaluation]\nvalidation = 0.0\n")
    assert [len(method.runs) for method in load_methods([runs / "dense-0", zero])] == [2]


@pytest.mark.slow
def test_sweep_that_tunes_is_compared_by_its_validation_split(root: Path, tmp_path: Path) -> None:
    scenario = fedsgd.load(root / "scenarios" / "quickstart.toml", {"rounds": 2, "client.epochs": 1})
    fedsgd.sweep(scenario, tune={LR: [0.02, 0.1]}, out=tmp_path / "sweep")
    (method,) = load_methods([tmp_path / "sweep"])
    assert method.tuned_on == "validation_accuracy"
    best = {v.tuned[LR]: max(v.runs[0].rounds["validation_accuracy"]) for v in method.variants}
    assert best[method.best_variant.tuned[LR]] == max(best.values())
