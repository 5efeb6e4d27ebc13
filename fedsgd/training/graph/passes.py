"""Passes that rewrite a recorded step. Only `fuse_update` changes results, by rounding.

Operators' schemas show which tensors share memory. Tensors that an operation writes to are neither removed nor folded into
constants.
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
"""Operators that use only the shape of an input, with the number that fills the result."""
OUT_VARIANTS: dict[Any, Callable[..., Any]] = {
    aten.mm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.sum.dim_IntList: torch.sum,
}
"""Operators that can write a result into an existing tensor, with torch's native binding for such a call."""
ALIGNMENT_BYTES = 64
"""Alignment in bytes of every tensor that torch allocates on a CPU."""
ACCUMULATING_VARIANTS: dict[Any, Callable[..., Any]] = {aten.mm.default: Tensor.addmm_, aten.bmm.default: Tensor.baddbmm_}
"""Matrix products, with the method that computes a product and adds it to a tensor at once."""

# ------------------------------------------------------------------------------------------------------------ queries of nodes


def iterate_input_arguments(node: Node) -> Iterator[tuple[Node, Any]]:
    """Yield each input that is a node, with its argument in the operator's schema."""
    if not isinstance(node.target, OpOverload):
        return
    for position, argument in enumerate(node.target._schema.arguments):
        value = node.kwargs.get(argument.name, node.args[position] if position < len(node.args) else None)
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Node):
                yield item, argument


def mutated_inputs(node: Node) -> list[Node]:
    """Return the inputs that a node writes to."""
    return [
        value
        for value, argument in iterate_input_arguments(node)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def shares_memory(node: Any) -> bool:
    """Return True if the result of a node uses the memory of an input: a view, or the input itself."""
    return isinstance(node.target, OpOverload) and any(result.alias_info is not None for result in node.target._schema.returns)


def is_view(node: Node) -> bool:
    """Return True if the result of a node is a view of an input, and the node writes to no input."""
    return shares_memory(node) and not mutated_inputs(node)


def is_random(node: Node) -> bool:
    """Return True if a node draws from torch's generator."""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def storage_owner(node: Node) -> Node:
    """Return the node whose memory a node's result uses: the node itself, unless its result is an input or a view."""
    while True:
        node = node.meta.get("owner", node)
        source = node.args[0] if node.target is operator.getitem else node
        operation = source if isinstance(source, Node) else node
        if not shares_memory(operation):
            return node
        node = next(value for value, argument in iterate_input_arguments(operation) if argument.alias_info is not None)


# ---------------------------------------------------------------------------------------------------------------------- passes


def simplify(graph: Graph, gradients: Sequence[Node], fold_views: bool = True) -> list[Node]:
    """Run the passes that precede the update, and return the nodes of the gradients in the new graph."""
    output = graph.output(tuple(gradients))
    eliminate_dead_code(graph)
    eliminate_identity_views(graph)
    fold_constants(graph, fold_views)
    eliminate_dead_code(graph)
    simplified_gradients = list(output.args[0])
    graph.erase_node(output)
    return simplified_gradients


def eliminate_dead_code(graph: Graph) -> None:
    """Remove unused nodes, such as the loss, except for nodes that write to a tensor or draw random numbers."""
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
            node.target in RESHAPE_OPERATORS and source.meta.get("spec") == node.meta.get("spec")
        ):
            _replace(graph, node, source)
        elif node.target is source.target is aten.t.default and isinstance(source.args[0], Node):
            _replace(graph, node, source.args[0])


def fold_constants(graph: Graph, fold_views: bool = True) -> None:
    """Replace nodes that are equal in all steps by placeholders: constants and, with `fold_views`, views of fixed tensors."""
    mutated_storages = {storage_owner(target) for node in graph.nodes for target in mutated_inputs(node)}
    first = next(iter(graph.nodes))
    for node in list(graph.nodes):
        if node.op != "call_function" or is_random(node) or mutated_inputs(node):
            continue
        if is_view(node):
            value = _evaluate_fixed_view(node) if fold_views else None
        else:
            value = _evaluate_constant(node, mutated_storages)
        if value is None:
            continue
        with graph.inserting_before(first):
            placeholder = graph.placeholder("once")
        varies = is_view(node) and any(source.meta["varies"] for source in node.all_input_nodes)
        placeholder.meta.update(spec=TensorSpec.from_tensor(value), value=value, varies=varies)
        if is_view(node):
            placeholder.meta["owner"] = storage_owner(node)
        _replace(graph, node, placeholder)


