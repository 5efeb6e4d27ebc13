"""Adam and AdamW with the rounding of torch.optim (Kingma and Ba 2015; Loshchilov and Hutter 2019).

t counts the steps of a coordinate from 1. All products and roots are by coordinate.

    g ← g + λw                                      adam, with weight decay λ > 0
    w ← (1 − ηλ) w                                  adamw
    m ← β₁m + (1 − β₁)g                             initially m = 0
    v ← β₂v + (1 − β₂)g²                            initially v = 0
    w ← w − η/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε)

Both corrections are computed in float64 from the count t, as in torch. The count is a buffer [P] like m and v, because
parameters that a batch does not use make no step, so that counts may differ between coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsgd.config.component import FractionBelowOne, NonNegativeFloat, PositiveFloat
from fedsgd.optim.base import STEP_COUNT, Optimizer, ScaledStep

if TYPE_CHECKING:
    from torch import Tensor

    from fedsgd.optim.base import Buffers


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam of torch.optim: w ← w − η m̂/(√v̂ + ε), with m̂ and v̂ corrected for their start at 0 (Kingma and Ba 2015).

    The first step of a coordinate is −η sign(g): Adam does not depend on the scale of the gradients. A client's state restarts
    in each round unless `client.velocity` is "carry", and then takes three vectors of the model's size.

    Attributes:
        lr: learning rate η before the schedule.
        beta1: β₁, decay of the first moment m.
        beta2: β₂, decay of the second moment v.
        eps: ε, added to √v̂ in the division.
    """

    name: ClassVar[str] = "adam"

    lr: PositiveFloat = 1e-3
    beta1: FractionBelowOne = 0.9
    beta2: FractionBelowOne = 0.999
    eps: PositiveFloat = 1e-8

    def init(self, w: Tensor) -> Buffers:
        return {name: w.new_zeros(w.shape) for name in ("first_moment", "second_moment", STEP_COUNT)}

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        m = buffers["first_moment"].lerp_(g, 1 - self.beta1)
        v = buffers["second_moment"].mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        factor, root = self._compute_corrections(buffers[STEP_COUNT].add_(1), lr)
        return ScaledStep((m * factor).div_((v.sqrt() / root).add_(self.eps)), 1.0)

    def _compute_corrections(self, counts: Tensor, lr: float) -> tuple[float | Tensor, float | Tensor]:
        """Return −η/(1 − β₁ᵗ) and √(1 − β₂ᵗ): numbers if all coordinates have the same count t, else tensors of all counts."""
        import torch

        lowest, highest = (float(count) for count in counts.aminmax())
        if lowest == highest:
            return self._correct_bias(lowest, lr)
        run_counts, indices = torch.unique_consecutive(counts, return_inverse=True)
        pairs = [self._correct_bias(count, lr) for count in run_counts.tolist()]
        factors, roots = (counts.new_tensor(values)[indices] for values in zip(*pairs, strict=True))
        return factors, roots

    def _correct_bias(self, count: float, lr: float) -> tuple[float, float]:
        return -(lr / (1 - self.beta1**count)), math.sqrt(1 - self.beta2**count)


@dataclass(frozen=True)
class AdamW(Adam):
    """AdamW of torch.optim: Adam with decoupled weight decay, w ← (1 − ηλ) w − η m̂/(√v̂ + ε) (Loshchilov and Hutter 2019).

    The decay does not pass through the moments. It is proportional to η, as in torch.

    Attributes:
        weight_decay: λ, decoupled weight decay.
    """

    name: ClassVar[str] = "adamw"
    decouples_weight_decay: ClassVar[bool] = True

    weight_decay: NonNegativeFloat = 0.01
