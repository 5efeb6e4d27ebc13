"""Compilation of a rewritten step into one Python function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from fedsgd.training.graph.passes import use_native_bindings


def compile_graph(graph: Graph) -> Callable[..., Any]:
    """Return a function of the step's inputs, in the order of the placeholders, to which the fixed tensors are bound.

    The function releases each tensor after its last use, so a step needs no more memory than with autograd.
    """
    return Program(graph).bind()


class Program:
    """Compiled graph whose fixed tensors are not yet bound."""

    def __init__(self, graph: Graph) -> None:
        use_native_bindings(graph)
        self._fixed_nodes = _move_fixed_first(graph)
        graph.lint()
        code = graph.python_code("self")
        namespace: dict[str, Any] = dict(code.globals)
        exec(compile(code.src, "<captured step>", "exec"), namespace)
        self._function: Callable[..., Any] = namespace["forward"]

    def bind(self, start: int | None = None, stop: int = 0) -> Callable[..., Any]:
        """Return a function of the step's inputs; in a stack, for the clients from `start` to before `stop`."""
        values = (node.meta["value"] if start is None else _slice_value(node, start, stop) for node in self._fixed_nodes)
        return functools.partial(self._function, None, *values)


def _slice_value(node: Node, start: int, stop: int) -> Tensor:
    """Return the clients' rows of a stacked tensor, or the clients' share of a constant that has a block for each client."""
    value: Tensor = node.meta["value"]
    if node.meta["varies"]:
        return value[start:stop]
    return value[: node.meta["blocks"] * (stop - start)] if "blocks" in node.meta else value


def _move_fixed_first(graph: Graph) -> Sequence[Node]:
    """Move the fixed tensors' placeholders before all inputs, give all placeholders unique names, and return the fixed ones."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    fixed_nodes = [node for node in placeholders if "value" in node.meta]
    for node in placeholders:
        node.target = node.name
    for node in reversed(fixed_nodes):
        next(iter(graph.nodes)).prepend(node)
    return fixed_nodes
