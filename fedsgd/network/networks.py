"""Networks and devices from quantities with units, for `fedsgd.price` and `fedsgd.compare`.

>>> import fedsgd as fs
>>> print(fs.networks.Network(fs.networks.Link(up="7.6 Mbit/s", down="20 Mbit/s", latency="25 ms"), server_up="1 Gbit/s"))
7.6 Mbit/s up, 20 Mbit/s down, 25 ms one way, 1 Gbit/s into the server
>>> print(fs.networks.get_network("3g"))
768 kbit/s up, 1.6 Mbit/s down, 150 ms one way
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from fedsgd.config.component import describe_value
from fedsgd.config.quantities import parse_flops, parse_rate, parse_seconds, parse_size
from fedsgd.errors import ScenarioError
from fedsgd.network import link as models
from fedsgd.network.heterogeneity import HomogeneousLinks, LinkHeterogeneity, LogNormalLinks, read_link_trace
from fedsgd.network.profiles import NETWORKS, get_device, get_network
from fedsgd.system.user_files import expand_user_path

__all__ = [
    "Device",
    "HomogeneousLinks",
    "Link",
    "LogNormalLinks",
    "Network",
    "get_device",
    "get_network",
    "read_trace",
    "register",
]

register = NETWORKS.register
"""Give a network its name in this process: `register(network, "my-network")`."""


def Link(up: str, down: str, latency: str = "0 s", jitter: str = "0 s") -> models.Link:  # noqa: N802
    """Return the link of the median client.

    Args:
        up: rate of the uplink, such as "7.6 Mbit/s" (bits) or "1 MB/s" (bytes).
        down: rate of the downlink.
        latency: one-way latency, half of a round trip, such as "25 ms".
        jitter: mean of an additional, exponentially distributed delay of each message.

    Raises:
        ScenarioError: a text is no quantity of this kind.
    """
    return models.Link(
        _parse("up", parse_rate, up),
        _parse("down", parse_rate, down),
        _parse("latency", parse_seconds, latency),
        _parse("jitter", parse_seconds, jitter),
    )


def Network(  # noqa: N802
    link: models.Link | str,
    *,
    links: LinkHeterogeneity = HomogeneousLinks(),
    server_up: str | None = None,
    server_down: str | None = None,
    downlink: Literal["unicast", "broadcast"] = "unicast",
    up_overhead: str = "0 B",
    down_overhead: str = "0 B",
) -> models.Network:
    """Return a network.

    Args:
        link: link of the median client, or the name of a network whose link is used, such as "4g".
        links: differences between the links of clients, such as `LogNormalLinks(spread=0.5)`.
        server_up: rate into the server for all clients together, such as "1 Gbit/s"; None: no limit.
        server_down: rate out of the server for all clients together; None: no limit.
        downlink: "unicast": each client receives its own copy of a frame; "broadcast": each distinct frame is sent once.
        up_overhead: bytes that the transport adds to each uplink message, such as "12 kB" for Flower.
        down_overhead: bytes that the transport adds to each downlink message.

    Raises:
        ScenarioError: a text is no quantity of this kind, or no network has this name.
    """
    if isinstance(link, str):
        link = get_network(link).link
    if not isinstance(link, models.Link):
        raise ScenarioError(f"link: got {describe_value(link)}, expected fedsgd.networks.Link(...) or the name of a network")
    return models.Network(
        link,
        links,
        None if server_up is None else _parse("server_up", parse_rate, server_up),
        None if server_down is None else _parse("server_down", parse_rate, server_down),
        downlink,
        _parse("up_overhead", parse_size, up_overhead),
        _parse("down_overhead", parse_size, down_overhead),
        source="set in Python",
    )


def Device(compute: str, copy: str, spread: float = 0.0) -> models.Device:  # noqa: N802
    """Return the device of the clients or of the server.

    >>> print(Device(compute="10 GFLOP/s", copy="5 GB/s"))
    10 GFLOP/s, copies 5 GB/s

    Args:
        compute: throughput that is sustained in training, such as "10 GFLOP/s".
        copy: rate of a copy in memory, such as "5 GB/s", the measure of encoding and decoding.
        spread: standard deviation of the logarithm of the clients' speeds.

    Raises:
        ScenarioError: a text is no quantity of this kind.
    """
    rate = _parse("copy", parse_rate, copy) / 8
    return models.Device(_parse("compute", parse_flops, compute), rate, spread, source="set in Python")


def read_trace(path: str | Path) -> models.Network:
    """Return a network with the measured links of a CSV file.

    Args:
        path: file with the columns client, up_bits_per_second, down_bits_per_second and latency_seconds.

    Raises:
        DataError: the file cannot be read, or a line is wrong.
    """
    trace = read_link_trace(expand_user_path(path))
    link = models.Link(trace.up_bits_per_second, trace.down_bits_per_second, trace.latency_seconds)
    return models.Network(link, trace.links, source=f"links of {path}")


def _parse(argument: str, parse: Callable[[str], float], text: object) -> float:
    """Return the value of a quantity. ScenarioError, which begins with the argument, for a value that is no such text."""
    if not isinstance(text, str):
        raise ScenarioError(f"{argument}: got {describe_value(text)}, expected a text with a unit")
    try:
        return parse(text)
    except ScenarioError as error:
        raise ScenarioError(f"{argument}: {error}") from None
