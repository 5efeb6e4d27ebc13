"""What a model is: how to build a torch.nn.Module, and what a run needs to know of one.

A loss takes (output, target) of a batch and returns a scalar. A metric takes (output, target) and returns one number per
example, [B], or a pair of these numbers and their weights, [B] each. torch is imported where a module is built, so that
settings can be read without it.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fedsgd.arrays import F32
from fedsgd.component import Component, FieldError, import_object
from fedsgd.data import Dataset
from fedsgd.errors import FedsgdError, ModelError, ScenarioError
from fedsgd.layout import Layout
from fedsgd.models.metrics import accuracy
from fedsgd.models.reduction import LossReduction
from fedsgd.python_objects import ask_for, find_markers, is_marker
from fedsgd.rng import torch_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

BatchNorm = Literal["refuse", "batch", "group", "mean", "local", "frozen"]
"""What becomes of batch norm: see `Model`."""
Buffers = Literal["refuse", "mean", "local"]
"""Policy for other buffers that training changes: see `Model`."""
Loss = Callable[["Tensor", "Tensor"], "Tensor"]
Metric = Callable[["Tensor", "Tensor"], "Tensor | tuple[Tensor, Tensor]"]


@dataclass(frozen=True, eq=False)
class Task:
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
        n_local_buffers: number of entries, the last ones of `buffers`, that never leave a client.
        source: how the module was made, for processes that it cannot be sent to; None if it was given.
        restarts: label of Python state that training changes, and that begins as it was made at each client; None: nothing.
        reduction: how the loss of a set of examples is computed; None: as the loss alone says, see `models.losses`.
    """

    module: nn.Module
    loss: Loss
    metrics: Mapping[str, Metric]
    layout: Layout
    initial: F32
    n_local: int = 0
    buffers: Layout | None = None
    initial_buffers: F32 | None = None
    n_local_buffers: int = 0
    source: ModuleSource | None = None
    restarts: str | None = None
    reduction: LossReduction | None = None

    @property
    def parts(self) -> list[tuple[str, nn.Module]]:
        """The module and, where it is one, the loss, each with the prefix of its names."""
        from fedsgd.models.buffers import parts_of

        return parts_of(self.module, self.loss)

    def copied(self) -> Task:
        """Return the task with a copy of its module and loss to try things on; with themselves where they cannot be copied."""
        from fedsgd.models.attributes import copy_pair

        try:
            module, loss = copy_pair(self.module, self.loss)
        except Exception:  # the user's own attributes may be anything
            return self
        return replace(self, module=module, loss=loss)

    @property
    def loss_reduction(self) -> LossReduction:
        """Reduction of the loss over a set of examples."""
        from fedsgd.models.losses import find_reduction

        return self.reduction or LossReduction(find_reduction(self.loss))

    @property
    def shared_layout(self) -> Layout:
        """What is sent: the first P − L parameters."""
        if not self.n_local:
            return self.layout
        n = self.layout.offsets.index(self.layout.size - self.n_local)
        return Layout(self.layout.names[:n], self.layout.shapes[:n])

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Send the module by how it was made, since not all of it can be written; one that was given is written by torch.

        ModelError if something cannot be sent to another process.
        """
        buffers = (self.buffers, self.initial_buffers, self.n_local_buffers)
        described = (self.layout, self.initial, self.n_local, *buffers, self.source, self.restarts, self.reduction)
        module = self.module if self.source is None else None
        return _rebuilt, (_saved(module, self.loss, self.metrics), *described)


@dataclass(frozen=True)
class ModuleSource:
    """Source of a run's module: a model, for examples of a shape and a number of classes, with the run's seed."""

    model: Model
    shape: tuple[int, ...]
    classes: int | None
    seed: int

    @property
    def is_of_user(self) -> bool:
        """True if a function of the user makes the module."""
        return hasattr(self.model, "module")

    def build(self) -> nn.Module:
        """Return a new module, always with the same initial values. ModelError if that cannot be done."""
        from fedsgd.generators import seeded_generators
        from fedsgd.models.batch_norm import settle_batch_norm
        from fedsgd.torch_scope import one_thread

        with one_thread(), seeded_generators(torch_seed(self.seed, "init")):
            module = _built(self.model, self.shape, self.classes)
        _check_hooks(module)
        settle_batch_norm(module, self.model.batch_norm)
        return module


@dataclass(frozen=True)
class Model(Component, ABC):
    """How to build a module. loss, metrics: `my_package.my_module:function`; by default cross-entropy and, on class labels,
    accuracy where it is defined for the outputs (see `metrics.Accuracy`). batch_norm: what becomes of batch norm, whose running
    statistics no federation can average as it does gradients:
    "refuse" it; normalise by "batch", in evaluation too (slices of 100 examples); replace it by "group" norm, 16 channels a
    group; send its statistics as they are and take their "mean"; keep it "local", parameters and statistics, at each
    client (FedBN, Li et al. 2021); or keep it "frozen", a constant that costs no bytes. buffers: what becomes of other buffers
    that training changes (spectral norm's vectors, a normaliser's moments): "refuse" them; send them as float32 and take their
    "mean", integers rounded; or keep them "local". loss_parameters: train parameters of the loss too, and send them."""

    loss: str | None = None
    metrics: dict[str, str] = field(default_factory=dict)
    batch_norm: BatchNorm = field(default="refuse", kw_only=True)
    buffers: Buffers = field(default="refuse", kw_only=True)
    loss_parameters: bool = field(default=False, kw_only=True)

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
    from fedsgd.models.buffers import check_memory, parts_of
    from fedsgd.models.describe import describe_task
    from fedsgd.models.given import check_given, check_metric_name

    check_given(module, loss, metrics)
    source = None
    if module is None:
        source = ModuleSource(model, dataset.shape, dataset.classes, seed)
        module = source.build()
    named: dict[str, Metric] = {} if dataset.classes is None else {"accuracy": accuracy}
    given_metrics = metrics or {}
    for name, path in model.metrics.items():
        check_metric_name(name)
        named[name] = given_metrics[name] if name in given_metrics else imported(path, f"metrics.{name}")
    named.update(given_metrics)
    if "loss" in named:
        raise ModelError('a metric cannot be called "loss": that is what the loss is reported as')
    if loss is None:
        loss = imported(model.loss, "loss") if model.loss else torch.nn.functional.cross_entropy
    if isinstance(loss, type):
        raise ModelError(f"the loss is the class {loss.__name__}, expected a function or an instance: {loss.__name__}()")
    _check_hooks(module)
    check_memory(parts_of(module, loss))
    module, loss = _copies(module, loss, given=source is None)
    settle_batch_norm(module, model.batch_norm)
    return describe_task(module, loss, named, model, dataset, source)


ELSEWHERE = (
    "define it in a module of its own and name it in [model], as module, loss or metrics, in the form "
    '"package.module:function", or run with workers = 1'
)


def _saved(module: nn.Module | None, loss: Loss, metrics: Mapping[str, Metric]) -> bytes:
    try:
        return _as_bytes((module, loss, metrics))
    except Exception as error:  # the user's own attributes may be anything
        for name, part in {"module": module, "loss": loss, **{f"metric {n}": m for n, m in metrics.items()}}.items():
            try:
                _as_bytes(part)
            except Exception as reason:
                raise ModelError(f"the {name} cannot be sent to worker processes ({_line(reason)}): {ELSEWHERE}") from reason
        raise ModelError(f"the model cannot be sent to worker processes ({_line(error)}): {ELSEWHERE}") from error


def _line(error: Exception) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())


def _as_bytes(value: object) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _rebuilt(saved: bytes, *described: Any) -> Task:
    source: ModuleSource | None = described[-3]
    import torch

    try:
        module, loss, metrics = torch.load(io.BytesIO(saved), weights_only=False)
    except Exception as error:  # a class of a notebook is nowhere else
        raise ModelError(f"the model cannot be made again in a worker process ({_line(error)}): {ELSEWHERE}") from error
    if module is None and source is not None:
        module = source.build()
    return Task(module, loss, metrics, *described)


def _built(model: Model, shape: tuple[int, ...], classes: int | None) -> nn.Module:
    if model.classifies and classes is None:
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


def _copies(module: nn.Module, loss: Loss, given: bool) -> tuple[nn.Module, Loss]:
    """Return copies, made together so that what they share stays shared. A module that was built here needs none."""
    from fedsgd.models.attributes import copy_pair

    try:
        copied = copy_pair(module if given else None, loss)
        return copied if given else (module, copied[1])
    except Exception as error:  # tensors that are not leaves, and whatever the user's own attributes do
        what = "the module" if given else "the loss"
        raise ModelError(f"{what} cannot be copied ({error}); give a function that makes it as [model] module") from error


def imported(path: str, field: str) -> Callable[..., Any]:
    """What `my_package.my_module:function` names, for a key of [model]; FieldError if it is not there or not to be called."""
    if is_marker(path):
        raise FieldError("model", field, ask_for(dict(find_markers(path, f"model.{field}"))))
    try:
        found = import_object(path)
    except ScenarioError as error:
        raise FieldError("model", field, str(error)) from error
    if not callable(found):
        raise FieldError("model", field, f'"{path}" is {found!r}, expected something to call')
    if isinstance(found, type) and field != "module":
        raise FieldError("model", field, f'"{path}" is the class {found.__name__}, expected a function or an instance')
    function: Callable[..., Any] = found
    return function


def _check_hooks(module: object) -> None:
    """Raise ModelError for what is no module, and for hooks on parameters, which a copy of the module does not have."""
    import torch

    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"the model is {type(module).__name__}, expected a torch.nn.Module")
    for name, p in module.named_parameters():
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise ModelError(f"{name} has a hook, which a copy of the module loses; register it on a module instead")
