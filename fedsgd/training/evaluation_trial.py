"""Trial of an evaluation before round 1: shapes, the built-in accuracy, and how the loss of a set is computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsgd.config.quantities import format_binary_bytes, format_bytes
from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError, describe_error
from fedsgd.models import LossReduction, Metric, accuracy
from fedsgd.models.batch_norm import is_batch_norm
from fedsgd.models.losses import find_ignored_label, find_reduction, recognise_loss
from fedsgd.models.metrics import Accuracy, explain_undefined_accuracy, format_shape
from fedsgd.models.task import LearningTask
from fedsgd.models.trial import SHAPE_WARNING_PREFIX
from fedsgd.numerics.arrays import I64
from fedsgd.system.global_generators import isolate_generators, reseed_generators
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training.evaluation_result import EVALUATION_SLICE_SIZE, SET_LABELS, EvaluationSets
from fedsgd.training.flat_module import FlatModule, TensorFormat, as_tensor, batch_tensors
from fedsgd.training.loss_probes import check_metric, choose_reading, name_failure, reject_pairwise_loss
from fedsgd.training.slice_evaluation import allocate_outputs, check_loss, check_scores, list_leaves, map_tree

MAX_LOSS_OUTPUT_BYTES = 2**30
"""Bytes that the outputs of a set may take if its loss is computed in one call."""
MAX_PROBED_EXAMPLES = 1000
"""Most examples on which a loss is tried for being a mean or a sum over examples."""
REMEDIES = {
    "test": "use another number of test examples",
    "clients": "set another data.held_out",
    "training": "set evaluation.training = false",
}
"""By set of examples, what avoids a last slice of the size that it has."""


def resolve_evaluation(task: LearningTask, dataset: Dataset, sets: EvaluationSets) -> LearningTask:
    """Try an evaluation of the initial model.

    Args:
        task: the task as `build_task` returns it.
        dataset: training and test examples.
        sets: examples on which models will be evaluated.

    Returns:
        The task with the built-in accuracy as its outputs are read, or without it, and with the reduction of its loss.

    Raises:
        ModelError: the loss or a metric has another shape than expected, outputs and targets are broadcast, the built-in
            accuracy is the only metric and not defined, or the loss of a set cannot be computed.
    """
    trial = _InitialModel(task)
    with use_single_thread(), torch.no_grad(), _refuse_broadcast():
        examples = _select_probe(dataset.train)
        probe, target = trial.run(examples)
        if find_reduction(task.loss) == "whole":
            with name_failure("the loss", probe, target, task.loss):
                _check_loss_needs_outputs_only(trial, examples, probe, target)
        with name_failure("the loss", probe, target, task.loss):
            check_loss(trial.compute_loss(probe, target))
        if recognise_loss(task.loss) is None:
            reject_pairwise_loss(trial.compute_loss, probe, target)
        metrics = _resolve_metrics(task, trial, dataset, probe, target)
        for name, metric in metrics.items():
            check_metric(name, metric, probe, target)
        first = None
        for described in sets.iterate_slices():
            result = _try_slice(trial, metrics, *described)
            first = result if first is None else first
        reduction = _resolve_reduction(task, trial, sets, first)
    return replace(task, metrics=metrics, reduction=reduction)


class _InitialModel:
    """The module of a task at its initial parameters."""

    def __init__(self, task: LearningTask) -> None:
        self._flat_module, self.task = FlatModule(task), task
        arrangement, flat = TensorFormat(task.layout), torch.empty(len(task.initial_parameters))
        arrangement.load(flat, task.initial_parameters)
        self._flat_module.bind_parameters(arrangement.view_tensors(flat))
        task.module.eval()

    def run(self, examples: Examples) -> tuple[Any, Tensor]:
        """Return (output, target) for these examples in one batch."""
        with isolate_generators(0), self._flat_module.isolated_buffers():
            x, target = batch_tensors(examples)
            return self.task.module(x), target

    def run_with_loss(self, examples: Examples) -> Any:
        """Return the loss of these examples right after the module ran, before anything is put back."""
        with isolate_generators(0), self._flat_module.isolated_buffers():
            x, target = batch_tensors(examples)
            output = self.task.module(x)
            reseed_generators(0)
            return self.task.loss(output, target)

    def compute_loss(self, output: Any, target: Tensor) -> Any:
        """Return what the loss gives, with torch's generator seeded and buffers put back."""
        if isinstance(output, Tensor):  # a loss may work in place
            output = output.clone()
        with isolate_generators(0), self._flat_module.isolated_buffers():
            return self.task.loss(output, target.clone())


