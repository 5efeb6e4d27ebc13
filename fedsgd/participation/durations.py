"""How long clients take: the contract of duration models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from fedsgd.component import Component


@dataclass(frozen=True)
class Durations(Component, ABC):
    """A model of how long a client takes, in simulated seconds; nobody's clock is read.

    Laws: finite and at least 0; the result depends on the arguments alone; more steps never take less.
    """

    @abstractmethod
    def seconds(self, seed: int, round: int, client: int, steps: int) -> float:
        """From when a client is sent the message of a round to when its reply is there. steps: its local steps in it."""
