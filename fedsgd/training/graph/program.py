"""A rewritten step as one Python function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from fedsgd.training.graph.passes import use_native_bindings


def compile_graph(graph: Graph) -> Callable[..., Any]:
    """A function of what each step is given, in the order of its placeholders; the tensors that stay are bound to it.

    It lets go of each tensor after its last use, so a step needs no more memory than autograd does.
    """
    return Program(graph).bind()


class Program:
    """A graph as a function whose fixed tensors are yet to be bound. most: how many clients its constants are made for."""

    def __init__(self, graph: Graph) -> None:
        use_native_bindings(graph)
        self._fixed_nodes = _move_fixed_first(graph)
        graph.lint()
        code = graph.python_code("self")
        namespace: dict[str, Any] = dict(code.globals)
        exec(compile(code.src, "<captured step>", "exec"), namespace)
        self._function: Callable[..., Any] = namespace["forward"]

    def bind(self, start: int | None = None, stop: int = 0) -> Callable[..., Any]:
        """The function of what each step is given; of clients `start` to before `stop` of a stack, if it is of stacks."""
        values = (node.meta["value"] if start is None else _slice_value(node, start, stop) for node in self._fixed_nodes)
        return functools.partial(self._function, None, *values)


def _slice_value(node: Node, start: int, stop: int) -> Tensor:
    """What concerns these clients: their places in a stack; of a constant with rows for each client, that many."""
    value: Tensor = node.meta["value"]
    if node.meta["varies"]:
        return value[start:stop]
    return value[: node.meta["blocks"] * (stop - start)] if "blocks" in node.meta else value


def _move_fixed_first(graph: Graph) -> Sequence[Node]:
    """Put the placeholders that stay in front of those that each step gives, and give each a name of its own."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    fixed = [node for node in placeholders if "value" in node.meta]
    for node in placeholders:
        node.target = node.name
    for node in reversed(fixed):
        next(iter(graph.nodes)).prepend(node)
    return fixed
