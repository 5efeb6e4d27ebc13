"""SGD, momentum in the two conventions that are often confused, and Nesterov momentum.

The docstring of `fedsgd.optim` compares their update rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsgd.config.component import FractionBelowOne
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
