"""Recording, the passes that rewrite a recording, what cannot be recorded, and which engine is chosen."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn import functional

from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError
from fedsgd.models import MODELS, Mlp
from fedsgd.models.builder import build_task
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.optim import SGD, Momentum
from fedsgd.training import LocalTraining, TrainingJob
from fedsgd.training.base import NotCapturableError
from fedsgd.training.captured import Captured
from fedsgd.training.flat_module import TensorFormat
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
from fedsgd.training.selection import EngineChoice, make_engine, rank_batch_sizes, select_engine
from fedsgd.training.sequential import Sequential
from fedsgd.training.stacked import Stacked

aten = torch.ops.aten
A, B = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])


def recorded(function: Callable[..., Tensor], *fixed: Tensor) -> tuple[Graph, list[Node]]:
    """What `function(x, *fixed)` records, x being [2, 2]."""
    x = torch.eye(2)
    return record(lambda: [function(x, *fixed)], {f"w{i}": t for i, t in enumerate(fixed)}, {"x": x})


def calls(graph: Graph) -> list[str]:
    return [
        str(node.target).removeprefix("aten.").removesuffix(".default") for node in graph.nodes if node.op == "call_function"
    ]


def replayed(graph: Graph, result: Node, x: Tensor) -> Tensor:
    graph.output(result)
    value: Tensor = compile_graph(graph)(x)
    return value


# ------------------------------------------------------------------------------------------------------------------------ passes


def test_a_recording_is_what_was_called_and_can_be_replayed_with_other_values() -> None:
    graph, (result,) = recorded(lambda x, w: (x @ w).relu() - 1, A)
    assert calls(graph) == ["mm", "relu", "sub.Tensor"]
    assert torch.equal(replayed(graph, result, B), (B @ A).relu() - 1)


def test_what_nothing_uses_goes_and_what_writes_or_draws_stays() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        torch.exp(x)
        w.mul_(2)
        torch.rand(3)
        return x + 1

    graph, (result,) = recorded(function, A.clone())
    graph.output(result)
    eliminate_dead_code(graph)
    assert calls(graph) == ["mul_.Tensor", "rand", "add.Tensor"]


def test_views_that_change_nothing_go() -> None:
    graph, (result,) = recorded(lambda x: x.detach().t().t().view(2, 2).expand(2, 2).t() * 1)
    graph.output(result)
    eliminate_identity_views(graph)
    eliminate_dead_code(graph)
    assert calls(graph) == ["t", "mul.Tensor"]


def test_constants_and_views_of_what_stays_are_computed_once() -> None:
    graph, (result,) = recorded(lambda x, w: x @ w.t() + torch.ones(2).exp() + torch.ones_like(x), A)
    (result,) = simplify(graph, [result])
    assert calls(graph) == ["mm", "add.Tensor", "add.Tensor"]
    A.mul_(2)  # the view is of the tensor, not of what was in it
    try:
        assert torch.equal(replayed(graph, result, B), B @ A.t() + torch.ones(2).exp() + 1)
    finally:
        A.div_(2)


def test_a_constant_that_is_written_to_is_made_anew_in_every_step() -> None:
    def function(x: Tensor) -> Tensor:
        total = torch.zeros(2, 2)
        row = total[0]
        row.add_(x[0])
        return total * 1

    graph, (result,) = recorded(function)
    (result,) = simplify(graph, [result])
    assert "zeros" in calls(graph)
    graph.output(result)
    step = compile_graph(graph)
    assert step(A).tolist() == step(A).tolist() == [[1, 2], [0, 0]]


def test_random_numbers_are_no_constants() -> None:
    graph, (result,) = recorded(lambda x: x + torch.rand(2))
    (result,) = simplify(graph, [result])
    graph.output(result)
    step = compile_graph(graph)
    assert step(A).tolist() != step(A).tolist()


def test_memory_is_followed_through_views_and_writes() -> None:
    graph, _ = recorded(lambda x, w: w.view(4)[1:].split(2)[0].add_(1), A.clone())
    last = list(graph.nodes)[-1]
    assert storage_owner(last).name == "w0"
    assert [storage_owner(node).name for node in mutated_inputs(last)] == ["w0"]


def updated(loss: Callable[..., Tensor], *parameters: Tensor, fused: bool, alpha: float = -0.5) -> list[Tensor]:
    """The parameters after a step, and the gradients where they are stored instead."""
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
        lambda x, p, q: ((x @ p).tanh() @ q).square().sum(),  # q's gradient is a product, p's needs the old q
        lambda x, p, q: (p @ q).sum() + (q @ p).sum(),  # gradients are products with parameters that change as well
        lambda x, p, q: (p * q).sum(),  # each gradient is the other parameter
        lambda x, p, q: (x @ p).sum() + (x @ q).sum(),  # the same gradient twice
        lambda x, p, q: (x @ (p + q)).sum(),
        lambda x, p, q: (x.mul(2).add_(1) @ p).square().sum() + q.sum(),
    ],
)
def test_updates_come_after_all_gradients(loss: Callable[..., Tensor]) -> None:
    p, q = A.clone().requires_grad_(), (A + 1).requires_grad_()
    gradients = torch.autograd.grad(loss(B, p, q), (p, q))
    assert [t.tolist() for t in updated(loss, A, A + 1, fused=False)] == [g.tolist() for g in gradients]
    expected = [(t - 0.5 * g).detach() for t, g in zip((p, q), gradients, strict=True)]
    for got, wanted in zip(updated(loss, A, A + 1, fused=True), expected, strict=True):
        assert got.numpy() == pytest.approx(wanted.numpy(), rel=1e-6)


def test_a_product_is_added_as_it_is_computed() -> None:
    leaf, x = A.clone().requires_grad_(), B.clone()

    def step() -> Sequence[Tensor]:
        with torch.enable_grad():
            return torch.autograd.grad((x @ leaf).square().sum(), [leaf])

    graph, gradients = record(step, {"w0": leaf}, {"x": x})
    gradients = simplify(graph, gradients)
    (target,) = (node for node in graph.nodes if node.name == "w0")
    fuse_update(graph, gradients, [target], 1.0, -0.5)
    assert [node.target for node in graph.nodes][-1] is Tensor.addmm_


def test_calls_go_through_torchs_own_bindings() -> None:
    graph, _ = recorded(lambda x: ((x @ x).relu() + x).sum(0))
    use_native_bindings(graph)
    assert all(not str(node.target).startswith("aten") for node in graph.nodes if node.op == "call_function")


def test_a_program_of_a_stack_is_given_its_part() -> None:
    graph = Graph()
    stack, rows = (graph.placeholder(name) for name in ("stack", "rows"))
    stack.meta.update(value=torch.arange(12.0).view(6, 2), varies=True)
    rows.meta.update(value=torch.arange(12.0), varies=False, blocks=2)
    graph.output((stack, rows))
    part, constant = Program(graph).bind(2, 5)()
    assert part.tolist() == [[4, 5], [6, 7], [8, 9]]
    assert constant.tolist() == [0, 1, 2, 3, 4, 5]


def test_channels_last_is_another_order_of_the_same_numbers() -> None:
    layout = ParameterLayout(("conv", "dense"), ((2, 3, 4, 5), (7,)))
    arrangement = TensorFormat(layout, channels_last=True)
    values = np.arange(127, dtype=np.float32)
    flat = torch.zeros(127)
    arrangement.load(flat, values)
    conv, dense = arrangement.view_tensors(flat)
    assert conv.is_contiguous(memory_format=torch.channels_last)
    assert conv.numpy().ravel().tolist() == values[:120].tolist()
    assert dense.tolist() == values[120:].tolist()
    assert arrangement.to_wire_order(flat).tolist() == values.tolist()


# ------------------------------------------------------------------------------------------------------------ what users' modules do


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


class Masking(Branching):
    def forward(self, x: Tensor) -> Tensor:
        x[x > 1] = 0
        return self.linear(x)


class Peeking(Branching):
    """Reads the data behind the recorder's back."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * float(x.detach().numpy().sum())


