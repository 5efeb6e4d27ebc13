"""Base class of optimizers, which turn a gradient and buffers into a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fedsgd.config.component import Component, NonNegativeFloat, PositiveFloat
from fedsgd.optim.schedules import ConstantSchedule, Schedule

if TYPE_CHECKING:
    from torch import Tensor

    Buffers = dict[str, Tensor]

STEP_COUNT = "steps"
"""Name of a buffer that counts the steps of each coordinate. Stored states in bfloat16 do not round it."""


@dataclass(eq=False, slots=True)
class ScaledStep:
    """Step w ← decay · w + alpha · direction as factors, so that `add_to` rounds as torch.optim does.

    A step without decay unpacks to direction and alpha. A step with decay does not, because these two would omit the decay.

        >>> import torch
        >>> w = torch.ones(2)
        >>> ScaledStep(torch.tensor([1.0, 2.0]), -0.25, decay=0.5).add_to(w)
        >>> w.tolist()
        [0.25, 0.0]

    Attributes:
        direction: [P] float32; it may be a buffer or the gradient itself, so it is valid until the next step.
        alpha: factor of the direction, mostly −η.
        decay: factor of w, 1 − ηλ under decoupled weight decay; 1.0 for none.
        fixed_slices: slices of w without decay: parameters that the batch does not use.
    """

    direction: Tensor
    alpha: float
    decay: float = 1.0
    fixed_slices: Sequence[slice] = ()

    def __iter__(self) -> Iterator[Any]:
        """Iterate over direction and alpha.

        Raises:
            ValueError: the step has a decay.
        """
        if self.decay != 1.0:
            raise ValueError(f"the step has a decay of {self.decay:g} besides direction and alpha; use its method add_to(w)")
        return iter((self.direction, self.alpha))

    def add_to(self, w: Tensor) -> None:
        """Make the step: w ← decay · w + alpha · direction, in place.

        Args:
            w: [P] float32, parameters; overwritten.
        """
        if self.decay != 1.0:
            fixed_parts = [(w[part], w[part].clone()) for part in self.fixed_slices]
            w.mul_(self.decay)
            for part, copy in fixed_parts:
                part.copy_(copy)
        w.add_(self.direction, alpha=self.alpha)

    def compute_difference(self, w: Tensor) -> Tensor:
        """Return the difference that the step makes at w, (decay − 1) · w + alpha · direction, in a new tensor.

        Args:
            w: [P] float32, parameters before the step; not written to.
        """
        difference = self.direction * self.alpha
        if self.decay != 1.0:
            difference.add_(w, alpha=self.decay - 1.0)
            for part in self.fixed_slices:
                difference[part] = 0
        return difference


@dataclass(frozen=True)
class Optimizer(Component, ABC):
    """Rule that turns a gradient into a step. Subclasses override only `init` and `update_rule`.

    The gradient is clipped, then weight decay is added, then the rule is applied. On the server, a round is one step. With
    `decouples_weight_decay`, w is multiplied by 1 − η · weight_decay instead (Loshchilov and Hutter 2019).

    Laws, which `fedsgd.testing.check_optimizer` checks:

    * The rule is elementwise: the step of a coordinate depends on the gradients and the parameter of this coordinate alone.
    * All state is in the buffers, which have the shape and type of w and are updated in place.
    * The first step is against the gradient and proportional to η. Zero parameters and gradients stay zero.

        >>> import torch
        >>> from fedsgd.optim import SGD
        >>> optimizer, w, g = SGD(lr=0.5, clip_norm=1.0), torch.zeros(2), torch.tensor([3.0, 4.0])
        >>> direction, alpha = optimizer.step(w, g, optimizer.init(w), optimizer.learning_rate(round=1))
        >>> (alpha * direction).tolist()
        [-0.30000001192092896, -0.4000000059604645]

    Attributes:
        server_only: True if clients cannot use the rule.
        decouples_weight_decay: True for weight decay of w instead of the gradient.
        lr: learning rate η before the schedule.
        weight_decay: g ← g + weight_decay · w, as in torch.optim.SGD.
        clip_norm: g ← g · min(1, clip_norm/|g|) over the whole vector, before weight decay; None: no clipping.
        schedule: factor of η at time t.
        schedule_over: unit of t. "rounds"; "steps": local steps of a client that takes part in every round;
            "local-steps": local steps since the start of the round.
    """

    server_only: ClassVar[bool] = False
    decouples_weight_decay: ClassVar[bool] = False

    lr: PositiveFloat = 0.1
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = None
    schedule: Schedule = ConstantSchedule()
    schedule_over: Literal["rounds", "steps", "local-steps"] = "rounds"

    def learning_rate(self, round: int, step: int = 1, n_steps: int = 1) -> float:
        """Return η of a local step after the schedule.

        Args:
            round: number of the round, from 1.
            step: number of the local step in the round, from 1.
            n_steps: local steps of the client in the round.
        """
        times = {"rounds": round, "steps": (round - 1) * n_steps + step, "local-steps": step}
        return self.lr * self.schedule.factor(times[self.schedule_over])

    @property
    def has_state(self) -> bool:
        """True if the class defines `init`, so that clients can carry buffers from round to round."""
        return type(self).init is not Optimizer.init

    def init(self, w: Tensor) -> Buffers:
        """Return the rule's initial buffers by name; none for a rule without state.

        Args:
            w: parameters, [P] float32 or any other shape, which the buffers have too.
        """
        return {}

    def step(self, w: Tensor, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        """Return the step; the caller makes it by `ScaledStep.add_to`.

        Args:
            w: [P] float32, parameters; not written to.
            g: [P] float32, gradient; overwritten.
            buffers: the rule's state as `init` returns it, each [P]; updated in place.
            lr: η after the schedule.
        """
        self.clip(g)
        return self.step_after_clipping(w, g, buffers, lr)

    def clip(self, g: Tensor) -> None:
        """Scale a gradient in place to a norm of at most `clip_norm`.

        Args:
            g: [P] float32, the whole gradient.
        """
        if self.clip_norm is not None:
            norm = float(g.norm())
            if norm > self.clip_norm:
                g.mul_(self.clip_norm / norm)

    def step_after_clipping(self, w: Tensor, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        """Return the step for a clipped gradient.

        Args:
            w: parameters of any shape, because the rule is elementwise; not written to.
            g: clipped gradient, in the shape of w; overwritten.
            buffers: the rule's state, each in the shape of w; updated in place.
            lr: η after the schedule.
        """
        if self.weight_decay and not self.decouples_weight_decay:
            g.add_(w, alpha=self.weight_decay)
        step = self.update_rule(g, buffers, lr)
        if self.weight_decay and self.decouples_weight_decay:
            return ScaledStep(step.direction, step.alpha, 1 - lr * self.weight_decay)
        return step

    @abstractmethod
    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        """Return the step for a gradient after clipping and weight decay.

        The caller adds alpha · direction of the ScaledStep(direction, alpha) to the parameters: w ← w + alpha · direction.
        So a step against the gradient has a negative alpha, or a direction against the gradient. Plain SGD, w ← w − ηg:

            def update_rule(self, g, buffers, lr):
                return ScaledStep(g, -lr)

        Args:
            g: gradient of any shape; may be overwritten.
            buffers: the rule's state, each in the shape of g; updated in place.
            lr: η after the schedule.

        Returns:
            Direction in the shape of g, and the number alpha.
        """