def _evaluate_fixed_view(node: Node) -> Tensor | None:
    """Return the view of a fixed tensor; None for a view of any other tensor."""
    if any("value" not in source.meta for source in node.all_input_nodes) or "spec" not in node.meta:
        return None
    return _evaluate_node(node)


def _evaluate_constant(node: Node, mutated_storages: set[Node]) -> Tensor | None:
    """Return a node's result if it is equal in all steps and no node writes to the result or to an input; else None."""
    if storage_owner(node) in mutated_storages or "spec" not in node.meta or not isinstance(node.target, OpOverload):
        return None
    spec: TensorSpec = node.meta["spec"]
    if node.target in FILL_OPERATORS:
        constant = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device)
        return constant.fill_(FILL_OPERATORS[node.target])
    inputs = node.all_input_nodes
    if any("value" not in i.meta or i.meta["varies"] or storage_owner(i) in mutated_storages for i in inputs):
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
    """End the step by writing each gradient to its destination.

    A product or sum is computed in the destination if the destination is aligned like a new tensor, since a product's
    rounding may depend on the alignment.
    """
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
    """End the step with t ← beta·t + alpha·gradient for each destination t.

    A matrix product of inputs that do not change is added while it is computed, with one rounding less than if the gradient
    were stored first. All other destinations change after all gradients are computed.
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
    """Return the sum over the batch whose view is the gradient of a bias; else the gradient itself."""
    source = gradient.args[0] if gradient.target in RESHAPE_OPERATORS else None
    if not isinstance(source, Node) or source.target is not aten.sum.dim_IntList or source.args[1:] != ([0], True):
        return gradient
    return source if gradient.meta["spec"].shape == source.meta["spec"].shape[1:] else gradient


def _is_unshared(gradient: Node, source: Node, gradients: Sequence[Node]) -> bool:
    """Return True if no other node and no other gradient uses a gradient, or the source that a gradient is a view of."""
    return not gradient.users and set(source.users) <= {gradient} and gradients.count(gradient) == 1


def _has_stable_inputs(graph: Graph, product: Node) -> bool:
    """Return True if a product's inputs are constant until the step ends: no parameter, and no tensor that a node writes to."""
    owners = {storage_owner(source) for source in product.all_input_nodes}
    if any(node.op == "placeholder" and node.meta.get("varies") for node in owners):
        return False
    return not any(storage_owner(target) in owners for node in graph.nodes for target in mutated_inputs(node))


def _materialize(graph: Graph, gradient: Node) -> Node:
    """Return a gradient, or a copy if it uses the memory of a placeholder, such as a parameter that the update changes."""
    return graph.call_function(torch.clone, (gradient,)) if storage_owner(gradient).op == "placeholder" else gradient


# -------------------------------------------------------------------------------------------------------------------- bindings


def use_native_bindings(graph: Graph) -> None:
    """Call torch's native binding of each operator that has one: about 1 µs faster than the operator object."""
    for node in graph.nodes:
        if isinstance(node.target, OpOverload) and node.target.namespace == "aten":
            node.target = _find_binding(node.target._schema.name.removeprefix("aten::")) or node.target


def _find_binding(name: str) -> Callable[..., Any] | None:
    """Return the compiled function or method of a name, if any: functions that torch wraps in Python take other arguments."""
    for namespace in (torch, torch._C._nn):
        if isinstance(getattr(namespace, name, None), BuiltinFunctionType):
            function: Callable[..., Any] = getattr(namespace, name)
            return function
    method: Callable[..., Any] | None = getattr(Tensor, name, None)
    return method if isinstance(method, MethodDescriptorType) else None