def _check_loss_needs_outputs_only(initial_model: _InitialModel, examples: Examples, output: Any, target: Tensor) -> None:
    """Check that a loss of one call needs the outputs alone, since it is called when all slices have been evaluated.

    Raises:
        ModelError: it gives another number, or fails, where the state of the module was put back after it ran.
    """
    expected = float(check_loss(initial_model.run_with_loss(examples)))
    try:
        alone = float(check_loss(initial_model.compute_loss(output, target)))
    except Exception:  # the user's loss
        alone = math.nan
    if not (alone == expected or math.isnan(expected)):
        raise ModelError(
            "the loss depends on more than the output and the target, such as what the module stored when it last ran: return "
            "that as a part of the output"
        )


def _try_slice(
    initial_model: _InitialModel, metrics: Mapping[str, Metric], set_name: str, description: str, examples: Examples
) -> tuple[Any, Tensor]:
    """Return (output, target) of a slice of a set.

    Raises:
        ModelError: its loss or a metric cannot be computed, but could be if it were not smaller than other slices.
    """
    try:
        return _evaluate_slice(initial_model, metrics, examples)
    except Exception as error:  # the user's module, loss or metrics
        n = len(examples)
        try:
            _evaluate_slice(initial_model, metrics, examples.select(np.arange(EVALUATION_SLICE_SIZE) % n))
        except Exception:  # not for its size
            raise error from None
        by_batch = any(is_batch_norm(part) and not part.track_running_stats for part in initial_model.task.module.modules())
        hint = ', or another model.batch_norm than "batch"' if by_batch else ""
        size = f"{n:,} example{'s' * (n != 1)}"
        problem = (
            f"evaluating {size} fails, and the last slice of {description} has {n:,} (slices have {EVALUATION_SLICE_SIZE})"
        )
        raise ModelError(f"{problem}: {describe_error(error)}; {REMEDIES[set_name]}{hint}") from error


def _evaluate_slice(initial_model: _InitialModel, metrics: Mapping[str, Metric], examples: Examples) -> tuple[Any, Tensor]:
    with _refuse_broadcast():
        output, target = initial_model.run(examples)
        for name, metric in metrics.items():
            with name_failure(f'metric "{name}"', output, target):
                check_scores(name, metric(output, target), len(target))
        if find_reduction(initial_model.task.loss) != "whole":
            with name_failure("the loss", output, target, initial_model.task.loss):
                check_loss(initial_model.compute_loss(output, target))
    return output, target


