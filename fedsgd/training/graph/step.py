"""The step of one batch size: recorded, rewritten, compiled, and tried against plain autograd before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx import Graph, Node

from fedsgd.data import Examples
from fedsgd.numerics.arrays import F32
from fedsgd.optim import SGD, Momentum, Optimizer, PyTorchMomentum
from fedsgd.system.global_generators import isolate_generators, read_generator_states
from fedsgd.training.base import LocalTraining, NotCapturableError
from fedsgd.training.flat_module import FlatModule, TensorFormat, batch_tensors, find_unused_slices
from fedsgd.training.graph.passes import fuse_update, is_random, simplify, write_gradients
from fedsgd.training.graph.program import compile_graph
from fedsgd.training.graph.recorder import record

RELATIVE_TOLERANCE = 1e-3
"""How far a step that adds up in another order may be from autograd's: the norm of the difference by that of the gradient. A
unit that is almost zero may come to the other side of it."""
MAX_RELATIVE_STEP = 0.01
"""A step that is tried changes the model by this share of its norm at most: far away from where it was initialised, differences
in rounding may grow to anything."""


@dataclass(frozen=True)
class FusedUpdate:
    """An update that a step can make itself. t ← beta·t + alpha·g, where t is the velocity, or w if there is none; then
    w ← w + gamma·t. alpha, gamma None: −η."""

    has_velocity: bool = False
    beta: float = 1.0
    alpha: float | None = None
    gamma: float | None = None

    def is_applicable(self, unused_slices: Sequence[slice]) -> bool:
        """Return whether steps whose batches do not use these stretches can be folded: a velocity would move them."""
        return not (self.has_velocity and unused_slices)


def fusable_update(local_training: LocalTraining) -> FusedUpdate | None:
    """How the update is folded into the step; None if it needs the gradient itself."""
    optimizer = local_training.optimizer
    if optimizer.clip_norm is not None or optimizer.weight_decay or local_training.proximal or local_training.uses_correction:
        return None
    if type(optimizer) is SGD:
        return FusedUpdate()
    if type(optimizer) is Momentum:
        return FusedUpdate(has_velocity=True, beta=optimizer.momentum, gamma=1.0)
    if type(optimizer) is PyTorchMomentum:
        return FusedUpdate(has_velocity=True, beta=optimizer.momentum, alpha=1.0)
    return None


class StepBuffers:
    """What all steps of an engine work on: flat vectors [P] and the module's buffers, each its own and never replaced.

    w: the parameters; g: the gradient; memory: what the optimiser remembers.
    """

    def __init__(self, flat_module: FlatModule, tensor_format: TensorFormat, optimizer: Optimizer) -> None:
        self.flat_module = flat_module
        self.tensor_format = tensor_format
        self.w = torch.zeros(tensor_format.layout.size)
        self.g = torch.zeros_like(self.w)
        self.optimizer_buffers = optimizer.init(self.w)
        self.leaves = [view.detach().requires_grad_() for view in tensor_format.view_tensors(self.w)]
        self._g_views = tensor_format.view_tensors(self.g)
        parts = flat_module.task.parts
        mine = {id(b): b.clone() for _, part in parts for b in part.buffers()}  # one tensor, however many names it has
        self._part_buffers = [{n: mine[id(b)] for n, b in part.named_buffers(remove_duplicate=False)} for _, part in parts]
        pairs = zip(parts, self._part_buffers, strict=True)
        self.module_buffers = {f"{prefix}{name}": b for (prefix, _), own in pairs for name, b in own.items()}
        self._initial_buffers = {name: b.clone() for name, b in self.module_buffers.items()}
        leaves = {id(p): leaf for p, leaf in zip(flat_module.parameters, self.leaves, strict=True)}
        named = [part.named_parameters(remove_duplicate=False) for _, part in parts]
        self._part_parameters = [{name: leaves[id(p)] for name, p in every if id(p) in leaves} for every in named]

    def load_client(self, weights: F32, optimizer_state: Mapping[str, F32] | None = None) -> None:
        """What a client begins with: the received model [P], what the optimiser remembers (zero where absent), all buffers as
        they were made."""
        self.tensor_format.load(self.w, weights)
        for value in self.optimizer_buffers.values():
            value.zero_()
        for name, remembered in (optimizer_state or {}).items():
            self.tensor_format.load(self.optimizer_buffers[name], remembered)
        for name, value in self._initial_buffers.items():
            self.module_buffers[name].copy_(value)

    def to_internal_order(self, values: F32) -> Tensor:
        """A vector [P] that stands as on the wire, in the order of w."""
        flat = torch.empty_like(self.w)
        self.tensor_format.load(flat, values)
        return flat

    def compute_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of one batch's loss at w for each parameter, None for one that the loss does not reach."""
        swapped = [{**own, **buffers} for own, buffers in zip(self._part_parameters, self._part_buffers, strict=True)]
        loss, task = self.flat_module.task.loss, self.flat_module.task
        with torch.enable_grad():
            output = functional_call(task.module, swapped[0], (x,), tie_weights=False)
            if isinstance(loss, torch.nn.Module):
                value = functional_call(loss, swapped[1], (output, y), tie_weights=False)
            else:
                value = loss(output, y)
        gradients = torch.autograd.grad(value, self.leaves, allow_unused=True)
        for used, own in zip(swapped, self._part_buffers, strict=True):
            for name, buffer in own.items():
                if used[name] is not buffer:  # the module put another in its place
                    buffer.copy_(used[name].detach())
        return gradients

    def compute_eager_gradient(self, x: Tensor, y: Tensor) -> list[slice]:
        """Leave the gradient of one batch in g, without a recording; return the stretches that the batch does not use."""
        gradients = self.compute_gradients(x, y)
        for view, gradient in zip(self._g_views, gradients, strict=True):
            view.zero_() if gradient is None else view.copy_(gradient)
        return find_unused_slices(self.tensor_format.layout, gradients)


