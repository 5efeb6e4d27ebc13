"""Validation split: disjoint examples, its figures, and settings that do not fit the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fedsgd
from fedsgd import CustomModel, Dataset, Examples
from fedsgd.cli import main
from fedsgd.data import Partition, PartitionedData, generate_clients, hold_out_validation
from fedsgd.data.datasets.synthetic import Synthetic
from fedsgd.errors import DataError, ScenarioError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.partition_summary import summarize_partition
from fedsgd.scenario.scenario import Scenario
from tests.executions import start_in_process

Make = Callable[..., Scenario]
VALIDATION = {"evaluation.validation": 0.1}


def make_clients(sizes: list[int]) -> PartitionedData:
    n = sum(sizes)
    examples = Examples(np.arange(n, dtype=np.float32)[:, None], np.zeros(n, np.int64))
    return PartitionedData(examples, Partition.from_assignment(np.repeat(np.arange(len(sizes)), sizes), len(sizes)))


def rows_by_client(data: Any) -> list[set[int]]:
    return [set(data.partition.rows(client).tolist()) for client in range(len(data))]


# --------------------------------------------------------------------------------------------------------------------- the split


@pytest.mark.slow
def test_validation_examples_are_a_part_of_each_clients_training_examples(scenario: Make) -> None:
    """The partition and the examples of data.held_out stay as they are without a validation split."""
    settings = {"data.partition.name": "shards", "data.partition.clients": 8, "data.held_out": 0.25}
    whole = build_experiment(scenario(settings))
    split, again, other = (
        build_experiment(scenario({**settings, **VALIDATION, "seed": seed, "rounds": rounds}))
        for seed, rounds in ((0, 3), (0, 5), (1, 3))
    )
    assert split.validation is not None
    assert whole.validation is None
    parts = zip(rows_by_client(whole.train), rows_by_client(split.train), rows_by_client(split.validation), strict=True)
    for whole_rows, rows, validation_rows in parts:
        assert rows | validation_rows == whole_rows
        assert not rows & validation_rows
    assert rows_by_client(whole.held_out) == rows_by_client(split.held_out)
    n = int(whole.train.sizes().sum())
    assert split.validation.sizes().sum() == round(0.1 * n)
    assert (np.abs(split.validation.sizes() - 0.1 * whole.train.sizes()) < 1).all()
    assert rows_by_client(split.validation) == rows_by_client(again.validation)
    assert rows_by_client(split.validation) != rows_by_client(other.validation)


@pytest.mark.parametrize(("sizes", "share"), [([1] * 5 + [3] * 20, 0.1), ([2, 2, 2, 2], 0.25), ([40, 1, 7, 12], 0.33)])
def test_small_clients_hold_out_the_share_together_and_keep_an_example(sizes: list[int], share: float) -> None:
    data = make_clients(sizes)
    train, validation = hold_out_validation(data, share, 3)
    assert (train.sizes() + validation.sizes()).tolist() == sizes
    assert train.sizes().min() >= 1
    n_lone = sizes.count(1)
    assert round(share * sum(sizes)) - n_lone <= validation.sizes().sum() <= round(share * sum(sizes))
    assert (np.abs(validation.sizes() - share * np.array(sizes)) < 1).all()


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_generated_clients_split_their_own_examples(held_out: float) -> None:
    source = Synthetic(clients=5, examples=20, test_clients=2)
    _, whole, tests = generate_clients(source, held_out, 4)
    train, validation = hold_out_validation(whole, 0.2, 4)
    n = round(20 * (1 - held_out))
    for client in range(5):
        rows = [
            {row.tobytes() for row in data.examples_of(client).arrays()[0]}
            for data in (whole, train, validation, *([] if tests is None else [tests]))
        ]
        assert [len(part) for part in rows[:3]] == [n, n - round(0.2 * n), round(0.2 * n)]
        assert rows[1] | rows[2] == rows[0]
        assert not rows[1] & rows[2]
        assert tests is None or not rows[2] & rows[3]


# --------------------------------------------------------------------------------------------------------------------- figures


def test_validation_figures_are_those_of_a_plain_evaluation(blobs: Dataset) -> None:
    torch.manual_seed(1)
    module, settings = nn.Linear(8, 3), {"data.partition.clients": 5, "evaluation.metrics": "macro-f1", **VALIDATION}
    experiment = build_experiment(Scenario(name="x").with_settings(settings), dataset=blobs, module=module)
    assert isinstance(experiment.validation, PartitionedData)
    rows = experiment.validation.partition.order
    assert len(rows) == 12
    values, _ = start_in_process(experiment).evaluator(experiment.task.initial_parameters)
    x, y = torch.from_numpy(blobs.train.x[rows]), torch.from_numpy(blobs.train.y[rows])
    output = module(x)
    assert values["validation_loss"] == pytest.approx(float(nn.functional.cross_entropy(output, y).detach()), rel=1e-6)
    assert values["validation_accuracy"] == pytest.approx(float((output.argmax(1) == y).double().mean()), rel=1e-12)
    assert 0 <= values["validation_macro_f1"] <= 1
    assert tuple(values) == experiment.evaluation.metric_names


def test_own_data_in_python_has_validation_columns_after_all_others(blobs: Dataset, tmp_path: Path) -> None:
    settings = {"data.partition.clients": 5, "evaluation.training": True, "rounds": 2, **VALIDATION}
    scenario = Scenario(name="x").with_settings(settings)
    result = fedsgd.run(scenario, data=blobs, model=CustomModel(module=nn.Linear(8, 3)), out=tmp_path / "run")
    names = ["loss", "accuracy", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
    assert list(result.summary["final_metrics"]) == names
    table = pq.read_table(tmp_path / "run" / "rounds.parquet")
    assert table.column_names[-6:] == names
    assert table["validation_loss"].to_pylist()[-1] == result.summary["final_metrics"]["validation_loss"]
    assert "validation = 0.1" in (tmp_path / "run" / "scenario.toml").read_text()


@pytest.mark.slow
def test_texts_have_a_validation_split() -> None:
    rng = np.random.default_rng(0)
    train, test = (Examples(rng.integers(0, 9, (n, 7)), rng.integers(0, 9, (n, 7))) for n in (40, 10))
    settings = {"data.partition.clients": 4, "model.name": "char-lstm", "client.batch_size": 5, **VALIDATION}
    experiment = build_experiment(Scenario(name="x").with_settings(settings), dataset=Dataset(train, test, 9))
    assert experiment.validation is not None
    assert experiment.validation.sizes().tolist() == [1] * 4
    assert experiment.train.sizes().tolist() == [9] * 4


def test_local_models_are_evaluated_on_the_clients_own_validation_examples(blobs: Dataset) -> None:
    def make_module() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))

    settings = {"model.batch_norm": "local", "data.held_out": 0.4, "evaluation.clients": True, "data.partition.clients": 3}
    scenario = Scenario(name="x").with_settings({**settings, "evaluation.validation": 0.25})
    experiment = build_experiment(scenario, dataset=blobs, module=make_module())
    assert experiment.validation is not None
    values, _ = start_in_process(experiment).evaluator(experiment.task.initial_parameters[: experiment.plan.layout.size])
    module, losses = make_module().eval(), []
    for client in range(3):
        x, y = (torch.from_numpy(part) for part in experiment.validation.examples_of(client).arrays())
        losses += nn.functional.cross_entropy(module(x), y, reduction="none").tolist()
    assert len(losses) == 18
    assert values["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert tuple(values) == experiment.evaluation.metric_names


@pytest.mark.slow
def test_share_of_zero_changes_no_result(scenario: Make, tmp_path: Path) -> None:
    unset, zero, split = (
        fedsgd.run(scenario(settings), out=tmp_path / name)
        for name, settings in (("unset", {}), ("zero", {"evaluation.validation": 0}), ("split", VALIDATION))
    )
    for name in ("params_sha256", "ledger_sha256", "final_metrics"):
        assert unset.summary[name] == zero.summary[name]
    assert unset.summary["params_sha256"] != split.summary["params_sha256"]
    columns = [pq.read_table(tmp_path / name / "rounds.parquet").column_names for name in ("unset", "zero")]
    assert columns[0] == columns[1]
    assert "validation" not in (tmp_path / "unset" / "scenario.toml").read_text()


@pytest.mark.slow
def test_target_on_validation_figures_stops_a_run(scenario: Make) -> None:
    result = fedsgd.run(scenario({**VALIDATION, "stop.target": "validation_accuracy>0.01"}))
    assert (result.summary["rounds"], result.summary["stopped_by"]) == (1, "target")
    message = "there is no metric named validation_accuracy: set evaluation.validation = 0.1"
    with pytest.raises(ScenarioError, match=message):
        build_experiment(scenario({"stop.target": "validation_accuracy>0.01"}))


def test_partition_lists_the_validation_examples(root: Path) -> None:
    path = root / "scenarios" / "quickstart.toml"
    quickstart = fedsgd.load(path)
    summary = summarize_partition(quickstart.with_settings(VALIDATION))
    assert summary.validation_sizes is not None
    assert summary.to_json()["validation"] == summary.validation_sizes.tolist()
    assert (summary.sizes.sum() + summary.validation_sizes.sum(), summary.n_unassigned) == (1437, 0)
    assert "validation" not in summarize_partition(quickstart).to_json()
    output = CliRunner().invoke(main, ["partition", str(path), "--set", "evaluation.validation=0.1"]).output
    assert "client examples validation distance" in " ".join(output.split())


# ---------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("sizes", "share", "message"),
    [
        ([1, 9, 9], 0.6, "got 0.6, which leaves none to train on to 1 of 3 clients with 1 example each, expected below 0.5"),
        ([3, 4, 50], 0.9, "none to train on to 2 of 3 clients with 3 to 4 examples each, expected below 0.833333"),
        ([1, 1], 0.3, "got 0.3, which holds out none of 2 clients with 1 example each; use a larger share, or 0"),
        ([2, 3], 0.01, "got 0.01, which holds out none of 2 clients with 2 to 3 examples each"),
    ],
)
def test_share_that_does_not_fit_the_clients_is_refused(sizes: list[int], share: float, message: str) -> None:
    with pytest.raises(DataError) as caught:
        hold_out_validation(make_clients(sizes), share, 0)
    assert message in str(caught.value)
    assert str(caught.value).startswith("evaluation.validation: ")


def test_share_without_a_whole_generated_example_is_refused() -> None:
    _, whole, _ = generate_clients(Synthetic(clients=3, examples=4, test_clients=2), 0.0, 0)
    with pytest.raises(DataError, match="holds out none of 3 clients with 4 examples each"):
        hold_out_validation(whole, 0.1, 0)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, "a"])
def test_share_outside_zero_to_one_is_refused(share: Any) -> None:
    with pytest.raises(ScenarioError, match=r"^evaluation.validation: expected a number of at least 0 and below 1"):
        Scenario(name="x").with_settings({"evaluation.validation": share})


def test_too_many_generated_validation_examples_are_refused() -> None:
    scenario = Scenario(name="x").with_settings({"data": {"name": "synthetic", "clients": 10**6}, "model.name": "softmax"})
    message = r"evaluation.validation: got 5,000,000 generated examples .*; use fewer clients, or set it to 0"
    with pytest.raises(ScenarioError, match=message):
        build_experiment(scenario.with_settings(VALIDATION))