@contextmanager
def _refuse_broadcast() -> Iterator[None]:
    """Turn PyTorch's warning that output and target differ in shape into a ModelError."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=SHAPE_WARNING_PREFIX)
        try:
            yield
        except UserWarning as warning:
            if not str(warning).startswith(SHAPE_WARNING_PREFIX):
                raise
            shapes = str(warning).split(". ")[0].removeprefix("Using a ")
            raise ModelError(
                f"the loss would compare each output with the targets of all examples ({shapes}): give output and targets the "
                "same shape"
            ) from warning


def cover_labels(targets: Any, max_rows: int) -> I64:
    """Return rows of targets [n, ...] that hold each distinct label, filled up with the first rows to at most `max_rows`."""
    rows = np.arange(min(max_rows, len(targets)), dtype=np.int64)
    if targets.dtype.kind in "iub" and targets.size:
        _, first = np.unique(targets.reshape(-1), return_index=True)
        having = np.unique(first // (targets.size // len(targets)))[:max_rows]
        rows = np.unique(np.concatenate([having, np.setdiff1d(rows, having)[: max_rows - len(having)]]))
    return rows


def _select_probe(examples: Examples) -> Examples:
    """Return one slice of examples with as many labels as a look at the first million finds."""
    some = examples.targets()
    some = some[: max(EVALUATION_SLICE_SIZE, 10**6 * len(some) // max(some.size, 1))]
    return examples.select(cover_labels(some, EVALUATION_SLICE_SIZE))


def _resolve_metrics(
    task: LearningTask, initial_model: _InitialModel, dataset: Dataset, output: Any, target: Tensor
) -> dict[str, Metric]:
    """Return the metrics with the built-in accuracy as the outputs are read; without it where it is not defined."""
    metrics = dict(task.metrics)
    if metrics.get("accuracy") is not accuracy or dataset.classes is None:
        return metrics
    reading, reason = choose_reading(task, initial_model.compute_loss, output, target, dataset)
    if reading is not None:
        metrics["accuracy"] = Accuracy(reading, _resolve_ignored_label(task, dataset))
        return metrics
    del metrics["accuracy"]
    if not metrics:
        raise ModelError(explain_undefined_accuracy(output, target, reason))
    return metrics


def _resolve_ignored_label(task: LearningTask, dataset: Dataset) -> int | None:
    """Return the label that the loss leaves out, if any example may have it."""
    label = find_ignored_label(task.loss)
    if label is None or label >= 0:
        return label
    return label if any((part.targets() == label).any() for part in (dataset.train, dataset.test)) else None


def _resolve_reduction(
    task: LearningTask, initial_model: _InitialModel, sets: EvaluationSets, first_result: tuple[Any, Tensor] | None
) -> LossReduction:
    kind = find_reduction(task.loss)
    if kind != "whole" or first_result is None:
        return LossReduction(kind)
    largest = _count_examples_per_loss_call(*first_result)
    tried = {name: (examples, len(examples)) for name, examples in sets.global_sets.items()}
    tried |= {name: (examples, int(sizes.max())) for name, (examples, sizes, _) in sets.local_sets.items()}
    larger: set[Literal["mean", "sum"] | None] = set()
    for name, (examples, n) in tried.items():
        if n <= largest:
            _check_single_loss_call(initial_model, name, examples.slice(0, n), first_result[0])
        if n > largest or name in sets.local_sets:
            larger.add(_infer_reduction(initial_model, examples))
        if (n > largest and larger & {None}) or len(larger) > 1:
            raise ModelError(_explain_uncombinable_loss(name, n, first_result))
    return LossReduction("whole", largest, larger.pop() if larger else None)


def _count_examples_per_loss_call(output: Any, target: Tensor) -> int:
    """Return the most examples whose outputs may be held for one call of the loss; one slice if they cannot be joined."""
    try:
        allocate_outputs(output, len(target), 0)
    except ModelError:
        return EVALUATION_SLICE_SIZE
    each = sum(leaf.nbytes for leaf in list_leaves(output)) / len(target)
    return max(EVALUATION_SLICE_SIZE, int(MAX_LOSS_OUTPUT_BYTES // max(each, 1)))


def _check_single_loss_call(initial_model: _InitialModel, set_name: str, examples: Examples, output: Any) -> None:
    """Compute the loss on as many outputs as the set has examples: those of one slice, repeated."""
    n = len(examples)
    if n <= EVALUATION_SLICE_SIZE:
        output, target = initial_model.run(examples)
    else:
        output = map_tree(lambda leaf: leaf[torch.arange(n) % len(leaf)], output)
        target = as_tensor(examples.targets())
    try:
        loss = initial_model.compute_loss(output, target)
    except Exception as error:  # the user's loss may do anything
        problem = f"{type(error).__name__}: {error}"
        raise ModelError(f"the loss cannot be computed on the {n:,} {SET_LABELS[set_name]} in one call ({problem})") from error
    check_loss(loss)


def _infer_reduction(initial_model: _InitialModel, examples: Examples) -> Literal["mean", "sum"] | None:
    """Decide on some examples of a set if its loss is the mean or the sum over examples: in one batch and in three parts.

    The examples hold every distinct label, and are sorted by label, so that parts differ in what they hold.
    """
    targets = examples.targets()
    rows = cover_labels(targets, min(MAX_PROBED_EXAMPLES, len(targets)))
    if targets.dtype.kind in "iub" and len(np.unique(targets[rows])) < len(np.unique(targets)):
        return None
    rows = rows[np.lexsort(targets[rows].reshape(len(rows), -1).T[::-1])]
    parts = [part for part in np.split(rows, [len(rows) // 7 + 1, len(rows) // 2 + 1]) if len(part)]
    if len(parts) < 2:
        return None
    whole, *losses = (
        float(check_loss(initial_model.compute_loss(*initial_model.run(examples.select(part))))) for part in (rows, *parts)
    )
    mean = sum(loss * len(part) for loss, part in zip(losses, parts, strict=True)) / len(rows)
    if math.isclose(whole, mean, rel_tol=1e-4, abs_tol=1e-9):
        return "mean"
    return "sum" if math.isclose(whole, sum(losses), rel_tol=1e-4, abs_tol=1e-9) else None


def _explain_uncombinable_loss(set_name: str, n: int, first_result: tuple[Any, Tensor]) -> str:
    output, target = first_result
    held = sum(leaf.nbytes for leaf in list_leaves(output) if isinstance(leaf, Tensor)) * n // len(target)
    shapes = ", ".join(format_shape(leaf) for leaf in list_leaves(output))
    return (
        f"the loss of the {n:,} {SET_LABELS[set_name]} cannot be computed: "
        "in a trial it was neither a mean nor a sum over examples, "
        f"and their outputs ({shapes}; {format_bytes(held)}) cannot be held for one call, "
        f"which takes tensors [B, ...] of at most {format_binary_bytes(MAX_LOSS_OUTPUT_BYTES)} together; "
        "use a loss of torch.nn, or evaluate fewer examples"
    )
