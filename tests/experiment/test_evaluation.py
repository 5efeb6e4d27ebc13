"""Optional evaluations: by client, on the training examples, by the user's metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from fedsgd import CustomModel, ExecutionConfig
from fedsgd.data import Dataset, Examples, Partition, PartitionedData
from fedsgd.errors import ModelError, ScenarioError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.evaluation import EvaluationPlan, Evaluator
from fedsgd.experiment.runner import run
from fedsgd.scenario.scenario import Scenario
from fedsgd.training import EvaluationResult
from tests.executions import start_in_process

Make = Callable[..., Scenario]


class ExampleAsAccuracy:
    """Engine whose accuracy on an example is the example itself."""

    def evaluate(self, weights: np.ndarray, examples: Examples, buffers: object = None) -> EvaluationResult:
        return EvaluationResult(len(examples), [0.5 * len(examples)], {"accuracy": examples.arrays()[0].astype(np.float64)})

    def train(self, jobs: Any) -> Any:
        raise AssertionError


def partition_by(scores: list[float], assignment: list[int], clients: int) -> PartitionedData:
    x = np.array(scores, dtype=np.float32)
    return PartitionedData(Examples(x, np.zeros(len(x), int)), Partition.from_assignment(np.array(assignment), clients))


def test_accuracy_by_client_matches_hand_computation() -> None:
    """The clients' accuracies are 1, 0.5, none (no examples) and 0; the worst tenth of three clients is one client."""
    held_out = partition_by([1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 3, -1], 4)
    plan = EvaluationPlan(("accuracy",), Examples(np.float32([1, 0]), np.zeros(2, int)), held_out)
    values = Evaluator(plan, ExampleAsAccuracy())(np.zeros(1))[0]
    assert values["accuracy"] == 0.5
    assert values["client_accuracy_mean"] == pytest.approx(0.5)
    assert values["client_accuracy_worst_tenth"] == 0
    assert values["client_accuracy_std"] == pytest.approx(np.sqrt(1 / 6))


def test_worst_tenth_is_rounded_up_to_whole_clients() -> None:
    scores = [i / 20 for i in range(21)]
    held_out = partition_by(scores, [*range(21)], 21)
    plan = EvaluationPlan(("accuracy",), Examples(np.float32([1]), np.zeros(1, int)), held_out)
    values = Evaluator(plan, ExampleAsAccuracy())(np.zeros(1))[0]
    assert values["client_accuracy_worst_tenth"] == pytest.approx((0 + 0.05 + 0.1) / 3)


@pytest.mark.slow
def test_optional_evaluations_are_named_in_summary_and_table(scenario: Make, tmp_path: Path) -> None:
    settings = {"data.held_out": 0.25, "evaluation.clients": True, "evaluation.training": True, "evaluation.every": 2}
    result = run(scenario(settings), out=tmp_path / "run")
    assert list(result.summary["final_metrics"]) == [
        *("loss", "accuracy", "client_accuracy_mean", "client_accuracy_worst_tenth", "client_accuracy_std"),
        *("train_loss", "train_accuracy"),
    ]
    rounds = pq.read_table(tmp_path / "run" / "rounds.parquet").to_pydict()
    assert rounds["train_accuracy"][-1] == result.summary["final_metrics"]["train_accuracy"]
    assert rounds["client_accuracy_std"][0] is None


