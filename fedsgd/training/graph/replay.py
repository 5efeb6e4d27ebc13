"""Replay of a step on a GPU: the step's kernels are recorded once as a CUDA graph, and started together for each batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fedsgd.training.device import EngineDevice

MAX_RECORDINGS = 32
"""Recordings of a step. Steps with further learning rates start their kernels one by one: recording takes longer."""
N_WARM_UP_RUNS = 3
"""Runs before a recording, in which libraries allocate their working memory."""


class ReplayedStep:
    """Function of tensors and numbers that runs a step from recordings, one for each combination of shapes and numbers.

    Args:
        step: function that writes its results to tensors that always have the same memory, and returns nothing of use.
        written_tensors: the tensors that it may change; the runs before a recording leave their values unchanged.
        device: device of all tensors.
    """

    def __init__(self, step: Callable[..., object], written_tensors: Sequence[Tensor], device: EngineDevice) -> None:
        self._step = step
        self._written_tensors = written_tensors
        self._device = device
        self._recordings: dict[tuple[Any, ...], tuple[list[Tensor], Callable[[], object]]] = {}

    def __call__(self, *inputs: Tensor | float) -> None:
        key = tuple((value.shape, value.dtype) if isinstance(value, Tensor) else value for value in inputs)
        recording = self._recordings.get(key)
        if recording is None:
            if len(self._recordings) == MAX_RECORDINGS:
                self._step(*inputs)
                return
            recording = self._recordings[key] = self._make_recording(inputs)
        fixed_tensors, replay = recording
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        for fixed_tensor, tensor in zip(fixed_tensors, tensors, strict=True):
            fixed_tensor.copy_(tensor)
        replay()

    def _make_recording(self, inputs: Sequence[Tensor | float]) -> tuple[list[Tensor], Callable[[], object]]:
        """Return the memory of the recording's inputs, and the function that runs it."""
        fixed_inputs = [value.clone() if isinstance(value, Tensor) else value for value in inputs]
        copies = [tensor.clone() for tensor in self._written_tensors]

        def run() -> object:
            return self._step(*fixed_inputs)

        with self._device.warm_up():
            for _ in range(N_WARM_UP_RUNS):
                run()
        for tensor, copy in zip(self._written_tensors, copies, strict=True):
            tensor.copy_(copy)
        return [value for value in fixed_inputs if isinstance(value, Tensor)], self._device.record(run)
