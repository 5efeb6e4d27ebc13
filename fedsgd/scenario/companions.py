"""Further settings that some settings require, for examples and new scenarios."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from fedsgd.compression import COMPRESSORS
from fedsgd.errors import ScenarioError
from fedsgd.scenario.overrides import apply_settings
from fedsgd.scenario.scenario import Scenario, parse_scenario

COMPANIONS: tuple[tuple[str, Any], ...] = (
    ("server.weighting", "uniform"),
    ("client.optimizer", "sgd"),
    ("client.optimizer", "momentum"),
    ("uplink.error_feedback", "none"),
    ("downlink.policy", "error-feedback"),
    ("downlink.policy", "unbiased"),
    ("uplink.error_feedback", "persist"),
    ("client.epochs", 5),
)
"""Settings that other settings require: equal weights, an optimizer without or with velocity, policies for a compressor,
epochs of which a straggler makes fewer."""
COMPANION_KEYS = {"uplink.compressor", *(key for key, _ in COMPANIONS)}
MAX_COMPANIONS = 2


def find_companions(toml_table: Mapping[str, Any], fixed_keys: Iterable[str] = ()) -> dict[str, Any] | None:
    """Return the companions by dotted key that nested tables need to be a valid scenario; None if no companions help.

    Args:
        toml_table: nested tables, without the `name` of a scenario.
        fixed_keys: dotted keys that keep their values.
    """
    server = toml_table.get("server")
    aggregator = server.get("aggregator", {}) if isinstance(server, Mapping) else {}
    name = aggregator.get("name") if isinstance(aggregator, Mapping) else aggregator
    partners = [("uplink.compressor", str(name))] * (name in [*COMPRESSORS])  # the client half of a scheme
    candidates = [(key, value) for key, value in (*partners, *COMPANIONS) if key not in fixed_keys]
    for count in range(MAX_COMPANIONS + 1):
        for companions in map(dict, combinations(candidates, count)):
            if len(companions) == count and _is_valid(toml_table, companions):
                return companions
    return None


def _is_valid(toml_table: Mapping[str, Any], companions: Mapping[str, Any]) -> bool:
    try:
        parse_scenario({"name": "example", **apply_settings(Scenario, toml_table, companions)})
    except ScenarioError:
        return False
    return True
