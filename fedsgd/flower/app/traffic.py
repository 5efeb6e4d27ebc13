"""Bytes of the messages in a round of a user's Flower app."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedsgd.config.quantities import compression_ratios

RoundPhase = Literal["train", "evaluate"]


@dataclass(frozen=True)
class RoundTraffic:
    """Traffic of one phase of a round, its training or its evaluation.

    Messages count when the strategy passes them to Flower, and replies when they arrive. A message counts as Flower's objects,
    with names and metadata (see `fedsgd.flower.records.count_message_bytes`). Flower's own counter (`flwr list`) adds a few
    hundred bytes of protobuf to each message. An error of the SuperLink itself counts as 0 bytes.

    Attributes:
        round: Flower's number of the round.
        what: "train" or "evaluate".
        nodes: number of nodes that were sent a message.
        down, up: bytes of fedsgd's own records (frames and exact arrays) in the messages and in the replies.
        message_down, message_up: bytes of all messages and of all replies.
        plain_down, plain_up: bytes of all messages and of all replies without compression. Second messages and replies with a
            RESYNC frame count as 0, and a reply that cannot be read counts unchanged.

    >>> traffic = RoundTraffic(1, "train", nodes=2, message_down=900, message_up=100, plain_down=1000, plain_up=1000)
    >>> traffic.compression_ratios["bidirectional_ratio"]
    2.0
    """

    round: int
    what: RoundPhase
    nodes: int
    down: int = 0
    up: int = 0
    message_down: int = 0
    message_up: int = 0
    plain_down: int = 0
    plain_up: int = 0

    @property
    def compression_ratios(self) -> dict[str, float | None]:
        """Compression ratios of the uplink, of the downlink, and of both directions together, for whole messages."""
        return compression_ratios(self.message_up, self.message_down, self.plain_up, self.plain_down)

    def __str__(self) -> str:
        phase = ", evaluation" if self.what == "evaluate" else ""
        return f"round {self.round}{phase}: {self._amounts}"

    @property
    def _amounts(self) -> str:
        ratio = self.compression_ratios["bidirectional_ratio"]
        frames = f"{self.up:,} bytes up, {self.down:,} down"
        messages = f"{self.message_up:,} up, {self.message_down:,} down"
        suffix = "" if ratio is None else f"; compression ratio {ratio:,.1f} both ways"
        return f"{frames}; in Flower's messages {messages}{suffix}"


def describe_total(traffic: Sequence[RoundTraffic]) -> str:
    """Return a log line with the bytes of all rounds together and the definition of the ratio."""
    counts = ("nodes", "down", "up", "message_down", "message_up", "plain_down", "plain_up")
    total = RoundTraffic(0, "train", *(sum(getattr(row, name) for row in traffic) for name in counts))
    return f"all rounds: {total._amounts} (bytes without compression, divided by these bytes)"
