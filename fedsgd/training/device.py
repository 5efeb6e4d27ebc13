"""Device that an engine computes on: its memory, its generator and its settings, and the copies of examples in its memory."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsgd.errors import ModelError
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.vectors import to_host
from fedsgd.system.compute_device import CPU, apply_cuda_settings
from fedsgd.system.torch_threads import use_single_thread


def as_tensor(array: NDArray[np.generic]) -> Tensor:
    """Return a tensor in the array's memory. The array may be read-only, since callers do not write to the tensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def find_extent(tensor: Tensor) -> int:
    """Return the numbers from the first to the last one of a tensor in memory; fewer than `numel` if rows overlap."""
    if not tensor.numel():
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))


class EngineDevice:
    """Device of an engine. All of an engine's vectors and batches are there; jobs and results are arrays of the host.

    Args:
        name: "cpu", or a name of `resolve_device` such as "cuda:0".
        deterministic: refuse operations that have no deterministic form on a GPU.
        capacity: bytes of the device's memory for examples; None for no limit.
        keeps_updates: updates of clients are tensors of the device, for compressors that accept them, not arrays.
    """

    def __init__(
        self, name: str = CPU, deterministic: bool = True, capacity: int | None = None, keeps_updates: bool = False
    ) -> None:
        self.name = name
        self.keeps_updates = keeps_updates
        self.torch_device = torch.device(name)
        self._deterministic = deterministic
        self._capacity = capacity
        self._graph_pool: Any = None
        self._stream: Any = None
        self._arrays: OrderedDict[tuple[Any, ...], tuple[NDArray[Any], Tensor]] = OrderedDict()

    @property
    def is_cpu(self) -> bool:
        """True if tensors of the device share the memory of arrays."""
        return self.torch_device.type == CPU

    @property
    def replays_steps(self) -> bool:
        """True on a GPU: a step's kernels are started together, and a stack computes all of its places in each step.

        Tests set it for the CPU, so that they run what a GPU runs.
        """
        return not self.is_cpu

    def record(self, run: Callable[[], object]) -> Callable[[], object]:
        """Record the kernels that a function starts, and return a function that starts them all; on the CPU the same one.

        All recordings of an engine use the same memory for intermediate results, because they run one after the other.
        """
        if self.is_cpu:
            return run
        graph, self._graph_pool = torch.cuda.CUDAGraph(), self._graph_pool or torch.cuda.graph_pool_handle()
        previous_stream = torch.cuda.current_stream(self.torch_device)
        try:
            with torch.cuda.graph(graph, pool=self._graph_pool, stream=self._get_stream()):
                run()
        finally:  # torch does not restore it if the recording fails
            torch.cuda.set_stream(previous_stream)
        return graph.replay

    def _get_stream(self) -> Any:
        """Return the stream of all recordings, and of the runs before them."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        return self._stream

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Run the body on a stream of its own, as CUDA requires of runs before a recording, and restore the generators."""
        if self.is_cpu:
            with torch.random.fork_rng(devices=[]):
                yield
            return
        stream = self._get_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.random.fork_rng(devices=[self.torch_device]):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """Return an array as a tensor of the device; on the CPU it has the memory of the array, which callers do not change."""
        return as_tensor(array).to(self.torch_device)

    def to_host(self, tensor: Tensor) -> NDArray[Any]:
        """Return a tensor as an array; on the CPU it has the memory of the tensor."""
        return to_host(tensor)

    def finish_update(self, update: Tensor) -> F32:
        """Return a client's update as an array, or as the tensor that it is if the device keeps updates."""
        return cast("F32", update) if self.keeps_updates else self.to_host(update)

    def get_examples(self, array: NDArray[Any]) -> Tensor:
        """Return an array of examples as a tensor that stays on the device for later calls, as long as there is room.

        The arrays that were used last stay. An array is recognized by its memory, so callers do not change its numbers.
        """
        if self.is_cpu:
            return as_tensor(array)
        key = array.__array_interface__["data"], array.shape, array.strides, array.dtype
        entry = self._arrays.pop(key, None)
        tensor = self._copy_examples(array) if entry is None else entry[1]
        self._arrays[key] = array, tensor  # the array too, so that no other array gets its memory
        used = sum(t.untyped_storage().nbytes() for _, t in self._arrays.values())
        while self._capacity is not None and used > self._capacity and len(self._arrays) > 1:
            _, (_, oldest) = self._arrays.popitem(last=False)
            used -= oldest.untyped_storage().nbytes()
        return tensor

    def _copy_examples(self, array: NDArray[Any]) -> Tensor:
        """Copy an array to the device; of rows that overlap, such as windows of a text, each number once."""
        tensor = as_tensor(array)
        extent = find_extent(tensor)
        if extent >= tensor.numel():
            return tensor.to(self.torch_device)
        numbers = tensor.as_strided((extent,), (1,)).to(self.torch_device)
        return numbers.as_strided(tensor.shape, tensor.stride())

    def place_task(self, task: LearningTask) -> LearningTask:
        """Return a task whose module and loss are on the device: on the CPU the task itself, else a copy."""
        if self.is_cpu:
            return task
        copy = task.copy()
        if copy is task:
            raise ModelError(f'copy.deepcopy of the module fails, which {self.name} needs; set engine.device = "cpu"')
        for _, part in copy.parts:
            part.to(self.torch_device)
        return copy

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Run the body with one torch thread and, on a GPU, in full precision with deterministic operations only."""
        if self.is_cpu:
            with use_single_thread():
                yield
            return
        full_precision = apply_cuda_settings(self._deterministic)
        with use_single_thread(), torch.cuda.device(self.torch_device), full_precision, warnings.catch_warnings():
            # parameters are views of one vector, in an order of their own
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
            yield


HOST = EngineDevice()
"""The CPU. It stores no examples, so that one object serves all engines."""
