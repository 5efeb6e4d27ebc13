"""The step of a stack of clients: the recorded step of one, with an axis of clients in front of everything.

k clients in a run, K in a stack. vmap turns each recorded operation into its batched form, which is recorded in turn, for two
numbers of clients: an integer that differs between the two is a multiple of k, and a constant that differs has k blocks. So one
recording serves any run of clients.
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
"""The other number of clients that a step is recorded for."""
VECTOR_WIDTH = 32
"""Kernels go through a tensor by so many numbers at once, or by a part of that, and take what is left at its end one by one."""


def record_stacked_step(step_buffers: StepBuffers, batch: Examples, max_clients: int) -> tuple[Graph, list[Node], list[slice]]:
    """(the graph of the gradients of k clients, `max_clients` at most, the nodes of these, the stretches of parameters that no
    batch
    uses). Its placeholders are w0, w1, ... [k, *shape], x and y [k, B, ...], k, and constants: of one with a meta "blocks",
    each client has so many rows.

    CaptureError if it cannot be had.
    """
    one, gradients, unused = _record_one_client(step_buffers, batch)
    few, many = (_record_clients(one, gradients, step_buffers, batch, k) for k in (SMALL_CLIENT_COUNT, max_clients))
    return *_RecordingMerger(SMALL_CLIENT_COUNT, max_clients)(few, many), unused


def _record_one_client(step_buffers: StepBuffers, batch: Examples) -> tuple[Graph, list[Node], list[slice]]:
    graph, gradients, unused = record_gradients(step_buffers, batch)
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
                f"{node.target} rounds a number by where it stands, so a client's result by who else is there"
            )
    gradients = list(output.args[0])
    graph.erase_node(output)
    return graph, gradients, unused


def _is_position_independent(node: Node) -> bool:
    """Whether an elementwise operation gives a number the same result wherever it stands in a stack.

    Kernels that take several numbers at once may round in another way, but seldom: so it is tried on many.
    """
    operation = node.target
    if not isinstance(operation, OpOverload) or torch.Tag.pointwise not in operation.tags or not node.all_input_nodes:
        return True
    if math.prod(node.meta["like"].shape) % VECTOR_WIDTH == 0:
        return True
    generator = torch.Generator().manual_seed(0)
    n = 64 * VECTOR_WIDTH
    numbers = {s: (3 * torch.randn(n, generator=generator)).to(s.meta["like"].dtype) for s in node.all_input_nodes}

    def evaluate_range(start: int, stop: int) -> Tensor:
        args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda source: numbers[source][start:stop])
        value: Tensor = operation(*args, **kwargs)
        return value.nan_to_num()

    return torch.equal(
        evaluate_range(0, n),
        torch.cat([evaluate_range(start, start + SMALL_CLIENT_COUNT) for start in range(0, n, SMALL_CLIENT_COUNT)]),
    )


def _record_clients(
    client_graph: Graph, gradients: Sequence[Node], step_buffers: StepBuffers, batch: Examples, k: int
) -> tuple[Graph, list[Node]]:
    """The graph of k clients, all alike."""
    x, y = batch_tensors(batch)
    given = {f"w{i}": leaf.detach() for i, leaf in enumerate(step_buffers.leaves)} | {"x": x, "y": y}
    stacks = {name: tensor.expand(k, *tensor.shape).clone() for name, tensor in given.items()}

    def step() -> Sequence[Tensor]:
        results: Sequence[Tensor] = vmap(lambda inputs: _interpret(client_graph, gradients, inputs))(stacks)
        return results

    graph, batched = record(step, {}, stacks)
    return graph, simplify(graph, batched, fold_views=False)


def _interpret(graph: Graph, results: Sequence[Node], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Operation after operation; inputs: by the name of the placeholder, the others have values."""
    env: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            env[node] = inputs[node.name] if node.name in inputs else node.meta["value"]
        else:
            args, kwargs = map_arg((node.args, dict(node.kwargs)), env.__getitem__)
            env[node] = node.target(*args, **kwargs)
    return tuple(env[node] for node in results)


# ------------------------------------------------------------------------------------------------------- any number of clients


class _RecordingMerger:
    """Two recordings, for two numbers of clients, into one for any."""

    def __init__(self, n_few: int, n_many: int) -> None:
        self.n_few, self.n_many = n_few, n_many

    def __call__(
        self, small_recording: tuple[Graph, list[Node]], large_recording: tuple[Graph, list[Node]]
    ) -> tuple[Graph, list[Node]]:
        """The first graph, with what depends on the number of clients made a function of it."""
        (graph, gradients), (other, _) = small_recording, large_recording
        pairs = list(zip(graph.nodes, other.nodes, strict=False))
        calls = [(a.target, b.target) for a, b in pairs if a.op != "placeholder"]
        if len(graph.nodes) != len(other.nodes) or any(a != b for a, b in calls):
            raise NotCapturableError("the operations depend on how many clients there are")
        with graph.inserting_before(next(iter(graph.nodes))):
            k = graph.placeholder("k")
        for a, b in pairs:
            if a.op == "placeholder":
                self._merge_constant(a, b)
                continue
            with graph.inserting_before(a):
                times = functools.partial(_multiply_by_k, graph, k)
                a.args = self._merge_argument(a.args, b.args, times)
                a.kwargs = self._merge_argument(dict(a.kwargs), dict(b.kwargs), times)
        return graph, gradients

    def _merge_argument(self, a: Any, b: Any, multiply: Callable[[int], Node]) -> Any:
        """a, with each integer that is not b's replaced by a multiple of k."""
        if isinstance(a, dict):
            return {key: self._merge_argument(a[key], b[key], multiply) for key in a}
        if isinstance(a, tuple | list):
            return type(a)(self._merge_argument(one, other, multiply) for one, other in zip(a, b, strict=True))
        if isinstance(a, Node) or a == b:
            return a
        if isinstance(a, int) and a % self.n_few == 0 and a // self.n_few * self.n_many == b:
            return multiply(a // self.n_few)
        raise NotCapturableError(f"{a} for {self.n_few} clients is {b} for {self.n_many}")

    def _merge_constant(self, a: Node, b: Node) -> None:
        """Keep the larger one, and note how many of its rows belong to a client."""
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
            raise NotCapturableError("a constant depends on how many clients there are")
        a.meta["value"] = large


def _multiply_by_k(graph: Graph, k: Node, factor: int) -> Node:
    return k if factor == 1 else graph.call_function(operator.mul, (k, factor))
