"""Page of the networks and devices that `fedsgd price` knows."""

from __future__ import annotations

from fedsgd.network.profiles import NETWORKS, load_devices
from tests.docs.markdown import bullets, escape, make_page, paragraph, sentence


def build_network_pages() -> dict[str, str]:
    """Return the page networks.md by path."""
    networks = {name: NETWORKS[name] for name in NETWORKS}
    text = make_page(
        "# Networks and devices",
        paragraph(
            "Names for `--network`, `--device` and `--server` of [fedsgd price](cli/price.md), [compare](cli/compare.md), "
            "[report](cli/report.md) and [run](cli/run.md). The figures are published ones to start from, not a prediction for "
            "particular clients. [Price on networks](../guides/price-networks.md) shows how to use them.",
            is_markdown=True,
        ),
        bullets(
            [
                "Rates are for one client alone: no link is shared, and no overhead of a protocol is subtracted.",
                "The latency is one way, half of a round trip, mostly to a test server near by.",
                "Jitter is left out where no source has a figure. That is missing data, not a measurement.",
                "Computing is for a training step in float32, at the utilisation that the source states.",
            ]
        ),
        "## Networks",
        *(_format_profile(name, network.title, str(network), network.source) for name, network in networks.items()),
        "## Devices",
        *(_format_profile(name, device.title, str(device), device.source) for name, device in load_devices().items()),
    )
    return {"networks.md": text}


def _format_profile(name: str, title: str, figures: str, source: str) -> str:
    entries = bullets([sentence(escape(figures)), f"Source: {escape(' '.join(source.split()))}"])
    return f"### {name}\n\n{paragraph(title)}\n\n{entries}"