class Remembering(Branching):
    """Changes in Python what a recording cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * self.calls


class Alternating(Remembering):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * (1 + self.calls % 2)


class Drawing(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * torch.rand(8, generator=torch.Generator().manual_seed(1)))


class Renormed(Branching):
    """As in EEGNet: each row of the weight is scaled down to a norm, once it is longer; here not at the beginning."""

    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight.data = torch.renorm(self.linear.weight.data, 2, 0, 1.2)
        return self.linear(x)


class Skipping(Branching):
    """Stochastic depth by Python's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x if random.random() > 1e-9 else -x)


class Bounded(Branching):
    """Scales by a norm taken of .data, which changes nothing before the weight has grown."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.linear.weight.data.norm()
        return functional.linear(x, self.linear.weight * (norm.clamp(max=1.5) / norm), self.linear.bias)


UNCAPTURABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a branch on data": (Branching, "reads a number of a tensor"),
    "numpy": (Peeking, "numpy reads numbers of a tensor"),
    "an attribute": (Remembering, "training changes Remembering.calls in Python"),
    "an attribute, every other time": (Alternating, "training changes Alternating.calls in Python"),
    "Python's generator": (Skipping, "draws from numpy's or Python's global generator"),
    "a generator": (Drawing, "draws from its own generator"),
    "other memory for a parameter": (Renormed, "moves a parameter or buffer to other memory"),
}


@pytest.mark.parametrize(("make", "reason"), UNCAPTURABLE.values(), ids=UNCAPTURABLE.keys())
def test_what_cannot_be_captured_is_trained_by_autograd(make: Callable[[], nn.Module], reason: str, blobs: Dataset) -> None:
    recipe = LocalTraining(SGD(), 1, None, 10)
    with pytest.raises(NotCapturableError, match=reason):
        Captured(build_task(Mlp(), blobs, 0, module=make()), recipe, blobs.train, [10])
    task = build_task(Mlp(), blobs, 0, module=make())
    engine, chosen = select_engine(EngineChoice(), task, recipe, blobs.train, [10], 4)
    assert isinstance(engine, Sequential)
    assert chosen.name == "sequential"
    assert reason in chosen.reason
    with pytest.raises(ModelError, match=f"the captured engine cannot train the model: .*{reason}"):
        make_engine(EngineChoice("captured"), [10], task, recipe, blobs.train)


def test_a_mask_is_written_through_and_captured(blobs: Dataset) -> None:
    task, recipe = build_task(Mlp(), blobs, 0, module=Masking()), LocalTraining(SGD(lr=0.1), 2, None, 10)
    job = TrainingJob(0, 1, 0, task.initial_parameters, blobs.train)
    (expected,) = Sequential(task, recipe).train([job])
    (got,) = Captured(task, recipe, blobs.train, [10], "exact").train([job])
    assert got.update.tobytes() == expected.update.tobytes()


def test_what_later_steps_see_is_captured(blobs: Dataset) -> None:
    torch.manual_seed(0)
    task, recipe = build_task(Mlp(), blobs, 0, module=Bounded()), LocalTraining(SGD(lr=1.0), 3, None, 10)
    job = TrainingJob(0, 1, 0, task.initial_parameters, blobs.train)
    (expected,) = Sequential(task, recipe).train([job])
    (got,) = Captured(task, recipe, blobs.train, [10], "exact").train([job])
    assert got.update.tobytes() == expected.update.tobytes()


def test_a_metric_that_needs_the_usual_order_of_channels_gets_it() -> None:
    x = np.random.default_rng(0).random((20, 3, 6, 6), np.float32)
    data = Dataset(Examples(x, x), Examples(x[:5], x[:5]), None)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))

    def error(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).view(len(output), -1).square().mean(dim=1)

    task = build_task(Mlp(), data, 0, module=module, loss=functional.mse_loss, metrics={"error": error})
    recipe = LocalTraining(SGD(), 1, None, 10)
    expected = Sequential(task, recipe).evaluate(task.initial_parameters, data.test).means
    assert Captured(task, recipe, data.train, [10]).evaluate(task.initial_parameters, data.test).means == expected


def test_a_module_that_is_wrong_is_told_so_by_the_oracle(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0, loss=lambda output, target: functional.cross_entropy(output, target, reduction="none"))
    engine, chosen = select_engine(EngineChoice(), task, LocalTraining(SGD(), 1, None, 10), blobs.train, [10], 4)
    assert chosen.name == "sequential"
    with pytest.raises(ModelError, match="expected a tensor that is a scalar"):
        list(engine.train([TrainingJob(0, 1, 0, task.initial_parameters, blobs.train)]))


# -------------------------------------------------------------------------------------------------------------- which engine it is


def images(n: int = 40, shape: tuple[int, ...] = (28, 28)) -> Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.random((n, *shape), np.float32), rng.integers(0, 10, n)
    return Dataset(Examples(x, y), Examples(x[:2], y[:2]), 10)


@pytest.mark.parametrize(
    ("model", "cohort", "expected", "reason"),
    [
        ("softmax", 100, EngineChoice("stacked", "fused", 50), "7,850 parameters in linear layers, 100 clients a round"),
        ("softmax", 20, EngineChoice("stacked", "fused", 20), "linear layers"),
        ("softmax", 7, EngineChoice("captured"), "7 clients a round, fewer than 8"),
        ("2nn", 100, EngineChoice("captured"), "199,210 parameters, more than 65,536"),
        ("lenet", 100, EngineChoice("captured"), "not all layers are linear"),
    ],
)
def test_auto_is_a_rule(model: str, cohort: int, expected: EngineChoice, reason: str) -> None:
    data = images(shape=(28, 28))
    task = build_task(MODELS[model](), data, 0)
    _, chosen = select_engine(EngineChoice(), task, LocalTraining(SGD(), 1, None, 10), data.train, [10], cohort)
    assert (chosen.name, chosen.update, chosen.stack) == (expected.name, expected.update, expected.stack)
    assert reason in chosen.reason


def test_a_stack_whose_clients_are_not_independent_is_not_chosen(blobs: Dataset) -> None:
    """Products with seven columns round in another way where they are not aligned."""
    task = build_task(Mlp(hidden=(7,)), blobs, 0)
    _, chosen = select_engine(EngineChoice(), task, LocalTraining(SGD(), 1, None, 33), blobs.train, [33], 40)
    assert chosen.name == "captured"
    assert "a client's result depends on the other clients in its stack" in chosen.reason


@pytest.mark.parametrize(
    ("activation", "width", "stacks"), [(nn.Sigmoid, 5, False), (nn.ReLU, 5, True), (nn.Sigmoid, 32, True)]
)
def test_an_activation_that_rounds_by_place_is_stacked_only_where_it_cannot(
    activation: Callable[[], nn.Module], width: int, stacks: bool, blobs: Dataset
) -> None:
    """The end of a tensor, where vectors of numbers do not fit, is computed in another way."""
    task = build_task(Mlp(), blobs, 0, module=nn.Sequential(nn.Linear(8, width), activation(), nn.Linear(width, 4)))
    _, chosen = select_engine(EngineChoice(), task, LocalTraining(SGD(), 1, None, 8), blobs.train, [8, 1], 40)
    assert (chosen.name == "stacked") == stacks
    assert stacks or "aten.sigmoid.default rounds a number by its position" in chosen.reason


class Elsewhere(Branching):
    """Uses a parameter by another way than its name."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = [self.linear.weight]

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weights[0], self.linear.bias)


