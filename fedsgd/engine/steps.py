"""The step of one batch size: recorded, rewritten, compiled, and tried against plain autograd before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx import Graph, Node

from fedsgd.arrays import F32
from fedsgd.data import Examples
from fedsgd.engine.arrangement import Arrangement
from fedsgd.engine.base import CaptureError, Recipe
from fedsgd.engine.network import Network, tensors, unused
from fedsgd.engine.passes import clean, fold_update, is_random, write_gradients
from fedsgd.engine.program import compiled
from fedsgd.engine.recorder import record
from fedsgd.generators import global_states, seeded_generators
from fedsgd.optim import SGD, Momentum, Optimizer, PyTorchMomentum

CLOSE = 1e-3
"""How far a step that adds up in another order may be from autograd's: the norm of the difference by that of the gradient. A
unit that is almost zero may come to the other side of it."""
TRIAL = 0.01
"""A step that is tried changes the model by this share of its norm at most: far away from where it was initialised, differences
in rounding may grow to anything."""


@dataclass(frozen=True)
class Folded:
    """An update that a step can make itself. t ← beta·t + alpha·g, where t is the velocity, or w if there is none; then
    w ← w + gamma·t. alpha, gamma None: −η."""

    velocity: bool = False
    beta: float = 1.0
    alpha: float | None = None
    gamma: float | None = None

    def allows(self, unused: Sequence[slice]) -> bool:
        """Return whether steps whose batches do not use these stretches can be folded: a velocity would move them."""
        return not (self.velocity and unused)


def folded(recipe: Recipe) -> Folded | None:
    """How the update is folded into the step; None if it needs the gradient itself."""
    optimizer = recipe.optimizer
    if optimizer.clip_norm is not None or optimizer.weight_decay or recipe.proximal or recipe.corrected:
        return None
    if type(optimizer) is SGD:
        return Folded()
    if type(optimizer) is Momentum:
        return Folded(velocity=True, beta=optimizer.momentum, gamma=1.0)
    if type(optimizer) is PyTorchMomentum:
        return Folded(velocity=True, beta=optimizer.momentum, alpha=1.0)
    return None


class Workspace:
    """What all steps of an engine work on: flat vectors [P] and the module's buffers, each its own and never replaced.

    w: the parameters; g: the gradient; memory: what the optimiser remembers.
    """

    def __init__(self, network: Network, arrangement: Arrangement, optimizer: Optimizer) -> None:
        self.network = network
        self.arrangement = arrangement
        self.w = torch.zeros(arrangement.layout.size)
        self.g = torch.zeros_like(self.w)
        self.memory = optimizer.init(self.w)
        self.leaves = [view.detach().requires_grad_() for view in arrangement.views(self.w)]
        self._g_views = arrangement.views(self.g)
        parts = network.task.parts
        mine = {id(b): b.clone() for _, part in parts for b in part.buffers()}  # one tensor, however many names it has
        self._of_parts = [{n: mine[id(b)] for n, b in part.named_buffers(remove_duplicate=False)} for _, part in parts]
        pairs = zip(parts, self._of_parts, strict=True)
        self.buffers = {f"{prefix}{name}": b for (prefix, _), own in pairs for name, b in own.items()}
        self._initial = {name: b.clone() for name, b in self.buffers.items()}
        leaves = {id(p): leaf for p, leaf in zip(network.parameters, self.leaves, strict=True)}
        named = [part.named_parameters(remove_duplicate=False) for _, part in parts]
        self._parameters = [{name: leaves[id(p)] for name, p in every if id(p) in leaves} for every in named]

    def begin(self, weights: F32, memory: Mapping[str, F32] | None = None) -> None:
        """What a client begins with: the received model [P], what the optimiser remembers (zero where absent), all buffers as
        they were made."""
        self.arrangement.load(self.w, weights)
        for value in self.memory.values():
            value.zero_()
        for name, remembered in (memory or {}).items():
            self.arrangement.load(self.memory[name], remembered)
        for name, value in self._initial.items():
            self.buffers[name].copy_(value)

    def arranged(self, values: F32) -> Tensor:
        """A vector [P] that stands as on the wire, in the order of w."""
        flat = torch.empty_like(self.w)
        self.arrangement.load(flat, values)
        return flat

    def gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of one batch's loss at w for each parameter, None for one that the loss does not reach."""
        swapped = [{**own, **buffers} for own, buffers in zip(self._parameters, self._of_parts, strict=True)]
        loss, task = self.network.task.loss, self.network.task
        with torch.enable_grad():
            output = functional_call(task.module, swapped[0], (x,), tie_weights=False)
            if isinstance(loss, torch.nn.Module):
                value = functional_call(loss, swapped[1], (output, y), tie_weights=False)
            else:
                value = loss(output, y)
        gradients = torch.autograd.grad(value, self.leaves, allow_unused=True)
        for used, own in zip(swapped, self._of_parts, strict=True):
            for name, buffer in own.items():
                if used[name] is not buffer:  # the module put another in its place
                    buffer.copy_(used[name].detach())
        return gradients

    def step_by_step(self, x: Tensor, y: Tensor) -> list[slice]:
        """Leave the gradient of one batch in g, without a recording; return the stretches that the batch does not use."""
        gradients = self.gradients(x, y)
        for view, gradient in zip(self._g_views, gradients, strict=True):
            view.zero_() if gradient is None else view.copy_(gradient)
        return unused(self.arrangement.layout, gradients)


