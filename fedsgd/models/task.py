"""Task of a run: module, loss, metrics and the layout of their parameters."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fedsgd.errors import FedsgdError, ModelError
from fedsgd.models.base import Loss, Metric, Model
from fedsgd.models.batch_norm import replace_batch_norm
from fedsgd.models.buffers import list_parts
from fedsgd.models.loss_reduction import LossReduction
from fedsgd.models.losses import find_reduction
from fedsgd.models.python_state import copy_pair
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_torch_seed
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread


@dataclass(frozen=True, eq=False)
class LearningTask:
    """Module that a run trains, with its loss and metrics.

    Parameters and buffers of a loss that is a module are among those of the task, under names that begin with "loss.".

    Attributes:
        module: owned by the run; its parameters are re-pointed at flat vectors.
        loss: maps (output, target) of a batch to a scalar.
        metrics: by name, functions from (output, target) to one number per example.
        layout: names and shapes of the parameters that train, P numbers.
        initial: [P] float32, their values before round 1.
        n_local: number of parameters, the last ones of `layout`, that never leave a client.
        buffers: names and shapes of the buffers that clients carry from round to round, S numbers; None if there are none.
        initial_buffers: [S] float32, their values before round 1. All other buffers are constant in training.
        n_local_buffers: number of entries, the last ones of `module_buffers`, that never leave a client.
        source: how the module was made, for processes that it cannot be sent to; None if it was given.
        restarts: label of Python state that training changes, and that begins as it was made at each client; None: nothing.
        reduction: how the loss of a set of examples is computed; None: as the loss alone says, see `models.losses`.
    """

    module: nn.Module
    loss: Loss
    metrics: Mapping[str, Metric]
    layout: ParameterLayout
    initial_parameters: F32
    n_local_parameters: int = 0
    buffers: ParameterLayout | None = None
    initial_buffers: F32 | None = None
    n_local_buffers: int = 0
    module_source: ModuleSource | None = None
    reset_attribute: str | None = None
    reduction: LossReduction | None = None

    @property
    def parts(self) -> list[tuple[str, nn.Module]]:
        """The module and, where it is one, the loss, each with the prefix of its names."""
        return list_parts(self.module, self.loss)

    def copy(self) -> LearningTask:
        """Return the task with a copy of its module and loss to try things on; with themselves where they cannot be copied."""
        try:
            module, loss = copy_pair(self.module, self.loss)
        except Exception:  # the user's own attributes may be anything
            return self
        return replace(self, module=module, loss=loss)

    @property
    def loss_reduction(self) -> LossReduction:
        """Reduction of the loss over a set of examples."""
        return self.reduction or LossReduction(find_reduction(self.loss))

    @property
    def shared_layout(self) -> ParameterLayout:
        """What is sent: the first P − L parameters."""
        if not self.n_local_parameters:
            return self.layout
        n = self.layout.offsets.index(self.layout.size - self.n_local_parameters)
        return ParameterLayout(self.layout.names[:n], self.layout.shapes[:n])

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Send the module by how it was made, since not all of it can be written; one that was given is written by torch.

        ModelError if something cannot be sent to another process.
        """
        buffers = (self.buffers, self.initial_buffers, self.n_local_buffers)
        described = (
            self.layout,
            self.initial_parameters,
            self.n_local_parameters,
            *buffers,
            self.module_source,
            self.reset_attribute,
            self.reduction,
        )
        module = self.module if self.module_source is None else None
        return _deserialize_task, (_serialize(module, self.loss, self.metrics), *described)


@dataclass(frozen=True)
class ModuleSource:
    """Source of a run's module: a model, for examples of a shape and a number of classes, with the run's seed."""

    model: Model
    shape: tuple[int, ...]
    classes: int | None
    seed: int

    @property
    def is_user_defined(self) -> bool:
        """True if a function of the user makes the module."""
        return hasattr(self.model, "module")

    def build(self) -> nn.Module:
        """Return a new module, always with the same initial values. ModelError if that cannot be done."""
        with use_single_thread(), isolate_generators(derive_torch_seed(self.seed, "init")):
            module = _build_module(self.model, self.shape, self.classes)
        check_hooks(module)
        replace_batch_norm(module, self.model.batch_norm)
        return module


IMPORTABLE_HINT = (
    "define it in a module of its own and name it in [model], as module, loss or metrics, in the form "
    '"package.module:function", or run with workers = 1'
)


def _serialize(module: nn.Module | None, loss: Loss, metrics: Mapping[str, Metric]) -> bytes:
    try:
        return _to_bytes((module, loss, metrics))
    except Exception as error:  # the user's own attributes may be anything
        for name, part in {"module": module, "loss": loss, **{f"metric {n}": m for n, m in metrics.items()}}.items():
            try:
                _to_bytes(part)
            except Exception as reason:
                raise ModelError(
                    f"the {name} cannot be sent to worker processes ({_single_line_message(reason)}): {IMPORTABLE_HINT}"
                ) from reason
        raise ModelError(
            f"the model cannot be sent to worker processes ({_single_line_message(error)}): {IMPORTABLE_HINT}"
        ) from error


def _single_line_message(error: Exception) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())


def _to_bytes(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _deserialize_task(data: bytes, *described: Any) -> LearningTask:
    source: ModuleSource | None = described[-3]
    try:
        module, loss, metrics = torch.load(io.BytesIO(data), weights_only=False)
    except Exception as error:  # a class of a notebook is nowhere else
        raise ModelError(
            f"the model cannot be made again in a worker process ({_single_line_message(error)}): {IMPORTABLE_HINT}"
        ) from error
    if module is None and source is not None:
        module = source.build()
    return LearningTask(module, loss, metrics, *described)


def _build_module(model: Model, shape: tuple[int, ...], classes: int | None) -> nn.Module:
    if model.needs_labels and classes is None:
        raise ModelError(
            f"{model.name}: this model classifies, and the dataset's targets are not class labels; bring your own module"
        )
    try:
        return model.build(shape, classes or 0)
    except ModelError as error:
        raise ModelError(f"{model.name}: {error}") from error
    except FedsgdError:
        raise
    except Exception as error:  # the user's own factory may fail in any way
        raise ModelError(f"{model.name}: cannot be built: {type(error).__name__}: {error}") from error


def check_hooks(module: object) -> None:
    """Raise ModelError for what is no module, and for hooks on parameters, which a copy of the module does not have."""
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"the model is {type(module).__name__}, expected a torch.nn.Module")
    for name, p in module.named_parameters():
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise ModelError(f"{name} has a hook, which a copy of the module loses; register it on a module instead")
