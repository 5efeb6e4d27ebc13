"""Networks and devices by name, from one data file in which each figure has its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedsgd.errors import ScenarioError, did_you_mean
from fedsgd.network.base import Device, Link, Network
from fedsgd.units import parse_flops, parse_rate, parse_seconds

FILE = Path(__file__).with_name("profiles.toml")
DEFAULT_DEVICE, DEFAULT_SERVER = "phone", "server"


@cache
def _profiles() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def networks() -> dict[str, Network]:
    """All that there are, by name."""
    return {name: _network(profile) for name, profile in _profiles()["networks"].items()}


def devices() -> dict[str, Device]:
    """All that there are, by name."""
    return {name: _device(profile) for name, profile in _profiles()["devices"].items()}


def network(name: str) -> Network:
    """The network of that name; ScenarioError with the nearest one if there is none."""
    return _network(_named("networks", name))


def device(name: str) -> Device:
    """The device of that name; ScenarioError with the nearest one if there is none."""
    return _device(_named("devices", name))


def _named(kind: str, name: str) -> Mapping[str, str]:
    known = _profiles()[kind]
    if name not in known:
        raise ScenarioError(f'got "{name}"{did_you_mean(name, known)}')
    return known[name]


def _network(profile: Mapping[str, Any]) -> Network:
    link = Link(
        parse_rate(profile["up"]),
        parse_rate(profile["down"]),
        parse_seconds(profile["latency"]),
        parse_seconds(profile["jitter"]),
    )
    return Network(link, title=profile["title"], source=profile["source"])


def _device(profile: Mapping[str, Any]) -> Device:
    flops, copies = parse_flops(profile["compute"]), parse_rate(profile["copy"]) / 8
    return Device(flops, copies, title=profile["title"], source=profile["source"])
