"""Choice and trial of the metrics of a whole set before round 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from fedsgd.config.quantities import format_binary_bytes, format_bytes
from fedsgd.data import Dataset
from fedsgd.errors import ModelError, ScenarioError
from fedsgd.models.losses import COUNTED_LOSSES, recognise_loss
from fedsgd.models.metrics import explain_undefined_metric
from fedsgd.models.set_metrics import SET_METRICS, Auc, EntropyMetric, MacroF1, SetMetric, SetMetricName, get_column
from fedsgd.models.task import LearningTask
from fedsgd.training.loss_probes import LossProbe, OutputReading, choose_reading, name_failure
from fedsgd.training.slice_evaluation import check_number, list_leaves

ENTROPY_LOSSES = (*COUNTED_LOSSES, "binary_cross_entropy", "binary_cross_entropy_with_logits")
"""PyTorch's losses that are a cross-entropy, from whose mean an `EntropyMetric` follows."""
KEY = "evaluation.metrics"


@dataclass(frozen=True, eq=False)
class MetricTrial:
    """Outputs and targets of a slice of training examples, from which the built-in metrics are chosen.

    Attributes:
        task, dataset: task and data of the run.
        compute_loss: loss of outputs and targets.
        output, target: output of the initial model and targets, [B, ...].
        ignored_label: label that the loss ignores; None: there is none.
        infer_reduction: function that returns "sum" if the loss is a sum over examples.
    """

    task: LearningTask
    dataset: Dataset
    compute_loss: LossProbe
    output: Any
    target: Tensor
    ignored_label: int | None
    infer_reduction: Callable[[], str | None]

    def choose_metrics(self, names: tuple[SetMetricName, ...]) -> dict[str, SetMetric]:
        """Return the built-in metrics in the form that fits the outputs, by column.

        Raises:
            ModelError: a metric is not defined for the loss, the outputs or the targets, or its column is taken.
        """
        metrics: dict[str, SetMetric] = {}
        for name in names:
            column, cls = get_column(name), SET_METRICS[name]
            if column in self.task.metrics:
                raise ModelError(f'{KEY}: "{name}" and a metric of [model] have the column {column}; rename the latter')
            choose: Callable[..., SetMetric] = self._choose_entropy if issubclass(cls, EntropyMetric) else self._choose_form
            metrics[column] = choose(name, cls)
        return metrics

    def _choose_entropy(self, metric_name: SetMetricName, cls: type[EntropyMetric]) -> EntropyMetric:
        definition = f'{KEY}: "{metric_name}" is {cls.definition}, and the loss'
        name_and_options = recognise_loss(self.task.loss)
        if name_and_options is None:
            if self.infer_reduction() == "sum":
                raise ModelError(f"{definition} is a sum over examples; return the mean")
            return cls()
        name, options = name_and_options
        if name not in ENTROPY_LOSSES:
            raise ModelError(f"{definition} is {name}; remove the metric")
        loss = self.task.loss
        if loss.keywords.get("label_smoothing") if isinstance(loss, partial) else getattr(loss, "label_smoothing", 0):
            raise ModelError(f"{definition} has label_smoothing, which adds to it; remove the metric or the smoothing")
        if options.get("reduction") == "sum" and name not in COUNTED_LOSSES:
            raise ModelError(f'{definition} is a sum over examples; set reduction="mean"')
        return cls()

    def _choose_form(self, name: SetMetricName, cls: type[MacroF1] | type[Auc]) -> SetMetric:
        if self.dataset.classes is None:
            raise ModelError(f'{KEY}: "{name}" needs class labels, and the targets of the dataset are not class labels')
        reading, class_axis, reason = self._choose_reading()
        if reading is None:
            raise ModelError(f"{KEY}: {explain_undefined_metric(name, self.output, self.target, reason)}")
        return cls(reading, self.ignored_label, class_axis)

    def _choose_reading(self) -> tuple[OutputReading | None, int, str]:
        """Return (reading, axis of the classes, ""), with the last axis for outputs [B, ..., K] and labels [B, ...]."""
        output, target = self.output, self.target
        reading, reason = choose_reading(self.task, self.compute_loss, output, target, self.dataset)
        has_classes_last = isinstance(output, Tensor) and output.dim() > 2 and output.shape[:-1] == target.shape
        if reading is not None or not has_classes_last:
            return reading, 1, reason

        def compute_loss(moved_output: Tensor, target: Tensor) -> Any:
            return self.compute_loss(moved_output.movedim(1, -1).contiguous(), target)

        moved_reading, reason = choose_reading(self.task, compute_loss, output.movedim(-1, 1), target, self.dataset)
        return moved_reading, -1, reason


def check_output_bytes(output: Any, target: Tensor, n_examples: int, label: str, max_bytes: int) -> int:
    """Return the bytes of the outputs and targets of a set; raise ScenarioError if they exceed the budget of memory.

    Args:
        output: output of a slice of the set, [B, ...].
        target: targets of the slice, [B, ...].
        n_examples: number of examples of the set.
        label: description of the set for the message.
        max_bytes: budget of memory, bytes.
    """
    slice_bytes = sum(leaf.nbytes for leaf in list_leaves(output) if isinstance(leaf, Tensor)) + target.nbytes
    n_bytes = slice_bytes * n_examples // len(target)
    if n_bytes > max_bytes:
        raise ScenarioError(
            f"state.budget: metrics of a whole set store the outputs of {label}, {format_bytes(n_bytes)}, but the budget of "
            f"memory is {format_binary_bytes(max_bytes)}; remedies: a larger budget; fewer examples; metrics with one number "
            "per example, perplexity or bits-per-character, which store no outputs"
        )
    return n_bytes


def try_set_metrics(metrics: Mapping[str, SetMetric], label: str, output: Any, target: Tensor) -> None:
    """Compute the metrics on outputs and targets of the size of a set.

    Args:
        metrics: metrics by name.
        label: description of the set for messages.
        output: outputs of the size of the set, [n, ...].
        target: targets of the set, [n, ...].

    Raises:
        ModelError: a metric fails, is not one number, or is an AUC of targets with fewer than two classes.
    """
    for name, metric in metrics.items():
        if isinstance(metric, EntropyMetric):
            continue
        if isinstance(metric, Auc) and metric.has_one_class(target):
            problem = "all counted targets have one class, and an AUC compares classes"
            raise ModelError(f'{KEY}: "{name}" is not defined for {label}: {problem}; remove the metric')
        with name_failure(f'metric "{name}" of {label}', output, target):
            check_number(name, metric(output, target.clone()))
