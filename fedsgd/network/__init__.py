"""Links and clocks: how long rounds take on a network, from the bytes that crossed and the work that was done.

Nothing here reads a clock, and nothing was sent over such a network: it is a model, every piece of it with a closed form.
"""

from fedsgd.network.asked import ask, network_label
from fedsgd.network.base import Device, Link, Network
from fedsgd.network.draws import Constant, Draws, Factors, LogNormal, Trace
from fedsgd.network.profiles import device, network
from fedsgd.network.timeline import Stack, Terms, Timeline, Work, timelines
from fedsgd.network.trips import Trips

__all__ = [
    "Constant",
    "Device",
    "Draws",
    "Factors",
    "Link",
    "LogNormal",
    "Network",
    "Stack",
    "Terms",
    "Timeline",
    "Trace",
    "Trips",
    "Work",
    "ask",
    "device",
    "network",
    "network_label",
    "timelines",
]
