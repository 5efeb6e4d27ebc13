"""What a model is: how to build a torch.nn.Module, and what a run needs to know of one.

A loss takes (output, target) of a batch and returns the mean over it, a scalar. A metric takes (output, target) and returns
one number per example, [B]. torch is imported where a module is built, so that settings can be read without it.
"""

from __future__ import annotations

import copy
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from fedsgd.arrays import F32
from fedsgd.component import Component, FieldError, import_object
from fedsgd.data import Dataset
from fedsgd.errors import FedsgdError, ModelError, ScenarioError
from fedsgd.layout import Layout
from fedsgd.rng import torch_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

BatchNorm = Literal["refuse", "batch", "group", "mean", "local"]
"""What becomes of batch norm: see `Model`."""
Loss = Callable[["Tensor", "Tensor"], "Tensor"]
Metric = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True, eq=False)
class Task:
    """What a run trains: a module, its loss, its metrics. layout and initial describe what trains, [P].

    module: owned by the run (its parameters are re-pointed at flat vectors); initial: float32 [P]. n_local: L, so many of the
    last entries are parameters that never leave a client. buffers, initial_buffers: the running statistics of batch norm,
    float32 [S], each layer's mean and variance in the order of the module's layers; None if none are kept. What else a module
    has in its buffers, counters of batches among it, is not in there: it starts as it was made at every client.
    """

    module: nn.Module
    loss: Loss
    metrics: Mapping[str, Metric]
    layout: Layout
    initial: F32
    n_local: int = 0
    buffers: Layout | None = None
    initial_buffers: F32 | None = None

    @property
    def shared_layout(self) -> Layout:
        """What is sent: the first P − L parameters."""
        if not self.n_local:
            return self.layout
        n = self.layout.offsets.index(self.layout.size - self.n_local)
        return Layout(self.layout.names[:n], self.layout.shapes[:n])

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """By torch, which writes what tensors share once. ModelError if something cannot be sent to another process."""
        described = (self.layout, self.initial, self.n_local, self.buffers, self.initial_buffers)
        return _rebuilt, (_saved(self.module, self.loss, self.metrics), *described)


@dataclass(frozen=True)
class Model(Component, ABC):
    """How to build a module. loss, metrics: `my_package.my_module:function`; by default cross-entropy and, on class labels,
    accuracy. batch_norm: what becomes of batch norm, whose running statistics no federation can average as it does gradients:
    "refuse" it; normalise by "batch", in evaluation too (slices of 100 examples); replace it by "group" norm, 16 channels a
    group; send its statistics as they are and take their "mean"; or keep it "local", parameters and statistics, at each
    client (FedBN, Li et al. 2021)."""

    loss: str | None = None
    metrics: dict[str, str] = field(default_factory=dict)
    batch_norm: BatchNorm = field(default="refuse", kw_only=True)

    classifies: ClassVar[bool] = True
    """Whether it needs targets that are class labels."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A freshly initialised module for examples of this shape and so many classes (0: the targets are not labels)."""


