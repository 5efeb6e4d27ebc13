"""Adaptive server optimizers: Reddi et al., "Adaptive federated optimization", ICLR 2021, algorithm 2.

Δ is the cohort's mean update, τ the adaptivity, x the model. All products and roots are by coordinate.

    m ← β₁m + (1 − β₁)Δ                            initially m = 0
    v ← v + Δ²                                      fedadagrad
    v ← β₂v + (1 − β₂)Δ²                            fedadam
    v ← v − (1 − β₂)Δ² sign(v − Δ²)                 fedyogi      initially v = τ², for all three
    x ← x + η m/(√v + τ)

The paper requires an initial v ≥ τ² and has no bias correction. Flower's FedAdam is a different rule (flwr 1.41): its v
starts at 0, and Flower corrects η for the bias of both moments.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsgd.config.component import FractionBelowOne, PositiveFloat
from fedsgd.optim.base import Optimizer, ScaledStep

if TYPE_CHECKING:
    from torch import Tensor

    from fedsgd.optim.base import Buffers


@dataclass(frozen=True)
class AdaptiveServerOptimizer(Optimizer):
    """Base class of the adaptive rules: first moment, division and initial values. Subclasses define the update of v.

    Attributes:
        lr: learning rate η of the server before the schedule.
        beta1: β₁, decay of the first moment m.
        tau: τ, adaptivity: added to √v in the division; its square is the initial v.
    """

    server_only: ClassVar[bool] = True

    lr: PositiveFloat = 0.01
    beta1: FractionBelowOne = 0.9
    tau: PositiveFloat = 1e-3

    def init(self, w: Tensor) -> Buffers:
        return {"first_moment": w.new_zeros(w.shape), "second_moment": w.new_full(w.shape, self.tau**2)}

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        m = buffers["first_moment"].mul_(self.beta1).add_(g, alpha=1 - self.beta1)
        v = buffers["second_moment"]
        self.accumulate(v, g.square())
        return ScaledStep(m / v.sqrt().add_(self.tau), -lr)

    @abstractmethod
    def accumulate(self, v: Tensor, squared_gradient: Tensor) -> None:
        """Update the second moment in place.

        Args:
            v: [P] float32, second moment; overwritten.
            squared_gradient: [P] float32, Δ².
        """


@dataclass(frozen=True)
class FedAdagrad(AdaptiveServerOptimizer):
    """FedAdagrad, for the server: v ← v + Δ²; x ← x + ηm/(√v + τ). No bias correction; v starts at τ².

    Attributes:
        beta1: β₁, decay of the first moment m; 0 by default, as Adagrad has no momentum: m = Δ.
    """

    name: ClassVar[str] = "fedadagrad"

    beta1: FractionBelowOne = 0.0

    def accumulate(self, v: Tensor, squared_gradient: Tensor) -> None:
        v.add_(squared_gradient)


@dataclass(frozen=True)
class FedAdam(AdaptiveServerOptimizer):
    """FedAdam, for the server: v ← β₂v + (1 − β₂)Δ²; x ← x + ηm/(√v + τ). No bias correction; v starts at τ².

    Attributes:
        beta2: β₂, decay of the second moment v.
    """

    name: ClassVar[str] = "fedadam"

    beta2: FractionBelowOne = 0.99

    def accumulate(self, v: Tensor, squared_gradient: Tensor) -> None:
        v.mul_(self.beta2).add_(squared_gradient, alpha=1 - self.beta2)


@dataclass(frozen=True)
class FedYogi(AdaptiveServerOptimizer):
    """FedYogi, for the server: v ← v − (1 − β₂)Δ² sign(v − Δ²); x ← x + ηm/(√v + τ). No bias correction; v starts at τ².

    Attributes:
        beta2: β₂; v changes by (1 − β₂)Δ², up or down by the sign of v − Δ².
    """

    name: ClassVar[str] = "fedyogi"

    beta2: FractionBelowOne = 0.99

    def accumulate(self, v: Tensor, squared_gradient: Tensor) -> None:
        v.addcmul_(squared_gradient, (v - squared_gradient).sign(), value=self.beta2 - 1)
