"""What an optimiser is: a gradient and a memory in, a step out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np

from fedsgd.config.component import Component, NonNegativeFloat, PositiveFloat
from fedsgd.numerics.arrays import F32
from fedsgd.optim.schedules import ConstantSchedule, Schedule
from fedsgd.system.torch_threads import use_single_thread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    Buffers = dict[str, Tensor]


class ScaledStep(NamedTuple):
    """The step alpha · direction, not yet multiplied out: w.add_(direction, alpha=alpha) then rounds once, as torch.optim does.

    direction: [P], a buffer or the gradient itself, valid until the next step.
    """

    direction: Tensor
    alpha: float


@dataclass(frozen=True)
class Optimizer(Component, ABC):
    """A rule that turns a gradient into a step. Subclasses are final and only state their recurrence.

    lr: step size η before the schedule; clip_norm: g ← g · min(1, clip_norm/|g|) over the whole vector, before all else;
    weight_decay: g ← g + weight_decay · w, as in torch.optim.SGD. schedule: what multiplies η as time goes by, and
    schedule_over: what is time: "rounds"; "steps", all local steps of the client had it taken part in every round so far; or
    "local-steps", which begin anew in each round. On the server a round is one step.
    """

    server_only: ClassVar[bool] = False

    lr: PositiveFloat = 0.1
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = None
    schedule: Schedule = ConstantSchedule()
    schedule_over: Literal["rounds", "steps", "local-steps"] = "rounds"

    def learning_rate(self, round: int, step: int = 1, n_steps: int = 1) -> float:
        """η in local step `step` of the `n_steps` that the client makes in `round`; all count from 1."""
        times = {"rounds": round, "steps": (round - 1) * n_steps + step, "local-steps": step}
        return self.lr * self.schedule.factor(times[self.schedule_over])

    def init(self, w: Tensor) -> Buffers:
        """Zero buffers for parameters w [P]."""
        return {}

    def step(self, w: Tensor, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        """The step at w [P] for gradient g [P]. Writes to g and to the buffers, never to w: adding it is the caller's."""
        self.clip(g)
        return self.step_after_clipping(w, g, buffers, lr)

    def clip(self, g: Tensor) -> None:
        """Clip a gradient [P] in place."""
        if self.clip_norm is not None:
            norm = float(g.norm())
            if norm > self.clip_norm:
                g.mul_(self.clip_norm / norm)

    def step_after_clipping(self, w: Tensor, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        """The same for a gradient that is clipped already. Coordinate by coordinate, so w and g may have any shape."""
        if self.weight_decay:
            g.add_(w, alpha=self.weight_decay)
        return self.update_rule(g, buffers, lr)

    @abstractmethod
    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        """The rule itself, for a gradient that is already clipped and decayed."""


def compute_server_step(
    optimizer: Optimizer, weights: F32, update: F32, state: Mapping[str, F32], round: int
) -> tuple[F32, F32, dict[str, F32]]:
    """(next weights [P], the step that led there [P], next state): one step of `server_optimizer` on the pseudo-gradient
    −update.
    Nothing is written to.

    With "sgd" and lr = 1 this is weights + update, so the weighted mean of the clients' models: FedAvg.
    """
    import torch

    with use_single_thread():
        w = torch.from_numpy(weights.copy())
        buffers = {name: torch.from_numpy(value.copy()) for name, value in state.items()} or optimizer.init(w)
        direction, alpha = optimizer.step(w, torch.from_numpy(np.negative(update)), buffers, optimizer.learning_rate(round))
        w.add_(direction, alpha=alpha)
        step = direction * alpha
    return w.numpy(), step.numpy(), {name: value.numpy() for name, value in buffers.items()}
