"""Networks and devices from quantities with units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from fedsgd.errors import FedsgdError
from fedsgd.network import LogNormalLinks, build_pricing_model, link, networks


def test_quantities_give_the_objects_of_the_options() -> None:
    options = build_pricing_model(
        up="7.6 Mbit/s",
        down="2.5 MB/s",
        latency="25 ms",
        jitter="2 ms",
        spread=0.5,
        server_up="1 Gbit/s",
        broadcast=True,
        overhead_up="12 kB",
    )
    network = networks.Network(
        networks.Link(up="7.6 Mbit/s", down="2.5 MB/s", latency="25 ms", jitter="2 ms"),
        links=LogNormalLinks(spread=0.5),
        server_up="1 Gbit/s",
        downlink="broadcast",
        up_overhead="12 kB",
    )
    assert options.network.describe_differences(network) == network.describe_differences(options.network) == []
    assert network.link == link.Link(7.6e6, 2e7, 0.025, 0.002)
    assert (network.server_down_bits_per_second, network.down_overhead_bytes) == (None, 0.0)


def test_name_of_a_network_stands_for_its_link() -> None:
    assert networks.Network("4g").link == networks.get_network("4g").link


def test_device_has_flops_and_bytes() -> None:
    device = networks.Device(compute="2 GFLOP/s", copy="5 GB/s", spread=0.1)
    assert (device.flops_per_second, device.copy_bytes_per_second, device.spread) == (2e9, 5e9, 0.1)


def test_trace_gives_the_medians_and_the_links(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1000,4000,0.1\n1,3000,8000,0.3\n")
    network = networks.read_trace(str(path))
    assert network.link == link.Link(2000, 6000, 0.2)
    assert str(network.draws) == "links of 2 clients from trace.csv"


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "unit": (lambda: networks.Link(up="2 Mb/s", down="2 MB/s"), "up: got '2 Mb/s', expected a rate such as"),
    "number": (lambda: networks.Link(up=cast("Any", 2e6), down="2 MB/s"), "up: got 2000000.0, expected a text with a unit"),
    "time": (lambda: networks.Link("1 MB/s", "1 MB/s", latency="2 m"), "latency: got '2 m', expected a time such as"),
    "name": (lambda: networks.Network("4gg"), 'got "4gg", did you mean "4g"?'),
    "link": (
        lambda: networks.Network(cast("Any", 3)),
        "link: got 3, expected fedsgd.networks.Link(...) or the name of a network",
    ),
    "size": (lambda: networks.Network("4g", up_overhead="2 s"), "up_overhead: got '2 s', expected a size such as"),
    "downlink": (lambda: networks.Network("4g", downlink=cast("Any", "both")), 'got "both", expected one of'),
    "device": (lambda: networks.Device(compute="2 GB/s", copy="1 GB/s"), "compute: got '2 GB/s', expected a throughput"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_quantity_is_refused_in_one_line(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(FedsgdError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