def test_training_metrics_exclude_held_out_examples(scenario: Make) -> None:
    experiment = build_experiment(scenario({"data.held_out": 0.5, "evaluation.clients": True, "evaluation.training": True}))
    assert experiment.held_out is not None
    rows = set(experiment.train.partition.order.tolist())
    assert not rows & set(experiment.held_out.partition.order.tolist())
    values, _ = start_in_process(experiment).evaluator(experiment.task.initial_parameters)
    examples = experiment.dataset.train
    expected = experiment.engine.evaluate(
        experiment.task.initial_parameters, Examples(examples.x, examples.y, np.array(sorted(rows)))
    ).means
    assert values["train_loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert values["train_accuracy"] == pytest.approx(expected["accuracy"], rel=1e-12)


def test_accuracy_by_client_matches_separate_evaluations(scenario: Make) -> None:
    experiment = build_experiment(scenario({"data.held_out": 0.3, "evaluation.clients": True}))
    held_out = experiment.held_out
    assert held_out is not None
    accuracies = [
        experiment.engine.evaluate(experiment.task.initial_parameters, held_out.examples_of(c)).means["accuracy"]
        for c in range(len(held_out))
        if len(held_out.examples_of(c))
    ]
    values, _ = start_in_process(experiment).evaluator(experiment.task.initial_parameters)
    assert values["client_accuracy_mean"] == pytest.approx(np.mean(accuracies), rel=1e-12)
    assert values["client_accuracy_std"] == pytest.approx(np.std(accuracies), rel=1e-12)


@pytest.mark.slow
def test_test_examples_of_clients_are_all_held_out_examples_together(scenario: Make) -> None:
    settings = {"data.held_out": 0.3, "evaluation.clients": True, "evaluation.test": "clients"}
    results = [run(scenario(settings), execution=ExecutionConfig(workers=workers)) for workers in (1, 2)]
    held_out = build_experiment(scenario(settings)).held_out
    assert held_out is not None
    accuracy, sizes = results[0].client_accuracy, held_out.sizes()
    assert accuracy is not None
    assert results[0].summary["final_accuracy"] == pytest.approx(float(np.nansum(accuracy * sizes) / sizes.sum()), rel=1e-12)
    assert results[0].summary["final_metrics"] == results[1].summary["final_metrics"]
    without = run(scenario({"data.held_out": 0.3}))
    for digest in ("params_sha256", "ledger_sha256"):
        assert results[0].summary[digest] == without.summary[digest]


def test_test_examples_of_clients_without_any_raise_error(scenario: Make) -> None:
    with pytest.raises(ScenarioError, match=r"^evaluation\.test: got \"clients\", but no client has test examples of its own"):
        build_experiment(scenario({"evaluation.test": "clients"}))


@pytest.mark.slow
def test_accuracy_of_each_client_is_in_the_result_and_in_a_file(scenario: Make, tmp_path: Path) -> None:
    custom = scenario({"data.held_out": 0.1, "evaluation.clients": True, "data.partition.clients": 300, "rounds": 1})
    custom = custom.with_settings({"downlink.compressor.values": "bfloat16"})  # clients are tested on what they decode
    result = run(custom, out=tmp_path / "run")
    accuracy, metrics = result.client_accuracy, result.summary["final_metrics"]
    assert accuracy is not None
    accuracies = np.sort(accuracy[~np.isnan(accuracy)])
    assert 0 < len(accuracies) < 290
    assert metrics["client_accuracy_mean"] == pytest.approx(accuracies.mean(), rel=1e-12)
    assert metrics["client_accuracy_std"] == pytest.approx(accuracies.std(), rel=1e-12)
    assert metrics["client_accuracy_worst_tenth"] == pytest.approx(accuracies[: -(-len(accuracies) // 10)].mean(), rel=1e-12)
    table = pq.read_table(tmp_path / "run" / "clients.parquet").to_pydict()
    assert table["client"] == list(range(300))
    assert sum(table["train_examples"]) + sum(table["test_examples"]) == 1437
    assert [a is None for a in table["accuracy"]] == [n == 0 for n in table["test_examples"]] == np.isnan(accuracy).tolist()
    assert any(n == 0 for n in table["test_examples"])
    second_result = run(scenario({"rounds": 1}), out=tmp_path / "run", overwrite=True)
    assert second_result.client_accuracy is None
    assert not (tmp_path / "run" / "clients.parquet").exists()


def test_accuracy_by_client_without_client_test_examples_is_refused(scenario: Make) -> None:
    with pytest.raises(ScenarioError, match=r"evaluation.clients: no client has test examples of its own; set data.held_out"):
        build_experiment(scenario({"evaluation.clients": True}))


def test_accuracy_by_client_without_an_accuracy_metric_is_refused() -> None:
    examples = Examples(np.zeros((4, 2), np.float32), np.zeros((4, 1), np.float32))
    s = Scenario(name="x").with_settings({"data.partition.clients": 2, "data.held_out": 0.5, "evaluation.clients": True})
    with pytest.raises(ScenarioError, match=r"evaluation.clients: there is no metric named accuracy \(metrics: none\)"):
        build_experiment(s, dataset=Dataset(examples, examples, None), module=nn.Linear(2, 1), loss=nn.functional.mse_loss)


@pytest.mark.parametrize("name", ["train_loss", "train_speed", "validation_loss", "client_accuracy_std", "seconds"])
def test_metric_with_the_name_of_another_column_is_refused(name: str, scenario: Make) -> None:
    with pytest.raises(ModelError, match=f'cannot be called "{name}"'):
        build_experiment(scenario(), metrics={name: lambda o, t: t.float()})


def test_model_that_does_not_fit_its_data_is_refused_before_the_first_round(scenario: Make, blobs: Dataset) -> None:
    with pytest.raises(
        ModelError, match=r"cannot be run on these data \(examples float32 \[8, 8\], targets int64 \[\]\): Runtime"
    ):
        build_experiment(scenario(), module=nn.Linear(9, 10))
    words = Dataset(*(Examples(part.x.astype(np.int64), part.y) for part in (blobs.train, blobs.test)), 3)
    text = Dataset(
        Examples(np.full((4, 5), 7), np.zeros((4, 5), int)), Examples(np.zeros((4, 5), int), np.zeros((4, 5), int)), 3
    )
    recurrent = Scenario(name="x").with_settings({"data.partition.clients": 2, "model.name": "char-lstm"})
    with pytest.raises(ModelError, match=r"cannot be run on these data .*: IndexError"):
        build_experiment(recurrent, dataset=text)
    with pytest.raises(ModelError, match="integer examples are numbers of words or characters, give images as floats"):
        build_experiment(scenario(), dataset=words)


def test_metric_of_a_wrong_shape_is_refused(blobs: Dataset) -> None:
    def column(output: Tensor, target: Tensor) -> Tensor:
        return torch.ones(len(target), 1)

    s = Scenario(name="x").with_settings({"data.partition.clients": 5})
    with pytest.raises(ModelError, match=r"metric column is of shape \[100, 1\], expected .* of shape \[100\]"):
        run(s, data=blobs, model=CustomModel(metrics={"column": column}))


def test_error_after_loading_names_the_scenario_file(scenario: Make, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[model]\nmodule = "nowhere_to_be_found:make"\n')
    with pytest.raises(ScenarioError, match=r'mine.toml: model.module: cannot import "nowhere_to_be_found"'):
        run(path)


def test_non_finite_client_accuracy_is_distinguished_from_no_examples(scenario: Make, tmp_path: Path) -> None:
    def odd(output: Tensor, target: Tensor) -> Tensor:
        return torch.where(target == 3, torch.nan, 1.0)

    custom = scenario({"data.held_out": 0.2, "evaluation.clients": True, "rounds": 1})
    result = run(custom, model=CustomModel(metrics={"accuracy": odd}), out=tmp_path / "run")
    assert result.summary["final_metrics"]["client_accuracy_mean"] is None
    assert result.summary["final_metrics"]["client_accuracy_worst_tenth"] is None
    table = pq.read_table(tmp_path / "run" / "clients.parquet").to_pydict()
    assert None in table["accuracy"]
    assert min(table["test_examples"]) > 0


@pytest.mark.slow
def test_client_examples_are_evaluated_once_a_round(scenario: Make) -> None:
    n_examples = 0

    def counting(output: Tensor, target: Tensor) -> Tensor:
        nonlocal n_examples
        n_examples += len(target)
        return torch.ones(len(target))

    result = run(
        scenario({"data.held_out": 0.2, "evaluation.clients": True, "rounds": 2}), model=CustomModel(metrics={"one": counting})
    )
    assert result.client_accuracy is not None
    held_out = build_experiment(scenario({"data.held_out": 0.2})).held_out
    assert held_out is not None
    n = int(held_out.partition.sizes().sum())
    n_trial = 2 * 100 + (100 + 60) + (100 + n % 100)
    assert n_examples == 2 * (360 + n) + n_trial + 360, (
        "a slice and its halves, one slice of each size, the initial model at the end"
    )


def test_evaluation_equals_the_join_of_its_slices(scenario: Make) -> None:
    """The equality allows workers to share an evaluation. It includes a module that draws random numbers and has state."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)
            self.seen = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                self.seen += 1
            return self.linear(nn.functional.dropout(x.flatten(1), 0.5)) * (1 + self.seen)

    experiment = build_experiment(scenario(), module=Noisy(), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    test, weights, engine = experiment.dataset.test, experiment.task.initial_parameters, experiment.engine
    parts = [test.slice(0, 200), test.slice(200, 300), test.slice(300, len(test))]
    whole, joined = engine.evaluate(weights, test), EvaluationResult.join([engine.evaluate(weights, part) for part in parts])
    assert whole.losses == joined.losses
    assert len(whole.losses) == 4
    assert whole.means == joined.means
    assert whole.scores["accuracy"].tobytes() == joined.scores["accuracy"].tobytes()
