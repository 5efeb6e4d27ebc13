"""Built-in accuracy: the shapes of outputs and labels for which it is defined. Imports torch only where it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsgd.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

BY_NAME = (
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

    reading: Literal["classes", "logit"] = "classes"
    ignored: int | None = None

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
        answer, labels = _class_answers(output, target) if self.reading == "classes" else _logit_answers(output, target)
        right = (answer == labels).reshape(len(target), -1)
        if self.ignored is None:
            return right.float().mean(dim=1)
        counted = (labels != self.ignored).reshape(len(target), -1)
        weights = counted.sum(dim=1).double()
        return (right & counted).sum(dim=1).double() / weights.clamp(min=1), weights


accuracy = Accuracy()
"""Accuracy of [B, C] against labels [B], and of sequences [B, C, T] against [B, T]."""


def _class_answers(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    labels = target.reshape(-1) if output.dim() == 2 and target.dim() == 2 and target.shape[1] == 1 else target
    if output.dim() < 2 or output.shape[1] < 2 or (output.shape[0], *output.shape[2:]) != tuple(labels.shape):
        raise ModelError(explain_undefined(output, target))
    return output.argmax(dim=1), labels


def _logit_answers(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if not is_one_number_each(output) or not is_one_number_each(target) or len(output) != len(target):
        raise ModelError(explain_undefined(output, target))
    labels = target.reshape(-1)
    return (output.reshape(-1) > 0).to(labels.dtype), labels


def is_one_number_each(tensor: Tensor) -> bool:
    """Tell if the shape is [B] or [B, 1]."""
    return tensor.dim() == 1 or (tensor.dim() == 2 and tensor.shape[1] == 1)


def explain_undefined(output: object, target: object, reason: str = "") -> str:
    """Return the sentence that refuses the built-in accuracy for these shapes."""
    shapes = f"output {shape_text(output)}, labels {shape_text(target)}"
    return f"the built-in accuracy is not defined for {shapes}{reason and f' ({reason})'}: {BY_NAME}"


def shape_text(value: object) -> str:
    """Return the shape of a tensor with its first axis as B, "[B, 3]", or what the value is instead."""
    shape = getattr(value, "shape", None)
    if shape is None or not hasattr(value, "dtype"):
        return f"of type {type(value).__name__}"
    return f"[{', '.join(['B', *map(str, tuple(shape)[1:])])}]" if len(shape) else "a single number for all examples"


def read_shapes(
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
    if is_one_number_each(output) and is_one_number_each(target) and len(output) == len(target):
        return ("logit", "") if classes == 2 else (None, f"one output for {classes} classes")
    try:
        _class_answers(output, target)
    except ModelError:
        return None, ""
    n_outputs = int(output.shape[1])
    if not is_cross_entropy and n_outputs < classes:
        return None, f"{n_outputs} outputs for {classes} classes"
    if output.dim() > 2 and tuple(output.shape[:-1]) == tuple(target.shape) and not is_cross_entropy:
        return None, "either of two axes may be that of the classes"
    return "classes", ""
