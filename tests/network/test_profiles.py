"""Profiles of networks and devices."""

from __future__ import annotations

import pytest

from fedsgd.errors import ScenarioError
from fedsgd.network import (
    get_device,
    get_network,
)
from fedsgd.network.profiles import load_devices, load_networks


def test_profiles_have_sources_and_plausible_figures() -> None:
    assert {"3g", "4g", "5g", "broadband", "wifi", "lora", "1g", "10g", "satellite"} <= set(load_networks())
    for profile in (*load_networks().values(), *load_devices().values()):
        assert len(profile.source) > 40
        assert profile.title
    for name, network in load_networks().items():
        assert network.link.up_bits_per_second <= network.link.down_bits_per_second, name
        assert network.link.latency_seconds < 1, name
    assert load_networks()["10g"].link.up_bits_per_second == 10 * load_networks()["1g"].link.up_bits_per_second == 1e10


def test_unknown_profile_raises_error_with_nearest_name() -> None:
    with pytest.raises(ScenarioError, match='did you mean "satellite"'):
        get_network("satelite")
    with pytest.raises(ScenarioError, match='did you mean "phone"'):
        get_device("phones")
