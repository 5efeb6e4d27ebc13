"""SGD: vanilla, momentum in the two conventions that are often confused, Nesterov; step-size schedules over rounds.

η step size (lr), β momentum, g gradient, v velocity (zero at first), w parameters.

    sgd               w ← w − ηg
    momentum          v ← βv − ηg;  w ← w + v          the velocity holds the step (Polyak 1964; Sutskever et al. 2013)
    momentum-pytorch  v ← βv + g;   w ← w − ηv          the velocity holds gradients (torch.optim.SGD)
    nesterov          v ← βv + g;   w ← w − η(g + βv)   torch.optim.SGD(nesterov=True)

The two momentum forms make the same steps while η is constant: v of the one is −η times v of the other. When η changes they
part: the first keeps the steps that were taken at the old η in its velocity, the second rescales its whole memory to the
new η at once.

On the client they run on flat torch vectors inside the engine; on the server the same classes take the negative mean update
as a gradient ("pseudo-gradient", Reddi et al. 2021), so momentum there is FedAvgM (Hsu, Qi and Brown 2019).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from fedsgd.component import Coefficient, Component, Count, NonNegative, Positive, Registry, Share
from fedsgd.layout import F32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    Buffers = dict[str, Tensor]


@dataclass(frozen=True)
class Schedule(Component, ABC):
    """What the step size is multiplied by in each round. Rounds count from 1, where every factor is 1."""

    @abstractmethod
    def factor(self, round: int) -> float:
        """The multiplier of the step size in `round`."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same step size in all rounds."""

    name: ClassVar[str] = "constant"

    def factor(self, round: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Step(Schedule):
    """Multiply by `gamma` after every `every` rounds."""

    name: ClassVar[str] = "step"

    every: Count = 30
    gamma: Share = 0.1

    def factor(self, round: int) -> float:
        return float(self.gamma ** ((round - 1) // self.every))


@dataclass(frozen=True)
class Exponential(Schedule):
    """Multiply by `gamma` after every round."""

    name: ClassVar[str] = "exponential"

    gamma: Share = 0.99

    def factor(self, round: int) -> float:
        return float(self.gamma ** (round - 1))


SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    Schedule,
    {
        "constant": "fedsgd.optim:Constant",
        "step": "fedsgd.optim:Step",
        "exponential": "fedsgd.optim:Exponential",
    },
)


class Increment(NamedTuple):
    """The step alpha · direction, not yet multiplied out: w.add_(direction, alpha=alpha) then rounds once, as torch.optim does.

    direction: [P], a buffer or the gradient itself, valid until the next step.
    """

    direction: Tensor
    alpha: float


@dataclass(frozen=True)
class Optimizer(Component, ABC):
    """A rule that turns a gradient into a step. Subclasses are final and only state their recurrence.

    lr: step size η before the schedule; clip_norm: g ← g · min(1, clip_norm/|g|) over the whole vector, before all else;
    weight_decay: g ← g + weight_decay · w, as in torch.optim.SGD.
    """

    lr: Positive = 0.1
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None
    schedule: Schedule = Constant()

    def rate(self, round: int) -> float:
        """η in `round`."""
        return self.lr * self.schedule.factor(round)

    def init(self, w: Tensor) -> Buffers:
        """Zero buffers for parameters w [P]."""
        return {}

    def step(self, w: Tensor, g: Tensor, buffers: Buffers, lr: float) -> Increment:
        """The step at w [P] for gradient g [P]. Writes to g and to the buffers, never to w: adding it is the caller's."""
        if self.clip_norm is not None:
            norm = float(g.norm())
            if norm > self.clip_norm:
                g.mul_(self.clip_norm / norm)
        if self.weight_decay:
            g.add_(w, alpha=self.weight_decay)
        return self.recurrence(g, buffers, lr)

    @abstractmethod
    def recurrence(self, g: Tensor, buffers: Buffers, lr: float) -> Increment:
        """The rule itself, for a gradient that is already clipped and decayed."""


@dataclass(frozen=True)
class SGD(Optimizer):
    """Vanilla SGD: w ← w − ηg."""

    name: ClassVar[str] = "sgd"

    def recurrence(self, g: Tensor, buffers: Buffers, lr: float) -> Increment:
        return Increment(g, -lr)


@dataclass(frozen=True)
class WithVelocity(Optimizer):
    """What the three momentum rules share: β and a velocity that starts at zero."""

    momentum: Coefficient = 0.9

    def init(self, w: Tensor) -> Buffers:
        return {"velocity": w.new_zeros(w.shape)}


@dataclass(frozen=True)
class Momentum(WithVelocity):
    """Momentum whose velocity holds the step: v ← βv − ηg; w ← w + v."""

    name: ClassVar[str] = "momentum"

    def recurrence(self, g: Tensor, buffers: Buffers, lr: float) -> Increment:
        return Increment(buffers["velocity"].mul_(self.momentum).add_(g, alpha=-lr), 1.0)


@dataclass(frozen=True)
class PyTorchMomentum(WithVelocity):
    """Momentum as torch.optim.SGD has it, the velocity holds gradients: v ← βv + g; w ← w − ηv."""

    name: ClassVar[str] = "momentum-pytorch"

    def recurrence(self, g: Tensor, buffers: Buffers, lr: float) -> Increment:
        return Increment(buffers["velocity"].mul_(self.momentum).add_(g), -lr)


@dataclass(frozen=True)
class Nesterov(WithVelocity):
    """Nesterov momentum as torch.optim.SGD has it: v ← βv + g; w ← w − η(g + βv)."""

    name: ClassVar[str] = "nesterov"

    def recurrence(self, g: Tensor, buffers: Buffers, lr: float) -> Increment:
        velocity = buffers["velocity"].mul_(self.momentum).add_(g)
        return Increment(g.add_(velocity, alpha=self.momentum), -lr)


OPTIMIZERS: Registry[Optimizer] = Registry(
    "optimizer",
    Optimizer,
    {
        "sgd": "fedsgd.optim:SGD",
        "momentum": "fedsgd.optim:Momentum",
        "momentum-pytorch": "fedsgd.optim:PyTorchMomentum",
        "nesterov": "fedsgd.optim:Nesterov",
    },
)


def server_step(
    optimizer: Optimizer, weights: F32, update: F32, state: Mapping[str, F32], round: int
) -> tuple[F32, dict[str, F32]]:
    """(next weights [P], next state): one step of `optimizer` on the pseudo-gradient −update. Nothing is written to.

    With "sgd" and lr = 1 this is weights + update, so the weighted mean of the clients' models: FedAvg.
    """
    import torch

    from fedsgd.torch_scope import one_thread

    with one_thread():
        w = torch.from_numpy(weights.copy())
        buffers = {name: torch.from_numpy(value.copy()) for name, value in state.items()} or optimizer.init(w)
        direction, alpha = optimizer.step(w, torch.from_numpy(np.negative(update)), buffers, optimizer.rate(round))
        w.add_(direction, alpha=alpha)
    return w.numpy(), {name: value.numpy() for name, value in buffers.items()}
