"""Payload of the page's fleet: measured traffic of runs, settings with runs at several values, and values of the controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import ArrayLike

from fedsgd.analysis.cap_limits import collect_setting_values
from fedsgd.analysis.fleet import FleetConfig, get_whole_model_bytes, measure_traffic
from fedsgd.analysis.methods import Method
from fedsgd.analysis.runs import Run
from fedsgd.network import Network

DEFAULT_ROUNDS_PER_MONTH = 30
MODELLED_SAMPLERS = ("uniform", "cyclic")
"""Samplers whose distribution of bytes over clients is computed. For other samplers, the page has the bytes of the clients."""


def build_fleet_payload(
    methods: Sequence[Method],
    fleet: FleetConfig | None,
    price_per_gigabyte: float | None,
    network: Network,
    encode_array: Callable[[ArrayLike], dict[str, str]],
) -> dict[str, Any] | None:
    """Return the data from which the page computes a fleet; None on a broadcast downlink, of which a fleet has no figures.

    Args:
        methods: methods of the page, in their order.
        fleet: initial values of the controls; None for the clients of the first run, without a cap.
        price_per_gigabyte: initial price of 10⁹ bytes; None for no price.
        network: network with the overheads of messages.
        encode_array: encoder of arrays for the page.
    """
    if network.downlink == "broadcast":
        return None
    start = fleet or FleetConfig(DEFAULT_ROUNDS_PER_MONTH)

    def traffic_to_json(run: Run) -> dict[str, Any]:
        traffic = measure_traffic(run, network.up_overhead_bytes, network.down_overhead_bytes)
        return {
            "sampled_share": traffic.sampled_share,
            "rounds": traffic.n_rounds,
            "up": traffic.up_bytes,
            "down": traffic.down_bytes,
            "sampler": traffic.sampler,
            "whole_model_bytes": get_whole_model_bytes(run),
            "client_bytes": None if traffic.sampler in MODELLED_SAMPLERS else encode_array(traffic.client_bytes),
        }

    return {
        "rounds_per_month": start.rounds_per_month,
        "clients": start.clients or methods[0].runs[0].summary["clients"],
        "cohort": start.cohort,
        "cap_bytes": start.cap_bytes or 0,
        "share": start.share,
        "price_per_gigabyte": price_per_gigabyte or 0,
        "traffic": [[traffic_to_json(run) for run in method.runs] for method in methods],
        "settings": [
            {
                "label": setting.label,
                "setting": setting.setting,
                "values": setting.values,
                "whole": all(isinstance(value, int) for value in setting.values),
                "traffic": [[traffic_to_json(run) for run in runs] for runs in setting.runs],
            }
            for setting in collect_setting_values(methods)
        ],
    }
