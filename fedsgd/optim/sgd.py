"""SGD, momentum in the two conventions that are often confused, Nesterov momentum, and DiLoCo's outer step.

The docstring of `fedsgd.optim` compares their update rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsgd.config.component import FractionBelowOne, PositiveFloat
from fedsgd.optim.base import Optimizer, ScaledStep

if TYPE_CHECKING:
    from torch import Tensor

    from fedsgd.optim.base import Buffers


@dataclass(frozen=True)
class SGD(Optimizer):
    """Vanilla SGD: w ← w − ηg."""

    name: ClassVar[str] = "sgd"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return ScaledStep(g, -lr)


@dataclass(frozen=True)
class MomentumOptimizer(Optimizer):
    """Base class of the momentum rules: β and a velocity that starts at zero.

    Attributes:
        momentum: β in [0, 1), decay of the velocity.
    """

    momentum: FractionBelowOne = 0.9

    def init(self, w: Tensor) -> Buffers:
        return {"velocity": w.new_zeros(w.shape)}


@dataclass(frozen=True)
class Momentum(MomentumOptimizer):
    """Momentum with a velocity of steps: v ← βv − ηg; w ← w + v (Polyak 1964; Sutskever et al. 2013)."""

    name: ClassVar[str] = "momentum"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return ScaledStep(buffers["velocity"].mul_(self.momentum).add_(g, alpha=-lr), 1.0)


@dataclass(frozen=True)
class PyTorchMomentum(MomentumOptimizer):
    """Momentum of torch.optim.SGD with a velocity of gradients: v ← βv + g; w ← w − ηv."""

    name: ClassVar[str] = "momentum-pytorch"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return ScaledStep(buffers["velocity"].mul_(self.momentum).add_(g), -lr)


@dataclass(frozen=True)
class Nesterov(MomentumOptimizer):
    """Nesterov momentum of torch.optim.SGD: v ← βv + g; w ← w − η(g + βv)."""

    name: ClassVar[str] = "nesterov"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        velocity = buffers["velocity"].mul_(self.momentum).add_(g)
        return ScaledStep(g.add_(velocity, alpha=self.momentum), -lr)


@dataclass(frozen=True)
class DiLoCo(Nesterov):
    """Outer step of DiLoCo, for the server: Nesterov momentum of torch.optim.SGD on the clients' mean drift.

    Douillard et al. 2023 (arXiv 2311.08105), algorithm 1, with the paper's lr = 0.7 and momentum = 0.9. The outer gradient is
    the mean of w_received − w_local with equal weights: `server.weighting = "uniform"`. In the paper, clients make 500 steps of
    "adamw" in a round and keep their states: `client.velocity = "carry"`.

    Attributes:
        lr: outer learning rate η before the schedule.
    """

    name: ClassVar[str] = "diloco"
    server_only: ClassVar[bool] = True

    lr: PositiveFloat = 0.7
