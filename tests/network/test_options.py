"""Pricing models from options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsgd.errors import ScenarioError
from fedsgd.network import (
    LogNormalLinks,
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
