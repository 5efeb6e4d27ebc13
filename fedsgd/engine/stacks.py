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
from fedsgd.engine.base import CaptureError
from fedsgd.engine.network import tensors
from fedsgd.engine.passes import clean, drop_dead, drop_views, is_random, written
from fedsgd.engine.recorder import record
from fedsgd.engine.steps import Workspace, recorded

FEW = 3
"""The other number of clients that a step is recorded for."""
LANES = 32
"""Kernels go through a tensor by so many numbers at once, or by a part of that, and take what is left at its end one by one."""


def stacked_step(space: Workspace, batch: Examples, most: int) -> tuple[Graph, list[Node], list[slice]]:
    """(the graph of the gradients of k clients, `most` at most, the nodes of these, the stretches of parameters that no batch
    uses). Its placeholders are w0, w1, ... [k, *shape], x and y [k, B, ...], k, and constants: of one with a meta "blocks",
    each client has so many rows.

    CaptureError if it cannot be had.
    """
    one, gradients, unused = _one_client(space, batch)
    few, many = (_of_clients(one, gradients, space, batch, k) for k in (FEW, most))
    return *_Merge(FEW, most)(few, many), unused


def _one_client(space: Workspace, batch: Examples) -> tuple[Graph, list[Node], list[slice]]:
    graph, gradients, unused = recorded(space, batch)
    output = graph.output(tuple(gradients))
    drop_dead(graph)
    drop_views(graph)
    drop_dead(graph)
    for node in graph.nodes:
        if is_random(node):
            raise CaptureError(f"{node.target} draws random numbers, which clients in a stack would share")
        if written(node):
            raise CaptureError(f"{node.target} changes a tensor in place, which clients in a stack would share")
        if not _keeps_places(node):
            raise CaptureError(f"{node.target} rounds a number by where it stands, so a client's result by who else is there")
    gradients = list(output.args[0])
    graph.erase_node(output)
    return graph, gradients, unused


def _keeps_places(node: Node) -> bool:
    """Whether an elementwise operation gives a number the same result wherever it stands in a stack.

    Kernels that take several numbers at once may round in another way, but seldom: so it is tried on many.
    """
    operation = node.target
    if not isinstance(operation, OpOverload) or torch.Tag.pointwise not in operation.tags or not node.all_input_nodes:
        return True
    if math.prod(node.meta["like"].shape) % LANES == 0:
        return True
    generator = torch.Generator().manual_seed(0)
    n = 64 * LANES
    numbers = {s: (3 * torch.randn(n, generator=generator)).to(s.meta["like"].dtype) for s in node.all_input_nodes}

    def results(start: int, stop: int) -> Tensor:
        args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda source: numbers[source][start:stop])
        value: Tensor = operation(*args, **kwargs)
        return value.nan_to_num()

    return torch.equal(results(0, n), torch.cat([results(start, start + FEW) for start in range(0, n, FEW)]))


def _of_clients(one: Graph, gradients: Sequence[Node], space: Workspace, batch: Examples, k: int) -> tuple[Graph, list[Node]]:
    """The graph of k clients, all alike."""
    x, y = tensors(batch)
    given = {f"w{i}": leaf.detach() for i, leaf in enumerate(space.leaves)} | {"x": x, "y": y}
    stacks = {name: tensor.expand(k, *tensor.shape).clone() for name, tensor in given.items()}

    def step() -> Sequence[Tensor]:
        results: Sequence[Tensor] = vmap(lambda inputs: _run(one, gradients, inputs))(stacks)
        return results

    graph, batched = record(step, {}, stacks)
    return graph, clean(graph, batched, views=False)


def _run(graph: Graph, results: Sequence[Node], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
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


class _Merge:
    """Two recordings, for two numbers of clients, into one for any."""

    def __init__(self, few: int, many: int) -> None:
        self.few, self.many = few, many

    def __call__(self, few: tuple[Graph, list[Node]], many: tuple[Graph, list[Node]]) -> tuple[Graph, list[Node]]:
        """The first graph, with what depends on the number of clients made a function of it."""
        (graph, gradients), (other, _) = few, many
        pairs = list(zip(graph.nodes, other.nodes, strict=False))
        calls = [(a.target, b.target) for a, b in pairs if a.op != "placeholder"]
        if len(graph.nodes) != len(other.nodes) or any(a != b for a, b in calls):
            raise CaptureError("the operations depend on how many clients there are")
        with graph.inserting_before(next(iter(graph.nodes))):
            k = graph.placeholder("k")
        for a, b in pairs:
            if a.op == "placeholder":
                self._constant(a, b)
                continue
            with graph.inserting_before(a):
                times = functools.partial(_times, graph, k)
                a.args = self._argument(a.args, b.args, times)
                a.kwargs = self._argument(dict(a.kwargs), dict(b.kwargs), times)
        return graph, gradients

    def _argument(self, a: Any, b: Any, times: Callable[[int], Node]) -> Any:
        """a, with each integer that is not b's replaced by a multiple of k."""
        if isinstance(a, dict):
            return {key: self._argument(a[key], b[key], times) for key in a}
        if isinstance(a, tuple | list):
            return type(a)(self._argument(one, other, times) for one, other in zip(a, b, strict=True))
        if isinstance(a, Node) or a == b:
            return a
        if isinstance(a, int) and a % self.few == 0 and a // self.few * self.many == b:
            return times(a // self.few)
        raise CaptureError(f"{a} for {self.few} clients is {b} for {self.many}")

    def _constant(self, a: Node, b: Node) -> None:
        """Keep the larger one, and note how many of its rows belong to a client."""
        if "value" not in a.meta:
            return
        small, large = a.meta["value"], b.meta["value"]
        if small.shape != large.shape:
            rows = small.shape[0] // self.few if small.dim() else 0
            if not rows or (*small.shape[1:], rows * self.many) != (*large.shape[1:], large.shape[0]):
                raise CaptureError(
                    f"a constant is {list(small.shape)} for {self.few} clients, {list(large.shape)} for {self.many}"
                )
            a.meta["blocks"] = rows
        if not torch.equal(small, large[: len(small)] if small.dim() else large):
            raise CaptureError("a constant depends on how many clients there are")
        a.meta["value"] = large


def _times(graph: Graph, k: Node, c: int) -> Node:
    return k if c == 1 else graph.call_function(operator.mul, (k, c))
