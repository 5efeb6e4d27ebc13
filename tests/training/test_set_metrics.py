"""Metrics of a whole set equal those of plain PyTorch on all outputs at once, or the run is rejected before round 1."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fedsgd
from fedsgd.cli.terminal.run_tables import print_result
from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError, ScenarioError
from fedsgd.experiment.execution import make_execution
from fedsgd.models.set_metrics import Auc, MacroF1
from fedsgd.scenario.scenario import Scenario
from tests.executions import start_in_process
from tests.models.test_set_metrics import RunningError
from tests.training.test_evaluation import (
    N_TEST,
    WEIGHT,
    Reshaped,
    build,
    evaluate,
    ignore_labels,
    make_batch_norm_module,
    make_dataset,
    make_labels,
    make_linear,
    run_plain,
)


def spread(output: Tensor, target: Tensor) -> float:
    """Return a number that is no mean over examples or slices."""
    return float(output[target == 1].mean() / output.std())


BUILT_IN = {"evaluation.metrics": ["macro-f1", "auc", "perplexity"]}


# ------------------------------------------------------------------------------------------------------------ the user's metrics


def test_metric_with_one_number_is_computed_once_on_the_whole_set() -> None:
    sizes: list[int] = []

    def counted(output: Tensor, target: Tensor) -> Tensor:
        sizes.append(len(target))
        return torch.tensor(spread(output, target))

    data, module = make_dataset(make_labels(3), 3), make_linear(3)
    metrics = {
        "counted": counted,
        "plain": spread,
        "array": lambda o, t: np.float32(spread(o, t)),
        "first": lambda o, t: t * 1.0,
    }
    experiment = build(data, module, metrics=metrics)
    assert sizes == [40, N_TEST], "a slice of training examples, and the size of the test set"
    values = evaluate(experiment)
    assert sizes[2:] == [N_TEST]
    output, target = run_plain(module, data)
    expected = spread(output, target)
    assert [values[name] for name in ("counted", "plain", "array")] == pytest.approx([expected] * 3, rel=1e-6)
    assert values["first"] == float(target.double().mean())
    assert list(values) == ["loss", "accuracy", "first", "counted", "plain", "array"]
    assert experiment.state_budget.evaluation_bytes == N_TEST * (3 * 4 + 8)
    assert "evaluation, outputs of a whole set: at most 5 kB" in str(experiment.state_budget)


def test_metric_of_several_outputs_and_with_a_gradient_is_accepted() -> None:
    data = make_dataset(make_labels(3), 3)
    module = Reshaped(3, lambda o: {"scores": [o, None]})
    scale = torch.ones((), requires_grad=True)

    def of_tree(output: Any, target: Tensor) -> Tensor:
        with torch.enable_grad():
            return spread(output["scores"][0], target) * scale

    def per_example(output: Any, target: Tensor) -> Tensor:
        with torch.enable_grad():
            return target * scale

    values = evaluate(
        build(data, module, lambda o, t: functional.cross_entropy(o["scores"][0], t), metrics={"a": of_tree, "b": per_example})
    )
    output, target = run_plain(module, data)
    assert values["a"] == pytest.approx(spread(output["scores"][0], target), rel=1e-6)
    assert values["b"] == float(target.double().mean())


def test_loss_that_changes_outputs_in_place_does_not_change_the_metrics() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        value = functional.cross_entropy(output.clone(), target)
        output.detach().zero_()
        return value

    for n_test in (80, N_TEST):
        data = make_dataset(make_labels(3), 3)
        data = Dataset(data.train, data.test.slice(0, n_test), 3)
        module = make_linear(3)
        values = evaluate(build(data, module, loss, metrics={"spread": spread}))
        output, target = (part[:n_test] for part in run_plain(module, data))
        assert values["spread"] == pytest.approx(spread(output, target), rel=1e-6)


def test_state_of_a_metric_is_that_before_the_first_evaluation() -> None:
    class CallCount:
        n_calls = 0

        def __call__(self, output: Tensor, target: Tensor) -> float:
            self.n_calls += 1
            return self.n_calls + float(torch.rand(()))

    experiment = build(make_dataset(make_labels(3), 3), make_linear(3), metrics={"count": CallCount()})
    values = [evaluate(experiment) for _ in range(3)]
    assert values[0] == values[1] == values[2]


def test_object_with_update_and_compute_is_a_metric_of_the_whole_set() -> None:
    data, module, metric = make_dataset(make_labels(3), 3), make_linear(3), RunningError()
    experiment = build(data, module, metrics={"wrong": metric})
    output, target = run_plain(module, data)
    expected = float((output.argmax(1) != target).double().mean())
    assert [evaluate(experiment)["wrong"] for _ in range(2)] == pytest.approx([expected] * 2, rel=1e-6)
    assert metric.n == 0


@pytest.mark.slow
def test_metric_of_torchmetrics_is_computed_on_the_whole_set() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    data, module = make_dataset(make_labels(3), 3), make_linear(3)
    f1 = torchmetrics.classification.MulticlassF1Score(num_classes=3, average="macro")
    values = evaluate(build(data, module, metrics={"f1": f1}))
    assert values["f1"] == pytest.approx(MacroF1()(*run_plain(module, data)), rel=1e-6)
    by_class = torchmetrics.classification.MulticlassF1Score(num_classes=40, average="none")
    with pytest.raises(ModelError, match=r"metric f1 is of shape \[40\], expected one number for the whole set"):
        build(make_dataset(make_labels(40), 40), make_linear(40), metrics={"f1": by_class})


REJECTED: dict[str, tuple[Any, str]] = {
    "a short vector": (
        lambda o, t: t[1:],
        r"metric odd is of shape \[39\], expected a tensor with one number per example, of shape \[40\], .*, or one number for",
    ),
    "one number in a vector": (lambda o, t: t[:1], r"metric odd is of shape \[1\], .* or one number for the whole set"),
    "a text": (lambda o, t: "0.5", "metric odd is a str, .* or one number for the whole set"),
    "nothing": (lambda o, t: None, "metric odd is a NoneType, .* or one number for the whole set"),
    "a triple": (lambda o, t: (1, 2, 3), "metric odd is a tuple, .* or one number for the whole set"),
    "two numbers": (lambda o, t: (t.sum(), t.sum()), r"metric odd is of shape \[\], .* or one number for the whole set"),
    "a complex number": (lambda o, t: 1j, "metric odd is a complex, .* or one number for the whole set"),
    "a vector of the test set": (
        lambda o, t: 1.0 if len(t) <= 100 else t,
        r"metric odd is of shape \[250\], expected one number for the whole set",
    ),
    "failing on the test set": (
        lambda o, t: 1.0 if len(t) <= 100 else 1 / 0,
        r'metric "odd" of the 250 test examples cannot be computed \(output \[B, 3\], targets int64 \[B\]\): ZeroDivisionError',
    ),
}


@pytest.mark.parametrize(("metric", "message"), REJECTED.values(), ids=REJECTED.keys())
def test_metric_of_another_form_is_rejected_before_round_1(metric: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        build(make_dataset(make_labels(3), 3), make_linear(3), metrics={"odd": metric})
    assert "\n" not in str(error.value)


def test_outputs_that_cannot_be_joined_or_exceed_the_budget_are_rejected() -> None:
    data = make_dataset(make_labels(3), 3)
    module = Reshaped(3, lambda o: (o, o.mean()))
    with pytest.raises(ModelError, match="the module's output has a part a single number for all examples"):
        build(data, module, lambda o, t: functional.cross_entropy(o[0], t), metrics={"m": lambda o, t: 1.0})
    large = Reshaped(3, lambda o: (o, o.new_zeros(len(o), 10_000)))
    message = r"state.budget: .* outputs of the 250 test examples, 10 MB, but the budget of memory is 1 MiB; remedies: "
    with pytest.raises(ScenarioError, match=message) as error:
        build(
            *(data, large, lambda o, t: functional.cross_entropy(o[0], t), {"state.budget": "1MiB"}),
            metrics={"m": lambda o, t: 1.0},
        )
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- built-in metrics


def lasts(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.reshape(-1, 3), target.reshape(-1))


BCE = functional.binary_cross_entropy_with_logits
FORMS: dict[str, tuple[Any, Any, int, tuple[int, ...], dict[str, Any]]] = {
    # name: module, loss, classes, shape of the labels of an example, fields of the metrics
    "classes": (make_linear(3), None, 3, (), {}),
    "sequences": (make_linear(15, 3, 5), None, 3, (5,), {}),
    "sequences, classes last": (make_linear(15, 5, 3), lasts, 3, (5,), {"class_axis": -1}),
    "a logit": (make_linear(1), lambda o, t: BCE(o[:, 0], t.float()), 2, (), {"output_kind": "logit"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("module", "loss", "classes", "places", "form"), FORMS.values(), ids=FORMS.keys())
def test_built_in_metrics_equal_those_of_all_outputs_at_once(
    module: nn.Module, loss: Any, classes: int, places: tuple[int, ...], form: dict[str, Any]
) -> None:
    data = make_dataset(make_labels(classes, *places), classes)
    values = evaluate(build(data, module, loss, BUILT_IN))
    output, target = run_plain(module, data)
    assert values["macro_f1"] == MacroF1(**form)(output, target)
    assert values["auc"] == pytest.approx(Auc(**form)(output, target), rel=1e-12)
    assert values["perplexity"] == pytest.approx(math.exp((loss or functional.cross_entropy)(output, target)), rel=1e-5)
    assert 0 < values["macro_f1"] < 1
    assert 0 < values["auc"] < 1


@pytest.mark.parametrize("places", [(), (5,)], ids=["classes", "sequences"])
@pytest.mark.parametrize("label", [-100, 0])
def test_built_in_metrics_ignore_the_label_of_the_loss(label: int, places: tuple[int, ...]) -> None:
    data = ignore_labels(make_dataset(make_labels(3, *places), 3), label)
    module, loss = make_linear(15, 3, 5) if places else make_linear(3), nn.CrossEntropyLoss(ignore_index=label)
    values = evaluate(build(data, module, loss, BUILT_IN))
    output, target = run_plain(module, data)
    counted = target != label
    outputs = output.movedim(1, -1)[counted]
    assert values["macro_f1"] == MacroF1()(outputs, target[counted])
    assert values["auc"] == pytest.approx(Auc()(outputs, target[counted]), rel=1e-12)
    assert values["perplexity"] == pytest.approx(math.exp(functional.cross_entropy(outputs, target[counted])), rel=1e-5)


PERPLEXITY_LOSSES: dict[str, Any] = {
    "sum": nn.CrossEntropyLoss(reduction="sum", ignore_index=0),
    "sum, class weights": nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum", ignore_index=0),
    "class weights": nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0),
    "own": lambda o, t: functional.cross_entropy(o, t, ignore_index=0),
}


@pytest.mark.parametrize("loss", PERPLEXITY_LOSSES.values(), ids=PERPLEXITY_LOSSES.keys())
def test_entropy_metrics_follow_from_the_mean_over_counted_targets(loss: Any) -> None:
    data, module = ignore_labels(make_dataset(make_labels(3, 5), 3), 0), make_linear(15, 3, 5)
    output, target = run_plain(module, data)
    settings = {"evaluation.metrics": ["perplexity", "bits-per-character"]}
    experiment = build(data, module, loss, settings, metrics={"one": lambda o, t: torch.ones(len(t))})
    assert experiment.state_budget.evaluation_bytes == 0, "the perplexity needs no outputs"
    values = evaluate(experiment)
    weight = getattr(loss, "weight", None)
    expected = functional.cross_entropy(output, target, weight=weight, ignore_index=0)
    assert values["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert values["bits_per_character"] == pytest.approx(math.log2(math.exp(expected)), rel=1e-5)


def test_perplexity_of_a_sum_over_class_probabilities_counts_examples() -> None:
    probabilities = np.random.default_rng(1).dirichlet([1, 1, 1], 290).astype(np.float32)
    x = np.random.default_rng(2).normal(size=(290, 4)).astype(np.float32)
    data = Dataset(Examples(x[:40], probabilities[:40]), Examples(x[40:], probabilities[40:]), None)
    module = make_linear(3)
    values = evaluate(build(data, module, nn.CrossEntropyLoss(reduction="sum"), {"evaluation.metrics": "perplexity"}))
    expected = functional.cross_entropy(*run_plain(module, data))
    assert values["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)


UNDEFINED: dict[str, tuple[Any, Any, str, str]] = {
    # name: loss, targets, metric, message
    "perplexity of squares": (nn.MSELoss(), "numbers", "perplexity", '"perplexity" is exp of .*, and the loss is mse_loss'),
    "bits of squares": (
        nn.MSELoss(),
        "numbers",
        "bits-per-character",
        '"bits-per-character" is the mean cross-entropy in bits, and the loss is mse_loss; remove the metric',
    ),
    "perplexity of smoothed labels": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        "labels",
        "perplexity",
        "the loss has label_smoothing, which adds to it; remove the metric or the smoothing",
    ),
    "perplexity of an own sum": (
        lambda o, t: functional.cross_entropy(o, t, reduction="sum"),
        "labels",
        "perplexity",
        "the loss is a sum over examples; return the mean",
    ),
    "macro F1 of numbers": (nn.MSELoss(), "numbers", "macro-f1", '"macro-f1" needs class labels, and the targets'),
    "AUC of an embedding": (
        lambda o, t: (torch.cdist(o, o) * (t[:, None] == t)).mean(),
        "labels",
        "auc",
        r'"auc" is not defined for output \[B, 3\], labels \[B\] \(the loss is not lower where .*, expected scores of classes',
    ),
    "AUC of one class": (
        None,
        "one class",
        "auc",
        '"auc" is not defined for the 250 test examples: all counted targets have one class',
    ),
}


@pytest.mark.parametrize(("loss", "targets", "metric", "message"), UNDEFINED.values(), ids=UNDEFINED.keys())
def test_undefined_built_in_metric_is_rejected_before_round_1(loss: Any, targets: str, metric: str, message: str) -> None:
    labels = make_labels(3)
    if targets == "one class":
        labels[40:] = 2
    numbers = np.random.default_rng(4).normal(size=(290, 3)).astype(np.float32)
    data = make_dataset(numbers, None) if targets == "numbers" else make_dataset(labels, 3)
    with pytest.raises(ModelError, match=rf"^evaluation.metrics: .*{message}") as error:
        build(data, make_linear(3), loss, {"evaluation.metrics": metric})
    assert "\n" not in str(error.value)


SETTING_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "near name": (
        {"evaluation.metrics": "macro_f1"},
        r'^evaluation.metrics: got "macro_f1" at \[0\], did you mean "macro-f1"\?',
    ),
    "far name": (
        {"evaluation.metrics": ["auc", "recall"]},
        r'^evaluation.metrics: got "recall" at \[1\], expected one of: "auc", "bits-per-character", "macro-f1", "perplexity"',
    ),
    "a number": ({"evaluation.metrics": 3}, "^evaluation.metrics: expected a list, each entry "),
    "in [model]": (
        {"model.metrics": {"f1": "macro-f1"}},
        r'^model.metrics.f1: got "macro-f1", a built-in metric of a whole set: set evaluation.metrics = \["macro-f1"\]',
    ),
    "a column that is taken": (
        {"evaluation.metrics": ["auc"], "model.metrics": {"auc": "torch.nn.functional:cross_entropy"}},
        '^evaluation.metrics: "auc" and a metric of .model. have the column auc; rename the latter',
    ),
}


@pytest.mark.parametrize(("settings", "message"), SETTING_ERRORS.values(), ids=SETTING_ERRORS.keys())
def test_wrong_name_of_a_metric_is_rejected_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ModelError, ScenarioError), match=message) as error:
        build(make_dataset(make_labels(3), 3), make_linear(3), None, settings)
    assert "\n" not in str(error.value)


def test_scenario_lists_metrics_only_if_they_are_set() -> None:
    plain = Scenario(name="x")
    assert "metrics" not in plain.to_toml()
    assert "metrics" not in plain.with_settings({"evaluation.metrics": []}).to_toml()
    assert plain.with_settings({"evaluation.metrics": "auc"}).evaluation.metrics == ("auc",)


# ------------------------------------------------------------------------------- clients, training examples, workers, engines, runs


LOCAL_LOSSES: dict[str, Any] = {
    "mean": nn.CrossEntropyLoss(),
    "class weights": nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0),
    "sum": nn.CrossEntropyLoss(reduction="sum", ignore_index=0),
}


@pytest.mark.parametrize("loss", LOCAL_LOSSES.values(), ids=LOCAL_LOSSES.keys())
def test_metrics_of_local_models_are_computed_from_the_outputs_of_all_clients(loss: nn.CrossEntropyLoss) -> None:
    """Each client's batch norm has other statistics, so the outputs of two clients come from different models."""
    settings = {"model.batch_norm": "local", "data.held_out": 0.4, "evaluation.clients": True, "data.partition.clients": 3}
    data, seen = make_dataset(make_labels(3), 3), []

    def recorded(output: Tensor, target: Tensor) -> float:
        seen.append((output.clone(), target.clone()))
        return spread(output, target)

    experiment = build(data, make_batch_norm_module(), loss, {**settings, **BUILT_IN}, metrics={"recorded": recorded})
    assert experiment.held_out is not None
    n = int(experiment.held_out.sizes().sum())
    assert experiment.state_budget.evaluation_bytes == 2 * n * (3 * 4 + 8)
    evaluator = start_in_process(experiment).evaluator
    read = evaluator.local_model_of
    assert read is not None

    def read_shifted(client: int, buffers: Any) -> Any:
        parameters, statistics = read(client, buffers)
        return parameters + np.float32(client), statistics

    object.__setattr__(evaluator, "local_model_of", read_shifted)
    seen.clear()
    values, _ = evaluator(experiment.task.initial_parameters[: experiment.plan.layout.size])
    ((outputs, targets),) = seen
    expected_targets = np.concatenate([experiment.held_out.examples_of(client).arrays()[1] for client in range(3)])
    assert targets.tolist() == expected_targets.tolist()
    expected = functional.cross_entropy(outputs, targets, weight=loss.weight, ignore_index=loss.ignore_index)
    assert values["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    label = 0 if loss.ignore_index == 0 else None
    assert values["macro_f1"] == MacroF1(ignored_label=label)(outputs, targets)
    assert values["auc"] == Auc(ignored_label=label)(outputs, targets)
    assert values["recorded"] == spread(outputs, targets)


def test_metrics_of_training_examples_have_their_own_columns() -> None:
    data, module = make_dataset(make_labels(3), 3), make_linear(3)
    experiment = build(data, module, None, {**BUILT_IN, "evaluation.training": True}, metrics={"spread": spread})
    values = evaluate(experiment)
    x, y = (torch.from_numpy(part) for part in experiment.train.all_examples().arrays())
    output = module(x).detach()
    assert values["train_macro_f1"] == MacroF1()(output, y)
    assert values["train_perplexity"] == pytest.approx(math.exp(functional.cross_entropy(output, y)), rel=1e-5)
    assert values["train_spread"] == pytest.approx(spread(output, y), rel=1e-6)
    assert experiment.evaluation.metric_names == tuple(values)


def test_accuracy_by_client_is_not_changed_by_metrics_of_the_whole_set() -> None:
    settings = {"data.partition.clients": 4, "data.held_out": 0.4, "evaluation.clients": True}
    data, module = make_dataset(make_labels(3), 3), make_linear(3)
    plain, with_metrics = (build(data, module, None, {**settings, **extra}) for extra in ({}, BUILT_IN))
    (expected, clients), (values, same_clients) = (
        start_in_process(e).evaluator(e.task.initial_parameters) for e in (plain, with_metrics)
    )
    assert clients is not None
    assert same_clients is not None
    assert clients.tobytes() == same_clients.tobytes()
    assert {name: values[name] for name in expected} == expected


def test_accuracy_that_is_one_number_has_targets_but_no_figures_by_client() -> None:
    data, module = make_dataset(make_labels(3), 3), make_linear(3)
    metrics = {"accuracy": lambda o, t: float((o.argmax(1) == t).double().mean())}
    settings: dict[str, Any] = {"report.target_accuracy": 0.5}
    assert 0 < evaluate(build(data, module, None, settings, metrics=metrics))["accuracy"] < 1
    settings = {"data.held_out": 0.4, "evaluation.clients": True}
    with pytest.raises(ScenarioError, match=r"^evaluation.clients: got an accuracy that is one number for the whole set"):
        build(data, module, None, settings, metrics=metrics)


def test_metrics_with_one_and_two_workers_are_equal_and_need_no_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsgd.runtime.workers.pool.MIN_DISTRIBUTED_EVALUATION", 0)
    data = make_dataset(make_labels(3), 3)
    experiment = build(data, nn.Linear(4, 3), None, BUILT_IN, workers=2, metrics={"own": lambda o, t: spread(o, t)})
    with make_execution(experiment, 2) as distributed:
        assert distributed.evaluator(experiment.task.initial_parameters)[0] == evaluate(experiment)


@pytest.mark.parametrize("engine", ["captured", "stacked"])
def test_metrics_of_every_engine_are_equal(engine: str) -> None:
    data = make_dataset(make_labels(3), 3)
    reference = build(data, make_linear(3), None, BUILT_IN)
    experiment = build(data, make_linear(3), None, {**BUILT_IN, "engine.name": engine})
    assert experiment.engine_choice.name == engine
    assert evaluate(experiment) == evaluate(reference)


def test_run_has_metrics_of_the_whole_set_in_summary_and_table(tmp_path: Any) -> None:
    data, scenario = make_dataset(make_labels(3), 3), Scenario(name="x", rounds=2)
    scenario = scenario.with_settings({"data.partition.clients": 2, "engine.name": "sequential", **BUILT_IN})
    weighted = functools.partial(functional.cross_entropy, weight=WEIGHT)
    model = fedsgd.CustomModel(module=make_linear(3), loss=weighted, metrics={"spread": spread})
    result = fedsgd.run(scenario, data=data, model=model, out=tmp_path / "run")
    module = make_linear(3)
    result.load_into(module)
    output, target = run_plain(module, data)
    final = result.summary["final_metrics"]
    assert list(final) == ["loss", "accuracy", "spread", "macro_f1", "auc", "perplexity"]
    assert final["spread"] == pytest.approx(spread(output, target), rel=1e-6)
    assert final["macro_f1"] == MacroF1()(output, target)
    assert final["perplexity"] == pytest.approx(math.exp(weighted(output, target)), rel=1e-5)
    assert result.summary["initial_metrics"].keys() == final.keys()
    rounds = pq.read_table(tmp_path / "run" / "rounds.parquet").to_pydict()
    assert [rounds[name][-1] for name in final] == list(final.values())
    assert pytest.approx(math.exp(rounds["loss"][0])) == rounds["perplexity"][0]
    assert 'metrics = [\n    "macro-f1",\n    "auc",\n    "perplexity",\n]' in (tmp_path / "run" / "scenario.toml").read_text()


def test_run_with_local_models_says_that_metrics_are_no_means_over_clients(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"model.batch_norm": "local", "data.held_out": 0.4, "evaluation.clients": True, "data.partition.clients": 2}
    scenario = Scenario(name="x", rounds=1).with_settings({**settings, "evaluation.metrics": ["macro-f1", "perplexity"]})
    result = fedsgd.run(scenario, data=make_dataset(make_labels(3), 3), model=make_batch_norm_module())
    assert result.summary["set_metrics"] == ["macro_f1", "perplexity"]
    print_result(result)
    expected = "macro_f1, perplexity: one figure for the examples of all clients together, not a mean over clients\n"
    assert expected in capsys.readouterr().out
