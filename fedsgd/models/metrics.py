"""Built-in accuracy: the shapes of outputs and labels for which it is defined. Imports torch only where it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsgd.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

CUSTOM_METRIC_HINT = (
    'name a metric: metrics.accuracy = "module:function" in [model], or metrics={"accuracy": function} in Python, '
    "a function of (output, target) that returns one number per example"
)


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers per example.

    Attributes:
        reading: "classes": the largest of several outputs is the answer; "logit": one output, class 1 where it is positive.
        ignored: label that does not count; None: every label counts.
    """

    output_kind: Literal["classes", "logit"] = "classes"
    ignored_label: int | None = None

    def __call__(self, output: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compare answers with labels.

        Args:
            output: [B, C] with C >= 2, or [B, C, T] (any number of further axes); for "logit" [B] or [B, 1].
            target: labels, [B] or [B, 1]; of sequences [B, T].

        Returns:
            [B], the share of the places of each example that are right. With an ignored label also the weights [B]: the
            number of places that count.

        Raises:
            ModelError: the shapes are others.
        """
        answer, labels = (
            _predict_classes(output, target) if self.output_kind == "classes" else _predict_from_logits(output, target)
        )
        right = (answer == labels).reshape(len(target), -1)
        if self.ignored_label is None:
            return right.float().mean(dim=1)
        counted = (labels != self.ignored_label).reshape(len(target), -1)
        weights = counted.sum(dim=1).double()
        return (right & counted).sum(dim=1).double() / weights.clamp(min=1), weights


accuracy = Accuracy()
"""Accuracy of [B, C] against labels [B], and of sequences [B, C, T] against [B, T]."""


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
    """Tell if the shape is [B] or [B, 1]."""
    return tensor.dim() == 1 or (tensor.dim() == 2 and tensor.shape[1] == 1)


def explain_undefined_accuracy(output: object, target: object, reason: str = "") -> str:
    """Return the sentence that refuses the built-in accuracy for these shapes."""
    shapes = f"output {format_shape(output)}, labels {format_shape(target)}"
    return f"the built-in accuracy is not defined for {shapes}{reason and f' ({reason})'}: {CUSTOM_METRIC_HINT}"


def format_shape(value: object) -> str:
    """Return the shape of a tensor with its first axis as B, "[B, 3]", or what the value is instead."""
    shape = getattr(value, "shape", None)
    if shape is None or not hasattr(value, "dtype"):
        return f"of type {type(value).__name__}"
    return f"[{', '.join(['B', *map(str, tuple(shape)[1:])])}]" if len(shape) else "a single number for all examples"


def infer_output_kind(
    output: Tensor, target: Tensor, classes: int, is_cross_entropy: bool
) -> tuple[Literal["classes", "logit"] | None, str]:
    """Decide by the shapes alone how the built-in accuracy reads an output.

    Args:
        output: [B, ...] of one slice.
        target: [B, ...] labels of the slice.
        classes: number of classes of the dataset.
        is_cross_entropy: the loss is PyTorch's, whose classes stand in the second axis.

    Returns:
        The reading, or None and the reason.
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
        return None, "either of two axes may be that of the classes"
    return "classes", ""
