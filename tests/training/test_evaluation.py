"""Reported loss and accuracy equal those of plain PyTorch on the whole test set, or the run is rejected."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fedsgd
from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError, ScenarioError
from fedsgd.experiment.builder import Experiment, build_experiment
from fedsgd.experiment.evaluation import Evaluator
from fedsgd.experiment.execution import make_execution
from fedsgd.models.losses import find_reduction
from fedsgd.models.metrics import Accuracy
from fedsgd.runtime import WorkerPool
from fedsgd.scenario.scenario import Scenario
from fedsgd.training import EvaluationResult
from tests.executions import start_in_process

N, N_TEST = 40, 250
"""Test examples make two slices of 100 and one of 50."""


def make_dataset(labels: np.ndarray, classes: int | None, width: int = 4) -> Dataset:
    """Return random inputs [N + N_TEST, width] with these targets; the first N examples are for training."""
    x = np.random.default_rng(1).normal(size=(len(labels), width)).astype(np.float32)
    return Dataset(Examples(x[:N], labels[:N]), Examples(x[N:], labels[N:]), classes)


def make_labels(classes: int, *places: int) -> np.ndarray:
    """Return class labels [N + N_TEST, *places] with other frequencies in the last slices."""
    rng = np.random.default_rng(2)
    classes_of_examples = rng.integers(0, classes, (N + N_TEST, *places))
    is_late = np.arange(len(classes_of_examples)) > N + 120
    return np.where(is_late.reshape(-1, *[1] * len(places)), np.minimum(classes_of_examples, 1), classes_of_examples)


def build(data: Dataset, module: nn.Module, loss: Any = None, settings: Any = None, **options: Any) -> Experiment:
    scenario = Scenario(name="x").with_settings({"data.partition.clients": 2, "engine.name": "sequential", **(settings or {})})
    return build_experiment(scenario, dataset=data, module=module, loss=loss, **options)


def evaluate(experiment: Experiment) -> dict[str, float]:
    """Return the metrics of the initial model."""
    return Evaluator(experiment.evaluation, experiment.engine)(experiment.task.initial_parameters)[0]


def run_plain(module: nn.Module, data: Dataset) -> tuple[Any, Tensor]:
    """Return output and targets of the whole test set from plain PyTorch."""
    with torch.no_grad():
        return module.eval()(torch.from_numpy(data.test.x)), torch.from_numpy(data.test.y)


class Reshaped(nn.Module):
    """Linear layer with a function that reshapes its output."""

    def __init__(self, outputs: int, reshape: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, outputs)
        self.reshape = reshape

    def forward(self, x: Tensor) -> Any:
        return self.reshape(self.linear(x))


def make_linear(outputs: int, *shape: int) -> Reshaped:
    return Reshaped(outputs, lambda o: o.reshape(len(o), *shape) if shape else o)


# ------------------------------------------------------------------------------------------------------------- accuracy: accepted


BCE = functional.binary_cross_entropy_with_logits
ACCEPTED: dict[str, tuple[Any, Any, int, tuple[int, ...], Any]] = {
    # name: module, loss, classes, shape of the labels of an example, correctness [n, ...] of outputs and labels
    "classes": (make_linear(3), None, 3, (), lambda o, t: o.argmax(1) == t),
    "classes, own loss": (
        make_linear(3),
        lambda o, t: functional.cross_entropy(o, t) * 2,
        3,
        (),
        lambda o, t: o.argmax(1) == t,
    ),
    "classes, one-hot squares": (
        make_linear(3),
        lambda o, t: (o - functional.one_hot(t, 3)).square().mean(),
        3,
        (),
        lambda o, t: o.argmax(1) == t,
    ),
    "classes, labels as a column": (
        make_linear(3),
        lambda o, t: functional.cross_entropy(o, t[:, 0]),
        3,
        (1,),
        lambda o, t: o.argmax(1) == t[:, 0],
    ),
    "one logit [B, 1], labels [B]": (
        make_linear(1),
        lambda o, t: BCE(o[:, 0], t.float()),
        2,
        (),
        lambda o, t: (o[:, 0] > 0) == (t == 1),
    ),
    "one logit [B, 1], labels [B, 1]": (
        make_linear(1),
        lambda o, t: BCE(o, t.float()),
        2,
        (1,),
        lambda o, t: ((o > 0) == (t == 1))[:, 0],
    ),
    "one logit [B], labels [B]": (
        Reshaped(1, lambda o: o[:, 0]),
        lambda o, t: BCE(o, t.float()),
        2,
        (),
        lambda o, t: (o > 0) == (t == 1),
    ),
    "one logit [B], labels [B, 1]": (
        Reshaped(1, lambda o: o[:, 0]),
        lambda o, t: BCE(o, t[:, 0].float()),
        2,
        (1,),
        lambda o, t: (o > 0) == (t[:, 0] == 1),
    ),
    "sequences": (make_linear(15, 3, 5), None, 3, (5,), lambda o, t: (o.argmax(1) == t).float().mean(1)),
    "sequences, as many places as classes": (
        make_linear(9, 3, 3),
        None,
        3,
        (3,),
        lambda o, t: (o.argmax(1) == t).float().mean(1),
    ),
    "sequences, own loss": (
        make_linear(15, 3, 5),
        lambda o, t: functional.cross_entropy(o, t) * 2,
        3,
        (5,),
        lambda o, t: (o.argmax(1) == t).float().mean(1),
    ),
    "pixels": (make_linear(24, 3, 2, 4), None, 3, (2, 4), lambda o, t: (o.argmax(1) == t).float().mean((1, 2))),
}


@pytest.mark.parametrize(("module", "loss", "classes", "places", "is_correct"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_built_in_accuracy_equals_that_of_plain_pytorch(
    module: nn.Module, loss: Any, classes: int, places: tuple[int, ...], is_correct: Any
) -> None:
    data = make_dataset(make_labels(classes, *places), classes)
    values = evaluate(build(data, module, loss))
    output, target = run_plain(module, data)
    assert values["accuracy"] == pytest.approx(float(is_correct(output, target).double().mean()), rel=1e-6)
    assert values["loss"] == pytest.approx(float((loss or functional.cross_entropy)(output, target)), rel=1e-6)
    assert 0 < values["accuracy"] < 1


def test_logit_loss_is_recognized_with_a_class_weight_but_not_with_a_shift() -> None:
    """At +0.25 the weighted loss is larger for class 1 than for class 0, but its threshold is still zero."""
    data, module, weight = make_dataset(make_labels(2, 1), 2), make_linear(1), torch.tensor([9.0])
    values = evaluate(build(data, module, lambda o, t: BCE(o, t.float(), pos_weight=weight)))
    output, target = run_plain(module, data)
    assert values["accuracy"] == pytest.approx(float(((output > 0) == (target == 1)).double().mean()), rel=1e-12)
    with pytest.raises(ModelError, match="the loss does not read it as a logit"):
        build(data, module, lambda o, t: BCE(o - 3, t.float()))


# -------------------------------------------------------------------------------------------------------------- accuracy: refused


REJECTED: dict[str, tuple[Any, Any, int, tuple[int, ...], str]] = {
    # name: module, loss, classes, shape of the labels of an example, message
    "channels last": (
        make_linear(15, 5, 3),
        lambda o, t: functional.cross_entropy(o.transpose(1, 2), t),
        3,
        (5,),
        r"output \[B, 5, 3\], labels \[B, 5\]",
    ),
    "channels last, as many places as classes": (
        make_linear(9, 3, 3),
        lambda o, t: functional.cross_entropy(o.transpose(1, 2), t),
        3,
        (3,),
        r"output \[B, 3, 3\], labels \[B, 3\] \(two axes may be the axis of the classes\)",
    ),
    "several labels": (
        make_linear(3),
        lambda o, t: BCE(o, t.float()),
        2,
        (3,),
        r"output \[B, 3\], labels \[B, 3\]",
    ),
    "a probability": (
        Reshaped(1, lambda o: o[:, 0].sigmoid()),
        lambda o, t: functional.binary_cross_entropy(o, t.float()),
        2,
        (),
        r"output \[B\], labels \[B\] \(the loss does not read it as a logit\)",
    ),
    "squares, threshold 0.5": (
        Reshaped(1, lambda o: o[:, 0]),
        lambda o, t: functional.mse_loss(o, t.float()),
        2,
        (),
        "the loss does not read it as a logit",
    ),
    "cross-entropy of one output": (make_linear(1), lambda o, t: o.square().mean(), 2, (), "does not read it as a logit"),
    "one output for three classes": (
        make_linear(1),
        lambda o, t: functional.mse_loss(o[:, 0], t.float()),
        3,
        (),
        r"output \[B, 1\], labels \[B\] \(one output for 3 classes\)",
    ),
    "cumulative logits": (
        make_linear(2),
        lambda o, t: BCE(o, (t[:, None] > torch.arange(2)).float()),
        3,
        (),
        r"\(2 outputs for 3 classes\)",
    ),
    "an embedding": (
        make_linear(8),
        lambda o, t: (torch.cdist(o, o) * (t[:, None] == t)).mean(),
        3,
        (),
        "the loss is not lower where the largest output is the label's",
    ),
    "a dict": (
        Reshaped(3, lambda o: {"logits": o}),
        lambda o, t: functional.cross_entropy(o["logits"], t),
        3,
        (),
        r"output of type dict, labels \[B\]",
    ),
    "a label that an own loss ignores": (
        make_linear(15, 3, 5),
        lambda o, t: functional.cross_entropy(o, t, ignore_index=0),
        3,
        (5,),
        r"the loss ignores label 0; torch.nn.CrossEntropyLoss\(ignore_index=0\) names it",
    ),
}


@pytest.mark.parametrize(("module", "loss", "classes", "places", "message"), REJECTED.values(), ids=REJECTED.keys())
def test_undefined_accuracy_is_rejected_unless_a_metric_is_named(
    module: nn.Module, loss: Any, classes: int, places: tuple[int, ...], message: str
) -> None:
    data = make_dataset(make_labels(classes, *places), classes)
    with pytest.raises(ModelError, match=message) as error:
        build(data, module, loss)
    assert 'metrics.accuracy = "module:function"' in str(error.value)
    assert "\n" not in str(error.value)
    named = {"first": lambda o, t: t.float().reshape(len(t), -1)[:, 0]}
    assert set(evaluate(build(data, module, loss, metrics=named))) == {"loss", "first"}
    for key in ("report.target_accuracy", "stop.target_accuracy"):
        with pytest.raises(ScenarioError, match=rf"{key}: there is no metric named accuracy, expected one of"):
            build(data, module, loss, {key: 0.5}, metrics=named)
    accuracy = {"accuracy": lambda o, t: torch.full((len(t),), 0.25)}
    assert evaluate(build(data, module, loss, {"report.target_accuracy": 0.5}, metrics=accuracy))["accuracy"] == 0.25


def test_negative_labels_under_an_unknown_loss_are_rejected() -> None:
    data = make_dataset(make_labels(3), 3)
    object.__setattr__(data, "train", Examples(data.train.x, np.where(np.arange(N) == 7, -1, data.train.y)))
    with pytest.raises(ModelError, match="negative labels, which only PyTorch's cross-entropy is known to ignore"):
        build(data, make_linear(3), lambda o, t: functional.cross_entropy(o, t.clamp(min=0)))


# ---------------------------------------------------------------------------------------------------------- labels that are ignored


def ignore_labels(data: Dataset, label: int) -> Dataset:
    """Replace labels by an ignored one: more in later examples, and all labels of example 3."""
    for part in (data.train, data.test):
        is_ignored = np.random.default_rng(3).random(part.y.shape) < np.linspace(0, 0.9, len(part.y)).reshape(
            -1, *[1] * (part.y.ndim - 1)
        )
        is_ignored[3] = True
        part.y[is_ignored] = label
    return data


@pytest.mark.parametrize("places", [(), (5,)], ids=["classes", "sequences"])
@pytest.mark.parametrize("label", [-100, 0])
def test_ignored_labels_do_not_count_in_accuracy_and_loss(label: int, places: tuple[int, ...]) -> None:
    data = ignore_labels(make_dataset(make_labels(3, *places), 3), label)
    module = make_linear(15, 3, 5) if places else make_linear(3)
    loss = nn.CrossEntropyLoss(ignore_index=label)
    output, target = run_plain(module, data)
    for equal_loss in (loss, functools.partial(functional.cross_entropy, ignore_index=label)):
        values = evaluate(build(data, module, equal_loss))
        is_counted = target != label
        assert values["accuracy"] == pytest.approx(float((output.argmax(1) == target)[is_counted].double().mean()), rel=1e-12)
        assert values["loss"] == pytest.approx(float(loss(output, target)), rel=1e-6)


def test_accuracy_by_client_ignores_the_label() -> None:
    data = ignore_labels(make_dataset(make_labels(3, 5), 3), 0)
    module, loss = make_linear(15, 3, 5), nn.CrossEntropyLoss(ignore_index=0)
    settings = {"data.partition.clients": 8, "data.held_out": 0.4, "evaluation.clients": True, "evaluation.training": True}
    experiment = build(data, module, loss, settings)
    values, accuracy = start_in_process(experiment).evaluator(experiment.task.initial_parameters)
    assert experiment.held_out is not None
    assert accuracy is not None
    expected = []
    for client in range(8):
        x, y = (torch.from_numpy(part) for part in experiment.held_out.examples_of(client).arrays())
        is_correct, is_counted = module(x).argmax(1) == y, y != 0
        expected.append(float(is_correct[is_counted].double().mean()) if is_counted.any() else math.nan)
    assert accuracy.tolist() == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert values["client_accuracy_mean"] == pytest.approx(np.nanmean(expected), rel=1e-12)
    x, y = (torch.from_numpy(part) for part in experiment.train.all_examples().arrays())
    assert values["train_loss"] == pytest.approx(float(loss(module(x), y).detach()), rel=1e-6)


def test_client_with_only_ignored_labels_has_no_accuracy() -> None:
    data = make_dataset(make_labels(3), 3)
    data.train.y[:] = 0
    loss = nn.CrossEntropyLoss(ignore_index=0)
    experiment = build(data, make_linear(3), loss, {"data.held_out": 0.4, "evaluation.clients": True})
    values, accuracy = start_in_process(experiment).evaluator(experiment.task.initial_parameters)
    assert accuracy is not None
    assert np.isnan(accuracy).all()
    assert math.isnan(values["client_accuracy_mean"])
    assert 0 < values["accuracy"] < 1


def test_loss_without_ignored_labels_has_the_bits_of_slices_weighted_by_examples() -> None:
    data, module = make_dataset(make_labels(3, 5), 3), make_linear(15, 3, 5)
    output, target = run_plain(module, data)
    values, total = evaluate(build(data, module)), 0.0
    for start in (0, 100, 200):
        part = slice(start, start + 100)
        total += float(functional.cross_entropy(output[part], target[part])) * len(target[part])
    assert values["loss"] == total / N_TEST
    assert values["accuracy"] == float((output.argmax(1) == target).float().mean(1).double().numpy().mean())


# --------------------------------------------------------------------------------------------------------------- the reported loss


WEIGHT = torch.tensor([1.0, 5.0, 0.5])
LOSSES: dict[str, Any] = {
    "class weights": nn.CrossEntropyLoss(weight=WEIGHT),
    "class weights, label smoothing": nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2),
    "class weights, ignored": nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=2),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "sum of weighted": nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"),
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.2),
    "partial": functools.partial(functional.cross_entropy, weight=WEIGHT),
    "own, weighted": lambda o, t: functional.cross_entropy(o, t, weight=WEIGHT),
    "own, sum": lambda o, t: functional.cross_entropy(o, t, reduction="sum"),
    "own, root": lambda o, t: functional.cross_entropy(o, t).sqrt(),
    "own, of the batch": lambda o, t: functional.cross_entropy(o, t) + o.var(dim=0).sum(),
    "multi-margin": nn.MultiMarginLoss(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_reported_loss_equals_that_of_the_whole_set(loss: Any) -> None:
    data, module = make_dataset(make_labels(3), 3), make_linear(3)
    experiment = build(data, module, loss, {"evaluation.training": True, "data.partition.clients": 2})
    values = evaluate(experiment)
    assert values["loss"] == pytest.approx(float(loss(*run_plain(module, data))), rel=2e-6)
    x, y = (torch.from_numpy(part) for part in experiment.train.all_examples().arrays())
    assert values["train_loss"] == pytest.approx(float(loss(module(x), y).detach()), rel=2e-6)


def test_regression_loss_equals_that_of_the_whole_set() -> None:
    data = make_dataset(np.random.default_rng(4).normal(size=(N + N_TEST, 2)).astype(np.float32), None)
    for loss in (nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), nn.MSELoss(reduction="sum")):
        module = make_linear(2)
        assert evaluate(build(data, module, loss))["loss"] == pytest.approx(float(loss(*run_plain(module, data))), rel=2e-6)


TREES: dict[str, tuple[Any, Any]] = {
    "tuple": (lambda o: (o, o[:, 0]), lambda o, t: functional.cross_entropy(o[0], t).sqrt() + o[1].var()),
    "dict of lists": (lambda o: {"a": [o, None]}, lambda o, t: functional.cross_entropy(o["a"][0], t).sqrt()),
}


@pytest.mark.parametrize(("reshape", "loss"), TREES.values(), ids=TREES.keys())
def test_loss_of_several_outputs_equals_that_of_the_whole_set(reshape: Any, loss: Any) -> None:
    data, module = make_dataset(make_labels(3), 3), Reshaped(3, reshape)
    values = evaluate(build(data, module, loss, metrics={"one": lambda o, t: torch.ones(len(t))}))
    assert values["loss"] == pytest.approx(float(loss(*run_plain(module, data))), rel=1e-6)


def test_reduction_of_torch_losses_is_recognized() -> None:
    class RootLoss(nn.CrossEntropyLoss):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return super().forward(output, target).sqrt()

    hooked = nn.MSELoss()
    hooked.register_forward_hook(lambda module, arguments, result: result * 2)
    assert [find_reduction(loss) for loss in (functional.mse_loss, nn.MSELoss(), nn.BCELoss())] == ["mean"] * 3
    assert [find_reduction(loss) for loss in (functional.cross_entropy, nn.NLLLoss())] == ["counted"] * 2
    assert [find_reduction(nn.L1Loss(reduction="sum")), find_reduction(nn.KLDivLoss(reduction="batchmean"))] == ["sum", "mean"]
    whole: list[Any] = [
        RootLoss(),
        hooked,
        nn.BCELoss(weight=torch.ones(2)),
        functools.partial(functional.mse_loss, reduce=False),
    ]
    assert [find_reduction(loss) for loss in whole] == ["whole"] * 4


def test_loss_of_large_outputs_is_combined_or_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsgd.training.evaluation_trial.MAX_LOSS_OUTPUT_BYTES", 1500)
    data, module = make_dataset(make_labels(3), 3), make_linear(3)
    for loss in (LOSSES["own, sum"], lambda o, t: functional.cross_entropy(o, t) * 2, LOSSES["class weights"]):
        assert evaluate(build(data, module, loss))["loss"] == pytest.approx(float(loss(*run_plain(module, data))), rel=2e-6)
    for name in ("own, weighted", "own, root"):
        with pytest.raises(
            ModelError, match=r"the loss of the 250 test examples cannot be computed: .*\[B, 3\]; 3 kB.*"
        ) as error:
            build(data, module, LOSSES[name])
        assert "\n" not in str(error.value)
    module = Reshaped(3, lambda o: (o, o.mean()))
    metrics = {"one": lambda o, t: torch.ones(len(t))}
    with pytest.raises(ModelError, match="cannot be computed"):
        build(data, module, lambda o, t: functional.cross_entropy(o[0], t) + o[1].square(), metrics=metrics)


LOSS_ERRORS: dict[str, tuple[Any, str]] = {
    "per example": (nn.CrossEntropyLoss(reduction="none"), r"the loss is of shape \[40\], expected a tensor that is a scalar"),
    "a float": (lambda o, t: float(functional.cross_entropy(o, t)), "the loss is a float, expected a tensor"),
    "a fixed number of examples": (
        lambda o, t: functional.cross_entropy(o, t) + (o.sum(1) * torch.ones(40)).mean(),
        r"the loss cannot be computed on the 250 test examples in one call \(RuntimeError: ",
    ),
}


@pytest.mark.parametrize(("loss", "message"), LOSS_ERRORS.values(), ids=LOSS_ERRORS.keys())
def test_loss_that_cannot_be_evaluated_is_rejected_before_round_1(loss: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(make_dataset(make_labels(3), 3), make_linear(3), loss)


def test_module_that_fails_on_the_last_slice_is_rejected_before_round_1() -> None:
    def fail_on_50(output: Tensor) -> Tensor:
        return output * (torch.ones(100)[: len(output)] if len(output) != 50 else torch.ones(7))[:, None]

    with pytest.raises(ModelError, match=r"^the last slice of the 250 test examples has 50 .*evaluating 50 examples fails: "):
        build(make_dataset(make_labels(3), 3), Reshaped(3, fail_on_50))


def test_loss_that_reads_a_tensor_stored_by_the_module_is_rejected() -> None:
    stored: dict[str, Tensor] = {}

    def store_mean(output: Tensor) -> Tensor:
        stored["mean"] = output.mean()
        return output

    with pytest.raises(ModelError, match="the loss depends on more than the output and the target"):
        build(
            make_dataset(make_labels(3), 3),
            Reshaped(3, store_mean),
            lambda o, t: functional.cross_entropy(o, t) + stored["mean"],
        )


# ------------------------------------------------------------------------------------------------------------------- broadcasting


PAIRS: dict[str, Any] = {
    "mse": functional.mse_loss,
    "l1": nn.L1Loss(),
    "smooth l1": nn.SmoothL1Loss(),
    "huber": nn.HuberLoss(),
    "own": lambda o, t: (o - t).square().mean(),
    "own, around torch's": lambda o, t: functional.mse_loss(o, t) * 2,
}


@pytest.mark.parametrize("loss", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("column", ["output", "target"])
def test_loss_of_all_pairs_is_rejected(loss: Any, column: str) -> None:
    y = np.random.default_rng(4).normal(size=N + N_TEST).astype(np.float32)
    data = make_dataset(y[:, None] if column == "target" else y, None)
    module = make_linear(1) if column == "output" else Reshaped(1, lambda o: o[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModelError, match=r"the loss (would compare|compares) each output .*the same shape") as error:
            build(data, module, loss)
    assert "\n" not in str(error.value)


def test_loss_of_one_output_and_all_targets_is_rejected() -> None:
    data = make_dataset(np.random.default_rng(4).normal(size=N + N_TEST).astype(np.float32), None)
    with pytest.raises(ModelError, match=r"compares each output .*output \[B, 3\], targets \[B\]"):
        build(data, make_linear(3), lambda o, t: (o[:, :1] - t).square().mean())


@pytest.mark.slow
def test_loss_that_pairs_outputs_and_targets_of_different_shapes_is_accepted() -> None:
    y = np.random.default_rng(4).normal(size=N + N_TEST).astype(np.float32)
    losses = (lambda o, t: (o[:, 0] - t).square().mean(), lambda o, t: functional.mse_loss(o, t[:, None]) + o.var())
    for loss, scale in itertools.product(losses, (1e-3, 1, 1e6)):
        module = make_linear(1)
        nn.init.zeros_(module.linear.weight)
        data = make_dataset(y * np.float32(scale), None)
        assert evaluate(build(data, module, loss))["loss"] == pytest.approx(float(loss(*run_plain(module, data))), rel=1e-6)


# ------------------------------------------------------------------------------------------------------------------------ metrics


METRICS: dict[str, tuple[Any, str]] = {
    "a column": (lambda o, t: torch.ones(len(t), 1), r"metric odd is of shape \[40, 1\], expected .* of shape \[40\]"),
    "of its slice": (
        lambda o, t: (o.argmax(1) == t).float().mean().expand(len(t)),
        "metric odd of an example depends on the other examples",
    ),
    "weights of another shape": (lambda o, t: (t.float(), torch.ones(1)), r"metric odd is of shape \[1\]"),
    "negative weights": (lambda o, t: (t.float(), t - 1.0), "weights that are negative"),
}


@pytest.mark.parametrize(("metric", "message"), METRICS.values(), ids=METRICS.keys())
def test_metric_without_one_number_per_example_is_rejected(metric: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(make_dataset(make_labels(3), 3), make_linear(3), metrics={"odd": metric})


def test_metric_with_weights_is_their_weighted_mean() -> None:
    data, module = make_dataset(make_labels(3), 3), make_linear(3)
    output, target = run_plain(module, data)
    recall = {"recall_of_2": lambda o, t: ((o.argmax(1) == 2).float(), (t == 2).float())}
    expected = float((output.argmax(1)[target == 2] == 2).double().mean())
    assert evaluate(build(data, module, metrics=recall))["recall_of_2"] == pytest.approx(expected, rel=1e-12)


def test_output_that_loses_its_axis_in_a_slice_of_one_example_is_rejected() -> None:
    y = np.random.default_rng(4).integers(0, 2, N + N_TEST)
    data = make_dataset(y, 2)
    short_data = Dataset(data.train, data.test.slice(0, 201), 2)
    module = Reshaped(1, lambda o: o.squeeze())
    loss = {"loss": lambda o, t: BCE(o.reshape(-1), t.float())}
    assert 0 < evaluate(build(data, module, **loss))["accuracy"] < 1
    with pytest.raises(ModelError, match=r"output a single number for all examples, labels \[B\]"):
        build(short_data, module, **loss)


# ------------------------------------------------------------------------------------------------------- models of clients, workers


def make_batch_norm_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


OWN_MODELS: dict[str, Any] = {
    "mean": (nn.CrossEntropyLoss(), lambda losses, n, t: float(np.average(losses, weights=n))),
    "class weights": (
        nn.CrossEntropyLoss(weight=WEIGHT),
        lambda losses, n, t: float(np.average(losses, weights=[WEIGHT[part].sum() for part in t])),
    ),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), lambda losses, n, t: sum(losses)),
    "own, sum": (LOSSES["own, sum"], lambda losses, n, t: sum(losses)),
    "own, root": (LOSSES["own, root"], lambda losses, n, t: float(np.average(losses, weights=n))),
}


@pytest.mark.parametrize(("loss", "combine"), OWN_MODELS.values(), ids=OWN_MODELS.keys())
def test_losses_of_models_of_clients_are_combined(loss: Any, combine: Any) -> None:
    settings = {"model.batch_norm": "local", "data.held_out": 0.4, "evaluation.clients": True, "data.partition.clients": 3}
    experiment = build(make_dataset(make_labels(3), 3), make_batch_norm_module(), loss, settings)
    assert experiment.held_out is not None
    values, _ = start_in_process(experiment).evaluator(experiment.task.initial_parameters[: experiment.plan.layout.size])
    module, losses, sizes, targets = make_batch_norm_module().eval(), [], [], []
    for client in range(3):
        x, y = (torch.from_numpy(part) for part in experiment.held_out.examples_of(client).arrays())
        losses.append(float(loss(module(x), y).detach()))
        sizes.append(len(y))
        targets.append(y)
    assert values["loss"] == pytest.approx(combine(losses, sizes, targets), rel=2e-6)


def root_loss(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target).sqrt()


@pytest.mark.slow
def test_metrics_with_one_and_two_workers_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsgd.runtime.workers.pool.MIN_DISTRIBUTED_EVALUATION", 0)
    data, settings = ignore_labels(make_dataset(make_labels(3), 3), 0), {"evaluation.metrics": "perplexity"}
    for loss in (nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0), root_loss):
        experiment = build(data, nn.Linear(4, 3), loss, settings, workers=2, metrics={"accuracy": Accuracy(ignored_label=0)})
        metrics = evaluate(experiment)
        with make_execution(experiment, 2) as distributed:
            assert isinstance(distributed.runtime, WorkerPool)
            assert distributed.evaluator(experiment.task.initial_parameters)[0] == metrics
        output, target = run_plain(experiment.task.module, data)
        assert metrics["loss"] == pytest.approx(float(loss(output, target)), rel=2e-6)


def test_joined_results_are_weighted() -> None:
    first = EvaluationResult(2, [3.0], {"a": np.array([1.0, 0.0])}, {"a": np.array([3.0, 0.0])}, [2.0])
    second = EvaluationResult(1, [5.0], {"a": np.array([0.0])}, {}, [6.0])
    joined = EvaluationResult.join([first, second])
    assert (joined.mean_loss, EvaluationResult(3, [1.0, 5.0], {}, {}, [2.0, 2.0], True).mean_loss) == (1.0, 1.5)
    assert joined.means == {"loss": 1.0, "a": 0.75}
    assert EvaluationResult(3, [1.0, 2.0], {}, is_loss_sum=True).loss == 3.0
    assert math.isnan(EvaluationResult(2, [0.0], {}, {}, [0.0]).loss)


# --------------------------------------------------------------------------------------------------------------- whole runs


def test_best_accuracy_ignores_nan() -> None:
    evaluations = 0  # the trial counts as the first

    def nan_in_round_1(output: Tensor, target: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(target) == 50
        return torch.full((len(target),), math.nan if evaluations == 2 and len(target) == 50 else 0.5)

    scenario = Scenario(name="x", rounds=2).with_settings(
        {"data.partition.clients": 2, "engine.name": "sequential", "evaluation.every": 1}
    )
    result = fedsgd.run(
        scenario,
        data=make_dataset(make_labels(3), 3),
        model=fedsgd.CustomModel(module=nn.Linear(4, 3), metrics={"accuracy": nan_in_round_1}),
    )
    assert result.history[0].accuracy != result.history[0].accuracy
    assert result.summary["best_accuracy"] == 0.5


def test_run_reports_loss_and_accuracy_of_its_final_model() -> None:
    """The run has one logit, class weights and a column of labels; plain PyTorch evaluates its final parameters."""
    data = make_dataset((np.random.default_rng(5).random((N + N_TEST, 1)) < 0.3).astype(np.int64), 2)
    weight = torch.tensor([3.0])

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (BCE(output, target.float(), reduction="none") * (1 + 2 * target)).sum() / (1 + 2 * target).sum()

    scenario = Scenario(name="x", rounds=2).with_settings({"data.partition.clients": 2, "engine.name": "sequential"})
    result = fedsgd.run(scenario, data=data, model=fedsgd.CustomModel(module=nn.Linear(4, 1), loss=loss))
    final = result.history[-1].metrics
    assert final is not None
    w = torch.from_numpy(result.parameters)
    output, target = torch.from_numpy(data.test.x) @ w[:4, None] + w[4], torch.from_numpy(data.test.y)
    assert final["accuracy"] == pytest.approx(float(((output > 0) == (target == 1)).double().mean()), rel=1e-12)
    assert final["loss"] == pytest.approx(float(loss(output, target)), rel=1e-5)
    assert weight.item() == 3.0
