"""Macro F1, AUC and perplexity: values computed by hand and by scikit-learn, and the form of the user's metrics."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsgd.models.set_metrics import (
    SET_METRICS,
    Auc,
    BitsPerCharacter,
    MacroF1,
    Perplexity,
    SetMetricName,
    StreamingFunction,
    find_better_direction,
    get_column,
    make_function,
)


def one_hot(predictions: list[int], classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


def test_macro_f1_equals_that_computed_by_hand() -> None:
    """Class 0: 1 true positive, 1 false positive, 1 false negative; class 1: 1, 1, 0; class 2: 0, 0, 1; class 3 is absent."""
    outputs, labels = one_hot([0, 1, 0, 1], 4), torch.tensor([0, 1, 2, 0])
    assert MacroF1()(outputs, labels) == pytest.approx((2 / 4 + 2 / 3 + 0) / 3, rel=1e-15)


def test_macro_f1_of_logits_and_of_ignored_labels() -> None:
    logits, labels = torch.tensor([1.0, -1.0, 2.0, -3.0]), torch.tensor([1, 1, 0, 0])
    assert MacroF1("logit")(logits, labels) == 0.5
    assert MacroF1("logit")(logits[:, None], labels[:, None]) == 0.5
    outputs, padded = one_hot([0, 1, 0, 1], 3), torch.tensor([0, 1, -100, -100])
    assert MacroF1(ignored_label=-100)(outputs, padded) == 1.0
    assert math.isnan(MacroF1(ignored_label=-100)(outputs, torch.full((4,), -100)))


def test_auc_equals_that_computed_by_hand() -> None:
    """Of the 2 x 3 pairs, the positive example wins 3, ties 1 and loses 2."""
    scores, labels = torch.tensor([0.5, 0.2, 0.5, 0.9, 0.1]), torch.tensor([1, 1, 0, 0, 0])
    assert Auc("logit")(scores, labels) == pytest.approx((1 + 0.5 + 1) / 6, rel=1e-15)
    assert Auc()(torch.stack([-scores, scores], dim=1), labels) == pytest.approx(2.5 / 6, rel=1e-15)


def test_auc_of_several_classes_is_the_mean_over_classes_that_occur() -> None:
    """Class 2 has no example. The classes 0 and 1 have one positive each; one of the two is ranked first among three."""
    outputs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.7, 0.1]])
    assert Auc()(outputs, torch.tensor([0, 1, 0])) == pytest.approx((1.0 + 0.5) / 2, rel=1e-15)


def test_auc_without_two_classes_or_with_nan_is_nan() -> None:
    outputs = torch.rand(4, 3)
    assert math.isnan(Auc()(outputs, torch.ones(4, dtype=torch.int64)))
    assert math.isnan(Auc()(torch.full((4, 3), math.nan), torch.tensor([0, 1, 2, 0])))
    assert [Auc(ignored_label=0).has_one_class(torch.tensor(y)) for y in ([0, 1, 1], [0, 1, 2], [0])] == [True, False, True]


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("places", [(), (7,)])
@pytest.mark.parametrize("class_axis", [1, -1])
@pytest.mark.parametrize("label", [None, 0, -100])
def test_macro_f1_and_auc_equal_those_of_scikit_learn(
    classes: int, places: tuple[int, ...], class_axis: int, label: int | None
) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, (60, *places))
    scores = (rng.normal(size=(60, *places, classes)) + np.eye(classes)[labels]).round(1)  # with equal scores
    if label == -100:
        labels[rng.random(labels.shape) < 0.4] = label
    is_counted = np.ones(labels.shape, bool) if label is None else labels != label
    y, flat = labels[is_counted], torch.from_numpy(scores[is_counted])
    outputs = torch.from_numpy(scores).movedim(-1, class_axis).float()
    f1, auc = (cls(ignored_label=label, class_axis=class_axis)(outputs, torch.from_numpy(labels)) for cls in (MacroF1, Auc))
    assert f1 == pytest.approx(sklearn_metrics.f1_score(y, flat.argmax(1), average="macro"), rel=1e-12)
    probabilities = flat.float().double().softmax(1).numpy()
    areas = [sklearn_metrics.roc_auc_score(y == k, probabilities[:, k]) for k in np.unique(y) if len(np.unique(y)) > 1]
    expected = float(np.mean(areas if classes > 2 else areas[1:])) if areas else math.nan
    assert auc == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert math.isnan(auc) == (classes == 2 and label == 0)


def test_auc_scores_probabilities_as_they_are() -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 80)
    p = (rng.random((80, 4)) + np.eye(4)[labels]).astype(np.float32)
    p /= p.sum(axis=1, keepdims=True)
    expected = np.mean([sklearn_metrics.roc_auc_score(labels == k, p[:, k]) for k in range(4)])
    assert Auc()(torch.from_numpy(p), torch.from_numpy(labels)) == pytest.approx(float(expected), rel=1e-12)
    assert Auc()(torch.from_numpy(p * 9), torch.from_numpy(labels)) != pytest.approx(float(expected), rel=1e-4)


def test_perplexity_is_exp_of_the_mean_loss() -> None:
    assert Perplexity().from_loss(math.log(65)) == pytest.approx(65)
    assert Perplexity().from_loss(1000.0) == math.inf
    assert math.isnan(Perplexity().from_loss(math.nan))


def test_bits_per_character_is_the_mean_loss_over_ln_2() -> None:
    assert BitsPerCharacter().from_loss(1.4697) == pytest.approx(1.4697 * math.log2(math.e), rel=1e-12)
    assert BitsPerCharacter().from_loss(math.inf) == math.inf
    assert math.isnan(BitsPerCharacter().from_loss(math.nan))


def test_every_built_in_metric_has_a_name_a_column_and_a_direction() -> None:
    assert set(SET_METRICS) == set(get_args(SetMetricName))
    directions = {get_column(name): find_better_direction(get_column(name)) for name in SET_METRICS}
    assert directions == {"macro_f1": "higher", "auc": "higher", "perplexity": "lower", "bits_per_character": "lower"}
    names = (
        "loss",
        "train_perplexity",
        "validation_auc",
        "accuracy",
        "client_accuracy_worst_tenth",
        "client_accuracy_std",
        "mine",
    )
    assert [find_better_direction(name) for name in names] == ["lower", "lower", "higher", "higher", "higher", None, None]


class RunningError:
    """Share of wrong predictions, in the protocol of torchmetrics."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.n_wrong, self.n = 0, 0

    def update(self, output: Tensor, target: Tensor) -> None:
        self.n_wrong += int((output.argmax(1) != target).sum())
        self.n += len(target)

    def compute(self) -> Tensor:
        return torch.tensor(self.n_wrong / self.n)


def test_object_with_update_and_compute_is_run_on_a_reset_copy() -> None:
    metric = RunningError()
    metric.update(torch.eye(2), torch.tensor([1, 0]))
    function: Any = make_function(metric)
    assert isinstance(function, StreamingFunction)
    outputs, labels = one_hot([0, 1, 1, 1], 2), torch.tensor([0, 0, 1, 1])
    assert [float(function(outputs, labels)) for _ in range(2)] == [0.25, 0.25]
    assert (metric.n_wrong, metric.n) == (2, 2)
    plain = torch.nn.functional.cross_entropy
    assert make_function(plain) is plain