@dataclass(frozen=True, eq=False)
class Step:
    """One batch: `gradient(x, y)` leaves the gradient in g; `update(x, y, −η)`, if there is one, makes the whole step.

    Attributes:
        unused: stretches of the parameters that no batch of this size uses.
    """

    gradient: Callable[[Tensor, Tensor], None]
    update: Callable[[Tensor, Tensor, float], None] | None = None
    random: bool = False
    unused: tuple[slice, ...] = ()


def capture(space: Workspace, fold: Folded | None, first: Examples, second: Examples) -> Step:
    """The step for batches of this size, tried on two of them; CaptureError if it cannot be had, or is not autograd's."""
    try:
        space.network.task.module.train()
        space.begin(space.network.task.initial)
        with torch.no_grad(), seeded_generators(0):
            graph, gradients, skipped = recorded(space, first)
            gradients = clean(graph, gradients)
            draws = any(is_random(node) for node in graph.nodes)
            write_gradients(graph, gradients, placeholders_for(graph, "g", space.arrangement.views(space.g)))
            update = None if fold is None or not fold.allows(skipped) else _update(space, fold, first)
            step = Step(_replay(graph), update, draws, tuple(skipped))
            for batch in (first, second):
                _try(space, step, *tensors(batch))
    except CaptureError:
        raise
    except Exception as error:  # whatever the module does that is not made for being recorded
        raise CaptureError(f"{type(error).__name__}: {error}") from error
    return step


def recorded(space: Workspace, batch: Examples) -> tuple[Graph, list[Node], list[slice]]:
    """(the graph of one batch's gradients, the nodes of these, the stretches of parameters that the batch does not use), as
    recorded; CaptureError for what a recording misses."""
    x, y = tensors(batch)
    fixed = {f"w{i}": leaf for i, leaf in enumerate(space.leaves)} | {f"b{i}": b for i, b in enumerate(space.buffers.values())}
    places = {name: tensor.data_ptr() for name, tensor in fixed.items()}
    drawn, skipped = global_states(), list[slice]()

    def gradients() -> list[Tensor]:
        made = space.gradients(x, y)
        skipped.extend(unused(space.arrangement.layout, made))
        return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(space.leaves, made, strict=True)]

    graph, nodes = record(gradients, fixed, {"x": x, "y": y})
    if global_states() | {"torch": None} != drawn | {"torch": None}:  # what it draws from torch's is in the recording
        raise CaptureError("the module draws from numpy's or Python's global generator, which a recording would not")
    if places != {name: tensor.data_ptr() for name, tensor in fixed.items()}:
        raise CaptureError("the module puts other memory behind a parameter or buffer, as assigning to its .data does")
    return graph, nodes, skipped


