"""Bytes that crossed in a round of a user's Flower app."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedsgd.config.quantities import compression_ratios

RoundPhase = Literal["train", "evaluate"]


@dataclass(frozen=True)
class RoundTraffic:
    """Traffic of one phase of a round: of its training, or of its evaluation.

    Messages are those that the strategy handed to Flower; replies are those that came. All of a message counts, as Flower
    stores and sends it: records of any type, names and metadata (see `fedsgd.flower.records.count_message_bytes`). Flower's own
    counter (`flwr list`) adds the protobuf around each object, some hundred bytes a message. Without compression, there would
    be no RESYNC reply and no second message. An error that the SuperLink itself makes, as for a node that is gone, crosses no
    network.

    Attributes:
        round: Flower's number of the round.
        what: "train" or "evaluate".
        nodes: nodes that were sent a message.
        down: bytes of fedsgd's own records in the messages: frames and exact arrays.
        up: bytes of fedsgd's own records in the replies.
        message_down: bytes of Flower's objects of all messages.
        message_up: bytes of Flower's objects of all replies.
        plain_down: bytes of Flower's objects of the messages without compression.
        plain_up: bytes of Flower's objects of the replies without compression. A reply that cannot be read counts as it came.
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
        """Compression ratios of the uplink, of the downlink, and of both directions together, by Flower's objects."""
        return compression_ratios(self.message_up, self.message_down, self.plain_up, self.plain_down)

    def __str__(self) -> str:
        phase = ", evaluation" if self.what == "evaluate" else ""
        return f"round {self.round}{phase}: {self._amounts}"

    @property
    def _amounts(self) -> str:
        ratio = self.compression_ratios["bidirectional_ratio"]
        own = f"{self.up:,} bytes up, {self.down:,} down"
        message = f"{self.message_up:,} up, {self.message_down:,} down"
        less = "" if ratio is None else f"; compression ratio {ratio:,.1f} both ways"
        return f"{own}; in Flower's messages {message}{less}"


def describe_total(traffic: Sequence[RoundTraffic]) -> str:
    """Return the bytes of all rounds together, as the line of a round gives them, and the definition of the ratio."""
    counts = ("nodes", "down", "up", "message_down", "message_up", "plain_down", "plain_up")
    total = RoundTraffic(0, "train", *(sum(getattr(row, name) for row in traffic) for name in counts))
    return f"all rounds: {total._amounts} (messages of the plain app, divided by these)"
