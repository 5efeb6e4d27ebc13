"""Memory of a GPU: the clients of a stack that fit in it, next to the examples of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch.fx import Graph, Node

from fedsgd.config.quantities import format_bytes
from fedsgd.data import Examples
from fedsgd.errors import ScenarioError
from fedsgd.models.task import LearningTask
from fedsgd.training.base import LocalTraining
from fedsgd.training.device import HOST, as_tensor, find_extent
from fedsgd.training.flat_module import TensorFormat, copy_for_capture
from fedsgd.training.graph.passes import shares_memory
from fedsgd.training.graph.step import StepBuffers, record_gradients

USABLE_SHARE = 0.8
"""Share of the free memory that is planned. Libraries and fragments take the rest."""
N_VECTORS = 5
"""Vectors of a client in a stack besides its optimizer's: parameters, gradient, received model, update, a copy for checks."""
N_PEAKS = 2
"""Intermediate results are there twice: for recordings, and for the step that they are compared with."""
STATE_SHARE = 0.3
"""Largest share of the free memory for the states of clients; larger ones are on the host."""


@dataclass(frozen=True)
class DeviceMemory:
    """Memory that a run needs on a GPU, bytes.

    Attributes:
        device: name of the device.
        free: free memory that one process may use.
        examples: all examples of the run.
        client: model, gradient, optimizer state and intermediate results of one client.
        states: states of clients that stay on the device between rounds; 0 if they are on the host.
    """

    device: str
    free: int
    examples: int
    client: int
    states: int = 0

    @property
    def max_clients(self) -> int:
        """Number of clients that fit at a time, next to the examples."""
        return max(0, math.floor((USABLE_SHARE * self.free - self.examples - self.states) / self.client))

    def choose_stack(self, requested: int | None, wanted: int) -> int:
        """Return the number of clients in a stack: the requested number, or the wanted one as far as it fits.

        ScenarioError if the requested number, or a single client, does not fit.
        """
        if self.max_clients >= (requested or 1):
            return requested or min(wanted, self.max_clients)
        needed = (self.examples + self.states + (requested or 1) * self.client) / USABLE_SHARE
        clients = "one client" if requested is None else f"{requested:,} clients at a time"
        remedy = f"set engine.stack = {self.max_clients}" if self.max_clients else 'set engine.device = "cpu"'
        raise ScenarioError(
            f"engine.device: {self.device} has {format_bytes(self.free)} free for this process, expected "
            f"{format_bytes(round(needed))} for the examples and {clients}; {remedy}"
        )

    def __str__(self) -> str:
        states = f"{format_bytes(self.states)} for states, " if self.states else ""
        examples, client = format_bytes(self.examples), format_bytes(self.client)
        return f"{format_bytes(self.free)} free, {examples} for examples, {states}{client} a client"


def plan_memory(
    device: str,
    task: LearningTask,
    local_training: LocalTraining,
    sets: Sequence[Examples],
    batch_size: int,
    *,
    processes: int = 1,
    state_bytes: int = 0,
) -> DeviceMemory:
    """Return the memory that a run needs on a GPU that several processes share, by the largest batch size.

    `sets` has the training examples first. `state_bytes` is the size of all states that the device could have.
    """
    examples = sum(measure_examples(array) for part in sets for array in (part.x, part.y))
    client = estimate_client_bytes(task, local_training, sets[0], batch_size)
    free = int(torch.cuda.mem_get_info(device)[0]) // processes
    return DeviceMemory(device, free, examples, client, state_bytes if state_bytes <= STATE_SHARE * free else 0)


def choose_example_capacity(device: str, train: Examples) -> int:
    """Return the memory of a GPU for examples: for the dataset, and a quarter of what is free for those of single clients."""
    n_bytes = sum(measure_examples(array) for array in (train.x, train.y))
    return 2 * n_bytes + int(torch.cuda.mem_get_info(device)[0]) // 4


def measure_examples(array: NDArray[Any]) -> int:
    """Return the bytes of an array of examples on a device, where rows that overlap share their numbers."""
    tensor = as_tensor(array)
    return min(find_extent(tensor), tensor.numel()) * tensor.element_size()


def estimate_client_bytes(task: LearningTask, local_training: LocalTraining, sample: Examples, batch_size: int) -> int:
    """Return the memory of one client in a stack: vectors, and the intermediate results of a step on a batch.

    The step is recorded on the CPU. Of a module that cannot be recorded, only the vectors count.
    """
    n_vectors = N_VECTORS + len(local_training.optimizer.init(torch.zeros(1)))
    vectors = 4 * task.layout.size * (n_vectors + bool(local_training.proximal) + local_training.uses_correction)
    try:
        buffers = StepBuffers(copy_for_capture(task, HOST), TensorFormat(task.layout), local_training.optimizer)
        buffers.flat_module.task.module.train()
        with torch.no_grad(), buffers.flat_module.isolated_buffers():
            buffers.load_client(task.initial_parameters)
            graph, gradients, _ = record_gradients(buffers, sample.slice(0, batch_size))
    except Exception:  # of a module that cannot be recorded
        return vectors
    return vectors + N_PEAKS * find_peak_bytes(graph, gradients)


def find_peak_bytes(graph: Graph, results: Sequence[Node]) -> int:
    """Return the largest sum of the tensors that a recorded step has at one time, each from its operation to its last use.

    Inputs and views count for nothing; a view counts as a use of the tensor that it is a view of.
    """
    nodes = list(graph.nodes)
    owners: dict[Node, Node] = {}
    for node in nodes:
        source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        owners[node] = owners[source] if source is not None and shares_memory(node) else node
    last_use = {owner: i for i, node in enumerate(nodes) for owner in {owners[n] for n in (node, *node.all_input_nodes)}}
    last_use.update({owners[result]: len(nodes) for result in results})
    peak = current = 0
    ending: dict[int, int] = {}
    for i, node in enumerate(nodes):
        spec = node.meta.get("spec")
        if node.op != "placeholder" and owners[node] is node and spec is not None:
            size = math.prod(spec.shape) * spec.dtype.itemsize
            current += size
            ending[last_use[node]] = ending.get(last_use[node], 0) + size
        peak = max(peak, current)
        current -= ending.pop(i, 0)
    return peak
