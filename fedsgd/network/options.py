"""Pricing models from options: names of profiles, and texts of quantities with their units."""

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
"""Maximum standard deviation of a logarithm: with 10, clients differ by factors of billions."""


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
    broadcast: bool | None = None,
    overhead_up: str | None = None,
    overhead_down: str | None = None,
    device_name: str = DEFAULT_DEVICE,
    flops: str | None = None,
    device_spread: float = 0.0,
    server_name: str = DEFAULT_SERVER,
    deadline: str | None = None,
    training: str | None = None,
) -> PricingModel:
    """Build a pricing model from the options of a command, which are described at `Network`, `Device` and `PricingModel`.

    `network_name`, `device_name` and `server_name` are profiles. Other options override a profile's figures, as texts such as
    "2 Mbit/s", "25 ms", "12 kB" and "1 GFLOP/s". Without a network's name, `up` and `down`, or a `trace` of measured links, are
    required. ScenarioError, which begins with the name of the option, for an invalid option; DataError for an invalid trace.

    >>> str(build_pricing_model("3g", up="1 Mbit/s").network.link)
    '1 Mbit/s up, 1.6 Mbit/s down, 150 ms one way'
    """
    if trace is not None and spread is not None:
        raise ScenarioError(f"--spread: got {spread:g} in addition to a trace, whose links differ already")
    base, profile = _find_base_network(network_name, up, down, trace)
    network = Network(
        Link(
            _parse_option("--up", parse_rate, up, base.link.up_bits_per_second),
            _parse_option("--down", parse_rate, down, base.link.down_bits_per_second),
            _parse_option("--latency", parse_seconds, latency, base.link.latency_seconds),
            _parse_option("--jitter", parse_seconds, jitter, base.link.jitter_seconds),
        ),
        _parse_option("--spread", _make_draws, spread, base.draws),
        _parse_option("--server-up", parse_rate, server_up, base.server_up_bits_per_second),
        _parse_option("--server-down", parse_rate, server_down, base.server_down_bits_per_second),
        base.downlink if broadcast is None else "broadcast" if broadcast else "unicast",
        _parse_option("--overhead-up", parse_size, overhead_up, base.up_overhead_bytes),
        _parse_option("--overhead-down", parse_size, overhead_down, base.down_overhead_bytes),
        source="set by options",
    )
    network = network if profile is None else _set_source(network, profile)
    _check_latency(network, latency)
    device, server = _build_client_device(device_name, flops, device_spread), _look_up_device("--server", server_name)
    if training is not None and flops is not None:
        raise ScenarioError(f"--flops: got {flops!r} in addition to --training, which replaces the time of these operations")
    return PricingModel(network, device, server, _parse_time("--deadline", deadline), _parse_time("--training", training))


def _set_source(network: Network, profile: Network) -> Network:
    """Return a network with the source of its figures, and with the profile's title if no figure differs from the profile."""
    overrides = network.describe_differences(profile)
    if not overrides:
        return replace(network, title=profile.title, source=profile.source)
    source = profile.source or profile.title or "the network"
    return replace(network, source=f"set by options: {', '.join(overrides)}; all other figures: {source}")


def format_network_label(name: str, pricing_model: PricingModel) -> str:
    """Return the heading of a pricing model that starts from a profile, with each override: "4g", "4g with 1 Mbit/s up"."""
    overrides = pricing_model.network.describe_differences(get_network(name))
    return f"{name} with {', '.join(overrides)}" if overrides else name


def _check_latency(network: Network, latency: str | None) -> None:
    """Raise ScenarioError if a client of the trace would have a latency below 0."""
    if isinstance(network.draws, TraceLinks):
        largest_reduction = -min(network.draws.latency)
        if largest_reduction > network.link.latency_seconds:
            minimum = format_seconds(largest_reduction)
            reason = f"a client of the trace has a latency {minimum} below the median"
            got = f"--network: got a latency of {format_seconds(network.link.latency_seconds)}"
            got = got if latency is None else f"--latency: got {latency!r}"
            raise ScenarioError(f"{got}, expected at least {minimum}: {reason}")


def _build_client_device(name: str, flops: str | None, spread: float) -> Device:
    device = replace(_look_up_device("--device", name), spread=_parse_option("--device-spread", _check_spread, spread))
    if flops is None:
        return device
    return replace(device, flops_per_second=_parse_option("--flops", parse_flops, flops), title="", source="set by options")


def _find_base_network(
    name: str | None, up: str | None, down: str | None, trace: Path | None
) -> tuple[Network, Network | None]:
    """Return the network whose figures the options override, and the profile or None."""
    profile = None
    if name is not None:
        with _errors_in_option("--network"):
            profile = get_network(name)
    if trace is not None:
        link_trace = read_link_trace(expand_user_path(trace))
        link = Link(link_trace.up_bits_per_second, link_trace.down_bits_per_second, link_trace.latency_seconds)
        base = Network(link) if profile is None else profile
        return replace(base, link=link, draws=link_trace.links), profile
    if profile is not None:
        return profile, profile
    if up is None or down is None:
        missing_options = [option for option, value in (("--up", up), ("--down", down)) if value is None]
        raise ScenarioError(f"{missing_options[0]}: expected a rate, or a network by its name, or a trace")
    return Network(Link(1.0, 1.0)), None  # the options replace both rates


def _look_up_device(option: str, name: str) -> Device:
    with _errors_in_option(option):
        return get_device(name)


def _make_draws(spread: float) -> LinkHeterogeneity:
    return LogNormalLinks(_check_spread(spread)) if spread else HomogeneousLinks()


def _check_spread(value: float) -> float:
    if not 0 <= value <= MAX_SPREAD:
        raise ScenarioError(f"got {value:g}, expected a number from 0 to {MAX_SPREAD}")
    return value


def _parse_time(option: str, text: str | None) -> float | None:
    """Return the seconds of an option, above 0; None if the option is absent."""
    seconds: float | None = _parse_option(option, parse_seconds, text)
    if seconds == 0:
        raise ScenarioError(f"{option}: got {text!r}, expected a time above 0")
    return seconds


def _parse_option(option: str, parse: Callable[[Any], Any], value: Any, default: Any = None) -> Any:
    """Parse the value of an option; return the default if the option is absent."""
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
