"""Rewriting of a recorded step: each pass is small and keeps what the step computes.

Which tensor shares memory with which is read off the operators' schemas: nothing is computed once that is written to later, and
nothing that is written to is removed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

from fedsgd.engine.recorder import Like

aten = torch.ops.aten

SAME = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
RESHAPING = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default}
SHAPE_ONLY: dict[Any, float] = {aten.ones_like.default: 1.0, aten.zeros_like.default: 0.0}
"""Operators to which only the shape of their input matters, and what they fill it with."""
INTO: dict[Any, Callable[..., Any]] = {aten.mm.default: torch.mm, aten.bmm.default: torch.bmm, aten.sum.dim_IntList: torch.sum}
"""Operators that can write their result into a tensor that is there."""
ALIGNMENT = 64
"""Bytes; of every tensor that torch allocates on a CPU."""
ADDED: dict[Any, Callable[..., Any]] = {aten.mm.default: Tensor.addmm_, aten.bmm.default: Tensor.baddbmm_}
"""Products, and how each is added to a tensor as it is computed."""

# ------------------------------------------------------------------------------------------------------------ what a node does


def arguments(node: Node) -> Iterator[tuple[Node, Any]]:
    """Each input that is a node, with the argument of the operator's schema that it is given as."""
    if not isinstance(node.target, OpOverload):
        return
    for position, argument in enumerate(node.target._schema.arguments):
        value = node.kwargs.get(argument.name, node.args[position] if position < len(node.args) else None)
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, Node):
                yield one, argument


def written(node: Node) -> list[Node]:
    """The inputs that it writes to."""
    return [value for value, argument in arguments(node) if argument.alias_info is not None and argument.alias_info.is_write]


def shares_memory(node: Any) -> bool:
    """Whether what it gives lives in the memory of an input, be it a view or the input itself."""
    return isinstance(node.target, OpOverload) and any(result.alias_info is not None for result in node.target._schema.returns)


def is_view(node: Node) -> bool:
    """Whether it only looks at its input in another way."""
    return shares_memory(node) and not written(node)


def is_random(node: Node) -> bool:
    """Whether it draws from torch's generator."""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def owner(node: Node) -> Node:
    """The node whose memory this one's tensor lives in: itself, unless it is a view, or an input that was written to."""
    while True:
        node = node.meta.get("owner", node)
        source = node.args[0] if node.target is operator.getitem else node
        through = source if isinstance(source, Node) else node
        if not shares_memory(through):
            return node
        node = next(value for value, argument in arguments(through) if argument.alias_info is not None)


# ---------------------------------------------------------------------------------------------------------------------- passes


def clean(graph: Graph, gradients: Sequence[Node], views: bool = True) -> list[Node]:
    """What every step goes through before its update is appended: returns the nodes that are its gradients then."""
    output = graph.output(tuple(gradients))
    drop_dead(graph)
    drop_views(graph)
    fold(graph, views)
    drop_dead(graph)
    cleaned = list(output.args[0])
    graph.erase_node(output)
    return cleaned