def make_task(
    model: Model,
    dataset: Dataset,
    seed: int,
    module: nn.Module | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Task:
    """The task of a scenario. A module, loss or metrics given in Python take the place of what the scenario names.

    Initial parameters are a function of the seed; torch's global generator is as it was afterwards.
    """
    import torch

    from fedsgd.models.batch_norm import settle_batch_norm
    from fedsgd.torch_scope import one_thread, seeded_generators

    given = module is not None
    if module is None:
        with one_thread(), seeded_generators(torch_seed(seed, "init")):
            module = _built(model, dataset)
    _check_hooks(module)
    if given:
        module = _copy(module)
    if isinstance(module, torch.nn.Module):
        settle_batch_norm(module, model.batch_norm)
    named = {} if dataset.classes is None else {"accuracy": accuracy}
    named.update({name: imported(path, f"metrics.{name}") for name, path in model.metrics.items()})
    named.update(metrics or {})
    if "loss" in named:
        raise ModelError('a metric cannot be called "loss": that is what the loss is reported as')
    if loss is None:
        loss = imported(model.loss, "loss") if model.loss else torch.nn.functional.cross_entropy
    if isinstance(loss, type):
        raise ModelError(f"the loss is the class {loss.__name__}, expected a function or an instance: {loss.__name__}()")
    return Task(module, loss, named, *_described(module, model.batch_norm))


ELSEWHERE = (
    "define it in a module of its own and name it in [model], as module, loss or metrics, in the form "
    '"package.module:function", or run with workers = 1'
)


def _saved(module: nn.Module, loss: Loss, metrics: Mapping[str, Metric]) -> bytes:
    try:
        return _as_bytes((module, loss, metrics))
    except Exception as error:  # the user's own attributes may be anything
        for name, part in {"module": module, "loss": loss, **{f"metric {n}": m for n, m in metrics.items()}}.items():
            try:
                _as_bytes(part)
            except Exception as reason:
                raise ModelError(f"the {name} cannot be sent to worker processes ({reason}): {ELSEWHERE}") from reason
        raise ModelError(f"the model cannot be sent to worker processes ({error}): {ELSEWHERE}") from error


def _as_bytes(value: object) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _rebuilt(saved: bytes, *described: Any) -> Task:
    import torch

    try:
        module, loss, metrics = torch.load(io.BytesIO(saved), weights_only=False)
    except Exception as error:  # a class of a notebook is nowhere else
        raise ModelError(f"the model cannot be made again in a worker process ({error}): {ELSEWHERE}") from error
    return Task(module, loss, metrics, *described)


def _built(model: Model, dataset: Dataset) -> nn.Module:
    if model.classifies and dataset.classes is None:
        raise ModelError(
            f"{model.name}: this model classifies, and the dataset's targets are not class labels; bring your own module"
        )
    try:
        return model.build(dataset.shape, dataset.classes or 0)
    except ModelError as error:
        raise ModelError(f"{model.name}: {error}") from error
    except FedsgdError:
        raise
    except Exception as error:  # the user's own factory may fail in any way
        raise ModelError(f"{model.name}: cannot be built: {type(error).__name__}: {error}") from error


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:  # tensors that are not leaves, and whatever the user's own attributes do
        raise ModelError(f"the module cannot be copied ({error}); give a function that makes it as [model] module") from error


def imported(path: str, field: str) -> Callable[..., Any]:
    """What `my_package.my_module:function` names, for a key of [model]; FieldError if it is not there or not to be called."""
    try:
        found = import_object(path)
    except ScenarioError as error:
        raise FieldError("model", field, str(error)) from error
    if not callable(found):
        raise FieldError("model", field, f'"{path}" is {found!r}, expected something to call')
    function: Callable[..., Any] = found
    return function


def _check_hooks(module: object) -> None:
    """ModelError for hooks on parameters: a copy of the module, here or in a worker process, does not have them."""
    import torch

    if isinstance(module, torch.nn.Module):
        for name, p in module.named_parameters():
            if p._backward_hooks or p._post_accumulate_grad_hooks:
                raise ModelError(f"{name} has a hook, which a copy of the module loses; register it on a module instead")


def _described(module: object, policy: BatchNorm) -> tuple[Layout, F32, int, Layout | None, F32 | None]:
    """(layout, initial values, n_local, buffers, initial buffers) of a task; ModelError for what cannot be run."""
    import torch

    from fedsgd.models.batch_norm import affine_parameters, running_statistics

    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"the model is {type(module).__name__}, expected a torch.nn.Module")
    _check_layers(module, policy)
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not trainable:
        raise ModelError("the model has no parameter that requires a gradient: there is nothing to train or to send")
    local = affine_parameters(module) if policy == "local" else set()
    kept = [named for named in trainable if named[1] in local]
    sent = [named for named in trainable if named[1] not in local]
    if not sent:
        raise ModelError('model.batch_norm is "local", and only batch norm has parameters to train: there is nothing to send')
    layout, initial = _flat([*sent, *kept])
    statistics = running_statistics(module) if policy in ("mean", "local") else []
    return layout, initial, sum(p.numel() for _, p in kept), *(_flat(statistics) if statistics else (None, None))


def _check_layers(module: nn.Module, policy: BatchNorm) -> None:
    """ModelError for layers that no engine trains under this policy."""
    import torch

    from fedsgd.models.batch_norm import is_batch_norm

    for name, child in module.named_modules():
        if getattr(child, "track_running_stats", False) and not (policy in ("mean", "local") and is_batch_norm(child)):
            remedy = (
                "use torch.nn.GroupNorm, or make it with track_running_stats=False; model.batch_norm is about batch norm only"
            )
            if is_batch_norm(child):
                remedy = 'use torch.nn.GroupNorm, or set model.batch_norm to "group", "batch", "mean" or "local"'
            raise ModelError(
                f"{name or 'the model'} is a {type(child).__name__} with running statistics, which are not gradients and would "
                f"silently differ between clients; {remedy}"
            )
        if isinstance(child, torch.nn.Embedding | torch.nn.EmbeddingBag) and child.sparse:
            raise ModelError(f"{name or 'the model'} gives sparse gradients, which no engine takes; make it with sparse=False")


def _flat(named: Sequence[tuple[str, Tensor]]) -> tuple[Layout, F32]:
    """(layout, values) of these tensors; ModelError unless they are of single precision and here."""
    import torch
    from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

    for name, tensor in named:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ModelError(f"{name} is not initialised yet; run the lazy module once before handing it over")
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ModelError(f"{name} is {tensor.dtype} on {tensor.device}, expected torch.float32 on cpu")
    layout = Layout(tuple(name for name, _ in named), tuple(tuple(tensor.shape) for _, tensor in named))
    return layout, np.concatenate([tensor.detach().numpy().reshape(-1) for _, tensor in named])


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """1 where the largest output is the target's class, else 0; a sequence counts by the share of its places that are right.

    output: [B, classes] or [B, classes, T]; target: [B] or [B, T]; returns [B].
    """
    return (output.argmax(dim=1) == target).float().reshape(len(target), -1).mean(dim=1)
