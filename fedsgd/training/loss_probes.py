"""Probes of losses and metrics with chosen outputs and targets, which show how they read them."""

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
from fedsgd.models import Loss, Metric
from fedsgd.models.losses import is_cross_entropy
from fedsgd.models.metrics import format_shape, infer_output_kind
from fedsgd.models.task import LearningTask
from fedsgd.training.slice_evaluation import allocate_outputs, check_scores, list_leaves, map_tree

LossProbe = Callable[[Any, Tensor], Any]
OutputReading = Literal["classes", "logit"]


def choose_reading(
    task: LearningTask, loss: LossProbe, output: Any, target: Tensor, dataset: Dataset
) -> tuple[OutputReading | None, str]:
    """Decide how the built-in accuracy reads outputs.

    Args:
        task: its loss says what it reads.
        loss: that loss, to be tried.
        output: module's output for some training examples, [B, ...].
        target: their labels, [B, ...].
        dataset: examples with class labels.

    Returns:
        The reading, or None and the reason why the accuracy is not defined.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None, ""
    known = is_cross_entropy(task.loss)
    reading, reason = infer_output_kind(output, target, dataset.classes or 0, known)
    if reading is None or (known and reading == "classes"):
        return reading, reason
    if any(part.targets().min() < 0 for part in (dataset.train, dataset.test)):
        return None, "negative labels, which only PyTorch's cross-entropy is known to ignore"
    if reading == "logit":
        return (reading, "") if _is_logit_loss(loss, output, target) else (None, "the loss does not read it as a logit")
    if not _is_lower_at_labels(loss, output, target):
        return None, "the loss is not lower where the largest output is the label's"
    ignored = _find_ignored_labels(loss, output, target)
    if ignored:
        return None, f"the loss ignores label {ignored[0]}; torch.nn.CrossEntropyLoss(ignore_index={ignored[0]}) names it"
    return reading, ""


def _is_logit_loss(loss: LossProbe, output: Tensor, target: Tensor) -> bool:
    """Tell if the loss of one output reads it as a logit, so that class 1 begins at zero.

    Either the loss is lower for class 1 at +0.25 and for class 0 at -0.25, or it falls towards its class and class 1 mirrors
    class 0 up to a factor, as with a weight of the positive class.
    """

    def loss_at(value: float, label: int) -> float:
        return _compute_loss_or_nan(loss, torch.full_like(output, value), torch.full_like(target, label))

    if loss_at(0.25, 1) < loss_at(0.25, 0) and loss_at(-0.25, 0) < loss_at(-0.25, 1):
        return True
    falling = loss_at(0.25, 1) < loss_at(-0.25, 1) and loss_at(-0.25, 0) < loss_at(0.25, 0)
    ratios = [loss_at(value, 1) / loss_at(-value, 0) if loss_at(-value, 0) else math.nan for value in (-2.0, -0.25, 0.25, 2.0)]
    return falling and all(math.isclose(ratio, ratios[0], rel_tol=1e-4) for ratio in ratios) and ratios[0] > 0


def _is_lower_at_labels(loss: LossProbe, output: Tensor, target: Tensor) -> bool:
    """Tell if the loss is lower where the largest output is that of the label than where it is the next one."""
    labels = _reshape_labels(output, target)

    def make_outputs(largest_classes: Tensor) -> Tensor:
        return torch.full_like(output, 0.5).scatter_(1, largest_classes.unsqueeze(1), 0.75)

    return _compute_loss_or_nan(loss, make_outputs(labels), target) < _compute_loss_or_nan(
        loss, make_outputs((labels + 1) % output.shape[1]), target
    )


def _find_ignored_labels(loss: LossProbe, output: Tensor, target: Tensor) -> list[int]:
    """Return the labels at whose outputs the loss has no gradient, while it has one at others."""
    labels = _reshape_labels(output, target)
    with torch.enable_grad():
        synthetic = (0.5 + 0.1 * _make_distinct_values(output)).requires_grad_()
        try:
            (gradient,) = torch.autograd.grad(loss(synthetic, target), synthetic)
        except Exception:  # a loss without a gradient says nothing here
            return []
    moved = gradient.abs().amax(dim=1) > 0
    still = [label for label in np.unique(labels.numpy()).tolist() if not moved[labels == label].any()]
    return still if moved.any() else []


def _reshape_labels(output: Tensor, target: Tensor) -> Tensor:
    return target.reshape(len(output), *output.shape[2:])


def _compute_loss_or_nan(loss: LossProbe, output: Tensor, target: Tensor) -> float:
    """Return the loss, NaN where it raises, so that it is not lower than any other."""
    try:
        return float(loss(output, target))
    except Exception:  # the user's loss may do anything with outputs that its module would not give
        return math.nan


def _make_distinct_values(output: Tensor) -> Tensor:
    """Return numbers between -1 and 1, all different, in the shape of the output."""
    return torch.cos(torch.arange(output.numel())).reshape(output.shape).to(output.dtype)


def reject_pairwise_loss(loss: LossProbe, output: Any, target: Tensor) -> None:
    """Raise ModelError if the loss compares every output with every target.

    Where shapes differ, as [B, 1] and [B], broadcasting may make a table [B, B]. Such a loss does not change if targets are
    given to other outputs. Outputs are varied for it, by as much as targets differ or, if the loss raises there, by little.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape == target.shape:
        return
    if bool((target == target[:1]).all()):
        return
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    for scale in (float(target.double().std()), 0.01):
        distinct = output * (1 + 0.1 * _make_distinct_values(output)) + scale * _make_distinct_values(output)
        paired, moved = (_compute_loss_or_nan(loss, distinct, labels) for labels in (target, target[order]))
        alike = _compute_loss_or_nan(loss, distinct, target[:1].expand_as(target))
        if not math.isfinite(paired):
            continue
        if math.isclose(paired, moved, rel_tol=1e-6) and not math.isclose(paired, alike, rel_tol=1e-6):
            raise ModelError(
                f"the loss compares each output with the targets of all examples (output {format_shape(output)}, targets "
                f"{format_shape(target)}): give output and targets the same shape"
            )
        return


