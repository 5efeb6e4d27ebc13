"""Model of a network: durations of rounds in closed form, from a run's recorded bytes and work, without clock or traffic."""

from fedsgd.network.heterogeneity import HomogeneousLinks, LinkFactors, LinkHeterogeneity, LogNormalLinks, TraceLinks
from fedsgd.network.link import Device, Link, Network
from fedsgd.network.options import build_pricing_model, format_network_label
from fedsgd.network.profiles import get_device, get_network
from fedsgd.network.round_times import (
    ClientTraffic,
    ComputeProfile,
    PricingModel,
    RoundTimeBreakdown,
    RoundTimeModel,
    round_time_models,
)

__all__ = [
    "ClientTraffic",
    "ComputeProfile",
    "Device",
    "HomogeneousLinks",
    "Link",
    "LinkFactors",
    "LinkHeterogeneity",
    "LogNormalLinks",
    "Network",
    "PricingModel",
    "RoundTimeBreakdown",
    "RoundTimeModel",
    "TraceLinks",
    "build_pricing_model",
    "format_network_label",
    "get_device",
    "get_network",
    "round_time_models",
]
