"""Losses and metrics of a set of examples that is evaluated in slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsgd.errors import ModelError
from fedsgd.models.losses import count_summed_targets, flatten_positions, weigh_slice
from fedsgd.models.metrics import format_shape
from fedsgd.models.set_metrics import EntropyMetric, SetMetric
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F64
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training.evaluation_result import EvaluationResult


def check_loss(loss: object) -> Tensor:
    """Return the loss of a batch; raise ModelError if the loss is not a scalar tensor."""
    if not isinstance(loss, Tensor) or loss.dim():
        raise ModelError(f"the loss is {_describe_value(loss)}, expected a tensor that is a scalar, such as the batch's mean")
    return loss


def check_scores(name: str, score: object, n: int) -> tuple[F64, F64 | None]:
    """Return a metric's values [n], and its weights [n] or None; raise ModelError if the metric has neither form."""
    if not isinstance(score, tuple) or len(score) != 2:
        return _convert_values(name, score, n), None
    values, weights = (_convert_values(name, part, n) for part in score)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ModelError(f"metric {name} has weights that are negative or not finite")
    return values, weights


def _convert_values(name: str, values: object, n: int) -> F64:
    if not isinstance(values, Tensor) or tuple(values.shape) != (n,):
        expected = f"a tensor with one number per example, of shape [{n}], or a pair of such numbers and their weights"
        raise ModelError(f"metric {name} is {_describe_value(values)}, expected {expected}")
    array: F64 = values.detach().double().cpu().numpy()
    return array


def is_number(value: object) -> bool:
    """Return True for a real number, or a tensor or array of one number without axes."""
    if isinstance(value, Tensor):
        return not value.dim() and not value.is_complex()
    if isinstance(value, np.ndarray | np.generic):
        return value.ndim == 0 and value.dtype.kind in "biuf"
    return isinstance(value, int | float)


def check_number(name: str, value: Any) -> float:
    """Return the value of a metric of a whole set; raise ModelError if the value is not one number."""
    if not is_number(value):
        raise ModelError(f"metric {name} is {_describe_value(value)}, expected one number for the whole set")
    return float(value.detach() if isinstance(value, Tensor) else value)


def _describe_value(value: object) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class StoredOutputs:
    """Outputs and targets of a whole set of examples, stored once; a set in one part is stored without a copy.

    Attributes:
        outputs: tensor [n, ...], or tuples, lists and dicts of such tensors; None before the first part.
        targets: [n, ...].
    """

    def __init__(self, n_examples: int) -> None:
        self.outputs: Any = None
        self.targets: Any = None
        self._n_examples = n_examples
        self._n_added = 0

    def add(self, output: Any, target: Tensor) -> None:
        """Add the module's output for the next examples, whose targets are [B, ...]."""
        n = len(target)
        if n == self._n_examples:
            self.outputs, self.targets = output, target
            return
        if self._n_added == 0:
            self.outputs, self.targets = (allocate_outputs(tree, n, self._n_examples) for tree in (output, target))
        for destination, tree in ((self.outputs, output), (self.targets, target)):
            fill_tree(destination, tree, self._n_added, n)
        self._n_added += n


@dataclass(frozen=True, eq=False)
class SetMetrics:
    """Metrics of a whole set of examples, by name."""

    metrics: Mapping[str, SetMetric]

    def compute(self, mean_loss: float, parts: Sequence[tuple[Any, Tensor] | None]) -> dict[str, float]:
        """Return the value of each metric, each from one call for all examples.

        Args:
            mean_loss: mean loss of all examples.
            parts: (output, targets) of consecutive parts of the set, None for a part without stored outputs.
        """
        pairs = [pair for pair in parts if pair is not None]
        stored = StoredOutputs(sum(len(target) for _, target in pairs))
        for output, target in pairs:
            stored.add(output, target)
        outputs = map_tree(make_contiguous, stored.outputs)
        with use_single_thread(), torch.no_grad():
            return {name: _compute_number(name, m, mean_loss, outputs, stored.targets) for name, m in self.metrics.items()}


def _compute_number(name: str, metric: SetMetric, mean_loss: float, outputs: Any, targets: Tensor) -> float:
    if isinstance(metric, EntropyMetric):
        return metric.from_loss(mean_loss)
    with isolate_generators(0):
        return check_number(name, metric(outputs, targets))


