"""Slow and fast clients, a few of them very slow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedsgd.component import FieldError, NonNegative
from fedsgd.participation.durations import Durations
from fedsgd.rng import stream


@dataclass(frozen=True)
class LogNormal(Durations):
    """`fixed` seconds and `per_step` more a local step, times a log-normal factor of the client's and one of the round's.

    (fixed + per_step · steps) · exp(spread · z_client + jitter · z_client,round), z standard normal: `spread` is how much
    clients differ for good, `jitter` how much one differs from round to round. The median client takes what `fixed` and
    `per_step` say; with spread = 0.5 two thirds are within a factor 1.65 of it. A log-normal's tail makes the stragglers.
    """

    name: ClassVar[str] = "log-normal"

    fixed: NonNegative = 0.0
    per_step: NonNegative = 1.0
    spread: NonNegative = 0.5
    jitter: NonNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fixed and not self.per_step:
            raise FieldError(
                self.name, "per_step", "got 0 for both fixed and per_step, expected one above 0: nobody takes no time"
            )

    def seconds(self, seed: int, round: int, client: int, steps: int) -> float:
        exponent = self.spread * stream(seed, "speed", client).standard_normal()
        if self.jitter:
            exponent += self.jitter * stream(seed, "speed", client, round).standard_normal()
        try:
            seconds = (self.fixed + self.per_step * steps) * math.exp(exponent)
        except OverflowError:
            seconds = math.inf
        if not math.isfinite(seconds):
            problem = f"got {self.spread}, with which client {client} takes longer than floats can hold"
            raise FieldError(self.name, "spread", problem)
        return seconds
