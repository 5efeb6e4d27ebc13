"""A task's module on a flat parameter vector: gradients of plain autograd, and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsgd.data import Examples
from fedsgd.models.buffers import named_parameters
from fedsgd.models.losses import flatten_positions
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.system.global_generators import isolate_generators, reseed_generators
from fedsgd.system.profiling import timed
from fedsgd.training.base import NotCapturableError, explain_restart
from fedsgd.training.device import HOST, EngineDevice, as_tensor
from fedsgd.training.evaluation_result import EVALUATION_SLICE_SIZE, EvaluationResult
from fedsgd.training.module_state import ModuleState
from fedsgd.training.slice_evaluation import EvaluationAccumulator, check_loss


@dataclass(frozen=True)
class TensorFormat:
    """Order of the numbers of each tensor in a flat vector [P]. Elementwise rules work in any order.

    With `channels_last`, tensors of four axes (weights of convolutions) are stored with their channels last, the fastest order
    for convolutions and pooling on a CPU. All other tensors have the order of the wire. The vectors are on `device`.
    """

    layout: ParameterLayout
    channels_last: bool = False
    device: EngineDevice = HOST

    def view_tensors(self, flat: Tensor) -> list[Tensor]:
        """Return each tensor of a vector [P] as a view, in its shape in the module."""
        return [self._view(flat[segment], shape) for _, segment, shape in self.layout.list_slices()]

    def _view(self, segment: Tensor, shape: tuple[int, ...]) -> Tensor:
        if not self._is_permuted(shape):
            return segment.view(shape)
        out, channels, height, width = shape
        return segment.view(out, height, width, channels).permute(0, 3, 1, 2)

    def _is_permuted(self, shape: tuple[int, ...]) -> bool:
        return self.channels_last and len(shape) == 4

    def load(self, flat: Tensor, values: F32) -> None:
        """Overwrite flat [P] with values [P] in wire order."""
        flat.copy_(as_tensor(values))
        for _, segment, shape in self.layout.list_slices():
            if self._is_permuted(shape):
                self._view(flat[segment], shape).copy_(as_tensor(values[segment]).view(shape))

    def to_wire_order(self, flat: Tensor) -> F32:
        """Return a copy of flat [P] in wire order, in the host's memory."""
        array: F32 = self.device.to_host(flat)
        values = array.copy() if self.channels_last or self.device.is_cpu else array
        for _, segment, shape in self.layout.list_slices():
            if self._is_permuted(shape):
                out, channels, height, width = shape
                tensor = array[segment].reshape(out, height, width, channels)
                values[segment].reshape(shape)[...] = tensor.transpose(0, 3, 1, 2)
        return values


