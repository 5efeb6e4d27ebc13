"""What a price is asked for, in words: the names of profiles, and quantities with their units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsgd.config.component import FieldError
from fedsgd.config.quantities import format_seconds, parse_flops, parse_rate, parse_seconds, parse_size
from fedsgd.errors import ScenarioError
from fedsgd.network.heterogeneity import HomogeneousLinks, LinkHeterogeneity, LogNormalLinks, TraceLinks, read_link_trace
from fedsgd.network.link import Device, Link, Network
from fedsgd.network.profiles import DEFAULT_DEVICE, DEFAULT_SERVER, get_device, get_network
from fedsgd.network.round_times import PricingModel
from fedsgd.system.user_files import expand_user_path

MAX_SPREAD = 10
"""Standard deviations of a logarithm: with 10, clients differ by factors of billions."""


def build_pricing_model(
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
) -> PricingModel:
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
    link, draws, named = _build_link(network_name, up, down, trace)
    link = replace(
        link,
        latency_seconds=_parse_option("--latency", parse_seconds, latency, link.latency_seconds),
        jitter_seconds=_parse_option("--jitter", parse_seconds, jitter, link.jitter_seconds),
    )
    asked = Network(
        link,
        LogNormalLinks(_parse_option("--spread", _check_spread, spread)) if spread else draws,
        _parse_option("--server-up", parse_rate, server_up),
        _parse_option("--server-down", parse_rate, server_down),
        "broadcast" if broadcast else "unicast",
        _parse_option("--overhead-up", parse_size, overhead_up, 0.0),
        _parse_option("--overhead-down", parse_size, overhead_down, 0.0),
        source="as asked for",
    )
    asked = asked if named is None else _set_source(asked, named)
    _check_latency(asked, latency)
    seconds = _parse_option("--deadline", parse_seconds, deadline)
    if seconds == 0:
        raise ScenarioError(f"--deadline: got {deadline!r}, expected a time above 0")
    return PricingModel(
        asked, _build_client_device(device_name, flops, device_spread), _look_up_device("--server", server_name), seconds
    )


def _set_source(network: Network, profile: Network) -> Network:
    """Return a network that began as a profile with the source of its figures; the profile's title only if all are its own."""
    overrides = network.describe_differences(profile)
    if not overrides:
        return replace(network, title=profile.title, source=profile.source)
    return replace(network, source=f"as asked for: {', '.join(overrides)}; all other figures: {profile.source}")


def format_network_label(name: str, pricing_model: PricingModel) -> str:
    """Return the heading for terms that start from the profile `name`, with each override: "4g", "4g with 1 Mbit/s up"."""
    overrides = pricing_model.network.describe_differences(get_network(name))
    return f"{name} with {', '.join(overrides)}" if overrides else name


def _check_latency(network: Network, latency: str | None) -> None:
    """ScenarioError if a client of the trace would be there before it was sent anything."""
    if isinstance(network.draws, TraceLinks):
        below = -min(network.draws.latency)
        if below > network.link.latency_seconds:
            nearest = f"the trace's nearest client is {format_seconds(below)} below its median"
            raise ScenarioError(f"--latency: got {latency!r}, expected at least that, since {nearest}")


def _build_client_device(name: str, flops: str | None, spread: float) -> Device:
    """What clients compute on."""
    made = replace(_look_up_device("--device", name), spread=_parse_option("--device-spread", _check_spread, spread))
    if flops is None:
        return made
    return replace(made, flops_per_second=_parse_option("--flops", parse_flops, flops), title="", source="as asked for")


def _build_link(
    name: str | None, up: str | None, down: str | None, trace: Path | None
) -> tuple[Link, LinkHeterogeneity, Network | None]:
    """(the link in the middle, how others differ from it, the profile)."""
    draws: LinkHeterogeneity = HomogeneousLinks()
    named = None
    if name is not None:
        with _errors_in_option("--network"):
            named = get_network(name)
    if trace is not None:
        traced = read_link_trace(expand_user_path(trace))
        middle = Link(traced.up_bits_per_second, traced.down_bits_per_second, traced.latency_seconds)
        draws = traced.links
    elif named is not None:
        middle = named.link
    elif up is None or down is None:
        missing = [option for option, given in (("--up", up), ("--down", down)) if given is None]
        raise ScenarioError(f"{missing[0]}: expected a rate, or a network by its name, or a trace")
    else:
        middle = Link(1.0, 1.0)
    rates = (
        _parse_option("--up", parse_rate, up, middle.up_bits_per_second),
        _parse_option("--down", parse_rate, down, middle.down_bits_per_second),
    )
    return replace(middle, up_bits_per_second=rates[0], down_bits_per_second=rates[1]), draws, named


def _look_up_device(option: str, name: str) -> Device:
    with _errors_in_option(option):
        return get_device(name)


def _check_spread(value: float) -> float:
    if not 0 <= value <= MAX_SPREAD:
        raise ScenarioError(f"got {value:g}, expected a number from 0 to {MAX_SPREAD}")
    return value


def _parse_option(option: str, parse: Callable[[Any], float], value: Any, default: Any = None) -> Any:
    """What an option says, or the default where it is not given."""
    if value is None:
        return default
    with _errors_in_option(option):
        return parse(value)


@contextmanager
def _errors_in_option(name: str) -> Iterator[None]:
    try:
        yield
    except FieldError:
        raise
    except ScenarioError as error:
        raise ScenarioError(f"{name}: {error}") from None
