"""Learning task of a run: module, loss, metrics and the layout of parameters and buffers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from fedsgd.errors import FedsgdError, ModelError
from fedsgd.models.base import Loss, MetricFunction, Model
from fedsgd.models.batch_norm import replace_batch_norm
from fedsgd.models.buffers import list_parts
from fedsgd.models.loss_reduction import LossReduction
from fedsgd.models.losses import find_reduction
from fedsgd.models.python_state import copy_pair
from fedsgd.models.set_metrics import EntropyMetric, SetMetric
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_torch_seed
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread


@dataclass(frozen=True, eq=False)
class LearningTask:
    """Module that a run trains, with its loss and metrics.

    Parameters and buffers of a loss that is a module belong to the task, under names with the prefix "loss.".

    Attributes:
        module: module of the run; its parameters become views of flat vectors.
        metrics: metrics with one number for each example; before the trial of the evaluation, all metrics.
        layout, initial_parameters: names and shapes of the P trainable parameters; [P] float32, their values before round 1.
        n_local_parameters: L, number of parameters that never leave a client, the last positions of `layout`.
        buffers: layout of the buffers that clients send or store, sent buffers first; None: there are no such buffers.
        initial_buffers: [entries of `buffers`] float32, values before round 1.
        n_local_buffers: number of entries that never leave a client, the last positions of `buffers`.
        module_source: source of the module, for processes that rebuild the module; None: the user passed the module.
        reset_attribute: label of Python state that training changes and that is reset for each client; None: none was found.
        reduction: reduction of the loss over a set of examples; None: the reduction that the loss implies.
        set_metrics: metrics of a whole set, which only the server's process computes; workers receive none.
        output_bytes: maximum size of the outputs and targets that are stored for `set_metrics`, bytes.
    """

    module: nn.Module
    loss: Loss
    metrics: Mapping[str, MetricFunction]
    layout: ParameterLayout
    initial_parameters: F32
    n_local_parameters: int = 0
    buffers: ParameterLayout | None = None
    initial_buffers: F32 | None = None
    n_local_buffers: int = 0
    module_source: ModuleSource | None = None
    reset_attribute: str | None = None
    reduction: LossReduction | None = None
    set_metrics: Mapping[str, SetMetric] = field(default_factory=dict)
    output_bytes: int = 0

    @property
    def stores_outputs(self) -> bool:
        """True if an evaluation stores the outputs of all examples, for metrics of a whole set."""
        return any(not isinstance(metric, EntropyMetric) for metric in self.set_metrics.values())

    @property
    def parts(self) -> list[tuple[str, nn.Module]]:
        """Pairs (prefix of the names, module) of the module and, if the loss is a module, of the loss."""
        return list_parts(self.module, self.loss)

    def copy(self) -> LearningTask:
        """Return the task with copies of module and loss, for trials; the task itself if they cannot be copied."""
        try:
            module, loss = copy_pair(self.module, self.loss)
        except Exception:  # copying a user's attributes may raise any type
            return self
        return replace(self, module=module, loss=loss)

    @property
    def loss_reduction(self) -> LossReduction:
        """Reduction of the loss over a set of examples."""
        return self.reduction or LossReduction(find_reduction(self.loss))

    @property
    def shared_layout(self) -> ParameterLayout:
        """Layout of the parameters that clients send, the first P − L parameters."""
        if not self.n_local_parameters:
            return self.layout
        n = self.layout.offsets.index(self.layout.size - self.n_local_parameters)
        return ParameterLayout(self.layout.names[:n], self.layout.shapes[:n])

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickle the module's source in place of the module, which pickle may refuse, unless the user passed the module.

        Metrics of a whole set are left out.
        """
        separate_names = ("module", "loss", "metrics", "set_metrics", "output_bytes")
        task_fields = [getattr(self, f.name) for f in fields(self) if f.name not in separate_names]
        module = self.module if self.module_source is None else None
        return _deserialize_task, (_serialize(module, self.loss, self.metrics), *task_fields)


@dataclass(frozen=True)
class ModuleSource:
    """Settings from which a run's module is built: `shape` of one example, and K `classes` or None without class labels."""

    model: Model
    shape: tuple[int, ...]
    classes: int | None
    seed: int

    @property
    def is_user_defined(self) -> bool:
        """True if a function of the user makes the module."""
        return hasattr(self.model, "module")

    def build(self) -> nn.Module:
        """Build a module, with equal initial values at each call. ModelError if the model cannot be built."""
        with use_single_thread(), isolate_generators(derive_torch_seed(self.seed, "init")):
            module = _build_module(self.model, self.shape, self.classes)
        check_hooks(module)
        replace_batch_norm(module, self.model.batch_norm)
        return module


IMPORTABLE_HINT = (
    "define it in a module of its own and name it in [model], as module, loss or metrics, in the form "
    '"package.module:function", or run with workers = 1'
)


def _serialize(module: nn.Module | None, loss: Loss, metrics: Mapping[str, MetricFunction]) -> bytes:
    try:
        return _to_bytes((module, loss, metrics))
    except Exception as error:  # pickling a user's attributes may raise any type
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
    """Return the message of an error in one line."""
    return " ".join(str(error).split())


def _to_bytes(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _deserialize_task(data: bytes, *task_fields: Any) -> LearningTask:
    source: ModuleSource | None = task_fields[-3]
    try:
        module, loss, metrics = torch.load(io.BytesIO(data), weights_only=False)
    except Exception as error:  # classes of a notebook exist in its process only
        raise ModelError(
            f"the model cannot be made again in a worker process ({_single_line_message(error)}): {IMPORTABLE_HINT}"
        ) from error
    if module is None and source is not None:
        module = source.build()
    return LearningTask(module, loss, metrics, *task_fields)


def _build_module(model: Model, shape: tuple[int, ...], classes: int | None) -> nn.Module:
    if model.needs_labels and classes is None:
        raise ModelError(
            f"{model.name}: this model classifies, and the dataset's targets are not class labels; use your own module"
        )
    try:
        return model.build(shape, classes or 0)
    except ModelError as error:
        raise ModelError(f"{model.name}: {error}") from error
    except FedsgdError:
        raise
    except Exception as error:  # the user's factory may raise any type
        raise ModelError(f"{model.name}: cannot be built: {type(error).__name__}: {error}") from error


def check_hooks(module: object) -> None:
    """Raise ModelError for an object that is no module, and for hooks on parameters, which a copy of the module loses."""
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"the model is {type(module).__name__}, expected a torch.nn.Module")
    for name, p in module.named_parameters():
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise ModelError(f"{name} has a hook, which a copy of the module loses; register it on a module instead")