class FlatModule:
    """Module of a task whose parameters can be views of any flat vector [P].

    On a GPU, the module is a copy of the task's there.
    """

    def __init__(self, task: LearningTask, device: EngineDevice = HOST) -> None:
        self.device = device
        self.task = task = device.place_task(task)
        by_name = named_parameters(task.parts)
        self.parameters = [by_name[name] for name in task.layout.names]
        self.state = ModuleState(task)
        self._views: list[Tensor] = [parameter.detach() for parameter in self.parameters]

    def bind_parameters(self, views: Sequence[Tensor]) -> None:
        """Let the module's parameters use the memory of these tensors, given in the layout's order."""
        self._views = list(views)
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.data = view

    def load_weights(self, weights: F32, tensor_format: TensorFormat | None = None, memory: Tensor | None = None) -> None:
        """Bind the parameters to a copy of weights [P] in wire order; the copy is in this format, by default in wire order.

        `memory` [P] is overwritten with the copy; without it, new memory is allocated.
        """
        tensor_format = tensor_format or TensorFormat(self.task.layout)
        flat = torch.empty(len(weights), device=self.device.torch_device) if memory is None else memory
        tensor_format.load(flat, weights)
        self.bind_parameters(tensor_format.view_tensors(flat))

    def compute_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one batch with its autograd graph."""
        with torch.enable_grad():
            return check_loss(self.task.loss(*flatten_positions(self.task.loss, self.task.module(x), y)))

    def compute_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of one batch's loss for each parameter, None for parameters that the loss does not reach."""
        gradients = torch.autograd.grad(self.compute_loss(x, y), self.parameters, allow_unused=True)
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if parameter.data_ptr() != view.data_ptr():  # the module assigned to .data, so the parameter has a new value
                view.copy_(parameter.detach())
                parameter.data = view
        return gradients

    def compute_flat_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[slice]]:
        """Return the gradient [P] of one batch's loss, and the slices of unused parameters, where the gradient is 0."""
        gradients = self.compute_gradients(x, y)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients, strict=True)]
        return torch.cat([part.reshape(-1) for part in parts]), find_unused_slices(self.task.layout, gradients)

    def evaluate(
        self,
        weights: F32,
        examples: Examples,
        tensor_format: TensorFormat,
        buffers: F32 | None = None,
        memory: Tensor | None = None,
    ) -> EvaluationResult:
        """Return the loss and the metrics as `TrainingEngine.evaluate`, computed in slices with parameters in this format.

        The parameters are stored in `memory` [P], which is overwritten; without it, in new memory.
        """
        self.load_weights(weights, tensor_format, memory)
        self.task.module.eval()
        results = EvaluationAccumulator(self.task, len(examples))
        with self.device.scope(), torch.no_grad(), isolate_generators(0):
            for start in range(0, len(examples), EVALUATION_SLICE_SIZE):
                reseed_generators(0)
                with self.isolated_buffers(buffers, include_large=start == 0):
                    x, target = batch_tensors(examples.slice(start, start + EVALUATION_SLICE_SIZE), self.device)
                    results.add(self.task.module(x), target)
            reseed_generators(0)
            with self.isolated_buffers(buffers, include_large=False):
                return results.compute_result()

    @contextmanager
    def isolated_buffers(self, buffers: F32 | None = None, include_large: bool = True) -> Iterator[None]:
        """Run the body with the initial state of the module; afterwards restore all but frozen parameters and large arrays.

        Values [S] in `buffers` replace those of `LearningTask.buffers`. For `include_large`, see `ModuleState.restore`.
        """
        self.state.restore(include_large)
        try:
            if buffers is not None:
                self.state.load_buffers(buffers)
            yield
        finally:
            self.state.restore(include_large=False)


def copy_for_capture(task: LearningTask, device: EngineDevice) -> FlatModule:
    """Return the module of a copy of the task (see `LearningTask.copy`), since an attempt to capture a step runs the module.

    NotCapturableError if training changes buffers or Python state, since the check of a step compares gradients only.
    """
    if task.buffers is not None:
        raise NotCapturableError(f"training changes the buffer {task.buffers.names[0]}")
    if task.reset_attribute is not None:
        raise NotCapturableError(explain_restart(task.reset_attribute))
    return FlatModule(task.copy(), device)


def read_state_dicts(
    flat_module: FlatModule, weights: F32, buffers: F32 | None
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Return the state dicts of module and loss with weights [P] and buffers [S]; None for a loss that does not change."""
    task = flat_module.task
    flat_module.load_weights(weights)
    buffer_names = () if task.buffers is None else task.buffers.names
    loss_changes = any(name.startswith("loss.") for name in (*task.layout.names, *buffer_names))
    with flat_module.isolated_buffers(buffers):
        module, *loss = (_copy_tensors(part.state_dict()) for _, part in task.parts)
    return module, loss[0] if loss and loss_changes else None


def _copy_tensors(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: value.detach().clone().cpu() for name, value in state_dict.items() if isinstance(value, Tensor)}


def check_attributes(flat_module: FlatModule) -> None:
    """Raise NotCapturableError if a Python attribute of the task has changed, which a recording would not change."""
    flat_module.state.restore()
    attribute = flat_module.state.attributes.first_change
    if attribute is not None:
        raise NotCapturableError(explain_restart(attribute))


def find_unused_slices(layout: ParameterLayout, gradients: Sequence[Tensor | None]) -> list[slice]:
    """Return the slices of a vector [P] whose parameters have no gradient."""
    return [segment for (_, segment, _), gradient in zip(layout.list_slices(), gradients, strict=True) if gradient is None]


@timed("gather")
def batch_tensors(examples: Examples, device: EngineDevice = HOST) -> tuple[Tensor, Tensor]:
    """Return x and y of examples as copies, so that in-place operations of a module do not change the dataset."""
    x, y = device.get_examples(examples.x), device.get_examples(examples.y)
    if examples.rows is None:
        return x.clone(), y.clone()
    rows = device.to_device(examples.rows)
    return x.index_select(0, rows), y.index_select(0, rows)
