"""Base class of duration models, and the log-normal model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from fedsgd.config.component import Component, FieldError, NonNegativeFloat
from fedsgd.numerics.rng import derive_generator


@dataclass(frozen=True)
class DurationModel(Component, ABC):
    """Base class of duration models. A duration is the simulated time that a client takes to reply.

    Law: a duration is finite and at least 0, and does not decrease with the number of steps. It depends only on the arguments
    and the model's settings.

    >>> model = LogNormalDurations(fixed=1.0, per_step=0.5, spread=0.0)
    >>> model.reply_seconds(seed=0, round=1, client=3, steps=10)
    6.0
    """

    @abstractmethod
    def reply_seconds(self, seed: int, round: int, client: int, steps: int) -> float:
        """Return the simulated seconds from sending the message to receiving the client's reply.

        Args:
            seed: seed of the scenario.
            round: round of the message, from 1.
            client: number of the client, from 0.
            steps: local steps of the client in the round.
        """


@dataclass(frozen=True)
class LogNormalDurations(DurationModel):
    """Log-normal duration: `fixed` seconds and `per_step` more for each local step, times two random factors.

        (fixed + per_step · steps) · exp(spread · z_client + jitter · z_client,round), z standard normal

    The median client takes `fixed` + `per_step` · steps. With `spread` = 0.5, two thirds of the clients are within a factor of
    1.65 of the median. With a deadline, clients in the tail of the distribution become stragglers.

    Attributes:
        fixed: seconds of a reply without local steps.
        per_step: seconds of a local step.
        spread: standard deviation of the logarithm of a client's constant factor.
        jitter: standard deviation of the logarithm of the factor that changes from round to round.
    """

    name: ClassVar[str] = "log-normal"

    fixed: NonNegativeFloat = 0.0
    per_step: NonNegativeFloat = 1.0
    spread: NonNegativeFloat = 0.5
    jitter: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fixed and not self.per_step:
            problem = "got 0 for both fixed and per_step, expected at least one above 0: all replies would take 0 seconds"
            raise FieldError(self.name, "per_step", problem)

    def reply_seconds(self, seed: int, round: int, client: int, steps: int) -> float:
        exponent = self.spread * derive_generator(seed, "speed", client).standard_normal()
        if self.jitter:
            exponent += self.jitter * derive_generator(seed, "speed", client, round).standard_normal()
        try:
            seconds = (self.fixed + self.per_step * steps) * math.exp(exponent)
        except OverflowError:
            seconds = math.inf
        if not math.isfinite(seconds):
            remedy = "reduce spread, jitter, fixed or per_step"
            problem = f"got {self.spread}, with which the duration of client {client} overflows; {remedy}"
            raise FieldError(self.name, "spread", problem)
        return seconds
