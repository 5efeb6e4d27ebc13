"""Capture of the step of one batch size: record, rewrite, compile, and compare with plain autograd before use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx import Graph, Node

from fedsgd.data import Examples
from fedsgd.models.losses import flatten_positions
from fedsgd.numerics.arrays import F32
from fedsgd.optim import SGD, Momentum, Optimizer, PyTorchMomentum
from fedsgd.optim.schedules import ConstantSchedule
from fedsgd.system.global_generators import isolate_generators, read_generator_states
from fedsgd.training.base import LocalTraining, NotCapturableError
from fedsgd.training.device import as_tensor
from fedsgd.training.flat_module import FlatModule, TensorFormat, batch_tensors, find_unused_slices
from fedsgd.training.graph.passes import fuse_update, is_random, simplify, write_gradients
from fedsgd.training.graph.program import compile_graph
from fedsgd.training.graph.recorder import copy_graph, record
from fedsgd.training.graph.replay import ReplayedStep

RELATIVE_TOLERANCE = 1e-3
"""Maximum norm of a gradient's error, relative to the norm of autograd's gradient, for a step with another order of sums.

The error includes units whose activation is almost zero and changes its sign.
"""
MAX_RELATIVE_STEP = 0.01
"""Maximum norm of the step in a check, relative to the model's norm: rounding differences grow far from the initial model."""


@dataclass(frozen=True)
class FusedUpdate:
    """Update that a step can include: t ← beta·t + alpha·g, then w ← w + gamma·t, where t is the velocity.

    Without a velocity, t is w, and there is no second assignment. None for alpha or gamma stands for −η.
    """

    has_velocity: bool = False
    beta: float = 1.0
    alpha: float | None = None
    gamma: float | None = None

    def is_applicable(self, unused_slices: Sequence[slice]) -> bool:
        """Return False if there are unused slices and a velocity, which would change the unused slices."""
        return not (self.has_velocity and unused_slices)


def fusable_update(local_training: LocalTraining, needs_constant_rate: bool = False) -> FusedUpdate | None:
    """Return the update that a step can include; None if a part of the local step, such as clipping, needs the gradient.

    A replayed step with its update `needs_constant_rate`, because each learning rate has a recording of its own.
    """
    optimizer = local_training.optimizer
    if optimizer.clip_norm is not None or optimizer.weight_decay or local_training.proximal or local_training.uses_correction:
        return None
    if needs_constant_rate and not isinstance(optimizer.schedule, ConstantSchedule):
        return None
    if type(optimizer) is SGD:
        return FusedUpdate()
    if type(optimizer) is Momentum:
        return FusedUpdate(has_velocity=True, beta=optimizer.momentum, gamma=1.0)
    if type(optimizer) is PyTorchMomentum:
        return FusedUpdate(has_velocity=True, beta=optimizer.momentum, alpha=1.0)
    return None


