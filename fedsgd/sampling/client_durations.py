"""How long clients take: the contract of duration models."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from fedsgd.config.component import Component, FieldError, NonNegativeFloat
from fedsgd.numerics.rng import derive_generator


@dataclass(frozen=True)
class DurationModel(Component, ABC):
    """A model of how long a client takes, in simulated seconds; nobody's clock is read.

    Laws: finite and at least 0; the result depends on the arguments alone; more steps never take less.
    """

    @abstractmethod
    def reply_seconds(self, seed: int, round: int, client: int, steps: int) -> float:
        """From when a client is sent the message of a round to when its reply is there. steps: its local steps in it."""


@dataclass(frozen=True)
class LogNormalDurations(DurationModel):
    """`fixed` seconds and `per_step` more a local step, times a log-normal factor of the client's and one of the round's.

    (fixed + per_step · steps) · exp(spread · z_client + jitter · z_client,round), z standard normal: `spread` is how much
    clients differ for good, `jitter` how much one differs from round to round. The median client takes what `fixed` and
    `per_step` say; with spread = 0.5 two thirds are within a factor 1.65 of it. A log-normal's tail makes the stragglers.
    """

    name: ClassVar[str] = "log-normal"

    fixed: NonNegativeFloat = 0.0
    per_step: NonNegativeFloat = 1.0
    spread: NonNegativeFloat = 0.5
    jitter: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fixed and not self.per_step:
            raise FieldError(
                self.name, "per_step", "got 0 for both fixed and per_step, expected one above 0: nobody takes no time"
            )

    def reply_seconds(self, seed: int, round: int, client: int, steps: int) -> float:
        exponent = self.spread * derive_generator(seed, "speed", client).standard_normal()
        if self.jitter:
            exponent += self.jitter * derive_generator(seed, "speed", client, round).standard_normal()
        try:
            seconds = (self.fixed + self.per_step * steps) * math.exp(exponent)
        except OverflowError:
            seconds = math.inf
        if not math.isfinite(seconds):
            problem = f"got {self.spread}, with which client {client} takes longer than floats can hold"
            raise FieldError(self.name, "spread", problem)
        return seconds
