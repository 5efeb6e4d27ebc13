"""Profiles of networks and devices, from a data file with the source of each figure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from fedsgd.config.quantities import parse_flops, parse_rate, parse_seconds
from fedsgd.config.registry import Registry
from fedsgd.errors import ScenarioError, suggest_name
from fedsgd.network.link import Device, Link, Network

PROFILES_PATH = Path(__file__).with_name("profiles.toml")
DEFAULT_DEVICE, DEFAULT_SERVER = "phone", "server"


@cache
def _read_profiles() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    return tomllib.loads(PROFILES_PATH.read_text(encoding="utf-8"))


def load_networks() -> dict[str, Network]:
    """Return all networks by name: the built-in profiles, and those of plugins that can be loaded."""
    networks = {name: NETWORKS[name] for name in NETWORKS}
    for name in NETWORKS.list_plugin_names():
        with suppress(ScenarioError):
            networks[name] = NETWORKS[name]
    return networks


def load_devices() -> dict[str, Device]:
    """Return all devices by name."""
    return {name: _parse_device(profile) for name, profile in _read_profiles()["devices"].items()}


def get_network(name: str) -> Network:
    """Return a network by name: a profile, a plugin's, or my_package.my_module:MY_NETWORK.

    ScenarioError, with the nearest name, for an unknown name.

    >>> str(get_network("3g"))
    '768 kbit/s up, 1.6 Mbit/s down, 150 ms one way'
    """
    return NETWORKS[name]


def get_device(name: str) -> Device:
    """Return a device by name. ScenarioError, with the nearest name, for an unknown name."""
    profiles = _read_profiles()["devices"]
    if name not in profiles:
        raise ScenarioError(f'got "{name}"{suggest_name(name, profiles)}')
    return _parse_device(profiles[name])


def _parse_network(name: str) -> Network:
    profile = _read_profiles()["networks"][name]
    link = Link(
        parse_rate(profile["up"]),
        parse_rate(profile["down"]),
        parse_seconds(profile["latency"]),
        parse_seconds(profile["jitter"]),
    )
    return Network(link, title=profile["title"], source=profile["source"])


def _parse_device(profile: Mapping[str, Any]) -> Device:
    flops, copies = parse_flops(profile["compute"]), parse_rate(profile["copy"]) / 8
    return Device(flops, copies, title=profile["title"], source=profile["source"])


def _check_network(network: object, base: type, description: str) -> None:
    """Raise a ScenarioError unless a plugin's network is a `Network`."""
    if not isinstance(network, base):
        raise ScenarioError(f"{description} is {network!r}, expected a {base.__module__}.{base.__qualname__}")


NETWORKS: Registry[Network] = Registry(
    "network",
    Network,
    {name: name for name in _read_profiles()["networks"]},
    check_member=_check_network,
    load_builtin=_parse_network,
)
"""Networks by name: the profiles, and the objects of plugins."""
