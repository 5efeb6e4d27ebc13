"""Step-size schedules: what the step size is multiplied by at time t = 1, 2, ..., in rounds or in local steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from fedsgd.config.component import ClosedFraction, Component, FractionAboveZero, PositiveInt


@dataclass(frozen=True)
class Schedule(Component, ABC):
    """A factor in [0, 1] on the step size. The optimiser's `schedule_over` says what t counts."""

    @abstractmethod
    def factor(self, t: int) -> float:
        """The multiplier at time t, which counts from 1."""


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """The same step size all the time."""

    name: ClassVar[str] = "constant"

    def factor(self, t: int) -> float:
        return 1.0


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """Multiply by `gamma` after every `convert_all` rounds (or steps)."""

    name: ClassVar[str] = "step"

    every: PositiveInt = 30
    gamma: FractionAboveZero = 0.1

    def factor(self, t: int) -> float:
        return float(self.gamma ** ((t - 1) // self.every))


@dataclass(frozen=True)
class ExponentialSchedule(Schedule):
    """Multiply by `gamma` after every round (or step)."""

    name: ClassVar[str] = "exponential"

    gamma: FractionAboveZero = 0.99

    def factor(self, t: int) -> float:
        return float(self.gamma ** (t - 1))


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Half a cosine from 1 down to `floor`, which is reached after `length` rounds (or steps) and kept from there on.

    floor + (1 − floor)(1 + cos(π(t − 1)/length))/2: Loshchilov and Hutter 2017, equation 5, without restarts.
    """

    name: ClassVar[str] = "cosine"

    length: PositiveInt = 100
    floor: ClosedFraction = 0.0

    def factor(self, t: int) -> float:
        way = min(t - 1, self.length) / self.length
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * way)) / 2


@dataclass(frozen=True)
class InverseSqrtSchedule(Schedule):
    """1/√t, the classical rate of SGD on convex losses (Zinkevich 2003)."""

    name: ClassVar[str] = "inverse-sqrt"

    def factor(self, t: int) -> float:
        return 1 / math.sqrt(t)


@dataclass(frozen=True)
class WarmUpSchedule(Schedule):
    """Rise linearly, t/`length`, for `length` rounds (or steps); the schedule `then` begins where the top is reached.

    Gradual warm-up: Goyal et al. 2017, section 2.2.
    """

    name: ClassVar[str] = "warm-up"

    length: PositiveInt = 5
    then: Schedule = ConstantSchedule()

    def factor(self, t: int) -> float:
        return t / self.length if t < self.length else self.then.factor(t - self.length + 1)
