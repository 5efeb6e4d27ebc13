"""Whom a strategy has asked in a round, and the bytes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flwr.app import ArrayRecord, Message, RecordDict

from fedsgd.flower.app_model import n_bytes

What = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Traffic:
    """What crossed in one round, in bytes. round: Flower's; what: what for; nodes: how many were asked; down, up: what stood in
    the place of the arrays, in messages and in replies that came; plain_down, plain_up: those arrays as Flower sends them."""

    round: int
    what: What
    nodes: int
    down: int
    up: int
    plain_down: int
    plain_up: int

    def __str__(self) -> str:
        if self.what == "evaluate":
            return f"round {self.round}, evaluation: {_amount(self.down, self.plain_down, 'bytes down')}"
        up, down = _amount(self.up, self.plain_up, "bytes up"), _amount(self.down, self.plain_down, "down")
        return f"round {self.round}: {up}, {down}"


@dataclass(eq=False)
class Asked:
    """The nodes that were sent our message in a round, and what each would have been sent. answered: who has replied."""

    round: int
    what: What
    arrays: ArrayRecord
    messages: dict[int, Message] = field(default_factory=dict)
    contents: dict[int, RecordDict] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    down: int = 0
    up: int = 0
    plain_up: int = 0

    def traffic(self) -> Traffic:
        """What crossed."""
        plain_down = len(self.contents) * n_bytes(self.arrays)
        return Traffic(self.round, self.what, len(self.contents), self.down, self.up, plain_down, self.plain_up)


def _amount(n: int, plain: int, unit: str) -> str:
    less = f" ({plain / n:,.1f}x less)" if n and plain else ""
    return f"{n:,} {unit}{less}"