@pytest.mark.parametrize(
    ("make", "reason"), [(Elsewhere, "differs from autograd's"), (Alternating, "training changes Alternating.calls")]
)
def test_a_stack_is_held_to_the_oracle(make: Callable[[], nn.Module], reason: str, blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0, module=make())
    with pytest.raises(NotCapturableError, match=reason):
        Stacked(task, LocalTraining(SGD(), 1, None, 10), blobs.train, [10])


def test_dropout_is_never_stacked(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0, module=nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3)))
    _, chosen = select_engine(EngineChoice(), task, LocalTraining(SGD(), 1, None, 10), blobs.train, [10], 40)
    assert chosen.name == "captured"
    assert "draws random numbers" in chosen.reason


def test_without_examples_there_is_nothing_to_record(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    engine, chosen = select_engine(EngineChoice(), task, LocalTraining(SGD(), 1, None, 10), blobs.train, [], 40)
    assert (type(engine), chosen.name, chosen.reason) == (Sequential, "sequential", "no client has any examples")


def test_the_most_frequent_batch_sizes_come_first() -> None:
    counts = np.array([25, 25, 10, 7, 0])
    assert rank_batch_sizes(counts, LocalTraining(SGD(), 1, None, 10)) == [10, 5, 7]
    assert rank_batch_sizes(counts, LocalTraining(SGD(), 1, None, None)) == [25, 10, 7]
    assert rank_batch_sizes(counts, LocalTraining(SGD(), None, 1, 10)) == [10, 7]
    assert rank_batch_sizes(np.array([0, 0]), LocalTraining(SGD(), 1, None, 10)) == []
    assert len(rank_batch_sizes(np.arange(1, 90), LocalTraining(Momentum(), 1, None, None))) == 32


@pytest.mark.parametrize("name", ["cnn", "lenet", "cifar-cnn", "resnet-20"])
def test_our_convolutional_networks_have_their_channels_last(name: str) -> None:
    """The trial that decides it must not fail for rounding."""
    data = images(shape=(28, 28) if name == "cnn" else (3, 32, 32))
    engine = Captured(build_task(MODELS[name](), data, 0), LocalTraining(SGD(lr=0.1), 1, None, 10), data.train, [10])
    assert engine._step_buffers.tensor_format.channels_last
