"""Pricing models from options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsgd.errors import ScenarioError
from fedsgd.network import (
    HomogeneousLinks,
    Link,
    LogNormalLinks,
    Network,
    TraceLinks,
    build_pricing_model,
    format_network_label,
    get_network,
)


def test_options_override_figures_of_the_profile() -> None:
    pricing_model = build_pricing_model(
        "3g", up="2 Mbit/s", latency="10ms", spread=0.3, broadcast=True, overhead_up="12 kB", flops="1 GFLOP/s"
    )
    network = pricing_model.network
    assert network.link.up_bits_per_second == 2e6
    assert network.link.down_bits_per_second == get_network("3g").link.down_bits_per_second
    assert network.link.latency_seconds == 0.01
    assert (network.draws, network.downlink, network.up_overhead_bytes) == (LogNormalLinks(0.3), "broadcast", 12000)
    assert pricing_model.device.flops_per_second == 1e9
    assert "2 Mbit/s up, 1.6 Mbit/s down, 10 ms one way, log-normal rates, spread 0.3, downlink broadcast" in str(network)


@pytest.mark.parametrize(
    ("options", "heading"),
    [
        ({}, "3g"),
        ({"up": "1.6 Mbit/s", "latency": "0.05 s"}, "3g with 1.6 Mbit/s up, 50 ms one way"),
        ({"down": "1.6 Mbit/s"}, "3g"),  # equal to the profile's figure
        ({"jitter": "5 ms", "spread": 0.3}, "3g with jitter 5 ms, log-normal rates, spread 0.3"),
        ({"server_up": "1 Gbit/s", "server_down": "2 Gbit/s"}, "3g with 1 Gbit/s into the server, 2 Gbit/s out of the server"),
        (
            {"broadcast": True, "overhead_up": "12 kB", "overhead_down": "3 kB"},
            "3g with downlink broadcast, 12,000 B of overhead in each message up, 3,000 B of overhead in each message down",
        ),
        ({"flops": "1 GFLOP/s", "deadline": "5 s"}, "3g"),  # settings of the devices, not of the network
    ],
)
def test_network_label_names_every_override(options: dict[str, Any], heading: str) -> None:
    pricing_model = build_pricing_model("3g", **options)
    network = pricing_model.network
    assert format_network_label("3g", pricing_model) == heading
    assert (network.title == get_network("3g").title) == (heading == "3g")
    assert network.source.endswith(get_network("3g").source)
    overrides = heading.removeprefix("3g with ")
    assert network.source.startswith(f"set by options: {overrides}; ") == (heading != "3g")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"up": "2 Mbit/s"}, "--down: expected a rate, or a network"),
        ({"up": "2 Mb/s", "down": "1 Mbit/s"}, "--up: got '2 Mb/s'"),
        ({"network_name": "brodband"}, '--network: got "brodband", did you mean "broadband"'),
        ({"network_name": "4g", "deadline": "0 s"}, "--deadline"),
        ({"network_name": "4g", "spread": -1.0}, "--spread"),
        ({"network_name": "4g", "device_name": "fone"}, "--device: got"),
        ({"network_name": "4g", "trace": Path("x.csv"), "spread": 0.5}, "--spread: got 0.5 in addition to a trace"),
    ],
)
def test_pricing_model_with_invalid_option_raises_error_with_its_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        build_pricing_model(**options)
    assert message in str(error.value)


OWN_NETWORK = Network(
    Link(1e6, 2e6, 0.05),
    LogNormalLinks(0.5),
    server_up_bits_per_second=1e9,
    downlink="broadcast",
    up_overhead_bytes=12_000,
    title="lab",
    source="measured",
)
OWN_PATH = f"{__name__}:OWN_NETWORK"


def test_network_of_the_user_keeps_all_figures_that_no_option_overrides() -> None:
    assert build_pricing_model(OWN_PATH).network == OWN_NETWORK
    pricing_model = build_pricing_model(OWN_PATH, up="4 Mbit/s", overhead_up="0 B", spread=0.0)
    network = pricing_model.network
    assert network.link == Link(4e6, 2e6, 0.05)
    assert (network.draws, network.up_overhead_bytes) == (HomogeneousLinks(), 0)
    assert (network.server_up_bits_per_second, network.downlink) == (1e9, "broadcast")
    assert build_pricing_model(OWN_PATH, broadcast=False).network.downlink == "unicast"
    overrides = "4 Mbit/s up, equal links, 0 B of overhead in each message up"
    assert format_network_label(OWN_PATH, pricing_model) == f"{OWN_PATH} with {overrides}"
    assert network.source == f"set by options: {overrides}; all other figures: measured"


def test_trace_replaces_the_links_of_the_users_network(tmp_path: Path) -> None:
    (tmp_path / "links.csv").write_text(
        "client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1e6,2e6,0.02\n1,3e6,6e6,0.04\n"
    )
    network = build_pricing_model(OWN_PATH, trace=tmp_path / "links.csv").network
    assert network.link != OWN_NETWORK.link
    assert isinstance(network.draws, TraceLinks)
    assert (network.server_up_bits_per_second, network.up_overhead_bytes) == (1e9, 12_000)


EARLY_NETWORK = Network(Link(1e6, 2e6, 0.05), TraceLinks("links", (1.0, 1.0), (1.0, 1.0), (0.0, -0.1)))


def test_network_of_the_user_with_a_latency_below_zero_is_refused_by_its_option() -> None:
    with pytest.raises(
        ScenarioError, match=r"^--network: got a latency of 50 ms, expected at least 100 ms: a client of the trace"
    ):
        build_pricing_model(f"{__name__}:EARLY_NETWORK")
    assert build_pricing_model(f"{__name__}:EARLY_NETWORK", latency="0.1 s").network.link.latency_seconds == 0.1
