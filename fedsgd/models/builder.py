"""Builder of the learning task of a scenario."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedsgd.config.component import FieldError
from fedsgd.data import Dataset
from fedsgd.errors import ModelError
from fedsgd.models.argument_checks import check_metric_name, check_python_arguments
from fedsgd.models.base import Loss, Metric, MetricFunction, Model, import_callable
from fedsgd.models.batch_norm import replace_batch_norm
from fedsgd.models.buffers import check_no_shared_memory, list_parts
from fedsgd.models.describe import describe_task
from fedsgd.models.metrics import accuracy
from fedsgd.models.python_state import copy_pair
from fedsgd.models.set_metrics import SET_METRICS, make_function
from fedsgd.models.task import LearningTask, ModuleSource, check_hooks


def build_task(
    model: Model,
    dataset: Dataset,
    seed: int,
    module: nn.Module | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> LearningTask:
    """Build the task of a scenario. Initial parameters are a function of the seed; torch's global generator does not change.

    `module`, which is copied, and `loss` replace the module and the loss of `model`. `metrics` are added to the metrics of
    `model` and replace metrics of equal names. ModelError for an invalid argument, or if no engine can train the module.
    """
    check_python_arguments(module, loss, metrics)
    source = None
    if module is None:
        source = ModuleSource(model, dataset.shape, dataset.classes, seed)
        module = source.build()
    all_metrics: dict[str, MetricFunction] = {} if dataset.classes is None else {"accuracy": accuracy}
    all_metrics |= {name: make_function(metric) for name, metric in _collect_metrics(model, metrics or {}).items()}
    if "loss" in all_metrics:
        raise ModelError('a metric cannot be called "loss", the name under which the loss is reported')
    if loss is None:
        loss = import_callable(model.loss, "loss") if model.loss else torch.nn.functional.cross_entropy
    if isinstance(loss, type):
        raise ModelError(f"the loss is the class {loss.__name__}, expected a function or an instance: {loss.__name__}()")
    check_hooks(module)
    check_no_shared_memory(list_parts(module, loss))
    module, loss = _copy_module_and_loss(module, loss, copies_module=source is None)
    replace_batch_norm(module, model.batch_norm)
    return describe_task(module, loss, all_metrics, model, dataset, source)


def _collect_metrics(model: Model, argument_metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return the metrics of `model` and then the metrics of the argument, which replace metrics of equal names."""
    metrics: dict[str, Metric] = {}
    for name, path in model.metrics.items():
        check_metric_name(name)
        if path in SET_METRICS and name not in argument_metrics:
            problem = f'got "{path}", a built-in metric of a whole set: set evaluation.metrics = ["{path}"]'
            raise FieldError("model", f"metrics.{name}", problem)
        metrics[name] = argument_metrics[name] if name in argument_metrics else import_callable(path, f"metrics.{name}")
    return {**metrics, **argument_metrics}


def _copy_module_and_loss(module: nn.Module, loss: Loss, copies_module: bool) -> tuple[nn.Module, Loss]:
    """Copy the loss, and a module that the user passed, together, so that shared objects stay shared."""
    try:
        module_copy, loss_copy = copy_pair(module if copies_module else None, loss)
        return (module_copy if copies_module else module), loss_copy
    except Exception as error:  # tensors that are not leaves, and attributes of the user, may raise any type
        subject, advice = "the loss", "use a function as the loss"
        if copies_module:
            subject, advice = "the module or the loss", f"name a function that makes the module as [model] module, or {advice}"
        raise ModelError(f"{subject} cannot be copied ({error}); {advice}") from error
