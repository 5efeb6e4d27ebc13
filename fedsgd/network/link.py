"""What a network and its devices are like: the figures that a price rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsgd.config.component import NonNegativeFloat, PositiveFloat, ValidatedConfig
from fedsgd.config.quantities import format_bytes, format_flops, format_rate, format_seconds
from fedsgd.network.heterogeneity import HomogeneousLinks, LinkHeterogeneity


@dataclass(frozen=True)
class Link(ValidatedConfig):
    """A client's link, which loses nothing. A message of n bytes takes latency + jitter + 8n / rate.

    up_bits_per_second, down_bits_per_second: of the client that is in the middle of them; latency_seconds: one way, so half of
    a ping; jitter_seconds: the mean of an exponential delay that each message has beside.
    """

    up_bits_per_second: PositiveFloat
    down_bits_per_second: PositiveFloat
    latency_seconds: NonNegativeFloat = 0.0
    jitter_seconds: NonNegativeFloat = 0.0

    def __str__(self) -> str:
        up, down = format_rate(self.up_bits_per_second), format_rate(self.down_bits_per_second)
        jitter = f" + {format_seconds(self.jitter_seconds)}" if self.jitter_seconds else ""
        return f"{up} up, {down} down, {format_seconds(self.latency_seconds)}{jitter} one way"


@dataclass(frozen=True)
class Network(ValidatedConfig):
    """The links of a federation.

    link: of the client in the middle; draws: how others differ from it. server_up_bits_per_second,
    server_down_bits_per_second: what the server's own link takes in from all clients together and gives out to them, None for
    no limit. It is as if all of a round began to load, and later to send, at once, and nobody were done before all bytes had
    passed: exact for clients that are alike, too long where some send while others still compute.

    downlink: "unicast": each client is sent its frames by itself; "broadcast": all clients hear one channel, on which each
    distinct frame of a round goes once. up_overhead_bytes, down_overhead_bytes: what the transport adds to each message.
    """

    link: Link
    draws: LinkHeterogeneity = HomogeneousLinks()
    server_up_bits_per_second: PositiveFloat | None = None
    server_down_bits_per_second: PositiveFloat | None = None
    downlink: Literal["unicast", "broadcast"] = "unicast"
    up_overhead_bytes: NonNegativeFloat = 0.0
    down_overhead_bytes: NonNegativeFloat = 0.0
    title: str = ""
    source: str = ""

    def __str__(self) -> str:
        return ", ".join([str(self.link), *self._describe_extras()])

    def describe_differences(self, other: Network) -> list[str]:
        """Return each figure of this network that is not that of `series`, in words: "1 Mbit/s up", "jitter 5 ms"."""
        link, base = self.link, other.link
        figures = (
            (f"{format_rate(link.up_bits_per_second)} up", link.up_bits_per_second != base.up_bits_per_second),
            (f"{format_rate(link.down_bits_per_second)} down", link.down_bits_per_second != base.down_bits_per_second),
            (f"{format_seconds(link.latency_seconds)} one way", link.latency_seconds != base.latency_seconds),
            (f"jitter {format_seconds(link.jitter_seconds)}", link.jitter_seconds != base.jitter_seconds),
        )
        known = other._describe_extras()
        return [text for text, differs in figures if differs] + [text for text in self._describe_extras() if text not in known]

    def _describe_extras(self) -> list[str]:
        """Return what the network has beside the link of the median client, in words."""
        parts = [str(self.draws)] if self.draws != HomogeneousLinks() else []
        for rate, where in ((self.server_up_bits_per_second, "into"), (self.server_down_bits_per_second, "out of")):
            if rate is not None:
                parts.append(f"{format_rate(rate)} {where} the server")
        if self.downlink == "broadcast":
            parts.append("downlink broadcast")
        for n_bytes, way in ((self.up_overhead_bytes, "up"), (self.down_overhead_bytes, "down")):
            if n_bytes:
                parts.append(f"{n_bytes:,.0f} B more a message {way}")
        return parts


@dataclass(frozen=True)
class Device(ValidatedConfig):
    """What computes. flops_per_second: sustained in training, not a data sheet's peak; copy_bytes_per_second: of a copy in
    memory, the measure of encoding and decoding; spread: the standard deviation of the logarithm of clients' speeds."""

    flops_per_second: PositiveFloat
    copy_bytes_per_second: PositiveFloat
    spread: NonNegativeFloat = 0.0
    title: str = ""
    source: str = ""

    @property
    def copy_rate_text(self) -> str:
        """How quickly it copies."""
        return f"copies {format_bytes(round(self.copy_bytes_per_second))}/s"

    def __str__(self) -> str:
        spread = f", spread {self.spread:g}" if self.spread else ""
        return f"{format_flops(self.flops_per_second)}, {self.copy_rate_text}{spread}"
