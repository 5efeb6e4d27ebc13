"""Replay of a step on a GPU: the step's kernels are recorded once as a CUDA graph, and started together for each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

MAX_RECORDINGS = 32
"""Recordings of a step. Steps with further learning rates start their kernels one by one: recording takes longer."""
N_WARM_UP_RUNS = 3
"""Runs before a recording, in which libraries allocate their working memory."""
Runner = Callable[[], object]


def record_cuda_graph(run: Runner) -> Runner:
    """Record the kernels that a function starts on the current GPU, and return a function that starts them all."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class ReplayedStep:
    """Function of tensors and numbers that runs a step from recordings, one for each combination of shapes and numbers.

    Args:
        step: function that writes its results to tensors that always have the same memory, and returns nothing of use.
        written_tensors: the tensors that it changes and also reads; the runs before a recording leave their values unchanged.
        record: function that records what a function without arguments starts; in tests, another one than that of CUDA.
    """

    def __init__(
        self,
        step: Callable[..., object],
        written_tensors: Sequence[Tensor],
        record: Callable[[Runner], Runner] = record_cuda_graph,
    ) -> None:
        self._step = step
        self._written_tensors = written_tensors
        self._record = record
        self._recordings: dict[tuple[Any, ...], tuple[list[Tensor], Runner]] = {}

    def __call__(self, *inputs: Tensor | float) -> None:
        key = tuple((value.shape, value.dtype) if isinstance(value, Tensor) else value for value in inputs)
        recording = self._recordings.get(key)
        if recording is None:
            if len(self._recordings) == MAX_RECORDINGS:
                self._step(*inputs)
                return
            recording = self._recordings[key] = self._make_recording(inputs)
        tensors, replay = recording
        for fixed, value in zip(tensors, (value for value in inputs if isinstance(value, Tensor)), strict=True):
            fixed.copy_(value)
        replay()

    def _make_recording(self, inputs: Sequence[Tensor | float]) -> tuple[list[Tensor], Runner]:
        """Return the memory of the recording's inputs, and the function that runs it."""
        fixed_inputs = [value.clone() if isinstance(value, Tensor) else value for value in inputs]
        copies = [tensor.clone() for tensor in self._written_tensors]

        def run() -> object:
            return self._step(*fixed_inputs)

        with torch.random.fork_rng(), _use_own_stream(self._written_tensors):
            for _ in range(N_WARM_UP_RUNS):
                run()
        for tensor, copy in zip(self._written_tensors, copies, strict=True):
            tensor.copy_(copy)
        return [value for value in fixed_inputs if isinstance(value, Tensor)], self._record(run)


@contextmanager
def _use_own_stream(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Run the body on a stream of its own if the tensors are on a GPU, as recordings of CUDA require of earlier runs."""
    if not any(tensor.is_cuda for tensor in tensors):
        yield
        return
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
