"""Trial of an evaluation before round 1, to check shapes, and to choose the built-in accuracy and the loss's reduction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsgd.config.quantities import format_binary_bytes, format_bytes
from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError, describe_error
from fedsgd.models import LossReduction, MetricFunction, accuracy
from fedsgd.models.batch_norm import is_batch_norm
from fedsgd.models.losses import find_ignored_label, find_reduction, recognise_loss
from fedsgd.models.metrics import Accuracy, explain_undefined_accuracy, format_shape
from fedsgd.models.set_metrics import SetMetric, SetMetricName
from fedsgd.models.task import LearningTask
from fedsgd.models.trial import SHAPE_WARNING_PREFIX
from fedsgd.numerics.arrays import I64
from fedsgd.system.global_generators import isolate_generators, reseed_generators
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training.device import as_tensor
from fedsgd.training.evaluation_result import EVALUATION_SLICE_SIZE, SET_LABELS, EvaluationSets
from fedsgd.training.flat_module import FlatModule, batch_tensors
from fedsgd.training.loss_probes import choose_reading, is_set_metric, name_failure, reject_pairwise_loss
from fedsgd.training.set_metric_trial import MetricTrial, check_output_bytes, try_set_metrics
from fedsgd.training.slice_evaluation import allocate_outputs, check_loss, check_scores, list_leaves, map_tree

MAX_LOSS_OUTPUT_BYTES = 2**30
"""Maximum bytes of the outputs that are joined from several slices to compute a loss in one call."""
MAX_PROBED_EXAMPLES = 1000
"""Maximum number of examples on which the trial tests if a loss is a mean or a sum over examples."""
REMEDIES = {
    "test": "use another number of test examples",
    "clients": "set another data.held_out",
    "training": "set evaluation.training = false",
    "validation": "set another evaluation.validation",
}
"""Advice by name of the set, for a last slice that cannot be evaluated because of its size."""


def resolve_evaluation(
    task: LearningTask,
    dataset: Dataset,
    sets: EvaluationSets,
    set_metric_names: tuple[SetMetricName, ...] = (),
    max_output_bytes: int = MAX_LOSS_OUTPUT_BYTES,
) -> LearningTask:
    """Evaluate the initial model, and return the task with the loss's reduction and with the accuracy that fits the outputs.

    The examples are a slice of the training examples of `dataset`, and slices of `sets`, the sets that the run evaluates. If
    the dataset has class labels, a built-in accuracy that is undefined for the outputs is removed. Metrics with one number for
    all examples, and the built-in metrics of `set_metric_names`, become metrics of a whole set.

    Raises:
        ModelError: no metric is left, or the module, the loss or a metric fails, or has a shape or form that is not accepted.
        ScenarioError: the outputs that metrics of a whole set store exceed `max_output_bytes`.
    """
    initial_model = _InitialModel(task)
    with use_single_thread(), torch.no_grad(), _refuse_broadcast():
        examples = _select_probe(dataset.train)
        output, target = initial_model.run(examples)
        if find_reduction(task.loss) == "whole":
            with name_failure("the loss", output, target, task.loss):
                _check_loss_needs_outputs_only(initial_model, examples, output, target)
        with name_failure("the loss", output, target, task.loss):
            check_loss(initial_model.compute_loss(output, target))
        if recognise_loss(task.loss) is None:
            reject_pairwise_loss(initial_model.compute_loss, output, target)
        ignored_label = _resolve_ignored_label(task, dataset)
        all_metrics = _resolve_metrics(task, initial_model, dataset, output, target, set_metric_names)
        is_of_set = {name: is_set_metric(name, metric, output, target) for name, metric in all_metrics.items()}
        metrics = {name: metric for name, metric in all_metrics.items() if not is_of_set[name]}
        set_metrics: dict[str, SetMetric] = {name: metric for name, metric in all_metrics.items() if is_of_set[name]}
        infer_reduction = partial(_infer_reduction, initial_model, dataset.train)
        trial = MetricTrial(task, dataset, initial_model.compute_loss, output, target, ignored_label, infer_reduction)
        task = replace(task, metrics=metrics, set_metrics={**set_metrics, **trial.choose_metrics(set_metric_names)})
        first_result = None
        for set_name, description, part in sets.iterate_slices():
            result = _try_slice(initial_model, metrics, set_name, description, part)
            first_result = result if first_result is None else first_result
        reduction = _resolve_reduction(task, initial_model, sets, first_result)
        n_bytes = 0
        if task.stores_outputs and first_result is not None:
            n_bytes = _try_set_metrics(task.set_metrics, initial_model, sets, first_result, max_output_bytes)
    return replace(task, reduction=reduction, output_bytes=n_bytes)


class _InitialModel:
    """Module of a task with the initial parameters."""

    def __init__(self, task: LearningTask) -> None:
        self._flat_module, self.task = FlatModule(task), task
        self._flat_module.load_weights(task.initial_parameters)
        task.module.eval()

    def run(self, examples: Examples) -> tuple[Any, Tensor]:
        """Return outputs and targets of examples in one batch."""
        with isolate_generators(0), self._flat_module.isolated_buffers():
            x, target = batch_tensors(examples)
            return self.task.module(x), target

    def run_with_loss(self, examples: Examples) -> Any:
        """Return the loss of examples right after the module ran, before buffers and attributes are restored."""
        with isolate_generators(0), self._flat_module.isolated_buffers():
            x, target = batch_tensors(examples)
            output = self.task.module(x)
            reseed_generators(0)
            return self.task.loss(output, target)

    def compute_loss(self, output: Any, target: Tensor) -> Any:
        """Return the loss of outputs, with seeded generators and initial buffers."""
        if isinstance(output, Tensor):  # a loss may change it in place
            output = output.clone()
        with isolate_generators(0), self._flat_module.isolated_buffers():
            return self.task.loss(output, target.clone())


def _check_loss_needs_outputs_only(initial_model: _InitialModel, examples: Examples, output: Any, target: Tensor) -> None:
    """Raise ModelError if a loss needs more than outputs and targets, because it is computed after all slices have run."""
    expected = float(check_loss(initial_model.run_with_loss(examples)))
    try:
        loss = float(check_loss(initial_model.compute_loss(output, target)))
    except Exception:  # the user's loss
        loss = math.nan
    if not (loss == expected or math.isnan(expected)):
        raise ModelError(
            "the loss depends on more than the output and the target, for example on a tensor that the module stores when it "
            "runs: return the tensor as a part of the output"
        )


def _try_slice(
    initial_model: _InitialModel, metrics: Mapping[str, MetricFunction], set_name: str, description: str, examples: Examples
) -> tuple[Any, Tensor]:
    """Return outputs and targets of a slice. If an error depends on the slice's size, raise ModelError with advice."""
    try:
        return _evaluate_slice(initial_model, metrics, examples)
    except Exception as error:  # the user's module, loss or metrics
        n = len(examples)
        try:
            _evaluate_slice(initial_model, metrics, examples.select(np.arange(EVALUATION_SLICE_SIZE) % n))
        except Exception:  # the size of the slice is not the reason
            raise error from None
        uses_batch_statistics = any(
            is_batch_norm(part) and not part.track_running_stats for part in initial_model.task.module.modules()
        )
        hint = ', or another model.batch_norm than "batch"' if uses_batch_statistics else ""
        size = f"{n:,} example{'s' * (n != 1)}"
        problem = f"the last slice of {description} has {n:,} (slices have {EVALUATION_SLICE_SIZE})"
        cause = f"evaluating {size} fails: {describe_error(error)}"
        raise ModelError(f"{problem}, and {cause}; {REMEDIES[set_name]}{hint}") from error