@contextmanager
def name_failure(subject: str, output: Any, target: Tensor, loss: Loss | None = None) -> Iterator[None]:
    """Name the loss or the metric that raises, with the shapes that it was given; errors of fedsgd and warnings pass.

    Args:
        what: "the loss", or a metric and its name.
        output: module's output, [B, ...].
        target: targets, [B, ...].
        loss: the loss, for advice on shapes; None for a metric.
    """
    try:
        yield
    except (FedsgdError, Warning):
        raise
    except Exception as error:  # the user's function
        shape = format_shape(output) if isinstance(output, Tensor) else f"of type {type(output).__name__}"
        given = f"output {shape}, targets {str(target.dtype).removeprefix('torch.')} {format_shape(target)}"
        advice = _advise_on_shapes(loss, output, target) if loss is not None and isinstance(output, Tensor) else ""
        raise ModelError(f"{subject} cannot be computed ({given}): {describe_error(error)}{advice}") from error


def _advise_on_shapes(loss: Loss, output: Tensor, target: Tensor) -> str:
    """Return how output and targets of one number each come to have one shape, "" where that is not the problem."""
    if is_cross_entropy(loss):
        is_column = output.dim() == 2 and target.dim() == 2 and target.shape[1] == 1
        return f"; labels are {format_shape(target)}, flatten them: y.reshape(-1)" if is_column else ""
    if output.shape == target.shape or output.numel() != target.numel():
        return ""
    number = "" if target.is_floating_point() else ".float()"
    call = f"lambda output, target: loss(output.reshape(target.shape), target{number})"
    return f"; give both the same shape, as in {call}"


def check_metric(name: str, metric: Metric, output: Any, target: Tensor) -> None:
    """Raise ModelError if a metric has not one number per example, or one that depends on other examples."""
    n = len(target)
    with name_failure(f'metric "{name}"', output, target):
        scores = metric(output, target)
    values, _ = check_scores(name, scores, n)
    half = n // 2
    if half < 2 or any(not isinstance(leaf, Tensor) for leaf in list_leaves(output)):
        return
    try:
        allocate_outputs(output, n, 0)
        first = metric(map_tree(lambda leaf: leaf[:half], output), target[:half])
        second = metric(map_tree(lambda leaf: leaf[half:], output), target[half:])
        parts = [check_scores(name, first, half)[0], check_scores(name, second, n - half)[0]]
    except Exception:  # outputs that cannot be cut, or a metric for batches of one size
        return
    if not np.allclose(np.concatenate(parts), values, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ModelError(f"metric {name} gives an example another number among other examples, expected one that is its own")
