"""SGD: vanilla, momentum in the two conventions that are often confused, Nesterov. The recurrences stand side by side in
`fedsgd.optim`."""

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
    """What the three momentum rules share: β and a velocity that starts at zero."""

    momentum: FractionBelowOne = 0.9

    def init(self, w: Tensor) -> Buffers:
        return {"velocity": w.new_zeros(w.shape)}


@dataclass(frozen=True)
class Momentum(MomentumOptimizer):
    """Momentum whose velocity holds the step: v ← βv − ηg; w ← w + v."""

    name: ClassVar[str] = "momentum"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return ScaledStep(buffers["velocity"].mul_(self.momentum).add_(g, alpha=-lr), 1.0)


@dataclass(frozen=True)
class PyTorchMomentum(MomentumOptimizer):
    """Momentum as torch.optim.SGD has it, the velocity holds gradients: v ← βv + g; w ← w − ηv."""

    name: ClassVar[str] = "momentum-pytorch"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return ScaledStep(buffers["velocity"].mul_(self.momentum).add_(g), -lr)


@dataclass(frozen=True)
class Nesterov(MomentumOptimizer):
    """Nesterov momentum as torch.optim.SGD has it: v ← βv + g; w ← w − η(g + βv)."""

    name: ClassVar[str] = "nesterov"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        velocity = buffers["velocity"].mul_(self.momentum).add_(g)
        return ScaledStep(g.add_(velocity, alpha=self.momentum), -lr)