@dataclass(frozen=True, eq=False)
class CapturedStep:
    """One batch: `gradient(x, y)` leaves the gradient in g; `update(x, y, −η)`, if there is one, makes the whole step.

    Attributes:
        unused: stretches of the parameters that no batch of this size uses.
    """

    compute_gradient: Callable[[Tensor, Tensor], None]
    apply_update: Callable[[Tensor, Tensor, float], None] | None = None
    is_random: bool = False
    unused_slices: tuple[slice, ...] = ()


def capture_step(
    step_buffers: StepBuffers, fused_update: FusedUpdate | None, first_batch: Examples, second_batch: Examples
) -> CapturedStep:
    """The step for batches of this size, tried on two of them; CaptureError if it cannot be had, or is not autograd's."""
    try:
        step_buffers.flat_module.task.module.train()
        step_buffers.load_client(step_buffers.flat_module.task.initial_parameters)
        with torch.no_grad(), isolate_generators(0):
            graph, gradients, skipped = record_gradients(step_buffers, first_batch)
            gradients = simplify(graph, gradients)
            draws = any(is_random(node) for node in graph.nodes)
            write_gradients(
                graph, gradients, add_placeholders(graph, "g", step_buffers.tensor_format.view_tensors(step_buffers.g))
            )
            update = (
                None
                if fused_update is None or not fused_update.is_applicable(skipped)
                else _record_fused_update(step_buffers, fused_update, first_batch)
            )
            step = CapturedStep(_compile_step(graph), update, draws, tuple(skipped))
            for batch in (first_batch, second_batch):
                _verify_step(step_buffers, step, *batch_tensors(batch))
    except NotCapturableError:
        raise
    except Exception as error:  # whatever the module does that is not made for being recorded
        raise NotCapturableError(f"{type(error).__name__}: {error}") from error
    return step


def record_gradients(step_buffers: StepBuffers, batch: Examples) -> tuple[Graph, list[Node], list[slice]]:
    """(the graph of one batch's gradients, the nodes of these, the stretches of parameters that the batch does not use), as
    recorded; CaptureError for what a recording misses."""
    x, y = batch_tensors(batch)
    fixed = {f"w{i}": leaf for i, leaf in enumerate(step_buffers.leaves)} | {
        f"b{i}": b for i, b in enumerate(step_buffers.module_buffers.values())
    }
    places = {name: tensor.data_ptr() for name, tensor in fixed.items()}
    drawn, skipped = read_generator_states(), list[slice]()

    def gradients() -> list[Tensor]:
        made = step_buffers.compute_gradients(x, y)
        skipped.extend(find_unused_slices(step_buffers.tensor_format.layout, made))
        return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(step_buffers.leaves, made, strict=True)]

    graph, nodes = record(gradients, fixed, {"x": x, "y": y})
    if read_generator_states() | {"torch": None} != drawn | {"torch": None}:  # what it draws from torch's is in the recording
        raise NotCapturableError("the module draws from numpy's or Python's global generator, which a recording would not")
    if places != {name: tensor.data_ptr() for name, tensor in fixed.items()}:
        raise NotCapturableError("the module puts other memory behind a parameter or buffer, as assigning to its .data does")
    return graph, nodes, skipped


