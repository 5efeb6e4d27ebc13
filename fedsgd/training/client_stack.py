"""Tensors of a stack of clients, and the step of one batch size for consecutive clients of a stack."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, Node

from fedsgd.data import Examples
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.training.base import LocalTraining
from fedsgd.training.device import HOST, EngineDevice
from fedsgd.training.graph.passes import write_gradients
from fedsgd.training.graph.program import Program
from fedsgd.training.graph.recorder import copy_graph
from fedsgd.training.graph.replay import ReplayedStep
from fedsgd.training.graph.stacked_step import record_stacked_step
from fedsgd.training.graph.step import FusedUpdate, StepBuffers, add_placeholders, append_update


class ClientStack:
    """Tensors of a stack of clients, [capacity, *shape] each: parameters w, gradients g, and the optimizer's buffers."""

    def __init__(
        self, layout: ParameterLayout, local_training: LocalTraining, capacity: int, device: EngineDevice = HOST
    ) -> None:
        self.layout = layout
        self.capacity = capacity
        self._device = device
        self.w = [torch.zeros(capacity, *shape, device=device.torch_device) for shape in layout.shapes]
        self.g = [torch.zeros_like(w) for w in self.w]
        self._optimizer = local_training.optimizer
        self.optimizer_buffers = [self._optimizer.init(w) for w in self.w]
        self.received_weights: list[Tensor] = []
        self.corrections: list[Tensor] = []

    def load_models(self, models: Sequence[F32]) -> None:
        """Load the received model [P] of each client, with initial optimizer buffers and without corrections."""
        is_shared = all(model is models[0] for model in models)
        self.received_weights, self.corrections = self._split_rows(np.stack(models[:1] if is_shared else models)), []
        for w, received_w in zip(self.w, self.received_weights, strict=True):
            w[: len(models)] = received_w
        for w, buffers in zip(self.w, self.optimizer_buffers, strict=True):
            for name, initial_values in self._optimizer.init(w[: len(models)]).items():
                buffers[name][: len(models)] = initial_values

    def restore_optimizer_state(self, client: int, optimizer_state: Mapping[str, F32]) -> None:
        """Load the optimizer's buffers, each [P], of the client in row `client` of the stack."""
        for name, values in optimizer_state.items():
            for buffers, tensor in zip(self.optimizer_buffers, self._split_rows(values[np.newaxis]), strict=True):
                buffers[name][client] = tensor[0]

    def set_corrections(self, corrections: Sequence[F32]) -> None:
        """Set the vector [P] that is added to each gradient of a client, for all clients."""
        self.corrections = self._split_rows(np.stack(corrections))

    def optimizer_states(self, k: int) -> dict[str, F32]:
        """Return the optimizer's buffers of the first k clients by name, each [k, P]."""
        names = self.optimizer_buffers[0]
        rows = {name: self.flatten([buffers[name][:k] for buffers in self.optimizer_buffers]) for name in names}
        return {name: self._device.to_host(values) for name, values in rows.items()}

    def _split_rows(self, rows: F32) -> list[Tensor]:
        """Return rows [k, P] as tensors [k, *shape]; on the CPU in the rows' memory."""
        tensor = self._device.to_device(rows)
        return [tensor[:, segment].view(-1, *shape) for _, segment, shape in self.layout.list_slices()]

    def compute_updates(self, k: int) -> Tensor:
        """Return the updates of the first k clients, w − received weights, [k, P]."""
        return self.flatten([w[:k] - received_w for w, received_w in zip(self.w, self.received_weights, strict=True)])

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return tensors [k, *shape] as rows [k, P]."""
        return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], dim=1)


class StackedStep:
    """Step of one batch size for consecutive clients of a stack.

    Attributes:
        used_parameters: for each tensor of the layout, True if batches use the tensor.
        bind_gradient: function of a range of clients that returns the program of the clients' gradients.
        bind_update: function of a range of clients that returns the program of the whole step; None: not fused.
    """

    def __init__(
        self,
        step_buffers: StepBuffers,
        client_stack: ClientStack,
        fused_update: FusedUpdate | None,
        batch: Examples,
    ) -> None:
        graph, gradients, unused_slices = record_stacked_step(step_buffers, batch, client_stack.capacity)
        update_graph = copy_graph(graph, gradients)
        self.used_parameters = [segment not in unused_slices for _, segment, _ in client_stack.layout.list_slices()]
        _bind_placeholders(graph, client_stack.w)
        write_gradients(graph, gradients, add_placeholders(graph, "g", client_stack.g))
        self.bind_gradient = functools.lru_cache(512)(Program(graph).bind)
        self.bind_update: Callable[[int, int], Callable[..., None]] | None = None
        if fused_update is not None and fused_update.is_applicable(unused_slices):
            self.bind_update = functools.lru_cache(512)(_build_fused_program(client_stack, fused_update, *update_graph).bind)
        self._replayed: ReplayedStep | None = None
        if step_buffers.device.replays_steps:
            compute_all = functools.partial(self.bind_gradient(0, client_stack.capacity), client_stack.capacity)
            self._replayed = ReplayedStep(compute_all, [*client_stack.w, *client_stack.g], step_buffers.device)

    def compute_gradients(self, start: int, stop: int, x: Tensor, y: Tensor) -> None:
        """Write the gradients of the clients from `start` to before `stop` to the stack; those of the others may change.

        x and y [k, B, ...] have the batches of these clients or, on a GPU, of all places.
        """
        if self._replayed is not None:
            self._replayed(x, y)
        else:
            self.bind_gradient(start, stop)(stop - start, x, y)


def _build_fused_program(
    client_stack: ClientStack, fused_update: FusedUpdate, graph: Graph, gradients: Sequence[Node]
) -> Program:
    _bind_placeholders(graph, client_stack.w)
    targets = client_stack.w
    if fused_update.has_velocity:
        targets = [buffers["velocity"] for buffers in client_stack.optimizer_buffers]
    append_update(graph, gradients, fused_update, targets, (client_stack.w, targets))
    return Program(graph)


def _bind_placeholders(graph: Graph, stacked_tensors: Sequence[Tensor]) -> None:
    """Set the values of the placeholders w0, w1, ..."""
    by_name = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for i, tensor in enumerate(stacked_tensors):
        by_name[f"w{i}"].meta.update(value=tensor, varies=True)
