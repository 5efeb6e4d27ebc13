"""Description of a task: trainable parameters and changing buffers of a module and a loss, under the policies of [model].

This module imports torch: import it only where a module is built.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedsgd.data import Dataset
from fedsgd.errors import ModelError
from fedsgd.models.argument_checks import check_initialized
from fedsgd.models.base import Loss, MetricFunction, Model
from fedsgd.models.batch_norm import find_affine_parameters, find_running_statistics, is_batch_norm
from fedsgd.models.buffers import (
    Parts,
    convert_to_float32,
    find_unused_counters,
    list_parts,
    named_fixed_tensors,
    named_parameters,
)
from fedsgd.models.task import LearningTask, ModuleSource
from fedsgd.models.trial import check_restorable, try_module
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout

NamedTensors = Sequence[tuple[str, Tensor]]


def describe_task(
    module: nn.Module,
    loss: Loss,
    metrics: Mapping[str, MetricFunction],
    model: Model,
    dataset: Dataset,
    source: ModuleSource | None,
) -> LearningTask:
    """Return the task of a module and a loss under the policies of `model`, after a trial on `dataset`.

    `source` is None if the user passed the module. ModelError if no engine can train the module or a policy refuses a layer.
    """
    parts = list_parts(module, loss)
    _check_state(module)
    _check_layers(parts)
    _check_loss(parts, model)
    shared_parameters, local_parameters = _split_parameters(parts, model)
    layout, initial_parameters = _flatten_parameters([*shared_parameters, *local_parameters])
    check_restorable(module, source)
    trial = try_module(module, loss, dataset, source)
    changed_names = None if trial is None else set(trial.changed_tensors)
    averaged_buffers, local_buffers = _split_buffers(module, parts, changed_names, model)
    buffers, initial_buffers = _flatten_buffers([*averaged_buffers, *local_buffers])
    n_local = sum(parameter.numel() for _, parameter in local_parameters)
    n_local_buffers = sum(buffer.numel() for _, buffer in local_buffers)
    reset_attribute = None if trial is None else trial.changed_attribute
    task_fields = layout, initial_parameters, n_local, buffers, initial_buffers, n_local_buffers, source, reset_attribute
    return LearningTask(module, loss, metrics, *task_fields)


def _check_state(module: nn.Module) -> None:
    """Raise ModelError for state that cannot be saved in a file or reset for the next client."""
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Iterator) and not isinstance(value, io.IOBase):
                problem = "is an iterator, whose state cannot be reset for the next client; use a number or a numpy Generator"
                raise ModelError(f"the attribute {type(part).__name__}.{name} {problem}")
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name} in the module's state_dict is a {type(value).__name__}, expected a tensor: store it in a buffer"
            )


def _check_layers(parts: Parts) -> None:
    for prefix, part in parts:
        for name, child in part.named_modules():
            if isinstance(child, nn.Embedding | nn.EmbeddingBag) and child.sparse:
                layer = f"{prefix}{name}" or "the model"
                raise ModelError(f"{layer} gives sparse gradients, which no engine supports; create it with sparse=False")


def _check_loss(parts: Parts, model: Model) -> None:
    """Raise ModelError if the loss's trainable parameters contradict `model.loss_parameters`, or if names clash."""
    module_ids = {id(parameter) for parameter in parts[0][1].parameters()}
    loss = parts[1][1] if len(parts) > 1 else None
    own_names = [] if loss is None else [n for n, p in loss.named_parameters() if p.requires_grad and id(p) not in module_ids]
    if own_names and not model.loss_parameters:
        raise ModelError(
            f"the loss {type(loss).__name__} has parameters of its own ({', '.join(own_names[:3])}), which would not be "
            "trained; set model.loss_parameters = true to train and send them, or requires_grad = False on them"
        )
    if model.loss_parameters and not own_names:
        raise ModelError("model.loss_parameters is true, but the loss has no parameters that require a gradient")
    names = {name.partition(".")[0] for name, _ in (*parts[0][1].named_parameters(), *parts[0][1].named_buffers())}
    if loss is not None and "loss" in names and (own_names or any(True for _ in loss.buffers())):
        raise ModelError(
            'the module has a part called "loss", the prefix of parameters and buffers of the loss; rename the part'
        )


def _split_parameters(parts: Parts, model: Model) -> tuple[NamedTensors, NamedTensors]:
    """Return (parameters that are sent, parameters that never leave a client)."""
    parameters = [(name, p) for name, p in named_parameters(parts).items() if p.requires_grad]
    if not parameters:
        raise ModelError("the model has no parameter that requires a gradient: there is nothing to train or to send")
    batch_norm_parameters = find_affine_parameters(parts[0][1]) if model.batch_norm == "local" else set()
    shared_parameters = [item for item in parameters if item[1] not in batch_norm_parameters]
    if not shared_parameters:
        raise ModelError('model.batch_norm is "local", and only batch norm has parameters to train: there is nothing to send')
    return shared_parameters, [item for item in parameters if item[1] in batch_norm_parameters]


