"""What a price is asked for, in words: the names of profiles, and quantities with their units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsgd.component import FieldError
from fedsgd.errors import ScenarioError
from fedsgd.network.base import Device, Link, Network
from fedsgd.network.draws import Constant, Draws, LogNormal, Trace, read
from fedsgd.network.profiles import DEFAULT_DEVICE, DEFAULT_SERVER, device, network
from fedsgd.network.timeline import Terms
from fedsgd.units import parse_flops, parse_rate, parse_seconds, parse_size, seconds_text
from fedsgd.user_files import user_path

MOST_SPREAD = 10
"""Standard deviations of a logarithm: with 10, clients differ by factors of billions."""


def ask(
    network_name: str | None = None,
    *,
    up: str | None = None,
    down: str | None = None,
    latency: str | None = None,
    jitter: str | None = None,
    spread: float | None = None,
    trace: Path | None = None,
    server_up: str | None = None,
    server_down: str | None = None,
    broadcast: bool = False,
    overhead_up: str | None = None,
    overhead_down: str | None = None,
    device_name: str = DEFAULT_DEVICE,
    flops: str | None = None,
    device_spread: float = 0.0,
    server_name: str = DEFAULT_SERVER,
    deadline: str | None = None,
) -> Terms:
    """Return the terms of a price.

    Args:
        network_name: a profile; the other figures override its own. Without a profile and without a trace, `up` and `down` are
            required.
        up, down: rates of the median client, such as "2 Mbit/s".
        latency, jitter: one way, such as "25 ms".
        spread: standard deviation of the logarithm of clients' rates.
        trace: CSV file of measured links.
        server_up, server_down: rates of the server's own link; None for no limit.
        broadcast: whether each distinct frame goes down once.
        overhead_up, overhead_down: what the transport adds to a message, such as "12 kB".
        device_name, flops, device_spread: what clients compute on.
        server_name: what aggregates.
        deadline: how long the server waits for a reply that never comes.

    Raises:
        ScenarioError: an option is wrong; the message starts with its name.
    """
    if trace is not None and spread is not None:
        raise ScenarioError(f"--spread: got {spread:g} beside a trace, which says by itself how links differ")
    link, draws, named = _link(network_name, up, down, trace)
    link = replace(
        link,
        latency_seconds=_read("--latency", parse_seconds, latency, link.latency_seconds),
        jitter_seconds=_read("--jitter", parse_seconds, jitter, link.jitter_seconds),
    )
    asked = Network(
        link,
        LogNormal(_read("--spread", _spread, spread)) if spread else draws,
        _read("--server-up", parse_rate, server_up),
        _read("--server-down", parse_rate, server_down),
        "broadcast" if broadcast else "unicast",
        _read("--overhead-up", parse_size, overhead_up, 0.0),
        _read("--overhead-down", parse_size, overhead_down, 0.0),
        source="as asked for",
    )
    asked = asked if named is None else _with_source(asked, named)
    _check_latency(asked, latency)
    seconds = _read("--deadline", parse_seconds, deadline)
    if seconds == 0:
        raise ScenarioError(f"--deadline: got {deadline!r}, expected a time above 0")
    return Terms(asked, _client(device_name, flops, device_spread), _device("--server", server_name), seconds)


def _with_source(network: Network, profile: Network) -> Network:
    """Return a network that began as a profile with the source of its figures; the profile's title only if all are its own."""
    overrides = network.differences(profile)
    if not overrides:
        return replace(network, title=profile.title, source=profile.source)
    return replace(network, source=f"as asked for: {', '.join(overrides)}; all other figures: {profile.source}")


def network_label(name: str, terms: Terms) -> str:
    """Return the heading for terms that start from the profile `name`, with each override: "4g", "4g with 1 Mbit/s up"."""
    overrides = terms.network.differences(network(name))
    return f"{name} with {', '.join(overrides)}" if overrides else name


def _check_latency(network: Network, latency: str | None) -> None:
    """ScenarioError if a client of the trace would be there before it was sent anything."""
    if isinstance(network.draws, Trace):
        below = -min(network.draws.latency)
        if below > network.link.latency_seconds:
            nearest = f"the trace's nearest client is {seconds_text(below)} below its median"
            raise ScenarioError(f"--latency: got {latency!r}, expected at least that, since {nearest}")


def _client(name: str, flops: str | None, spread: float) -> Device:
    """What clients compute on."""
    made = replace(_device("--device", name), spread=_read("--device-spread", _spread, spread))
    if flops is None:
        return made
    return replace(made, flops_per_second=_read("--flops", parse_flops, flops), title="", source="as asked for")


def _link(name: str | None, up: str | None, down: str | None, trace: Path | None) -> tuple[Link, Draws, Network | None]:
    """(the link in the middle, how others differ from it, the profile)."""
    draws: Draws = Constant()
    named = None
    if name is not None:
        with _option("--network"):
            named = network(name)
    if trace is not None:
        traced = read(user_path(trace))
        middle = Link(traced.up_bits_per_second, traced.down_bits_per_second, traced.latency_seconds)
        draws = traced.draws
    elif named is not None:
        middle = named.link
    elif up is None or down is None:
        missing = [option for option, given in (("--up", up), ("--down", down)) if given is None]
        raise ScenarioError(f"{missing[0]}: expected a rate, or a network by its name, or a trace")
    else:
        middle = Link(1.0, 1.0)
    rates = (
        _read("--up", parse_rate, up, middle.up_bits_per_second),
        _read("--down", parse_rate, down, middle.down_bits_per_second),
    )
    return replace(middle, up_bits_per_second=rates[0], down_bits_per_second=rates[1]), draws, named


def _device(option: str, name: str) -> Device:
    with _option(option):
        return device(name)


def _spread(value: float) -> float:
    if not 0 <= value <= MOST_SPREAD:
        raise ScenarioError(f"got {value:g}, expected a number from 0 to {MOST_SPREAD}")
    return value


def _read(option: str, parse: Callable[[Any], float], given: Any, default: Any = None) -> Any:
    """What an option says, or the default where it is not given."""
    if given is None:
        return default
    with _option(option):
        return parse(given)


@contextmanager
def _option(name: str) -> Iterator[None]:
    try:
        yield
    except FieldError:
        raise
    except ScenarioError as error:
        raise ScenarioError(f"{name}: {error}") from None
