"""Links, networks and devices: the figures from which prices are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsgd.config.component import NonNegativeFloat, PositiveFloat, ValidatedConfig
from fedsgd.config.quantities import format_bytes, format_flops, format_rate, format_seconds
from fedsgd.network.heterogeneity import HomogeneousLinks, LinkHeterogeneity


@dataclass(frozen=True)
class Link(ValidatedConfig):
    """Link of the median client, without loss. On average, a message of n bytes takes latency + jitter + 8n / rate seconds.

    The latency is one way, half of a round trip. The jitter is the mean of an additional, exponentially distributed delay.
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
    """Links of a federation.

    Model of the server's link: all clients of a round start to receive, and later to send, at the same time. Each client
    finishes when all bytes have passed. The model is exact for equal clients. It overestimates the time if some clients send
    while other clients compute.

    Attributes:
        link, draws: link of the median client; differences between the links of clients.
        server_up_bits_per_second, server_down_bits_per_second: rates into and out of the server for all clients together;
            None: no limit.
        downlink: "unicast": each client receives its own copy of a frame; "broadcast": all clients receive one channel, which
            carries each distinct frame of a round once.
        up_overhead_bytes, down_overhead_bytes: bytes that the transport adds to each message.
        title, source: name of the network in reports; origin of the figures.
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
        """Return, in words, each figure of this network that differs from `other`: "1 Mbit/s up", "jitter 5 ms"."""
        link, base = self.link, other.link
        figures = (
            (f"{format_rate(link.up_bits_per_second)} up", link.up_bits_per_second != base.up_bits_per_second),
            (f"{format_rate(link.down_bits_per_second)} down", link.down_bits_per_second != base.down_bits_per_second),
            (f"{format_seconds(link.latency_seconds)} one way", link.latency_seconds != base.latency_seconds),
            (f"jitter {format_seconds(link.jitter_seconds)}", link.jitter_seconds != base.jitter_seconds),
        )
        extras = zip(self._list_extras(), other._list_extras(), strict=True)
        differences = [text for (text, value), (_, other_value) in extras if value != other_value]
        return [text for text, differs in figures if differs] + differences

    def _describe_extras(self) -> list[str]:
        """Return, in words, the figures other than the link of the median client that are not those of a plain network."""
        plain = Network(self.link)._list_extras()
        return [text for (text, value), (_, default) in zip(self._list_extras(), plain, strict=True) if value != default]

    def _list_extras(self) -> list[tuple[str, object]]:
        """Return each figure other than the link of the median client, in words and as a value."""
        up, down = self.server_up_bits_per_second, self.server_down_bits_per_second
        return [
            (str(self.draws), self.draws),
            ("any rate into the server" if up is None else f"{format_rate(up)} into the server", up),
            ("any rate out of the server" if down is None else f"{format_rate(down)} out of the server", down),
            (f"downlink {self.downlink}", self.downlink),
            (f"{self.up_overhead_bytes:,.0f} B of overhead in each message up", self.up_overhead_bytes),
            (f"{self.down_overhead_bytes:,.0f} B of overhead in each message down", self.down_overhead_bytes),
        ]


@dataclass(frozen=True)
class Device(ValidatedConfig):
    """Speed of a processor.

    Attributes:
        flops_per_second: floating-point operations per second, sustained in training, not the peak of a data sheet.
        copy_bytes_per_second: bytes per second of a copy in memory, the measure of encoding and decoding.
        spread: standard deviation of the logarithm of the clients' speeds.
        title, source: name of the device in reports; origin of the figures.
    """

    flops_per_second: PositiveFloat
    copy_bytes_per_second: PositiveFloat
    spread: NonNegativeFloat = 0.0
    title: str = ""
    source: str = ""

    @property
    def copy_rate_text(self) -> str:
        """Copy rate in words."""
        return f"copies {format_bytes(round(self.copy_bytes_per_second))}/s"

    def __str__(self) -> str:
        spread = f", spread {self.spread:g}" if self.spread else ""
        return f"{format_flops(self.flops_per_second)}, {self.copy_rate_text}{spread}"