def add_placeholders(graph: Graph, name: str, values: Sequence[Tensor]) -> list[Node]:
    """Placeholders for tensors that the update works on."""
    nodes = []
    with graph.inserting_before(next(iter(graph.nodes))):
        for i, value in enumerate(values):
            nodes.append(graph.placeholder(f"{name}{i}"))
            nodes[-1].meta.update(value=value, varies=True)
    return nodes


def _record_fused_update(step_buffers: StepBuffers, fused_update: FusedUpdate, batch: Examples) -> Callable[..., None]:
    """The step with the update folded in."""
    graph, gradients, _ = record_gradients(step_buffers, batch)
    target = step_buffers.optimizer_buffers["velocity"] if fused_update.has_velocity else step_buffers.w
    append_update(
        graph,
        simplify(graph, gradients),
        fused_update,
        step_buffers.tensor_format.view_tensors(target),
        ([step_buffers.w], [target]),
    )
    return _compile_step(graph)


def append_update(
    graph: Graph,
    gradients: Sequence[Node],
    fused_update: FusedUpdate,
    targets: Sequence[Tensor],
    whole_tensors: tuple[Sequence[Tensor], Sequence[Tensor]],
) -> None:
    """End a step with its update; −η is the last thing that it is given. targets: a tensor for each gradient, the velocity's or
    the parameters'; whole: (the parameters, the velocity), in as few tensors as they stand in."""
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        rate = graph.placeholder("minus_lr")
    into = add_placeholders(graph, "t", targets)
    fuse_update(graph, gradients, into, fused_update.beta, rate if fused_update.alpha is None else fused_update.alpha)
    if fused_update.has_velocity:
        w, velocity = (add_placeholders(graph, name, tensors) for name, tensors in zip("uv", whole_tensors, strict=True))
        graph.call_function(
            torch._foreach_add_, (w, velocity), {"alpha": rate if fused_update.gamma is None else fused_update.gamma}
        )


def _compile_step(graph: Graph) -> Callable[..., None]:
    """torch's fused RNN keeps what its backward pass needs only where gradients are on; nothing here asks for any."""
    needs_grad = any("mkldnn_rnn_layer" in str(node.target) for node in graph.nodes)
    step = compile_graph(graph)
    return torch.enable_grad()(step) if needs_grad else step


def _verify_step(step_buffers: StepBuffers, step: CapturedStep, x: Tensor, y: Tensor) -> None:
    """CaptureError unless the step gives autograd's gradient, to the bit if nothing is arranged in another way; twice in a row,
    since what it leaves in buffers is seen in the next one only."""
    network, arrangement = step_buffers.flat_module, step_buffers.tensor_format
    received = arrangement.to_wire_order(step_buffers.w)
    weights = torch.empty_like(step_buffers.w).copy_(torch.from_numpy(received))  # aligned as the oracle's
    with isolate_generators(0), network.isolated_buffers():
        network.bind_parameters(TensorFormat(arrangement.layout).view_tensors(weights))
        expected = [network.compute_flat_gradient(x.clone(), y.clone())[0]]
        rate = min(1.0, MAX_RELATIVE_STEP * float(weights.norm()) / max(float(expected[0].norm()), 1e-30))
        after = weights - rate * expected[0]  # a module may write to its parameters, as an embedding with max_norm does
        expected.append(network.compute_flat_gradient(x.clone(), y.clone())[0])
    step_buffers.load_client(received)
    with isolate_generators(0):
        for wanted in expected:
            step.compute_gradient(x.clone(), y.clone())
            gradient = torch.from_numpy(arrangement.to_wire_order(step_buffers.g))
            off, scale = float((gradient - wanted).norm()), float(wanted.norm())
            if not (off <= RELATIVE_TOLERANCE * scale if arrangement.channels_last else torch.equal(gradient, wanted)):
                raise NotCapturableError(f"the gradient is not autograd's: off by {off:.3g}, its norm is {scale:.3g}")
    if step.apply_update is None:
        step_buffers.w.sub_(step_buffers.g, alpha=rate)
    else:
        step_buffers.load_client(received)
        with isolate_generators(0):
            step.apply_update(x.clone(), y.clone(), -rate)
        off = float((torch.from_numpy(arrangement.to_wire_order(step_buffers.w)) - after).norm())
        if not off <= RELATIVE_TOLERANCE * rate * float(expected[0].norm()) + 1e-6 * float(weights.norm()):
            raise NotCapturableError(f"the step is not autograd's: off by {off:.3g}, the gradient's norm is {scale:.3g}")
