"""Built-in accuracy, and the shapes of outputs and labels for which accuracy is defined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsgd.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

CUSTOM_METRIC_HINT = (
    'name a metric: metrics.accuracy = "module:function" in [model], or CustomModel(metrics={"accuracy": function}) in Python, '
    "a function of (output, target) that returns one number per example, or one number for the whole set"
)


@dataclass(frozen=True)
class Accuracy:
    """Share of correct predictions of each example.

    Attributes:
        output_kind: "classes": the largest of several outputs is the prediction; "logit": class 1 if the output is positive.
        ignored_label: label that does not count; None: every label counts.

    >>> import torch
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).tolist()
    [1.0, 0.0]
    """

    output_kind: Literal["classes", "logit"] = "classes"
    ignored_label: int | None = None

    def __call__(self, output: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the share of each example's positions with a correct prediction, [B]. ModelError for other shapes.

        With an ignored label, return also weights [B], the number of positions that count.

        Args:
            output: [B, K] with K >= 2, or [B, K, T] (any number of further axes); for "logit" [B] or [B, 1].
            target: [B] or [B, 1] labels; of sequences [B, T].
        """
        predict = _predict_classes if self.output_kind == "classes" else _predict_from_logits
        prediction, labels = predict(output, target)
        is_correct = (prediction == labels).reshape(len(target), -1)
        if self.ignored_label is None:
            return is_correct.float().mean(dim=1)
        is_counted = (labels != self.ignored_label).reshape(len(target), -1)
        weights = is_counted.sum(dim=1).double()
        return (is_correct & is_counted).sum(dim=1).double() / weights.clamp(min=1), weights


accuracy = Accuracy()
"""Accuracy of outputs [B, K] with labels [B], and of sequences [B, K, T] with labels [B, T]."""


def _predict_classes(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    labels = target.reshape(-1) if output.dim() == 2 and target.dim() == 2 and target.shape[1] == 1 else target
    if output.dim() < 2 or output.shape[1] < 2 or (output.shape[0], *output.shape[2:]) != tuple(labels.shape):
        raise ModelError(explain_undefined_accuracy(output, target))
    return output.argmax(dim=1), labels


def _predict_from_logits(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if not has_one_number_per_example(output) or not has_one_number_per_example(target) or len(output) != len(target):
        raise ModelError(explain_undefined_accuracy(output, target))
    labels = target.reshape(-1)
    return (output.reshape(-1) > 0).to(labels.dtype), labels


def has_one_number_per_example(tensor: Tensor) -> bool:
    """Return True for a tensor of shape [B] or [B, 1]."""
    return tensor.dim() == 1 or (tensor.dim() == 2 and tensor.shape[1] == 1)


def explain_undefined_accuracy(output: object, target: object, reason: str = "") -> str:
    """Return the error message for shapes without a defined accuracy."""
    shapes = f"output {format_shape(output)}, labels {format_shape(target)}"
    return f"the built-in accuracy is not defined for {shapes}{reason and f' ({reason})'}: {CUSTOM_METRIC_HINT}"


def explain_undefined_metric(name: str, output: object, target: object, reason: str = "") -> str:
    """Return the error message for shapes without a defined built-in metric of a whole set."""
    shapes = f"output {format_shape(output)}, labels {format_shape(target)}"
    expected = "expected scores of classes [B, K], [B, K, T] or [B, T, K] with labels [B] or [B, T], or one logit per label"
    own_metric = "a function of all outputs and targets in [model] metrics takes any shape"
    return f'"{name}" is not defined for {shapes}{reason and f" ({reason})"}, {expected}; {own_metric}'


def format_shape(value: object) -> str:
    """Return the shape of a tensor with B as its first axis, "[B, 3]", or the type of another value."""
    shape = getattr(value, "shape", None)
    if shape is None or not hasattr(value, "dtype"):
        return f"of type {type(value).__name__}"
    return f"[{', '.join(['B', *map(str, tuple(shape)[1:])])}]" if len(shape) else "a single number for all examples"


def infer_output_kind(
    output: Tensor, target: Tensor, classes: int, is_cross_entropy: bool
) -> tuple[Literal["classes", "logit"] | None, str]:
    """Infer the `output_kind` of the built-in accuracy from the shapes of one slice and the dataset's number of classes.

    Return (the kind, "") or, if accuracy is not defined, (None, the reason or "").
    """
    if has_one_number_per_example(output) and has_one_number_per_example(target) and len(output) == len(target):
        return ("logit", "") if classes == 2 else (None, f"one output for {classes} classes")
    try:
        _predict_classes(output, target)
    except ModelError:
        return None, ""
    n_outputs = int(output.shape[1])
    if not is_cross_entropy and n_outputs < classes:
        return None, f"{n_outputs} outputs for {classes} classes"
    if output.dim() > 2 and tuple(output.shape[:-1]) == tuple(target.shape) and not is_cross_entropy:
        return None, "two axes may be the axis of the classes"
    return "classes", ""
