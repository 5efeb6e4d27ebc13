"""Whom a strategy has asked in a round, and the bytes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flwr.app import ArrayRecord, Message, RecordDict

from fedsgd.flower.app_model import n_bytes
from fedsgd.sizes import compression_ratios

What = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Traffic:
    """Traffic of one round.

    Attributes:
        round: Flower's number of the round.
        what: "train" or "evaluate".
        nodes: nodes that were sent a message.
        down: bytes in place of the arrays, in messages.
        up: bytes in place of the arrays, in replies that came.
        plain_down: bytes of these arrays as Flower sends them, in messages.
        plain_up: bytes of these arrays as Flower sends them, in replies that came.
    """

    round: int
    what: What
    nodes: int
    down: int
    up: int
    plain_down: int
    plain_up: int

    @property
    def compression_ratios(self) -> dict[str, float | None]:
        """Compression ratios of the uplink, of the downlink, and of both directions together."""
        return compression_ratios(self.up, self.down, self.plain_up, self.plain_down)

    def __str__(self) -> str:
        up, down, both = self.compression_ratios.values()
        if self.what == "evaluate":
            return f"round {self.round}, evaluation: {self.down:,} bytes down{_less(down)}"
        amounts = f"{self.up:,} bytes up{_less(up)}, {self.down:,} down{_less(down)}"
        return f"round {self.round}: {amounts}, {self.up + self.down:,} both ways{_less(both)}"


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


def _less(ratio: float | None) -> str:
    return f" ({ratio:,.1f}x less)" if ratio else ""
