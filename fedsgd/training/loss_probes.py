"""Probes of losses and metrics with constructed outputs and targets, to find out their conventions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsgd.data import Dataset
from fedsgd.errors import FedsgdError, ModelError, describe_error
from fedsgd.models import Loss, MetricFunction
from fedsgd.models.losses import is_cross_entropy
from fedsgd.models.metrics import format_shape, infer_output_kind
from fedsgd.models.set_metrics import StreamingFunction
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F64
from fedsgd.training.slice_evaluation import allocate_outputs, check_number, check_scores, is_number, list_leaves, map_tree

LossProbe = Callable[[Any, Tensor], Any]
OutputReading = Literal["classes", "logit"]


def choose_reading(
    task: LearningTask, loss: LossProbe, output: Any, target: Tensor, dataset: Dataset
) -> tuple[OutputReading | None, str]:
    """Return (the built-in accuracy's reading of outputs, ""), or (None, reason or "") if the accuracy is undefined.

    Outputs and labels [B, ...] come from some training examples. The task's loss is also run on constructed outputs.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None, ""
    is_known_loss = is_cross_entropy(task.loss)
    reading, reason = infer_output_kind(output, target, dataset.classes or 0, is_known_loss)
    if reading is None or (is_known_loss and reading == "classes"):
        return reading, reason
    if any(part.targets().min() < 0 for part in (dataset.train, dataset.test)):
        return None, "negative labels, which only PyTorch's cross-entropy is known to ignore"
    if reading == "logit":
        return (reading, "") if _is_logit_loss(loss, output, target) else (None, "the loss does not read it as a logit")
    if not _is_lower_at_labels(loss, output, target):
        return None, "the loss is not lower where the largest output is the label's"
    ignored_labels = _find_ignored_labels(loss, output, target)
    if ignored_labels:
        label = ignored_labels[0]
        return None, f"the loss ignores label {label}; torch.nn.CrossEntropyLoss(ignore_index={label}) names it"
    return reading, ""


def _is_logit_loss(loss: LossProbe, output: Tensor, target: Tensor) -> bool:
    """Return True if the loss interprets one output as a logit, so that outputs above zero mean class 1.

    Either the loss is lower for class 1 at +0.25 and for class 0 at -0.25. Or the loss falls towards each class, and the losses
    of the two classes mirror each other up to a factor, such as a weight of class 1.
    """

    def loss_at(value: float, label: int) -> float:
        return _compute_loss_or_nan(loss, torch.full_like(output, value), torch.full_like(target, label))

    if loss_at(0.25, 1) < loss_at(0.25, 0) and loss_at(-0.25, 0) < loss_at(-0.25, 1):
        return True
    is_falling = loss_at(0.25, 1) < loss_at(-0.25, 1) and loss_at(-0.25, 0) < loss_at(0.25, 0)
    ratios = [loss_at(value, 1) / loss_at(-value, 0) if loss_at(-value, 0) else math.nan for value in (-2.0, -0.25, 0.25, 2.0)]
    return is_falling and all(math.isclose(ratio, ratios[0], rel_tol=1e-4) for ratio in ratios) and ratios[0] > 0


def _is_lower_at_labels(loss: LossProbe, output: Tensor, target: Tensor) -> bool:
    """Return True if the loss is lower with the largest output at the label than at the next class."""
    labels = _reshape_labels(output, target)

    def make_outputs(largest_classes: Tensor) -> Tensor:
        return torch.full_like(output, 0.5).scatter_(1, largest_classes.unsqueeze(1), 0.75)

    return _compute_loss_or_nan(loss, make_outputs(labels), target) < _compute_loss_or_nan(
        loss, make_outputs((labels + 1) % output.shape[1]), target
    )


def _find_ignored_labels(loss: LossProbe, output: Tensor, target: Tensor) -> list[int]:
    """Return the labels at which the loss has no gradient, if the loss has a gradient at other labels."""
    labels = _reshape_labels(output, target)
    with torch.enable_grad():
        probe = (0.5 + 0.1 * _make_distinct_values(output)).requires_grad_()
        try:
            (gradient,) = torch.autograd.grad(loss(probe, target), probe)
        except Exception:  # a loss without a gradient shows nothing
            return []
    has_gradient = gradient.abs().amax(dim=1) > 0
    ignored_labels = [label for label in np.unique(labels.numpy()).tolist() if not has_gradient[labels == label].any()]
    return ignored_labels if has_gradient.any() else []


def _reshape_labels(output: Tensor, target: Tensor) -> Tensor:
    return target.reshape(len(output), *output.shape[2:])


def _compute_loss_or_nan(loss: LossProbe, output: Tensor, target: Tensor) -> float:
    """Return the loss; if the loss raises, return NaN, which is not lower than any number."""
    try:
        return float(loss(output, target))
    except Exception:  # the user's loss may fail on outputs that its module never returns
        return math.nan


def _make_distinct_values(output: Tensor) -> Tensor:
    """Return distinct numbers between -1 and 1 in the shape of the output."""
    return torch.cos(torch.arange(output.numel())).reshape(output.shape).to(output.dtype)


def reject_pairwise_loss(loss: LossProbe, output: Any, target: Tensor) -> None:
    """Raise ModelError if the loss compares every output with every target.

    If shapes differ, as [B, 1] and [B], broadcasting may make a table [B, B], whose loss does not change if targets are
    permuted. The test's outputs vary as much as the targets, or less if the loss of such outputs is not finite.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape == target.shape:
        return
    if bool((target == target[:1]).all()):
        return
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    for scale in (float(target.double().std()), 0.01):
        probe = output * (1 + 0.1 * _make_distinct_values(output)) + scale * _make_distinct_values(output)
        loss_value, permuted_loss, constant_loss = (
            _compute_loss_or_nan(loss, probe, labels) for labels in (target, target[order], target[:1].expand_as(target))
        )
        if not math.isfinite(loss_value):
            continue
        if math.isclose(loss_value, permuted_loss, rel_tol=1e-6) and not math.isclose(loss_value, constant_loss, rel_tol=1e-6):
            raise ModelError(
                f"the loss compares each output with the targets of all examples (output {format_shape(output)}, targets "
                f"{format_shape(target)}): give output and targets the same shape"
            )
        return


@contextmanager
def name_failure(subject: str, output: Any, target: Tensor, loss: Loss | None = None) -> Iterator[None]:
    """Turn the body's error of a loss or metric into a ModelError with subject and shapes; fedsgd's errors and warnings pass.

    With a loss, the message has advice on shapes too.
    """
    try:
        yield
    except (FedsgdError, Warning):
        raise
    except Exception as error:  # the user's function
        shape = format_shape(output) if isinstance(output, Tensor) else f"of type {type(output).__name__}"
        arguments = f"output {shape}, targets {str(target.dtype).removeprefix('torch.')} {format_shape(target)}"
        advice = _advise_on_shapes(loss, output, target) if loss is not None and isinstance(output, Tensor) else ""
        raise ModelError(f"{subject} cannot be computed ({arguments}): {describe_error(error)}{advice}") from error


def _advise_on_shapes(loss: Loss, output: Tensor, target: Tensor) -> str:
    """Return advice for a column of labels under cross-entropy, and for equally many numbers in different shapes; else ""."""
    if is_cross_entropy(loss):
        is_column = output.dim() == 2 and target.dim() == 2 and target.shape[1] == 1
        return f"; labels are {format_shape(target)}, flatten them: y.reshape(-1)" if is_column else ""
    if output.shape == target.shape or output.numel() != target.numel():
        return ""
    number = "" if target.is_floating_point() else ".float()"
    call = f"lambda output, target: loss(output.reshape(target.shape), target{number})"
    return f"; give both the same shape, as in {call}"


def is_set_metric(name: str, metric: MetricFunction, output: Any, target: Tensor) -> bool:
    """Return True for a metric with one number for all examples, False for one number per example.

    Raises:
        ModelError: the metric has another form, or its number for an example depends on the other examples.
    """
    with name_failure(f'metric "{name}"', output, target):
        scores = metric(output, target)
    if isinstance(metric, StreamingFunction) or is_number(scores):
        check_number(name, scores)
        return True
    try:
        values, _ = check_scores(name, scores, len(target))
    except ModelError as error:
        raise ModelError(f"{error}, or one number for the whole set") from None
    _check_independent(name, metric, output, target, values)
    return False


def _check_independent(name: str, metric: MetricFunction, output: Any, target: Tensor, values: F64) -> None:
    """Raise ModelError if a metric's number for an example depends on the other examples of its batch."""
    n = len(target)
    half = n // 2
    if half < 2 or any(not isinstance(leaf, Tensor) for leaf in list_leaves(output)):
        return
    try:
        allocate_outputs(output, n, 0)
        first_scores = metric(map_tree(lambda leaf: leaf[:half], output), target[:half])
        second_scores = metric(map_tree(lambda leaf: leaf[half:], output), target[half:])
        parts = [check_scores(name, first_scores, half)[0], check_scores(name, second_scores, n - half)[0]]
    except Exception:  # outputs that cannot be sliced, or a metric for one batch size
        return
    if not np.allclose(np.concatenate(parts), values, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ModelError(
            f"metric {name} of an example depends on the other examples, expected a number for each example alone, or one "
            "number for the whole set"
        )
