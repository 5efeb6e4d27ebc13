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

from fedsgd.training.graph.recorder import TensorSpec

aten = torch.ops.aten

IDENTITY_OPERATORS = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
RESHAPE_OPERATORS = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default}
FILL_OPERATORS: dict[Any, float] = {aten.ones_like.default: 1.0, aten.zeros_like.default: 0.0}
"""Operators to which only the shape of their input matters, and what they fill it with."""
OUT_VARIANTS: dict[Any, Callable[..., Any]] = {
    aten.mm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.sum.dim_IntList: torch.sum,
}
"""Operators that can write their result into a tensor that is there."""
ALIGNMENT_BYTES = 64
"""Bytes; of every tensor that torch allocates on a CPU."""
ACCUMULATING_VARIANTS: dict[Any, Callable[..., Any]] = {aten.mm.default: Tensor.addmm_, aten.bmm.default: Tensor.baddbmm_}
"""Products, and how each is added to a tensor as it is computed."""

# ------------------------------------------------------------------------------------------------------------ what a node does


def iterate_input_arguments(node: Node) -> Iterator[tuple[Node, Any]]:
    """Each input that is a node, with the argument of the operator's schema that it is given as."""
    if not isinstance(node.target, OpOverload):
        return
    for position, argument in enumerate(node.target._schema.arguments):
        value = node.kwargs.get(argument.name, node.args[position] if position < len(node.args) else None)
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, Node):
                yield one, argument


