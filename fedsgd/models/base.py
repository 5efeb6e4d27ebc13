"""Base class of models, which build a torch.nn.Module, and types of losses and metrics.

torch is imported only where a module is built, so that settings can be read without torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from fedsgd.config.component import Component, FieldError
from fedsgd.config.python_objects import describe_missing_objects, find_markers, is_marker
from fedsgd.config.registry import import_by_path
from fedsgd.errors import ScenarioError
from fedsgd.models.policies import BatchNormPolicy, BufferPolicy

if TYPE_CHECKING:
    from torch import Tensor, nn

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Function of (output, target) of a batch that returns a scalar."""
MetricFunction = Callable[[Any, "Tensor"], Any]
"""Function of (output, target) that returns one number for each example, [B], or (numbers [B], weights [B]), or one number for
a whole set: a number or a tensor without axes."""


@runtime_checkable
class StreamingMetric(Protocol):
    """Object that accumulates batches of a whole set, such as a metric of torchmetrics."""

    def reset(self) -> object:
        """Discard all batches."""

    def update(self, output: Any, target: Any) -> object:
        """Add a batch.

        Args:
            output: output of the module, [B, ...].
            target: targets, [B, ...].
        """

    def compute(self) -> Any:
        """Return one number for all batches."""


Metric = MetricFunction | StreamingMetric
"""Metric of the user. The result of a trial decides if a function's value belongs to each example or to a whole set."""


@dataclass(frozen=True)
class Model(Component, ABC):
    """Architecture of the trained module, with its loss, metrics and policies.

    Attributes:
        loss: "my_package.my_module:function"; None: cross-entropy.
        metrics: "my_package.my_module:function" of each metric, by name: a function of (output, target) that returns one
            number per example, or one number for the whole set; or an object with update, compute and reset, as in
            torchmetrics. For class labels, accuracy is added if it is defined for the outputs (see `metrics.Accuracy`).
        batch_norm: policy for batch norm, whose running statistics cannot be averaged like gradients. "refuse": raise an
            error. "batch": normalise by the batch, also in evaluation (slices of 100 examples). "group": use group norm with
            16 channels in a group, or with one group if 16 does not divide the width. "mean": send the statistics uncompressed
            and average them. "local": keep parameters and statistics at each client (FedBN, Li et al. 2021). "frozen": use the
            layer as a constant, which costs no bytes.
        buffers: policy for other buffers that training changes, such as the vectors of spectral norm. "refuse": raise an
            error. "mean": send them as float32 and average them, integers rounded. "local": keep them at each client.
        loss_parameters: True to train and send parameters of the loss too.
    """

    instance_hint: ClassVar[str] = "; pass a module of your own to fedsgd.run(scenario, model=...)"

    loss: str | None = field(default=None, metadata={"example": '"my_package.my_module:my_loss"'})
    metrics: dict[str, str] = field(default_factory=dict, metadata={"example": '{ f1 = "my_package.my_module:f1" }'})
    batch_norm: BatchNormPolicy = field(default="refuse", kw_only=True)
    buffers: BufferPolicy = field(default="refuse", kw_only=True)
    loss_parameters: bool = field(default=False, kw_only=True)

    needs_labels: ClassVar[bool] = True
    """True if the targets have to be class labels."""

    def list_import_paths(self) -> dict[str, str]:
        """Return the import paths of loss and metrics that are not markers, by key."""
        functions = {"loss": self.loss, **{f"metrics.{name}": path for name, path in self.metrics.items()}}
        return {key: path for key, path in functions.items() if path is not None and not is_marker(path)}

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Build a module with new initial parameters.

        Args:
            shape: shape of one example.
            classes: K, number of classes; 0: the targets are not class labels.
        """


def import_callable(path: str, key: str) -> Callable[..., Any]:
    """Import "my_package.my_module:function", the value of a key of [model]. FieldError for a missing or wrong object."""
    if is_marker(path):
        raise FieldError("model", key, describe_missing_objects(dict(find_markers(path, f"model.{key}"))))
    try:
        value = import_by_path(path)
    except ScenarioError as error:
        raise FieldError("model", key, str(error)) from error
    if isinstance(value, type) and key != "module":
        raise FieldError("model", key, f'"{path}" is the class {value.__name__}, expected a function or an instance')
    if not callable(value) and not (key.startswith("metrics.") and isinstance(value, StreamingMetric)):
        raise FieldError("model", key, f'"{path}" is {value!r}, expected a function or another callable')
    function: Callable[..., Any] = value
    return function
