"""Recording of a step for a stack of clients: the step of one client with a leading axis of clients.

torch.func.vmap turns each recorded operation of one client into a batched operation, which is recorded for two numbers of
clients. An integer that differs between the two recordings must be a multiple of the number of clients k; a constant that
differs must have k blocks. So one graph serves any number of clients up to the larger recording's.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.func import vmap
from torch.fx import Graph, Node, map_arg

from fedsgd.data import Examples
from fedsgd.training.base import NotCapturableError
from fedsgd.training.flat_module import batch_tensors
from fedsgd.training.graph.passes import eliminate_dead_code, eliminate_identity_views, is_random, mutated_inputs, simplify
from fedsgd.training.graph.recorder import record
from fedsgd.training.graph.step import StepBuffers, record_gradients

SMALL_CLIENT_COUNT = 3
"""Number of clients in the smaller one of a step's two recordings."""
VECTOR_WIDTH = 32
"""Multiple of the number of elements that a kernel processes at once; kernels process the last elements one by one."""


def record_stacked_step(step_buffers: StepBuffers, batch: Examples, max_clients: int) -> tuple[Graph, list[Node], list[slice]]:
    """Record the step of 1 to `max_clients` clients; return graph, nodes of the gradients [k, *shape] and unused slices.

    Placeholders are w0, w1, ... [k, *shape], x and y [k, B, ...], k, and constants. A constant's meta "blocks" is the number of
    rows for each client.
    """
    client_graph, gradients, unused_slices = _record_one_client(step_buffers, batch)
    small_recording, large_recording = (
        _record_clients(client_graph, gradients, step_buffers, batch, k) for k in (SMALL_CLIENT_COUNT, max_clients)
    )
    merge = _RecordingMerger(SMALL_CLIENT_COUNT, max_clients)
    return *merge(small_recording, large_recording), unused_slices


def _record_one_client(step_buffers: StepBuffers, batch: Examples) -> tuple[Graph, list[Node], list[slice]]:
    graph, gradients, unused_slices = record_gradients(step_buffers, batch)
    output = graph.output(tuple(gradients))
    eliminate_dead_code(graph)
    eliminate_identity_views(graph)
    eliminate_dead_code(graph)
    for node in graph.nodes:
        if is_random(node):
            raise NotCapturableError(f"{node.target} draws random numbers, which clients in a stack would share")
        if mutated_inputs(node):
            raise NotCapturableError(f"{node.target} changes a tensor in place, which clients in a stack would share")
        if not _is_position_independent(node):
            raise NotCapturableError(
                f"{node.target} rounds a number by its position, so a client's result would depend on the other clients"
            )
    gradients = list(output.args[0])
    graph.erase_node(output)
    return graph, gradients, unused_slices


def _is_position_independent(node: Node) -> bool:
    """Return True if the result of an elementwise operation does not depend on a number's position in a stack.

    A kernel that processes several numbers at once may round some numbers differently, so many numbers are compared.
    """
    operation = node.target
    if not isinstance(operation, OpOverload) or torch.Tag.pointwise not in operation.tags or not node.all_input_nodes:
        return True
    if math.prod(node.meta["spec"].shape) % VECTOR_WIDTH == 0:
        return True
    generator = torch.Generator().manual_seed(0)
    n = 64 * VECTOR_WIDTH
    specs = {i: i.meta["spec"] for i in node.all_input_nodes}
    inputs = {i: (3 * torch.randn(n, generator=generator)).to(spec.device, spec.dtype) for i, spec in specs.items()}

    def evaluate_range(start: int, stop: int) -> Tensor:
        args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda i: inputs[i][start:stop])
        value: Tensor = operation(*args, **kwargs)
        return value.nan_to_num()

    return torch.equal(
        evaluate_range(0, n),
        torch.cat([evaluate_range(start, start + SMALL_CLIENT_COUNT) for start in range(0, n, SMALL_CLIENT_COUNT)]),
    )


def _record_clients(
    client_graph: Graph, gradients: Sequence[Node], step_buffers: StepBuffers, batch: Examples, k: int
) -> tuple[Graph, list[Node]]:
    """Record the step of k clients, by vmap over the operations of one client."""
    x, y = batch_tensors(batch, step_buffers.device)
    client_inputs = {f"w{i}": leaf.detach() for i, leaf in enumerate(step_buffers.leaves)} | {"x": x, "y": y}
    stacked_inputs = {name: tensor.expand(k, *tensor.shape).clone() for name, tensor in client_inputs.items()}

    def step() -> Sequence[Tensor]:
        results: Sequence[Tensor] = vmap(lambda inputs: _interpret(client_graph, gradients, inputs))(stacked_inputs)
        return results

    graph, stacked_gradients = record(step, {}, stacked_inputs)
    return graph, simplify(graph, stacked_gradients, fold_views=False)


