"""Losses and metrics of a set of examples that is evaluated in slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsgd.errors import ModelError
from fedsgd.models.losses import weigh_slice
from fedsgd.models.metrics import format_shape
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F64
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
    return values.double().numpy()


def _describe_value(value: object) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class EvaluationAccumulator:
    """Losses and metrics of a set's evaluated slices, and the slices' outputs if the loss is computed in one call."""

    def __init__(self, task: LearningTask, n_examples: int) -> None:
        self.task = task
        self.n_examples = n_examples
        self.reduction = task.loss_reduction.select_kind(n_examples)
        self._n_added = 0
        self._losses: list[float] = []
        self._loss_weights: list[float] = []
        self._scores = {name: np.empty(n_examples) for name in task.metrics}
        self._score_weights: dict[str, F64] = {}
        self._outputs: Any = None
        self._targets: Any = None

    def add(self, output: Any, target: Tensor) -> None:
        """Add the module's output for the next slice, whose targets are [B, ...]."""
        n = len(target)
        if self.reduction == "whole":
            self._store_outputs(output, target)
        else:
            loss = float(check_loss(self.task.loss(output, target)))
            weight = weigh_slice(self.reduction, self.task.loss, target)
            self._losses.append(loss * weight if weight else 0.0)
            self._loss_weights.append(weight)
        for name, metric in self.task.metrics.items():
            scores, weights = check_scores(name, metric(output, target), n)
            self._scores[name][self._n_added : self._n_added + n] = scores
            if weights is not None:
                self._score_weights.setdefault(name, np.ones(self.n_examples))[self._n_added : self._n_added + n] = weights
        self._n_added += n

    def _store_outputs(self, output: Any, target: Tensor) -> None:
        if len(target) == self.n_examples:
            self._outputs, self._targets = output, target
            return
        if self._n_added == 0:
            self._outputs, self._targets = (allocate_outputs(tree, len(target), self.n_examples) for tree in (output, target))
        for destination, tree in ((self._outputs, output), (self._targets, target)):
            fill_tree(destination, tree, self._n_added, len(target))

    def compute_result(self) -> EvaluationResult:
        """Return the result for all slices, after the call of the loss if the loss is computed in one call."""
        if self.reduction == "whole":
            weight = 1.0 if self.task.loss_reduction.is_additive else float(self.n_examples)
            self._losses = [float(check_loss(self.task.loss(self._outputs, self._targets))) * weight]
            self._loss_weights = [float(self.n_examples)]
        loss_weights = self._loss_weights if self.reduction == "counted" else None
        is_sum = self.reduction == "sum" or self.task.loss_reduction.is_additive
        return EvaluationResult(self.n_examples, self._losses, self._scores, self._score_weights, loss_weights, is_sum)


def allocate_outputs(tree: Any, slice_size: int, n_examples: int) -> Any:
    """Return empty tensors [n_examples, ...] for the outputs of a whole set, in the structure of a slice's output.

    The output is a tensor [slice_size, ...], or tuples, lists and dicts of such tensors and None; else ModelError is raised.
    """

    def allocate_leaf(leaf: object) -> Tensor:
        if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) != slice_size:
            raise ModelError(f"the module's output has a part {format_shape(leaf)}, expected tensors of shape [B, ...]")
        return torch.empty((n_examples, *leaf.shape[1:]), dtype=leaf.dtype)

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
