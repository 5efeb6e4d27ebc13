"""What a model is: how to build a torch.nn.Module, and what a run needs to know of one.

A loss takes (output, target) of a batch and returns a scalar. A metric takes (output, target) and returns one number per
example, [B], or a pair of these numbers and their weights, [B] each. torch is imported where a module is built, so that
settings can be read without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fedsgd.config.component import Component, FieldError, import_by_path
from fedsgd.config.python_objects import describe_missing_objects, find_markers, is_marker
from fedsgd.errors import ScenarioError
from fedsgd.models.policies import BatchNormPolicy, BufferPolicy

if TYPE_CHECKING:
    from torch import Tensor, nn

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
Metric = Callable[["Tensor", "Tensor"], "Tensor | tuple[Tensor, Tensor]"]


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
    batch_norm: BatchNormPolicy = field(default="refuse", kw_only=True)
    buffers: BufferPolicy = field(default="refuse", kw_only=True)
    loss_parameters: bool = field(default=False, kw_only=True)

    needs_labels: ClassVar[bool] = True
    """Whether it needs targets that are class labels."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A freshly initialised module for examples of this shape and so many classes (0: the targets are not labels)."""


def import_callable(path: str, key: str) -> Callable[..., Any]:
    """What `my_package.my_module:function` names, for a key of [model]; FieldError if it is not there or not to be called."""
    if is_marker(path):
        raise FieldError("model", key, describe_missing_objects(dict(find_markers(path, f"model.{key}"))))
    try:
        found = import_by_path(path)
    except ScenarioError as error:
        raise FieldError("model", key, str(error)) from error
    if not callable(found):
        raise FieldError("model", key, f'"{path}" is {found!r}, expected something to call')
    if isinstance(found, type) and key != "module":
        raise FieldError("model", key, f'"{path}" is the class {found.__name__}, expected a function or an instance')
    function: Callable[..., Any] = found
    return function
