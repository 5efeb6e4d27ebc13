"""Who is asked in a round, and whose reply is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from fedsgd.component import value_text
from fedsgd.participation.base import Draw, Drawn
from fedsgd.participation.durations import Durations
from fedsgd.participation.replies import in_time, lost
from fedsgd.user_code import code_error, user_code

Fate = Literal["received", "lost", "late", "refused"]
"""What became of a frame: it arrived and was taken; it never arrived; it came when the round was over; it could not be read."""


@dataclass(frozen=True, eq=False)
class Attendance:
    """draw: of the clients that are asked. clients: N; wanted: m, the replies that a round takes at most; over_selection: how
    many times as many are asked; dropout: the probability that a reply gets lost; deadline: how long a round waits, in
    simulated seconds, None for as long as it takes; durations: how long clients take.

    Everything is a function of (seed, round): nobody's clock is read.
    """

    seed: int
    draw: Draw
    clients: int
    wanted: int
    over_selection: float = 1.0
    dropout: float = 0.0
    deadline: float | None = None
    durations: Durations | None = None

    @property
    def asked(self) -> int:
        """How many are asked in a round, where so many are available."""
        return min(self.clients, math.ceil(self.wanted * Fraction(str(self.over_selection))))  # 100 · 1.1 is above 110

    def invited(self, round: int) -> Drawn:
        """The clients that are sent a message in `round`."""
        return self.draw(round, self.asked)

    def fates(self, round: int, steps: Mapping[int, int]) -> dict[int, Fate]:
        """What becomes of the replies that clients send in `round`. steps: of local training, by client. A reply that is lost
        is lost whatever it would have taken; one that comes too late is thrown away."""
        gone = {client for client in steps if lost(self.seed, round, client, self.dropout)} if self.dropout else set()
        there = [client for client in steps if client not in gone]
        taken = set(there)
        if self.deadline is not None or len(there) > self.wanted:
            taken = set(
                in_time({client: self.seconds(round, client, steps[client]) for client in there}, self.wanted, self.deadline)
            )
        return {client: "lost" if client in gone else "received" if client in taken else "late" for client in steps}

    def seconds(self, round: int, client: int, steps: int) -> float:
        """From when a client is sent the message of `round` until its reply is there, in simulated seconds."""
        if self.durations is None:
            return 0.0
        key = "participation.durations"
        with user_code(key, self.durations, round):
            seconds: Any = self.durations.seconds(self.seed, round, client, steps)
        if not isinstance(seconds, int | float | np.number) or not seconds >= 0:
            problem = f"client {client} takes {value_text(seconds)} seconds, expected a number of at least 0"
            raise code_error(key, self.durations, problem, round)
        return float(seconds)