def mutated_inputs(node: Node) -> list[Node]:
    """The inputs that it writes to."""
    return [
        value
        for value, argument in iterate_input_arguments(node)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def shares_memory(node: Any) -> bool:
    """Whether what it gives lives in the memory of an input, be it a view or the input itself."""
    return isinstance(node.target, OpOverload) and any(result.alias_info is not None for result in node.target._schema.returns)


def is_view(node: Node) -> bool:
    """Whether it only looks at its input in another way."""
    return shares_memory(node) and not mutated_inputs(node)


def is_random(node: Node) -> bool:
    """Whether it draws from torch's generator."""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def storage_owner(node: Node) -> Node:
    """The node whose memory this one's tensor lives in: itself, unless it is a view, or an input that was written to."""
    while True:
        node = node.meta.get("owner", node)
        source = node.args[0] if node.target is operator.getitem else node
        through = source if isinstance(source, Node) else node
        if not shares_memory(through):
            return node
        node = next(value for value, argument in iterate_input_arguments(through) if argument.alias_info is not None)


# ---------------------------------------------------------------------------------------------------------------------- passes


def simplify(graph: Graph, gradients: Sequence[Node], fold_views: bool = True) -> list[Node]:
    """What every step goes through before its update is appended: returns the nodes that are its gradients then."""
    output = graph.output(tuple(gradients))
    eliminate_dead_code(graph)
    eliminate_identity_views(graph)
    fold_constants(graph, fold_views)
    eliminate_dead_code(graph)
    cleaned = list(output.args[0])
    graph.erase_node(output)
    return cleaned


def eliminate_dead_code(graph: Graph) -> None:
    """Remove what nothing uses, the value of the loss above all. What writes to a tensor, or draws, stays."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not mutated_inputs(node) and not is_random(node):
            graph.erase_node(node)


def eliminate_identity_views(graph: Graph) -> None:
    """Remove views that change nothing: detach, a view of the same shape, a transpose of a transpose."""
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            continue
        if node.target in IDENTITY_OPERATORS or (
            node.target in RESHAPE_OPERATORS and source.meta.get("like") == node.meta.get("like")
        ):
            _replace(graph, node, source)
        elif node.target is source.target is aten.t.default and isinstance(source.args[0], Node):
            _replace(graph, node, source.args[0])


def fold_constants(graph: Graph, fold_views: bool = True) -> None:
    """Compute once what is the same in every step: constants, and (if asked for) views of tensors that stay where they are."""
    changing = {storage_owner(target) for node in graph.nodes for target in mutated_inputs(node)}
    first = next(iter(graph.nodes))
    for node in list(graph.nodes):
        if node.op != "call_function" or is_random(node) or mutated_inputs(node):
            continue
        value = _evaluate_constant(node, changing) if not is_view(node) else _evaluate_fixed_view(node) if fold_views else None
        if value is None:
            continue
        with graph.inserting_before(first):
            once = graph.placeholder("once")
        varies = is_view(node) and any(source.meta["varies"] for source in node.all_input_nodes)
        once.meta.update(like=TensorSpec.from_tensor(value), value=value, varies=varies)
        if is_view(node):
            once.meta["owner"] = storage_owner(node)
        _replace(graph, node, once)


def _evaluate_fixed_view(node: Node) -> Tensor | None:
    """The view itself, if what it is of stays where it is."""
    if any("value" not in source.meta for source in node.all_input_nodes) or "like" not in node.meta:
        return None
    return _evaluate_node(node)


def _evaluate_constant(node: Node, mutated_storages: set[Node]) -> Tensor | None:
    """What it computes, if that is the same in every step, and nobody writes to it or to what it is computed from."""
    if storage_owner(node) in mutated_storages or "like" not in node.meta or not isinstance(node.target, OpOverload):
        return None
    like: TensorSpec = node.meta["like"]
    if node.target in FILL_OPERATORS:
        return torch.empty_strided(like.shape, like.stride, dtype=like.dtype).fill_(FILL_OPERATORS[node.target])
    sources = node.all_input_nodes
    if any("value" not in s.meta or s.meta["varies"] or storage_owner(s) in mutated_storages for s in sources):
        return None
    return _evaluate_node(node)


def _evaluate_node(node: Node) -> Tensor:
    args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda source: source.meta["value"])
    function: Any = node.target
    value: Tensor = function(*args, **kwargs)
    return value


def _replace(graph: Graph, node: Node, replacement: Node) -> None:
    node.replace_all_uses_with(replacement)
    graph.erase_node(node)


# ------------------------------------------------------------------------------------------------------------------- the update


def write_gradients(graph: Graph, gradients: Sequence[Node], destinations: Sequence[Node]) -> None:
    """End the step by leaving each gradient in its tensor; products and sums are computed there at once, if it is aligned as a
    tensor of its own would be: what a product rounds to may depend on that."""
    for gradient, target in zip(gradients, destinations, strict=True):
        source = _sum_behind_view(gradient)
        if (
            source.target in OUT_VARIANTS
            and _is_unshared(gradient, source, gradients)
            and target.meta["value"].data_ptr() % ALIGNMENT_BYTES == 0
        ):
            args = (*source.args[:2], False) if source.target is aten.sum.dim_IntList else source.args
            with graph.inserting_before(source):
                graph.call_function(OUT_VARIANTS[source.target], args, {"out": target})
            for node in dict.fromkeys((gradient, source)):
                graph.erase_node(node)
        else:
            graph.call_function(Tensor.copy_, (target, gradient))


def fuse_update(
    graph: Graph, gradients: Sequence[Node], destinations: Sequence[Node], beta: float, alpha: Node | float
) -> None:
    """End the step with t ← beta·t + alpha·gradient for each target t; a product of two matrices is added as it is computed.

    It is rounded once less than when the gradient is stored first. No target changes before all gradients are known.
    """
    rest: list[tuple[Node, Node]] = []
    for gradient, target in zip(gradients, destinations, strict=True):
        if (
            gradient.target in ACCUMULATING_VARIANTS
            and _is_unshared(gradient, gradient, gradients)
            and _has_stable_inputs(graph, gradient)
        ):
            graph.call_function(
                ACCUMULATING_VARIANTS[gradient.target], (target, *gradient.args), {"beta": beta, "alpha": alpha}
            )
            graph.erase_node(gradient)
        else:
            rest.append((target, _materialize(graph, gradient)))
    if rest:
        targets, values = ([pair[i] for pair in rest] for i in (0, 1))
        if beta != 1:
            graph.call_function(torch._foreach_mul_, (targets, beta))
        graph.call_function(torch._foreach_add_, (targets, values), {"alpha": alpha})


def _sum_behind_view(gradient: Node) -> Node:
    """The sum over the batch that a bias's gradient is a view of; else the gradient itself."""
    source = gradient.args[0] if gradient.target in RESHAPE_OPERATORS else None
    if not isinstance(source, Node) or source.target is not aten.sum.dim_IntList or source.args[1:] != ([0], True):
        return gradient
    return source if gradient.meta["like"].shape == source.meta["like"].shape[1:] else gradient


def _is_unshared(gradient: Node, source: Node, gradients: Sequence[Node]) -> bool:
    """Whether nothing else needs it as a tensor of its own."""
    return not gradient.users and set(source.users) <= {gradient} and gradients.count(gradient) == 1


def _has_stable_inputs(graph: Graph, product: Node) -> bool:
    """Whether its inputs are still what they are when the step ends: nothing writes to them, and they are no parameters."""
    owners = {storage_owner(source) for source in product.all_input_nodes}
    if any(node.op == "placeholder" and node.meta.get("varies") for node in owners):
        return False
    return not any(storage_owner(target) in owners for node in graph.nodes for target in mutated_inputs(node))


def _materialize(graph: Graph, gradient: Node) -> Node:
    """A gradient that is no parameter itself, and so does not change while they do."""
    return graph.call_function(torch.clone, (gradient,)) if storage_owner(gradient).op == "placeholder" else gradient


# -------------------------------------------------------------------------------------------------------------------- bindings


def use_native_bindings(graph: Graph) -> None:
    """Call torch's own bindings where an operator has one: about 1 µs less a call than the operator object."""
    for node in graph.nodes:
        if isinstance(node.target, OpOverload) and node.target.namespace == "aten":
            node.target = _find_binding(node.target._schema.name.removeprefix("aten::")) or node.target


def _find_binding(name: str) -> Callable[..., Any] | None:
    """The compiled function or method of that name. Those that torch wraps in Python take other arguments."""
    for where in (torch, torch._C._nn):
        if isinstance(getattr(where, name, None), BuiltinFunctionType):
            function: Callable[..., Any] = getattr(where, name)
            return function
    method: Callable[..., Any] | None = getattr(Tensor, name, None)
    return method if isinstance(method, MethodDescriptorType) else None
