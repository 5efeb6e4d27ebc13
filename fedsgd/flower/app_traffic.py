"""Bytes that crossed in a round of somebody's Flower app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsgd.sizes import compression_ratios

Phase = Literal["train", "evaluate"]


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
    what: Phase
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


def _less(ratio: float | None) -> str:
    return f" ({ratio:,.1f}x less)" if ratio else ""
