"""Learning-rate schedules: factors of the learning rate at time t = 1, 2, ..., in rounds or in local steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from fedsgd.config.component import ClosedFraction, Component, FractionAboveZero, PositiveInt
from fedsgd.config.registry import Registry


@dataclass(frozen=True)
class Schedule(Component, ABC):
    """Factor in [0, 1] of the learning rate at time t. The optimizer's `schedule_over` sets the unit of t.

    >>> [WarmUpSchedule(length=4, then=ExponentialSchedule(gamma=0.5)).factor(t) for t in range(1, 7)]
    [0.25, 0.5, 0.75, 1.0, 0.5, 0.25]
    """

    @abstractmethod
    def factor(self, t: int) -> float:
        """Return the factor at a time.

        Args:
            t: time from 1, in rounds or local steps.
        """

    @property
    def end(self) -> int | None:
        """Last time before the factor stays at its final value; None if there is no such time, or if it is unknown."""
        return None


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """Constant learning rate: factor 1."""

    name: ClassVar[str] = "constant"

    def factor(self, t: int) -> float:
        return 1.0


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """Factor that is multiplied by `gamma` after every `every` rounds (or steps): gamma^⌊(t − 1)/every⌋.

    Attributes:
        every: rounds or local steps between two changes.
        gamma: factor of each change, in (0, 1].
    """

    name: ClassVar[str] = "step"

    every: PositiveInt = 30
    gamma: FractionAboveZero = 0.1

    def factor(self, t: int) -> float:
        return float(self.gamma ** ((t - 1) // self.every))


@dataclass(frozen=True)
class ExponentialSchedule(Schedule):
    """Factor that is multiplied by `gamma` after every round (or step): gamma^(t − 1).

    Attributes:
        gamma: factor of each change, in (0, 1].
    """

    name: ClassVar[str] = "exponential"

    gamma: FractionAboveZero = 0.99

    def factor(self, t: int) -> float:
        return float(self.gamma ** (t - 1))


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Factor that falls along half a cosine from 1 to `floor` in `length` rounds (or steps), and stays there.

    floor + (1 − floor)(1 + cos(π(t − 1)/length))/2: Loshchilov and Hutter 2017, equation 5, without restarts.

    Attributes:
        length: rounds or local steps until the floor is reached.
        floor: smallest factor, in [0, 1].
    """

    name: ClassVar[str] = "cosine"

    length: PositiveInt = 100
    floor: ClosedFraction = 0.0

    def factor(self, t: int) -> float:
        progress = min(t - 1, self.length) / self.length
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2

    @property
    def end(self) -> int | None:
        return self.length


@dataclass(frozen=True)
class InverseSqrtSchedule(Schedule):
    """Factor 1/√t, the classical rate of SGD on convex losses (Zinkevich 2003)."""

    name: ClassVar[str] = "inverse-sqrt"

    def factor(self, t: int) -> float:
        return 1 / math.sqrt(t)


@dataclass(frozen=True)
class WarmUpSchedule(Schedule):
    """Factor that rises linearly as t/`length` for `length` rounds (or steps), and then follows the schedule `then`.

    Gradual warm-up: Goyal et al. 2017, section 2.2. Time 1 of `then` is time `length`, where the rise would reach 1.

    Attributes:
        length: rounds or local steps of the rise.
        then: schedule after the rise.
    """

    name: ClassVar[str] = "warm-up"

    length: PositiveInt = 5
    then: Schedule = ConstantSchedule()

    def factor(self, t: int) -> float:
        return t / self.length if t < self.length else self.then.factor(t - self.length + 1)

    @property
    def end(self) -> int | None:
        return None if self.then.end is None else self.length - 1 + self.then.end


SCHEDULES: Registry[type[Schedule]] = Registry(
    "schedule",
    Schedule,
    {
        "constant": "fedsgd.optim.schedules:ConstantSchedule",
        "step": "fedsgd.optim.schedules:StepSchedule",
        "exponential": "fedsgd.optim.schedules:ExponentialSchedule",
        "cosine": "fedsgd.optim.schedules:CosineSchedule",
        "inverse-sqrt": "fedsgd.optim.schedules:InverseSqrtSchedule",
        "warm-up": "fedsgd.optim.schedules:WarmUpSchedule",
    },
)
register = SCHEDULES.register

__all__ = [
    "SCHEDULES",
    "ConstantSchedule",
    "CosineSchedule",
    "ExponentialSchedule",
    "InverseSqrtSchedule",
    "Schedule",
    "StepSchedule",
    "WarmUpSchedule",
    "register",
]
