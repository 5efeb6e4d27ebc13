"""Metrics of a whole set of examples: macro F1, AUC, perplexity, bits per character, and accumulating metrics of the user.

Such a metric is computed once, from all outputs and targets. It is no mean over examples, batches or clients: the mean of the
clients' F1 is not the F1 of all their examples.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from fedsgd.models.base import Metric, MetricFunction, StreamingMetric

if TYPE_CHECKING:
    from torch import Tensor

SetMetricName = Literal["macro-f1", "auc", "perplexity", "bits-per-character"]
"""Name of a built-in metric in `[evaluation] metrics`; its column has "_" in place of "-"."""
BetterDirection = Literal["higher", "lower"]
VALIDATION_PREFIX = "validation_"
"""Prefix of the figures on validation examples in rounds.parquet, such as "validation_accuracy"."""


@dataclass(frozen=True)
class ClassMetric:
    """Base class of the built-in metrics of class scores and labels.

    Attributes:
        output_kind: "classes": scores of K >= 2 classes; "logit": one score, positive for class 1.
        ignored_label: label that does not count; None: every label counts.
        class_axis: axis of the classes in the outputs, 1 or -1.
        better: direction in which the metric improves.
    """

    output_kind: Literal["classes", "logit"] = "classes"
    ignored_label: int | None = None
    class_axis: int = 1

    better: ClassVar[BetterDirection] = "higher"

    def select_counted(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return (scores [M, K] or of a logit [M, 1], labels [M]) of the M targets that are not ignored.

        Args:
            output: [n, K], [n, K, ...] or, with `class_axis` -1, [n, ..., K]; of a logit [n] or [n, 1].
            target: [n] or [n, 1] labels; of sequences [n, ...].
        """
        if self.output_kind == "logit":
            scores = output.reshape(-1, 1)
        else:
            scores = output.movedim(self.class_axis, -1)
            scores = scores.reshape(-1, scores.shape[-1])
        labels = target.reshape(-1).long()
        if self.ignored_label is None:
            return scores, labels
        is_counted = labels != self.ignored_label
        return scores[is_counted], labels[is_counted]


@dataclass(frozen=True)
class MacroF1(ClassMetric):
    """Unweighted mean over classes of F1 = 2·TP / (2·TP + FP + FN), the harmonic mean of precision and recall.

    Reference: Opitz and Burst 2019, "Macro F1 and macro F1", the mean of F1 scores. A class counts if a target or a prediction
    has it, as in `sklearn.metrics.f1_score(average="macro")`. Without counted targets, the value is NaN.

    >>> import torch
    >>> outputs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    >>> round(MacroF1()(outputs, torch.tensor([0, 1, 0])), 4)
    0.6667
    """

    def __call__(self, output: Tensor, target: Tensor) -> float:
        """Return the macro F1 of outputs and targets: see `select_counted`."""
        scores, labels = self.select_counted(output, target)
        if not len(labels):
            return math.nan
        predictions = (scores[:, 0] > 0).long() if self.output_kind == "logit" else scores.argmax(dim=1)
        n_classes = int(max(labels.max(), predictions.max())) + 1
        n_true, n_predicted, n_correct = (
            part.bincount(minlength=n_classes).double() for part in (labels, predictions, labels[labels == predictions])
        )
        n_both = n_true + n_predicted
        return float((2 * n_correct[n_both > 0] / n_both[n_both > 0]).mean())


@dataclass(frozen=True)
class Auc(ClassMetric):
    """Area under the ROC curve: share of pairs of a positive and a negative example in which the positive one scores higher.

    Reference: Hanley and McNeil 1982, "The meaning and use of the area under a receiver operating characteristic curve"; equal
    scores count one half. With two classes, class 1 is positive. With more classes, the value is the unweighted mean over the
    classes, each against the rest, of those classes that some but not all targets have.

    A logit is its own score. Other outputs are scored by their softmax over the classes in float64, unless they are
    probabilities already: not negative, with a sum of 1. The value is NaN if no class has positive and negative targets, or
    if a score is NaN.

    >>> import torch
    >>> Auc("logit")(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.75
    """

    def __call__(self, output: Tensor, target: Tensor) -> float:
        """Return the AUC of outputs and targets: see `select_counted`."""
        scores, labels = self.select_counted(output, target)
        scores = scores.double()
        if self.output_kind == "classes" and not _are_probabilities(scores):
            scores = scores.softmax(dim=1)
        if not len(labels) or scores.isnan().any():
            return math.nan
        positive_classes = range(scores.shape[1]) if scores.shape[1] > 2 else [1]
        areas = [_compute_area(scores[:, min(k, scores.shape[1] - 1)], labels == k) for k in positive_classes]
        defined_areas = [area for area in areas if area is not None]
        return math.fsum(defined_areas) / len(defined_areas) if defined_areas else math.nan

    def has_one_class(self, target: Tensor) -> bool:
        """Return True for targets of which fewer than two classes count, for which no AUC is defined."""
        labels = target.reshape(-1)
        if self.ignored_label is not None:
            labels = labels[labels != self.ignored_label]
        return bool((labels == labels[:1]).all())