class StepBuffers:
    """Tensors of an engine's steps, which are never replaced: w [P], gradient g [P], buffers of optimizer, module and loss.

    Attributes:
        tensor_format: order of the parameters in all vectors [P].
        device: device of all tensors.
        leaves: views of w that require gradients, one for each tensor of the layout.
        module_buffers: copies of the buffers of module and loss by name.
    """

    def __init__(self, flat_module: FlatModule, tensor_format: TensorFormat, optimizer: Optimizer) -> None:
        self.flat_module = flat_module
        self.tensor_format = tensor_format
        self.device = flat_module.device
        self.w = torch.zeros(tensor_format.layout.size, device=self.device.torch_device)
        self.g = torch.zeros_like(self.w)
        self._optimizer = optimizer
        self.optimizer_buffers = optimizer.init(self.w)
        self.leaves = [view.detach().requires_grad_() for view in tensor_format.view_tensors(self.w)]
        self._g_views = tensor_format.view_tensors(self.g)
        parts = flat_module.task.parts
        copies = {id(b): b.clone() for _, part in parts for b in part.buffers()}  # one copy of a buffer with several names
        self._part_buffers = [{n: copies[id(b)] for n, b in part.named_buffers(remove_duplicate=False)} for _, part in parts]
        pairs = zip(parts, self._part_buffers, strict=True)
        self.module_buffers = {f"{prefix}{name}": b for (prefix, _), buffers in pairs for name, b in buffers.items()}
        self._initial_buffers = {name: b.clone() for name, b in self.module_buffers.items()}
        leaves = {id(p): leaf for p, leaf in zip(flat_module.parameters, self.leaves, strict=True)}
        parameters = [part.named_parameters(remove_duplicate=False) for _, part in parts]
        self._part_parameters = [{name: leaves[id(p)] for name, p in pairs if id(p) in leaves} for pairs in parameters]

    def load_client(self, weights: F32, optimizer_state: Mapping[str, F32] | None = None) -> None:
        """Load the received model [P], the optimizer's buffers (initial where absent) and the initial module buffers."""
        self.tensor_format.load(self.w, weights)
        for name, initial_values in self._optimizer.init(self.w).items():
            self.optimizer_buffers[name].copy_(initial_values)
        for name, values in (optimizer_state or {}).items():
            self.tensor_format.load(self.optimizer_buffers[name], values)
        for name, buffer in self._initial_buffers.items():
            self.module_buffers[name].copy_(buffer)

    def release_module_parameters(self) -> None:
        """Let the module's parameters use the memory of w, so that their own memory is free. No step reads them."""
        self.flat_module.bind_parameters(self.tensor_format.view_tensors(self.w))

    def to_internal_order(self, values: F32) -> Tensor:
        """Return a vector [P] in wire order as a tensor in the order of w."""
        flat = torch.empty_like(self.w)
        self.tensor_format.load(flat, values)
        return flat

    @property
    def written_tensors(self) -> list[Tensor]:
        """All tensors that a step may change."""
        return [self.w, self.g, *self.optimizer_buffers.values(), *self.module_buffers.values()]

    def compute_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of one batch's loss at w for each parameter, None for parameters that the loss does not reach."""
        pairs = zip(self._part_parameters, self._part_buffers, strict=True)
        tensors = [{**parameters, **buffers} for parameters, buffers in pairs]
        loss, task = self.flat_module.task.loss, self.flat_module.task
        with torch.enable_grad():
            output = functional_call(task.module, tensors[0], (x,), tie_weights=False)
            output, y = flatten_positions(loss, output, y)
            if isinstance(loss, torch.nn.Module):
                value = functional_call(loss, tensors[1], (output, y), tie_weights=False)
            else:
                value = loss(output, y)
        gradients = torch.autograd.grad(value, self.leaves, allow_unused=True)
        for part_tensors, buffers in zip(tensors, self._part_buffers, strict=True):
            for name, buffer in buffers.items():
                if part_tensors[name] is not buffer:  # the module assigned another tensor
                    buffer.copy_(part_tensors[name].detach())
        return gradients

    def compute_eager_gradient(self, x: Tensor, y: Tensor) -> list[slice]:
        """Write autograd's gradient of one batch to g, and return the slices of parameters that the batch does not use."""
        gradients = self.compute_gradients(x, y)
        for view, gradient in zip(self._g_views, gradients, strict=True):
            view.zero_() if gradient is None else view.copy_(gradient)
        return find_unused_slices(self.tensor_format.layout, gradients)


@dataclass(frozen=True, eq=False)
class CapturedStep:
    """Compiled step of one batch size.

    Attributes:
        compute_gradient: function of (x, y) that writes the gradient to g.
        apply_update: function of (x, y, −η) that makes the whole step; None: the update is not fused.
        is_random: True if the step draws from torch's generator.
        unused_slices: slices of the parameters that no batch of this size uses.
    """

    compute_gradient: Callable[[Tensor, Tensor], None]
    apply_update: Callable[[Tensor, Tensor, float], None] | None = None
    is_random: bool = False
    unused_slices: tuple[slice, ...] = ()

    def replay(self, step_buffers: StepBuffers) -> CapturedStep:
        """Return the step with its functions replayed from recordings of a GPU."""
        tensors, device = step_buffers.written_tensors, step_buffers.device
        update = None if self.apply_update is None else ReplayedStep(self.apply_update, tensors, device)
        return replace(self, compute_gradient=ReplayedStep(self.compute_gradient, tensors, device), apply_update=update)


