"""State of a task's module and loss beside the parameters that train: buffers, frozen parameters, Python attributes.

Clients of a federation share none of it. Each begins its round with all of it as it was made, except for the tensors that its
policy carries from round to round (`Task.buffers`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedsgd.arrays import F32
from fedsgd.errors import ModelError
from fedsgd.models import Task
from fedsgd.models.attributes import Attributes
from fedsgd.models.buffers import as_float32, fixed_tensors, unused_counters
from fedsgd.models.equality import same


class ModuleState:
    """Fixed tensors and attributes of a task's module and loss as they were made; S is the size of `Task.buffers`."""

    def __init__(self, task: Task) -> None:
        self._parts = task.parts
        self._layout = task.buffers
        fixed = fixed_tensors(self._parts)
        self._made = {name: tensor.detach().clone() for name, tensor in fixed.items()}
        self._frozen = {name for name, tensor in fixed.items() if isinstance(tensor, torch.nn.Parameter)}
        carried = () if task.buffers is None else task.buffers.names
        counters = [name for prefix, part in self._parts for name in unused_counters(part, prefix)]
        self._checked = self._made.keys() - {*carried, *counters}
        modules = [module for _, part in self._parts for module in part.modules()]
        self._buffers = [module._buffers for module in modules]
        self._n_buffers = self._count_buffers()
        self.attributes = Attributes(modules, (task.loss, *task.metrics.values()))

    def _count_buffers(self) -> int:
        return sum(buffer is not None for buffers in self._buffers for buffer in buffers.values())

    def put_back(self, large: bool = True) -> None:
        """Make everything what it was.

        Args:
            large: whether frozen parameters and large arrays in attributes are put back too.

        Raises:
            ModelError: a buffer appeared or changed its shape.
        """
        nothing = not self._made and self._count_buffers() == self._n_buffers  # names are slow to look up
        for name, tensor in () if nothing else fixed_tensors(self._parts).items():
            before = self._made.get(name)
            if before is None or before.shape != tensor.shape:
                raise ModelError(f"buffer {name} appeared or changed its shape while the module ran; register it beforehand")
            if large or name not in self._frozen:
                with torch.no_grad():
                    tensor.copy_(before)
        self.attributes.put_back(large)

    def load(self, values: F32) -> None:
        """Overwrite the tensors that clients carry with values [S]."""
        if self._layout is None or values.shape != (self._layout.size,):
            expected = "none" if self._layout is None else f"[{self._layout.size}]"
            raise ValueError(f"buffers of shape {list(values.shape)}, this model has {expected}")
        tensors = fixed_tensors(self._parts)
        for name, where, shape in self._layout.slices():
            value = torch.from_numpy(np.array(values[where])).view(shape)
            if not tensors[name].is_floating_point():
                value = value.round()
            with torch.no_grad():
                tensors[name].copy_(value)

    def read(self) -> F32 | None:
        """Return the tensors that clients carry [S], None if there are none."""
        if self._layout is None:
            return None
        tensors = fixed_tensors(self._parts)
        return np.concatenate([as_float32(name, tensors[name]) for name in self._layout.names])

    def check(self) -> None:
        """Raise ModelError if training changed a tensor that no policy carries: putting it back would lose the change."""
        if self._checked:
            self.check_copies(fixed_tensors(self._parts))

    def check_copies(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ModelError as `check` does, for an engine that works on tensors of its own, by name."""
        for name in self._checked & tensors.keys():
            if not same(tensors[name].detach(), self._made[name]):
                raise ModelError(
                    f"{name} changed while a client trained, though not in the trial steps before round 1, so that no policy "
                    "carries it; let it change from the first step on, or not at all"
                )