def _split_buffers(
    module: nn.Module, parts: Parts, changed_names: set[str] | None, model: Model
) -> tuple[NamedTensors, NamedTensors]:
    """Return (tensors without gradient that are sent and averaged, tensors without gradient that never leave a client).

    `changed_names` has the tensors that training changes; None: the names are unknown, and every buffer that can
    change counts, or none under the policy "refuse".
    """
    statistics = find_running_statistics(module)
    statistics_names = {name for name, _ in statistics}
    if model.batch_norm == "refuse" and (statistics_names if changed_names is None else statistics_names & changed_names):
        raise ModelError(_explain_refused_batch_norm(module))
    tensors = named_fixed_tensors(parts)
    new_names = (changed_names or set()) - tensors.keys()
    if new_names:
        raise ModelError(f"buffer {min(new_names)} appeared while the module ran; register it beforehand")
    if changed_names is None:
        counters = {name for prefix, part in parts for name in find_unused_counters(part, prefix)}
        changed_names = {n for n, tensor in tensors.items() if not isinstance(tensor, nn.Parameter)} - counters
        changed_names = set() if model.buffers == "refuse" else changed_names
    buffer_names = changed_names - statistics_names
    buffers = [(name, tensor.detach()) for name, tensor in tensors.items() if name in buffer_names]
    _check_other_buffers(parts, buffers, model)
    averaged_buffers, local_buffers = (
        [*(statistics if model.batch_norm == policy else ()), *(buffers if model.buffers == policy else ())]
        for policy in ("mean", "local")
    )
    return averaged_buffers, local_buffers


def _check_other_buffers(parts: Parts, buffers: NamedTensors, model: Model) -> None:
    """Raise ModelError for buffers and frozen parameters that training changes and `model.buffers` does not allow."""
    if buffers and model.buffers == "refuse":
        names = ", ".join(name for name, _ in buffers[:3]) + (f" and {len(buffers) - 3} more" if len(buffers) > 3 else "")
        subject = f"buffer {names}, which is no gradient" if len(buffers) == 1 else f"buffers {names}, which are no gradients"
        raise ModelError(
            f"training changes the {subject} and would silently differ between clients; set "
            'model.buffers to "mean" (sent as float32 and averaged) or "local" (stored at each client)'
        )
    persistent_names = {f"{prefix}{name}" for prefix, part in parts for name in part.state_dict()}
    for name, buffer in buffers:
        if name not in persistent_names:
            raise ModelError(f"training changes the buffer {name}, which is in no state dict; register it as persistent")
        if model.buffers == "mean" and buffer.dtype == torch.bool:
            raise ModelError(f'buffer {name} is torch.bool, which has no mean; set model.buffers to "local"')
        if model.buffers == "local" and name.startswith("loss."):
            raise ModelError(f'{name} is part of the loss, and model.buffers = "local" is for modules only; set it to "mean"')


def _explain_refused_batch_norm(module: nn.Module) -> str:
    name, child = next((n, c) for n, c in module.named_modules() if is_batch_norm(c) and c.track_running_stats)
    return (
        f"{name or 'the model'} is a {type(child).__name__} with running statistics, which are not gradients and would "
        "silently differ between clients; use torch.nn.GroupNorm, or set model.batch_norm to "
        '"group", "batch", "mean", "local" or "frozen"'
    )


def _flatten_parameters(tensors: NamedTensors) -> tuple[ParameterLayout, F32]:
    """Return (layout, values) of parameters. ModelError unless they are finite and torch.float32 on the CPU."""
    for name, tensor in tensors:
        check_initialized(name, tensor)
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ModelError(f"{name} is {tensor.dtype} on {tensor.device}, expected torch.float32 on cpu")
        if not (is_finite := tensor.detach().isfinite()).all():
            index = (~is_finite).nonzero()[0].tolist()
            raise ModelError(f"{name} is initially {float(tensor.detach()[tuple(index)])} at {index}, expected finite numbers")
    return _build_layout(tensors), np.concatenate([tensor.detach().numpy().reshape(-1) for _, tensor in tensors])


def _flatten_buffers(tensors: NamedTensors) -> tuple[ParameterLayout | None, F32 | None]:
    """Return (layout, values) of buffers, or (None, None). ModelError for values that `convert_to_float32` rejects."""
    if not tensors:
        return None, None
    for name, tensor in tensors:
        check_initialized(name, tensor)
    return _build_layout(tensors), np.concatenate([convert_to_float32(name, buffer) for name, buffer in tensors])


def _build_layout(tensors: NamedTensors) -> ParameterLayout:
    return ParameterLayout(tuple(name for name, _ in tensors), tuple(tuple(tensor.shape) for _, tensor in tensors))