def capture_step(
    step_buffers: StepBuffers, fused_update: FusedUpdate | None, first_batch: Examples, second_batch: Examples
) -> CapturedStep:
    """Capture the step of one batch size, and compare the step with autograd's on two batches."""
    try:
        step_buffers.flat_module.task.module.train()
        step_buffers.load_client(step_buffers.flat_module.task.initial_parameters)
        with torch.no_grad(), isolate_generators(0):
            graph, gradients, unused_slices = record_gradients(step_buffers, first_batch)
            gradients = simplify(graph, gradients)
            draws_numbers = any(is_random(node) for node in graph.nodes)
            update_graph = copy_graph(graph, gradients)
            write_gradients(
                graph, gradients, add_placeholders(graph, "g", step_buffers.tensor_format.view_tensors(step_buffers.g))
            )
            update = (
                None
                if fused_update is None or not fused_update.is_applicable(unused_slices)
                else _build_fused_update(step_buffers, fused_update, *update_graph)
            )
            step = CapturedStep(_compile_step(graph), update, draws_numbers, tuple(unused_slices))
            if step_buffers.device.replays_steps:
                step = step.replay(step_buffers)
            for batch in (first_batch, second_batch):
                _verify_step(step_buffers, step, *batch_tensors(batch, step_buffers.device))
    except (NotCapturableError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of a module that cannot be recorded
        raise NotCapturableError(f"{type(error).__name__}: {error}") from error
    return step


def record_gradients(step_buffers: StepBuffers, batch: Examples) -> tuple[Graph, list[Node], list[slice]]:
    """Record the gradients of one batch, and return graph, nodes of the gradients and slices of unused parameters."""
    x, y = batch_tensors(batch, step_buffers.device)
    fixed_tensors = {f"w{i}": leaf for i, leaf in enumerate(step_buffers.leaves)} | {
        f"b{i}": b for i, b in enumerate(step_buffers.module_buffers.values())
    }
    addresses = {name: tensor.data_ptr() for name, tensor in fixed_tensors.items()}
    states, unused_slices = read_generator_states(), list[slice]()

    def compute_gradients() -> list[Tensor]:
        gradients = step_buffers.compute_gradients(x, y)
        unused_slices.extend(find_unused_slices(step_buffers.tensor_format.layout, gradients))
        return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(step_buffers.leaves, gradients, strict=True)]

    graph, nodes = record(compute_gradients, fixed_tensors, {"x": x, "y": y})
    if read_generator_states() | {"torch": None} != states | {"torch": None}:  # draws from torch's generator are recorded
        raise NotCapturableError("the module draws from numpy's or Python's global generator, which a recording would not do")
    if addresses != {name: tensor.data_ptr() for name, tensor in fixed_tensors.items()}:
        raise NotCapturableError("the module moves a parameter or buffer to other memory, for example by assigning to .data")
    return graph, nodes, unused_slices


def add_placeholders(graph: Graph, name: str, values: Sequence[Tensor]) -> list[Node]:
    """Add placeholders for tensors that the update reads or writes."""
    nodes = []
    with graph.inserting_before(next(iter(graph.nodes))):
        for i, value in enumerate(values):
            nodes.append(graph.placeholder(f"{name}{i}"))
            nodes[-1].meta.update(value=value, varies=True)
    return nodes


