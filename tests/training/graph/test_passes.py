"""Recording of a step, passes over its graph, and compiled programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, Node

from fedsgd.training.graph.passes import (
    eliminate_dead_code,
    eliminate_identity_views,
    fuse_update,
    mutated_inputs,
    simplify,
    storage_owner,
    use_native_bindings,
    write_gradients,
)
from fedsgd.training.graph.program import Program, compile_graph
from fedsgd.training.graph.recorder import record

aten = torch.ops.aten


A, B = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])


def record_function(function: Callable[..., Tensor], *fixed: Tensor) -> tuple[Graph, list[Node]]:
    """Record `function(x, *fixed)` for x [2, 2]."""
    x = torch.eye(2)
    return record(lambda: [function(x, *fixed)], {f"w{i}": t for i, t in enumerate(fixed)}, {"x": x})


def list_operators(graph: Graph) -> list[str]:
    """Return the names of the operators in a graph."""
    return [
        str(node.target).removeprefix("aten.").removesuffix(".default") for node in graph.nodes if node.op == "call_function"
    ]


def replay(graph: Graph, result: Node, x: Tensor) -> Tensor:
    """Compile a graph and return its result for x."""
    graph.output(result)
    value: Tensor = compile_graph(graph)(x)
    return value


def test_recording_has_the_called_operators_and_replays_on_other_values() -> None:
    graph, (result,) = record_function(lambda x, w: (x @ w).relu() - 1, A)
    assert list_operators(graph) == ["mm", "relu", "sub.Tensor"]
    assert torch.equal(replay(graph, result, B), (B @ A).relu() - 1)


def test_dead_code_is_removed_unless_it_writes_or_draws() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        torch.exp(x)
        w.mul_(2)
        torch.rand(3)
        return x + 1

    graph, (result,) = record_function(function, A.clone())
    graph.output(result)
    eliminate_dead_code(graph)
    assert list_operators(graph) == ["mul_.Tensor", "rand", "add.Tensor"]


def test_identity_views_are_removed() -> None:
    graph, (result,) = record_function(lambda x: x.detach().t().t().view(2, 2).expand(2, 2).t() * 1)
    graph.output(result)
    eliminate_identity_views(graph)
    eliminate_dead_code(graph)
    assert list_operators(graph) == ["t", "mul.Tensor"]


def test_constants_and_views_of_fixed_tensors_are_folded() -> None:
    graph, (result,) = record_function(lambda x, w: x @ w.t() + torch.ones(2).exp() + torch.ones_like(x), A)
    (result,) = simplify(graph, [result])
    assert list_operators(graph) == ["mm", "add.Tensor", "add.Tensor"]
    A.mul_(2)  # the view shows later changes of the tensor
    try:
        assert torch.equal(replay(graph, result, B), B @ A.t() + torch.ones(2).exp() + 1)
    finally:
        A.div_(2)


def test_tensor_that_is_written_to_is_not_folded() -> None:
    def function(x: Tensor) -> Tensor:
        total = torch.zeros(2, 2)
        row = total[0]
        row.add_(x[0])
        return total * 1

    graph, (result,) = record_function(function)
    (result,) = simplify(graph, [result])
    assert "zeros" in list_operators(graph)
    graph.output(result)
    step = compile_graph(graph)
    assert step(A).tolist() == step(A).tolist() == [[1, 2], [0, 0]]


def test_random_numbers_are_not_folded() -> None:
    graph, (result,) = record_function(lambda x: x + torch.rand(2))
    (result,) = simplify(graph, [result])
    graph.output(result)
    step = compile_graph(graph)
    assert step(A).tolist() != step(A).tolist()


def test_storage_owner_behind_views_and_writes_is_the_input() -> None:
    graph, _ = record_function(lambda x, w: w.view(4)[1:].split(2)[0].add_(1), A.clone())
    last = list(graph.nodes)[-1]
    assert storage_owner(last).name == "w0"
    assert [storage_owner(node).name for node in mutated_inputs(last)] == ["w0"]


def run_update(loss: Callable[..., Tensor], *parameters: Tensor, fused: bool, alpha: float = -0.5) -> list[Tensor]:
    """Return the parameters after a fused step, or the gradients of a step that is not fused."""
    leaves = [p.clone().requires_grad_() for p in parameters]
    x = B.clone()

    def step() -> Sequence[Tensor]:
        with torch.enable_grad():
            return torch.autograd.grad(loss(x, *leaves), leaves)

    graph, gradients = record(step, {f"w{i}": leaf for i, leaf in enumerate(leaves)}, {"x": x})
    gradients = simplify(graph, gradients)
    values = [leaf.detach() for leaf in leaves] if fused else [torch.zeros(16, 16)[: len(p), : p.shape[1]] for p in parameters]
    targets = []
    with graph.inserting_before(next(iter(graph.nodes))):
        for value in values:
            targets.append(graph.placeholder("target"))
            targets[-1].meta.update(value=value, varies=True)
    with torch.no_grad():
        if fused:
            fuse_update(graph, gradients, targets, 1.0, alpha)
        else:
            write_gradients(graph, gradients, targets)
        compile_graph(graph)(x)
    return values


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, p, q: ((x @ p).tanh() @ q).square().sum(),  # q's gradient is a product, and p's gradient needs the old q
        lambda x, p, q: (p @ q).sum() + (q @ p).sum(),  # gradients are products with parameters that change too
        lambda x, p, q: (p * q).sum(),  # each gradient is the other parameter
        lambda x, p, q: (x @ p).sum() + (x @ q).sum(),  # the same gradient twice
        lambda x, p, q: (x @ (p + q)).sum(),
        lambda x, p, q: (x.mul(2).add_(1) @ p).square().sum() + q.sum(),
    ],
)
def test_update_is_made_after_all_gradients(loss: Callable[..., Tensor]) -> None:
    p, q = A.clone().requires_grad_(), (A + 1).requires_grad_()
    gradients = torch.autograd.grad(loss(B, p, q), (p, q))
    assert [t.tolist() for t in run_update(loss, A, A + 1, fused=False)] == [g.tolist() for g in gradients]
    expected = [(t - 0.5 * g).detach() for t, g in zip((p, q), gradients, strict=True)]
    for result, expected_value in zip(run_update(loss, A, A + 1, fused=True), expected, strict=True):
        assert result.numpy() == pytest.approx(expected_value.numpy(), rel=1e-6)


def test_gradient_that_is_a_product_is_added_while_computed() -> None:
    leaf, x = A.clone().requires_grad_(), B.clone()

    def step() -> Sequence[Tensor]:
        with torch.enable_grad():
            return torch.autograd.grad((x @ leaf).square().sum(), [leaf])

    graph, gradients = record(step, {"w0": leaf}, {"x": x})
    gradients = simplify(graph, gradients)
    (target,) = (node for node in graph.nodes if node.name == "w0")
    fuse_update(graph, gradients, [target], 1.0, -0.5)
    assert [node.target for node in graph.nodes][-1] is Tensor.addmm_


def test_operators_are_replaced_by_native_bindings() -> None:
    graph, _ = record_function(lambda x: ((x @ x).relu() + x).sum(0))
    use_native_bindings(graph)
    assert all(not str(node.target).startswith("aten") for node in graph.nodes if node.op == "call_function")


def test_program_of_a_stack_is_bound_to_rows_of_clients() -> None:
    graph = Graph()
    stack, rows = (graph.placeholder(name) for name in ("stack", "rows"))
    stack.meta.update(value=torch.arange(12.0).view(6, 2), varies=True)
    rows.meta.update(value=torch.arange(12.0), varies=False, blocks=2)
    graph.output((stack, rows))
    part, constant = Program(graph).bind(2, 5)()
    assert part.tolist() == [[4, 5], [6, 7], [8, 9]]
    assert constant.tolist() == [0, 1, 2, 3, 4, 5]