class EvaluationAccumulator:
    """Losses and metrics of a set's evaluated slices, and the slices' outputs if the loss is computed in one call."""

    def __init__(self, task: LearningTask, n_examples: int) -> None:
        self.task = task
        self.n_examples = n_examples
        self.reduction = task.loss_reduction.select_kind(n_examples)
        self._n_added = 0
        self._losses: list[float] = []
        self._loss_weights: list[float | None] = []
        self._scores = {name: np.empty(n_examples) for name in task.metrics}
        self._score_weights: dict[str, F64] = {}
        self._stored = StoredOutputs(n_examples) if self.reduction == "whole" or task.stores_outputs else None

    def add(self, output: Any, target: Tensor) -> None:
        """Add the module's output for the next slice, whose targets are [B, ...]."""
        n = len(target)
        if self._stored is not None:  # a loss may change outputs in place, which the metrics of the set must not see
            self._stored.add(copy_tensors(output) if self.task.stores_outputs and n == self.n_examples else output, target)
        if self.reduction != "whole":
            loss = float(check_loss(self.task.loss(*flatten_positions(self.task.loss, output, target))))
            weight = weigh_slice(self.reduction, self.task.loss, target)
            self._losses.append(loss * weight if weight else 0.0)
            self._loss_weights.append(count_summed_targets(self.task.loss, target) if self.reduction == "sum" else weight)
        for name, metric in self.task.metrics.items():
            scores, weights = check_scores(name, metric(output, target), n)
            self._scores[name][self._n_added : self._n_added + n] = scores
            if weights is not None:
                self._score_weights.setdefault(name, np.ones(self.n_examples))[self._n_added : self._n_added + n] = weights
        self._n_added += n

    def compute_result(self) -> EvaluationResult:
        """Return the result for all slices, after the call of the loss if the loss is computed in one call."""
        stored, weights = self._stored, None
        if self.reduction == "whole" and stored is not None:
            weight = 1.0 if self.task.loss_reduction.is_additive else float(self.n_examples)
            output = copy_tensors(stored.outputs) if self.task.stores_outputs else stored.outputs
            parts = flatten_positions(self.task.loss, output, stored.targets)
            self._losses = [float(check_loss(self.task.loss(*parts))) * weight]
        elif self.reduction in ("counted", "sum") and None not in self._loss_weights:
            weights = [weight for weight in self._loss_weights if weight is not None]
        is_sum = self.reduction == "sum" or self.task.loss_reduction.is_additive
        outputs = (
            (map_tree(move_to_host, stored.outputs), stored.targets.cpu())
            if stored is not None and self.task.stores_outputs
            else None
        )
        return EvaluationResult(self.n_examples, self._losses, self._scores, self._score_weights, weights, is_sum, outputs)


def allocate_outputs(tree: Any, slice_size: int, n_examples: int) -> Any:
    """Return empty tensors [n_examples, ...] for the outputs of a whole set, in the structure of a slice's output.

    The output is a tensor [slice_size, ...], or tuples, lists and dicts of such tensors and None; else ModelError is raised.
    """

    def allocate_leaf(leaf: object) -> Tensor:
        if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) != slice_size:
            raise ModelError(f"the module's output has a part {format_shape(leaf)}, expected tensors of shape [B, ...]")
        return leaf.new_empty((n_examples, *leaf.shape[1:]))

    return map_tree(allocate_leaf, tree)


def fill_tree(destination: Any, tree: Any, start: int, n: int) -> None:
    """Copy the outputs of n examples into the outputs of the whole set, beginning at example `start`."""
    tensors, parts = list_leaves(destination), list_leaves(tree)
    if len(tensors) != len(parts):
        raise ModelError("the module's outputs for two slices differ in structure")
    for tensor, part in zip(tensors, parts, strict=True):
        if not isinstance(part, Tensor) or tuple(part.shape) != (n, *tensor.shape[1:]) or part.dtype != tensor.dtype:
            raise ModelError(
                f"the module's outputs for two slices differ in shape or type: {format_shape(tensor)} and {format_shape(part)}"
            )
        tensor[start : start + n] = part


def copy_tensors(tree: Any) -> Any:
    """Return a copy of nested tuples, lists and dicts with copies of the tensors in them."""
    return map_tree(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tree)


def make_contiguous(leaf: Any) -> Any:
    """Return a tensor with its elements in order in memory, or another object unchanged."""
    return leaf.contiguous() if isinstance(leaf, Tensor) else leaf


def move_to_host(leaf: Any) -> Any:
    """Return a tensor in the host's memory, or another object unchanged."""
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf


def list_leaves(tree: Any) -> list[Any]:
    """Return the objects in nested tuples, lists and dicts, in order and without None."""
    if isinstance(tree, dict | tuple | list):
        branches = tree.values() if isinstance(tree, dict) else tree
        return [leaf for branch in branches for leaf in list_leaves(branch)]
    return [] if tree is None else [tree]


def map_tree(function: Any, tree: Any) -> Any:
    """Return a copy of nested tuples, lists and dicts with `function` applied to the objects in them, except to None."""
    if tree is None:
        return None
    values: Any
    if isinstance(tree, dict):
        values = {key: map_tree(function, value) for key, value in tree.items()}
    elif isinstance(tree, tuple | list):
        values = [map_tree(function, value) for value in tree]
    else:
        return function(tree)
    kind: Any = type(tree)
    try:
        return kind(*values) if hasattr(tree, "_fields") else kind(values)
    except TypeError as error:
        raise ModelError(f"the module's output has a {kind.__name__}, expected tensors, tuples, lists and dicts") from error
