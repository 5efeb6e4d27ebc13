"""A task's module on flat parameters: what every engine asks of plain autograd, and evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsgd.arrays import F32
from fedsgd.data import Examples
from fedsgd.engine.arrangement import Arrangement
from fedsgd.engine.base import EVALUATION_SLICE, CaptureError, Evaluated, explain_restart
from fedsgd.engine.module_state import ModuleState
from fedsgd.engine.slices import SliceResults, check_loss
from fedsgd.generators import seed_generators, seeded_generators
from fedsgd.layout import Layout
from fedsgd.models import Task
from fedsgd.models.buffers import named_parameters
from fedsgd.profiling import phased
from fedsgd.torch_scope import one_thread


class Network:
    """The module of a task, whose parameters can be pointed at any flat vector [P]."""

    def __init__(self, task: Task) -> None:
        self.task = task
        by_name = named_parameters(task.parts)
        self.parameters = [by_name[name] for name in task.layout.names]
        self.state = ModuleState(task)
        self._views: list[Tensor] = [parameter.detach() for parameter in self.parameters]

    def point_at(self, views: Sequence[Tensor]) -> None:
        """Make these tensors, in the layout's order, the module's parameters."""
        self._views = list(views)
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.data = view

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of one batch, as a graph of autograd's."""
        with torch.enable_grad():
            return check_loss(self.task.loss(self.task.module(x), y))

    def gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the loss of one batch for each parameter, None for one that the loss does not reach."""
        gradients = torch.autograd.grad(self.loss(x, y), self.parameters, allow_unused=True)
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if parameter.data_ptr() != view.data_ptr():  # the module assigned to its .data: that is its value from now on
                view.copy_(parameter.detach())
                parameter.data = view
        return gradients

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[slice]]:
        """Return the gradient of one batch's loss [P], and the stretches of it that the batch does not use, where it is 0."""
        gradients = self.gradients(x, y)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients, strict=True)]
        return torch.cat([part.reshape(-1) for part in parts]), unused(self.task.layout, gradients)

    def evaluate(self, weights: F32, examples: Examples, arrangement: Arrangement, statistics: F32 | None = None) -> Evaluated:
        """The loss and the metrics of the model with these weights [P] and running statistics [S], in slices of 100
        examples."""
        flat = torch.empty(len(weights))
        arrangement.load(flat, weights)
        self.point_at(arrangement.views(flat))
        self.task.module.eval()
        results = SliceResults(self.task, len(examples))
        with one_thread(), torch.no_grad(), seeded_generators(0):
            for start in range(0, len(examples), EVALUATION_SLICE):
                seed_generators(0)
                with self.own_buffers(statistics, large=start == 0):
                    x, target = tensors(examples.part(start, start + EVALUATION_SLICE))
                    results.add(self.task.module(x), target)
            seed_generators(0)
            with self.own_buffers(statistics, large=False):
                return results.result()

    @contextmanager
    def own_buffers(self, statistics: F32 | None = None, large: bool = True) -> Iterator[None]:
        """Run the body with buffers and attributes as they were made, and put both back afterwards.

        Args:
            statistics: [S] float32, values of the buffers that clients carry; None: as they were made.
            large: see `ModuleState.put_back`.
        """
        self.state.put_back(large)
        try:
            if statistics is not None:
                self.state.load(statistics)
            yield
        finally:
            self.state.put_back(large=False)


def network_to_capture(task: Task) -> Network:
    """Return the network of a copy of the task, since trying to capture it runs the module.

    Raises:
        CaptureError: training changes buffers or Python state, and a step that is tried compares gradients only.
    """
    if task.buffers is not None:
        raise CaptureError(f"training changes the buffer {task.buffers.names[0]}")
    if task.restarts is not None:
        raise CaptureError(explain_restart(task.restarts))
    return Network(task.copied())


def read_state_dicts(network: Network, weights: F32, buffers: F32 | None) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Return the state dicts of module and loss with weights [P] and buffers [S]; None for a loss that nothing changes."""
    task, flat = network.task, torch.from_numpy(np.array(weights))
    network.point_at(Arrangement(task.layout).views(flat))
    carried = () if task.buffers is None else task.buffers.names
    changes = any(name.startswith("loss.") for name in (*task.layout.names, *carried))
    with network.own_buffers(buffers):
        module, *loss = (_tensors_of(part.state_dict()) for _, part in task.parts)
    return module, loss[0] if loss and changes else None


def _tensors_of(state: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}


def check_attributes(network: Network) -> None:
    """Raise CaptureError if running the module changed one of its Python attributes, which a recording would not."""
    network.state.put_back()
    changed = network.state.attributes.changed
    if changed is not None:
        raise CaptureError(explain_restart(changed))


def unused(layout: Layout, gradients: Sequence[Tensor | None]) -> list[slice]:
    """Return the stretches of a vector [P] whose parameters have no gradient."""
    return [where for (_, where, _), gradient in zip(layout.slices(), gradients, strict=True) if gradient is None]


@phased("gather")
def tensors(examples: Examples) -> tuple[Tensor, Tensor]:
    """x and y of these examples as copies, so that a module that works in place changes them only for itself."""
    if examples.rows is None:
        return shared(examples.x).clone(), shared(examples.y).clone()
    rows = torch.from_numpy(examples.rows)
    return shared(examples.x).index_select(0, rows), shared(examples.y).index_select(0, rows)


def shared(array: NDArray[np.generic]) -> Tensor:
    """A tensor in the array's memory. Nobody here writes to it, so that an array that may not be written to will do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