def drop_dead(graph: Graph) -> None:
    """Remove what nothing uses, the value of the loss above all. What writes to a tensor, or draws, stays."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not written(node) and not is_random(node):
            graph.erase_node(node)


def drop_views(graph: Graph) -> None:
    """Remove views that change nothing: detach, a view of the same shape, a transpose of a transpose."""
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            continue
        if node.target in SAME or (node.target in RESHAPING and source.meta.get("like") == node.meta.get("like")):
            _replace(graph, node, source)
        elif node.target is source.target is aten.t.default and isinstance(source.args[0], Node):
            _replace(graph, node, source.args[0])


def fold(graph: Graph, views: bool = True) -> None:
    """Compute once what is the same in every step: constants, and (if asked for) views of tensors that stay where they are."""
    changing = {owner(target) for node in graph.nodes for target in written(node)}
    first = next(iter(graph.nodes))
    for node in list(graph.nodes):
        if node.op != "call_function" or is_random(node) or written(node):
            continue
        value = _compute_once(node, changing) if not is_view(node) else _view_once(node) if views else None
        if value is None:
            continue
        with graph.inserting_before(first):
            once = graph.placeholder("once")
        varies = is_view(node) and any(source.meta["varies"] for source in node.all_input_nodes)
        once.meta.update(like=Like.of(value), value=value, varies=varies)
        if is_view(node):
            once.meta["owner"] = owner(node)
        _replace(graph, node, once)


def _view_once(node: Node) -> Tensor | None:
    """The view itself, if what it is of stays where it is."""
    if any("value" not in source.meta for source in node.all_input_nodes) or "like" not in node.meta:
        return None
    return _call(node)


def _compute_once(node: Node, changing: set[Node]) -> Tensor | None:
    """What it computes, if that is the same in every step, and nobody writes to it or to what it is computed from."""
    if owner(node) in changing or "like" not in node.meta or not isinstance(node.target, OpOverload):
        return None
    like: Like = node.meta["like"]
    if node.target in SHAPE_ONLY:
        return torch.empty_strided(like.shape, like.stride, dtype=like.dtype).fill_(SHAPE_ONLY[node.target])
    sources = node.all_input_nodes
    if any("value" not in s.meta or s.meta["varies"] or owner(s) in changing for s in sources):
        return None
    return _call(node)


def _call(node: Node) -> Tensor:
    args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda source: source.meta["value"])
    function: Any = node.target
    value: Tensor = function(*args, **kwargs)
    return value


def _replace(graph: Graph, node: Node, other: Node) -> None:
    node.replace_all_uses_with(other)
    graph.erase_node(node)


# ------------------------------------------------------------------------------------------------------------------- the update


def write_gradients(graph: Graph, gradients: Sequence[Node], into: Sequence[Node]) -> None:
    """End the step by leaving each gradient in its tensor; products and sums are computed there at once, if it is aligned as a
    tensor of its own would be: what a product rounds to may depend on that."""
    for gradient, target in zip(gradients, into, strict=True):
        source = _behind(gradient)
        if source.target in INTO and _is_free(gradient, source, gradients) and target.meta["value"].data_ptr() % ALIGNMENT == 0:
            args = (*source.args[:2], False) if source.target is aten.sum.dim_IntList else source.args
            with graph.inserting_before(source):
                graph.call_function(INTO[source.target], args, {"out": target})
            for node in dict.fromkeys((gradient, source)):
                graph.erase_node(node)
        else:
            graph.call_function(Tensor.copy_, (target, gradient))


def fold_update(graph: Graph, gradients: Sequence[Node], into: Sequence[Node], beta: float, alpha: Node | float) -> None:
    """End the step with t ← beta·t + alpha·gradient for each target t; a product of two matrices is added as it is computed.

    It is rounded once less than when the gradient is stored first. No target changes before all gradients are known.
    """
    rest: list[tuple[Node, Node]] = []
    for gradient, target in zip(gradients, into, strict=True):
        if gradient.target in ADDED and _is_free(gradient, gradient, gradients) and _keeps_inputs(graph, gradient):
            graph.call_function(ADDED[gradient.target], (target, *gradient.args), {"beta": beta, "alpha": alpha})
            graph.erase_node(gradient)
        else:
            rest.append((target, _own(graph, gradient)))
    if rest:
        targets, values = ([pair[i] for pair in rest] for i in (0, 1))
        if beta != 1:
            graph.call_function(torch._foreach_mul_, (targets, beta))
        graph.call_function(torch._foreach_add_, (targets, values), {"alpha": alpha})


def _behind(gradient: Node) -> Node:
    """The sum over the batch that a bias's gradient is a view of; else the gradient itself."""
    source = gradient.args[0] if gradient.target in RESHAPING else None
    if not isinstance(source, Node) or source.target is not aten.sum.dim_IntList or source.args[1:] != ([0], True):
        return gradient
    return source if gradient.meta["like"].shape == source.meta["like"].shape[1:] else gradient


def _is_free(gradient: Node, source: Node, gradients: Sequence[Node]) -> bool:
    """Whether nothing else needs it as a tensor of its own."""
    return not gradient.users and set(source.users) <= {gradient} and gradients.count(gradient) == 1


def _keeps_inputs(graph: Graph, product: Node) -> bool:
    """Whether its inputs are still what they are when the step ends: nothing writes to them, and they are no parameters."""
    owners = {owner(source) for source in product.all_input_nodes}
    if any(node.op == "placeholder" and node.meta.get("varies") for node in owners):
        return False
    return not any(owner(target) in owners for node in graph.nodes for target in written(node))


def _own(graph: Graph, gradient: Node) -> Node:
    """A gradient that is no parameter itself, and so does not change while they do."""
    return graph.call_function(torch.clone, (gradient,)) if owner(gradient).op == "placeholder" else gradient


# -------------------------------------------------------------------------------------------------------------------- bindings


def bind(graph: Graph) -> None:
    """Call torch's own bindings where an operator has one: about 1 µs less a call than the operator object."""
    for node in graph.nodes:
        if isinstance(node.target, OpOverload) and node.target.namespace == "aten":
            node.target = _binding(node.target._schema.name.removeprefix("aten::")) or node.target


def _binding(name: str) -> Callable[..., Any] | None:
    """The compiled function or method of that name. Those that torch wraps in Python take other arguments."""
    for where in (torch, torch._C._nn):
        if isinstance(getattr(where, name, None), BuiltinFunctionType):
            function: Callable[..., Any] = getattr(where, name)
            return function
    method: Callable[..., Any] | None = getattr(Tensor, name, None)
    return method if isinstance(method, MethodDescriptorType) else None