def _build_fused_update(
    step_buffers: StepBuffers, fused_update: FusedUpdate, graph: Graph, gradients: Sequence[Node]
) -> Callable[..., None]:
    target = step_buffers.optimizer_buffers["velocity"] if fused_update.has_velocity else step_buffers.w
    append_update(
        graph,
        gradients,
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
    """Append an update to the graph of the gradients; −η becomes the step's last input.

    `targets` has the tensor t for each gradient. `whole_tensors` has the parameters and the velocity in the least number of
    tensors, such as one flat vector each, since each tensor needs an operation.
    """
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        rate = graph.placeholder("minus_lr")
    destinations = add_placeholders(graph, "t", targets)
    fuse_update(graph, gradients, destinations, fused_update.beta, rate if fused_update.alpha is None else fused_update.alpha)
    if fused_update.has_velocity:
        w, velocity = (add_placeholders(graph, name, tensors) for name, tensors in zip("uv", whole_tensors, strict=True))
        graph.call_function(
            torch._foreach_add_, (w, velocity), {"alpha": rate if fused_update.gamma is None else fused_update.gamma}
        )


def _compile_step(graph: Graph) -> Callable[..., None]:
    """Compile a step; enable gradients for torch's fused RNN, whose backward pass needs tensors that torch stores only then."""
    needs_grad = any("mkldnn_rnn_layer" in str(node.target) for node in graph.nodes)
    step = compile_graph(graph)
    return torch.enable_grad()(step) if needs_grad else step


def _verify_step(step_buffers: StepBuffers, step: CapturedStep, x: Tensor, y: Tensor) -> None:
    """Raise NotCapturableError if a step's gradient or updated model differs from autograd's.

    Gradients are compared bit for bit, unless channels are last. Two gradients in a row are compared, because the second
    shows changes of buffers by the first.
    """
    flat_module, tensor_format = step_buffers.flat_module, step_buffers.tensor_format
    received_weights = tensor_format.to_wire_order(step_buffers.w)
    weights = torch.empty_like(step_buffers.w).copy_(as_tensor(received_weights))  # aligned as in the sequential engine
    with isolate_generators(0), flat_module.isolated_buffers():
        flat_module.bind_parameters(TensorFormat(tensor_format.layout).view_tensors(weights))
        expected_gradients = [flat_module.compute_flat_gradient(x.clone(), y.clone())[0]]
        rate = min(1.0, MAX_RELATIVE_STEP * float(weights.norm()) / max(float(expected_gradients[0].norm()), 1e-30))
        expected_w = weights - rate * expected_gradients[0]  # after the gradient: an embedding with max_norm changes weights
        second_gradient = flat_module.compute_flat_gradient(x.clone(), y.clone())[0]
        is_equal = torch.equal(second_gradient, expected_gradients[0])
        expected_gradients.append(expected_gradients[0] if is_equal else second_gradient)
        del second_gradient  # of a large model, each vector counts
    step_buffers.load_client(received_weights)
    with isolate_generators(0):
        for expected in expected_gradients:
            step.compute_gradient(x.clone(), y.clone())
            _compare_gradient(step_buffers, expected)
    if step.apply_update is None:
        step_buffers.w.sub_(step_buffers.g, alpha=rate)
    else:
        step_buffers.load_client(received_weights)
        with isolate_generators(0):
            step.apply_update(x.clone(), y.clone(), -rate)
        error = float(expected_w.sub_(_in_wire_order(step_buffers, step_buffers.w)).norm())
        if not error <= RELATIVE_TOLERANCE * rate * float(expected_gradients[0].norm()) + 1e-6 * float(weights.norm()):
            norm = float(expected_gradients[1].norm())
            raise NotCapturableError(
                f"the step differs from autograd's: the error's norm is {error:.3g}, the gradient's {norm:.3g}"
            )


def _compare_gradient(step_buffers: StepBuffers, expected: Tensor) -> None:
    """Raise NotCapturableError if the gradient g of a step differs from autograd's, which is in the order of the wire."""
    gradient = _in_wire_order(step_buffers, step_buffers.g)
    is_exact = not step_buffers.tensor_format.channels_last
    if is_exact and torch.equal(gradient, expected):
        return
    error, norm = float((gradient - expected).norm()), float(expected.norm())
    if is_exact or not error <= RELATIVE_TOLERANCE * norm:
        raise NotCapturableError(
            f"the gradient differs from autograd's: the error's norm is {error:.3g}, the gradient's {norm:.3g}"
        )


def _in_wire_order(step_buffers: StepBuffers, flat: Tensor) -> Tensor:
    """Return a vector [P] in the order of the wire: the vector itself if its order is that of the wire."""
    tensor_format = step_buffers.tensor_format
    return step_buffers.device.to_device(tensor_format.to_wire_order(flat)) if tensor_format.channels_last else flat