def _evaluate_slice(
    initial_model: _InitialModel, metrics: Mapping[str, MetricFunction], examples: Examples
) -> tuple[Any, Tensor]:
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
    """Return at most `max_rows` ascending rows of targets [n, ...]: the first of each distinct label, then the first others."""
    rows = np.arange(min(max_rows, len(targets)), dtype=np.int64)
    if targets.dtype.kind in "iub" and targets.size:
        _, positions = np.unique(targets.reshape(-1), return_index=True)
        label_rows = np.unique(positions // (targets.size // len(targets)))[:max_rows]
        rows = np.unique(np.concatenate([label_rows, np.setdiff1d(rows, label_rows)[: max_rows - len(label_rows)]]))
    return rows


def _select_probe(examples: Examples) -> Examples:
    """Return one slice of examples with all labels that occur in the first million targets, or as many labels as fit."""
    targets = examples.targets()
    targets = targets[: max(EVALUATION_SLICE_SIZE, 10**6 * len(targets) // max(targets.size, 1))]
    return examples.select(cover_labels(targets, EVALUATION_SLICE_SIZE))


def _resolve_metrics(
    task: LearningTask,
    initial_model: _InitialModel,
    dataset: Dataset,
    output: Any,
    target: Tensor,
    set_metric_names: tuple[SetMetricName, ...],
) -> dict[str, MetricFunction]:
    """Return the metrics with the built-in accuracy in the form that fits the outputs, or without it if no form fits."""
    metrics = dict(task.metrics)
    if metrics.get("accuracy") is not accuracy or dataset.classes is None:
        return metrics
    reading, reason = choose_reading(task, initial_model.compute_loss, output, target, dataset)
    if reading is not None:
        metrics["accuracy"] = Accuracy(reading, _resolve_ignored_label(task, dataset))
        return metrics
    del metrics["accuracy"]
    if not metrics and not set_metric_names:
        raise ModelError(explain_undefined_accuracy(output, target, reason))
    return metrics


def _resolve_ignored_label(task: LearningTask, dataset: Dataset) -> int | None:
    """Return the label that the loss ignores; None if there is none, or if the label is negative and no example has it."""
    label = find_ignored_label(task.loss)
    if label is None or label >= 0:
        return label
    return label if any((part.targets() == label).any() for part in (dataset.train, dataset.test)) else None


def _try_set_metrics(
    metrics: Mapping[str, SetMetric],
    initial_model: _InitialModel,
    sets: EvaluationSets,
    first_result: tuple[Any, Tensor],
    max_bytes: int,
) -> int:
    """Try metrics on each set, with repeated outputs of one slice, and return the maximum size of stored outputs, in bytes.

    Outputs of local models are stored twice: by client, and joined. Only the accuracy is computed on the global model's set of
    the clients' test examples, whose outputs are stored too.
    """
    all_bytes = []
    for name, examples in [*sets.global_sets.items(), *((name, part[0]) for name, part in sets.local_sets.items())]:
        n, label = len(examples), f"the {len(examples):,} {SET_LABELS[name]}"
        n_stored = 2 * n if name in sets.local_sets else n
        all_bytes.append(check_output_bytes(*first_result, n_stored, label, max_bytes))
        if n > EVALUATION_SLICE_SIZE:
            allocate_outputs(first_result[0], len(first_result[1]), 0)
        if name != "clients" or name in sets.local_sets:
            try_set_metrics(metrics, label, *_make_outputs(initial_model, examples, first_result[0]))
    return max(all_bytes, default=0)


def _resolve_reduction(
    task: LearningTask, initial_model: _InitialModel, sets: EvaluationSets, first_result: tuple[Any, Tensor] | None
) -> LossReduction:
    kind = find_reduction(task.loss)
    if kind != "whole" or first_result is None:
        return LossReduction(kind)
    max_examples = _count_examples_per_loss_call(*first_result)
    set_sizes = {name: (examples, len(examples)) for name, examples in sets.global_sets.items()}
    set_sizes |= {name: (examples, int(sizes.max())) for name, (examples, sizes, _) in sets.local_sets.items()}
    reductions: set[Literal["mean", "sum"] | None] = set()  # of sets with several calls of the loss
    for name, (examples, n) in set_sizes.items():
        if n <= max_examples:
            _check_single_loss_call(initial_model, name, examples.slice(0, n), first_result[0])
        if n > max_examples or name in sets.local_sets:
            reductions.add(_infer_reduction(initial_model, examples))
        if len(reductions) > 1:
            problem = "in a trial, the loss reduced different sets in different ways (mean, sum or unknown)"
            raise ModelError(f"{problem}; use a loss of torch.nn")
        if n > max_examples and reductions & {None}:
            raise ModelError(_explain_uncombinable_loss(name, n, first_result))
    return LossReduction("whole", max_examples, reductions.pop() if reductions else None)


def _count_examples_per_loss_call(output: Any, target: Tensor) -> int:
    """Return the maximum number of examples in one call of the loss: one slice if outputs of slices cannot be joined."""
    try:
        allocate_outputs(output, len(target), 0)
    except ModelError:
        return EVALUATION_SLICE_SIZE
    bytes_per_example = sum(leaf.nbytes for leaf in list_leaves(output)) / len(target)
    return max(EVALUATION_SLICE_SIZE, int(MAX_LOSS_OUTPUT_BYTES // max(bytes_per_example, 1)))


def _check_single_loss_call(initial_model: _InitialModel, set_name: str, examples: Examples, output: Any) -> None:
    """Raise ModelError if the loss fails on examples in one call; above 100, one slice's outputs are repeated for them."""
    n = len(examples)
    output, target = _make_outputs(initial_model, examples, output)
    try:
        loss = initial_model.compute_loss(output, target)
    except Exception as error:  # the user's loss may do anything
        problem = f"{type(error).__name__}: {error}"
        raise ModelError(f"the loss cannot be computed on the {n:,} {SET_LABELS[set_name]} in one call ({problem})") from error
    check_loss(loss)


def _make_outputs(initial_model: _InitialModel, examples: Examples, output: Any) -> tuple[Any, Tensor]:
    """Return outputs and targets of examples; above 100 examples, the outputs of one slice are repeated."""
    n = len(examples)
    if n <= EVALUATION_SLICE_SIZE:
        return initial_model.run(examples)
    return map_tree(lambda leaf: leaf[torch.arange(n) % len(leaf)], output), as_tensor(examples.targets())


def _infer_reduction(initial_model: _InitialModel, examples: Examples) -> Literal["mean", "sum"] | None:
    """Return "mean" or "sum" if the loss of a batch is the mean (weighted by examples) or the sum of its parts' losses.

    The batch has every distinct label and is sorted by label, so that the frequencies of labels differ between its parts.
    Return None for any other loss, and for too few examples or too many labels.
    """
    targets = examples.targets()
    rows = cover_labels(targets, min(MAX_PROBED_EXAMPLES, len(targets)))
    if targets.dtype.kind in "iub" and len(np.unique(targets[rows])) < len(np.unique(targets)):
        return None
    rows = rows[np.lexsort(targets[rows].reshape(len(rows), -1).T[::-1])]
    parts = [part for part in np.split(rows, [len(rows) // 7 + 1, len(rows) // 2 + 1]) if len(part)]
    if len(parts) < 2:
        return None
    batch_loss, *losses = (
        float(check_loss(initial_model.compute_loss(*initial_model.run(examples.select(part))))) for part in (rows, *parts)
    )
    mean = sum(loss * len(part) for loss, part in zip(losses, parts, strict=True)) / len(rows)
    if math.isclose(batch_loss, mean, rel_tol=1e-4, abs_tol=1e-9):
        return "mean"
    return "sum" if math.isclose(batch_loss, sum(losses), rel_tol=1e-4, abs_tol=1e-9) else None


def _explain_uncombinable_loss(set_name: str, n: int, first_result: tuple[Any, Tensor]) -> str:
    output, target = first_result
    n_bytes = sum(leaf.nbytes for leaf in list_leaves(output) if isinstance(leaf, Tensor)) * n // len(target)
    shapes = ", ".join(format_shape(leaf) for leaf in list_leaves(output))
    return (
        f"the loss of the {n:,} {SET_LABELS[set_name]} cannot be computed: in a trial, the loss did not prove to be a mean or "
        f"a sum over examples, and the model's outputs ({shapes}; {format_bytes(n_bytes)}) cannot be stored for one call, "
        f"which takes tensors [B, ...] of at most {format_binary_bytes(MAX_LOSS_OUTPUT_BYTES)} together; "
        "use a loss of torch.nn, or evaluate fewer examples"
    )