def placeholders_for(graph: Graph, name: str, values: Sequence[Tensor]) -> list[Node]:
    """Placeholders for tensors that the update works on."""
    nodes = []
    with graph.inserting_before(next(iter(graph.nodes))):
        for i, value in enumerate(values):
            nodes.append(graph.placeholder(f"{name}{i}"))
            nodes[-1].meta.update(value=value, varies=True)
    return nodes


def _update(space: Workspace, fold: Folded, batch: Examples) -> Callable[..., None]:
    """The step with the update folded in."""
    graph, gradients, _ = recorded(space, batch)
    target = space.memory["velocity"] if fold.velocity else space.w
    append_update(graph, clean(graph, gradients), fold, space.arrangement.views(target), ([space.w], [target]))
    return _replay(graph)


def append_update(
    graph: Graph,
    gradients: Sequence[Node],
    fold: Folded,
    targets: Sequence[Tensor],
    whole: tuple[Sequence[Tensor], Sequence[Tensor]],
) -> None:
    """End a step with its update; −η is the last thing that it is given. targets: a tensor for each gradient, the velocity's or
    the parameters'; whole: (the parameters, the velocity), in as few tensors as they stand in."""
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        rate = graph.placeholder("minus_lr")
    into = placeholders_for(graph, "t", targets)
    fold_update(graph, gradients, into, fold.beta, rate if fold.alpha is None else fold.alpha)
    if fold.velocity:
        w, velocity = (placeholders_for(graph, name, tensors) for name, tensors in zip("uv", whole, strict=True))
        graph.call_function(torch._foreach_add_, (w, velocity), {"alpha": rate if fold.gamma is None else fold.gamma})


def _replay(graph: Graph) -> Callable[..., None]:
    """torch's fused RNN keeps what its backward pass needs only where gradients are on; nothing here asks for any."""
    needs_grad = any("mkldnn_rnn_layer" in str(node.target) for node in graph.nodes)
    step = compiled(graph)
    return torch.enable_grad()(step) if needs_grad else step


def _try(space: Workspace, step: Step, x: Tensor, y: Tensor) -> None:
    """CaptureError unless the step gives autograd's gradient, to the bit if nothing is arranged in another way; twice in a row,
    since what it leaves in buffers is seen in the next one only."""
    network, arrangement = space.network, space.arrangement
    received = arrangement.unload(space.w)
    weights = torch.empty_like(space.w).copy_(torch.from_numpy(received))  # aligned as the oracle's
    with seeded_generators(0), network.own_buffers():
        network.point_at(Arrangement(arrangement.layout).views(weights))
        expected = [network.gradient(x.clone(), y.clone())[0]]
        rate = min(1.0, TRIAL * float(weights.norm()) / max(float(expected[0].norm()), 1e-30))
        after = weights - rate * expected[0]  # a module may write to its parameters, as an embedding with max_norm does
        expected.append(network.gradient(x.clone(), y.clone())[0])
    space.begin(received)
    with seeded_generators(0):
        for wanted in expected:
            step.gradient(x.clone(), y.clone())
            gradient = torch.from_numpy(arrangement.unload(space.g))
            off, scale = float((gradient - wanted).norm()), float(wanted.norm())
            if not (off <= CLOSE * scale if arrangement.channels_last else torch.equal(gradient, wanted)):
                raise CaptureError(f"the gradient is not autograd's: off by {off:.3g}, its norm is {scale:.3g}")
    if step.update is None:
        space.w.sub_(space.g, alpha=rate)
    else:
        space.begin(received)
        with seeded_generators(0):
            step.update(x.clone(), y.clone(), -rate)
        off = float((torch.from_numpy(arrangement.unload(space.w)) - after).norm())
        if not off <= CLOSE * rate * float(expected[0].norm()) + 1e-6 * float(weights.norm()):
            raise CaptureError(f"the step is not autograd's: off by {off:.3g}, the gradient's norm is {scale:.3g}")