def _are_probabilities(scores: Tensor) -> bool:
    """Return True for scores [M, K] that are not negative and have a sum of 1 in each row, up to rounding in float32."""
    return bool((scores >= 0).all()) and bool(((scores.sum(dim=1) - 1).abs() < 1e-4).all())


def _compute_area(scores: Tensor, is_positive: Tensor) -> float | None:
    """Return the AUC of scores [M] with positives [M], from the sum of ranks; None without positives or without negatives."""
    n_positive = int(is_positive.sum())
    n_negative = len(scores) - n_positive
    if not n_positive or not n_negative:
        return None
    _, places, counts = np.unique(scores.numpy(), return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[places]  # equal scores have their mean rank
    return float((ranks[is_positive.numpy()].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


@dataclass(frozen=True)
class EntropyMetric(ABC):
    """Base class of the built-in metrics that follow from the mean cross-entropy, which need no outputs.

    The mean is that of the reported loss, over all targets that are not ignored, with the class weights of the loss, if any.

    Attributes:
        definition: function of the mean cross-entropy, in words, for messages.
        better: direction in which the metric improves.
    """

    definition: ClassVar[str]
    better: ClassVar[BetterDirection] = "lower"

    @abstractmethod
    def from_loss(self, mean_loss: float) -> float:
        """Return the value for a mean loss, in nats.

        Args:
            mean_loss: mean cross-entropy, nats.
        """


@dataclass(frozen=True)
class Perplexity(EntropyMetric):
    """exp of the mean cross-entropy over all targets that are not ignored.

    Reference: Jelinek et al. 1977, "Perplexity, a measure of the difficulty of speech recognition tasks". Over clients, it is
    exp of the mean of all losses, not the mean of the clients' perplexities, which is larger.

    >>> round(Perplexity().from_loss(math.log(8)), 6)
    8.0
    """

    definition: ClassVar[str] = "exp of the mean cross-entropy"

    def from_loss(self, mean_loss: float) -> float:
        """Return the perplexity of a mean loss; infinity if it exceeds the largest float."""
        try:
            return math.exp(mean_loss)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class BitsPerCharacter(EntropyMetric):
    """Mean cross-entropy in bits, loss / ln 2, over all targets that are not ignored, which are characters in texts.

    Reference: Graves 2013, "Generating sequences with recurrent neural networks", section 3. Over clients, it is the mean over
    all characters.

    >>> round(BitsPerCharacter().from_loss(math.log(8)), 6)
    3.0
    """

    definition: ClassVar[str] = "the mean cross-entropy in bits"

    def from_loss(self, mean_loss: float) -> float:
        """Return the bits of a mean loss."""
        return mean_loss / math.log(2)


SET_METRICS: Mapping[SetMetricName, type[MacroF1] | type[Auc] | type[EntropyMetric]] = {
    "macro-f1": MacroF1,
    "auc": Auc,
    "perplexity": Perplexity,
    "bits-per-character": BitsPerCharacter,
}
"""Built-in metrics of a whole set by name."""
SetMetric = MetricFunction | EntropyMetric
"""Metric of a whole set: a function of all outputs and targets that returns one number, or of the mean cross-entropy."""


@dataclass(frozen=True)
class StreamingFunction:
    """Function that runs a copy of an object with reset, update and compute, such as a torchmetrics metric, on a whole set.

    Attributes:
        metric: object of the user, which does not change.
    """

    metric: StreamingMetric

    def __call__(self, output: Any, target: Tensor) -> Any:
        """Return the value for all outputs and targets of a set."""
        metric = copy.deepcopy(self.metric)
        metric.reset()
        metric.update(output, target)
        return metric.compute()


def make_function(metric: Metric) -> MetricFunction:
    """Return a metric as a function of outputs and targets."""
    return StreamingFunction(metric) if isinstance(metric, StreamingMetric) else metric


def get_column(name: SetMetricName) -> str:
    """Return the column of a built-in metric in rounds.parquet.

    >>> get_column("macro-f1")
    'macro_f1'
    """
    return name.replace("-", "_")


def name_validation_metric(column: str) -> str:
    """Return the column in rounds.parquet of a metric on the validation examples.

    >>> name_validation_metric("accuracy")
    'validation_accuracy'

    Args:
        column: column of the metric on the test examples.
    """
    return f"{VALIDATION_PREFIX}{column}"


def find_better_direction(column: str) -> BetterDirection | None:
    """Return the direction in which a figure of a run improves; None for a metric of the user, whose direction is unknown.

    >>> find_better_direction("train_loss"), find_better_direction("macro_f1"), find_better_direction("my_metric")
    ('lower', 'higher', None)

    Args:
        column: name of a figure in rounds.parquet, such as "loss", "validation_accuracy" or "client_accuracy_mean".
    """
    directions: dict[str, BetterDirection] = {"loss": "lower", "accuracy": "higher"}
    directions |= {"client_accuracy_mean": "higher", "client_accuracy_worst_tenth": "higher"}
    directions |= {get_column(name): metric.better for name, metric in SET_METRICS.items()}
    return directions.get(column.removeprefix("train_").removeprefix(VALIDATION_PREFIX))