def _interpret(graph: Graph, results: Sequence[Node], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Run a graph on inputs by name of the placeholder; other placeholders have a value in their meta."""
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = inputs[node.name] if node.name in inputs else node.meta["value"]
        else:
            args, kwargs = map_arg((node.args, dict(node.kwargs)), values.__getitem__)
            values[node] = _VMAP_REPLACEMENTS.get(node.target, node.target)(*args, **kwargs)
    return tuple(values[node] for node in results)


def _nll_loss_forward(
    log_probabilities: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the result of the operation of this name for a batch of one client, and the weight of the batch.

    The operations are those that vmap would choose. Torch's own form of them imports sympy, which takes as long as half a
    second, in order to compare two lengths.
    """
    if weight is not None or target.dim() == 0:
        loss, total_weight = torch.ops.aten.nll_loss_forward.default(log_probabilities, target, weight, reduction, ignore_index)
        return loss, total_weight
    is_counted = target != ignore_index
    classes = torch.where(is_counted, target, 0).unsqueeze(1)
    losses = torch.where(is_counted, -torch.gather(log_probabilities, 1, classes).squeeze(1), 0)
    if reduction == _NO_REDUCTION:
        return losses, log_probabilities.new_full((), 0.0)
    total_weight = is_counted.sum().to(log_probabilities)
    return (losses.sum() / total_weight if reduction == _MEAN_REDUCTION else losses.sum()), total_weight


_NO_REDUCTION, _MEAN_REDUCTION = 0, 1
_VMAP_REPLACEMENTS: dict[Any, Callable[..., Any]] = {torch.ops.aten.nll_loss_forward.default: _nll_loss_forward}


# ------------------------------------------------------------------------------------------------------- any number of clients


class _RecordingMerger:
    """Function that merges recordings of `n_few` and `n_many` clients into a graph for any number up to `n_many`."""

    def __init__(self, n_few: int, n_many: int) -> None:
        self.n_few, self.n_many = n_few, n_many

    def __call__(
        self, small_recording: tuple[Graph, list[Node]], large_recording: tuple[Graph, list[Node]]
    ) -> tuple[Graph, list[Node]]:
        """Return the small recording, in which integers and constants that depend on the number of clients are generalized."""
        (graph, gradients), (large_graph, _) = small_recording, large_recording
        pairs = list(zip(graph.nodes, large_graph.nodes, strict=False))
        targets = [(a.target, b.target) for a, b in pairs if a.op != "placeholder"]
        if len(graph.nodes) != len(large_graph.nodes) or any(a != b for a, b in targets):
            raise NotCapturableError("the operations depend on the number of clients")
        with graph.inserting_before(next(iter(graph.nodes))):
            k = graph.placeholder("k")
        for a, b in pairs:
            if a.op == "placeholder":
                self._merge_constant(a, b)
                continue
            with graph.inserting_before(a):
                multiply = functools.partial(_multiply_by_k, graph, k)
                a.args = self._merge_argument(a.args, b.args, multiply)
                a.kwargs = self._merge_argument(dict(a.kwargs), dict(b.kwargs), multiply)
        return graph, gradients

    def _merge_argument(self, a: Any, b: Any, multiply: Callable[[int], Node]) -> Any:
        """Return a, in which a multiple of k replaces each integer that differs from the integer in b."""
        if isinstance(a, dict):
            return {key: self._merge_argument(a[key], b[key], multiply) for key in a}
        if isinstance(a, tuple | list):
            return type(a)(self._merge_argument(x, y, multiply) for x, y in zip(a, b, strict=True))
        if isinstance(a, Node) or a == b:
            return a
        if isinstance(a, int) and a % self.n_few == 0 and a // self.n_few * self.n_many == b:
            return multiply(a // self.n_few)
        raise NotCapturableError(f"an argument is {a} for {self.n_few} clients, {b} for {self.n_many}")

    def _merge_constant(self, a: Node, b: Node) -> None:
        """Store the large recording's constant in node a, and the constant's number of rows for each client."""
        if "value" not in a.meta:
            return
        small, large = a.meta["value"], b.meta["value"]
        if small.shape != large.shape:
            rows = small.shape[0] // self.n_few if small.dim() else 0
            if not rows or (*small.shape[1:], rows * self.n_many) != (*large.shape[1:], large.shape[0]):
                raise NotCapturableError(
                    f"a constant is {list(small.shape)} for {self.n_few} clients, {list(large.shape)} for {self.n_many}"
                )
            a.meta["blocks"] = rows
        if not torch.equal(small, large[: len(small)] if small.dim() else large):
            raise NotCapturableError("a constant depends on the number of clients")
        a.meta["value"] = large


def _multiply_by_k(graph: Graph, k: Node, factor: int) -> Node:
    return k if factor == 1 else graph.call_function(operator.mul, (k, factor))
