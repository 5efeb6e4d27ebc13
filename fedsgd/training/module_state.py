"""State of a task besides the trainable parameters: buffers, frozen parameters, Python attributes of module, loss, metrics.

Clients do not share this state. Each client starts a round with the initial state, except for the buffers that clients send
or store (`LearningTask.buffers`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedsgd.errors import ModelError
from fedsgd.models.buffers import convert_to_float32, find_unused_counters, named_fixed_tensors
from fedsgd.models.equality import is_same
from fedsgd.models.python_state import PythonState
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32


class ModuleState:
    """Initial buffers and frozen parameters of a task's module and loss, and initial attributes of module, loss and metrics."""

    def __init__(self, task: LearningTask) -> None:
        self._parts = task.parts
        self._layout = task.buffers
        tensors = named_fixed_tensors(self._parts)
        self._initial_tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._frozen_names = {name for name, tensor in tensors.items() if isinstance(tensor, torch.nn.Parameter)}
        client_buffers = () if task.buffers is None else task.buffers.names
        counters = [name for prefix, part in self._parts for name in find_unused_counters(part, prefix)]
        self._unchanging_names = self._initial_tensors.keys() - {*client_buffers, *counters}
        modules = [module for _, part in self._parts for module in part.modules()]
        self._buffers = [module._buffers for module in modules]
        self._n_buffers = self._count_buffers()
        self.attributes = PythonState(modules, (task.loss, *task.metrics.values(), *task.set_metrics.values()))

    def _count_buffers(self) -> int:
        return sum(buffer is not None for buffers in self._buffers for buffer in buffers.values())

    def restore(self, include_large: bool = True) -> None:
        """Restore the initial state; frozen parameters and large arrays in attributes only with `include_large`."""
        is_empty = not self._initial_tensors and self._count_buffers() == self._n_buffers  # names are slow to look up
        for name, tensor in () if is_empty else named_fixed_tensors(self._parts).items():
            initial = self._initial_tensors.get(name)
            if initial is None or initial.shape != tensor.shape:
                problem = f"running the module added buffer {name} or changed its shape"
                raise ModelError(f"{problem}; register the buffer beforehand, with its final shape")
            if include_large or name not in self._frozen_names:
                with torch.no_grad():
                    tensor.copy_(initial)
        self.attributes.restore(include_large)

    def load_buffers(self, values: F32) -> None:
        """Overwrite the buffers of `LearningTask.buffers` with values [S]."""
        if self._layout is None or values.shape != (self._layout.size,):
            expected = "none" if self._layout is None else f"[{self._layout.size}]"
            raise ValueError(f"got buffers of shape {list(values.shape)}, expected {expected} for this model")
        tensors = named_fixed_tensors(self._parts)
        for name, segment, shape in self._layout.list_slices():
            value = torch.from_numpy(np.array(values[segment])).view(shape)
            if not tensors[name].is_floating_point():
                value = value.round()
            with torch.no_grad():
                tensors[name].copy_(value)

    def read_buffers(self) -> F32 | None:
        """Return the buffers of `LearningTask.buffers`, [S]; None if the task has no such buffers."""
        if self._layout is None:
            return None
        tensors = named_fixed_tensors(self._parts)
        return np.concatenate([convert_to_float32(name, tensors[name]) for name in self._layout.names])

    def check_unchanged(self) -> None:
        """Raise ModelError if training changed a tensor outside `LearningTask.buffers`: `restore` would undo the change."""
        if self._unchanging_names:
            self.check_copies_unchanged(named_fixed_tensors(self._parts))

    def check_copies_unchanged(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the check of `check_unchanged` on an engine's copies of the tensors, by name."""
        for name in self._unchanging_names & tensors.keys():
            if not is_same(tensors[name].detach(), self._initial_tensors[name]):
                raise ModelError(
                    f"{name} changed while a client trained, but not in the trial steps before round 1, so clients do not "
                    "send it; change it from the first step on, or not at all"
                )
