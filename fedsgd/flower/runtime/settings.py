"""Settings of fedsgd's own ServerApp and ClientApp: the run config that `fedsgd flower` writes."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedsgd.errors import ScenarioError
from fedsgd.scenario.scenario import Scenario, parse_scenario

FieldCheck = tuple[str, Callable[[Any], bool]]
"""(expected values in words, predicate for a valid value)."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


CLIENT_FIELDS: Mapping[str, FieldCheck] = {
    "scenario": ("a scenario in TOML", _is_text),
    "data": ('the path of a folder, or ""', _is_text),
    "state": ('the path of a folder, or ""', _is_text),
}
SERVER_FIELDS: Mapping[str, FieldCheck] = {
    **CLIENT_FIELDS,
    "nodes": ("a whole number from 1 on", _is_count),
    "events": ("the path of a file", _is_text),
    "out": ("the path of a folder", _is_text),
    "start-seconds": ("a positive number", _is_positive),
    "round-seconds": ("a positive number", _is_positive),
    "launch": ("the launcher's settings in JSON", _is_text),
    "is-resumed": ("true or false", lambda value: isinstance(value, bool)),
}
_PURPOSE = (
    "runs a fedsgd scenario, and `fedsgd flower SCENARIO --nodes N` submits it with its settings; another app is compressed by "
    "fedsgd.flower.CompressedStrategy and compression_mod"
)


class ServerAppConfig(NamedTuple):
    """Run config of the ServerApp, in the order of `SERVER_FIELDS`.

    `scenario` is TOML. `data` is "" for the default folder. The limits are for the start of all nodes, and for a node's reply.
    If `is_resumed`, the run in `out` continues from its latest checkpoint.
    """

    scenario: str
    data: str
    state: str
    nodes: int
    events: str
    out: str
    start_seconds: float
    round_seconds: float
    launch: str
    is_resumed: bool


class ClientAppConfig(NamedTuple):
    """Run config of the ClientApp, in the order of `CLIENT_FIELDS`: scenario as TOML, and folder of the data files.

    `state` is the folder of all nodes' states of a run that can be resumed; "" for states that end with the deployment.
    """

    scenario: str
    data: str
    state: str


def read_server_config(config: Mapping[str, Any]) -> ServerAppConfig:
    """Return the settings of the ServerApp. ScenarioError for missing settings and for wrong values."""
    return ServerAppConfig(*_read_fields(config, SERVER_FIELDS, "fedsgd.flower.runtime.server_app:app"))


def read_client_config(config: Mapping[str, Any]) -> ClientAppConfig:
    """Return the settings of the ClientApp. ScenarioError for missing settings and for wrong values."""
    return ClientAppConfig(*_read_fields(config, CLIENT_FIELDS, "fedsgd.flower.runtime.client_app:app"))


def read_scenario(text: str) -> Scenario:
    """Return the scenario of the run config. ScenarioError if the text is not a scenario, such as a path."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        line = next(iter(text.splitlines()), "")[:80]
        expected = f"expected the TOML text of a scenario, not a path ({error})"
        raise ScenarioError(f"run config: scenario: got {line!r}, {expected}") from None
    return parse_scenario(tables)


def _read_fields(config: Mapping[str, Any], fields: Mapping[str, FieldCheck], app_name: str) -> list[Any]:
    missing_names = [name for name in fields if name not in config]
    if missing_names:
        raise ScenarioError(f"run config: no {', '.join(missing_names)}: {app_name} {_PURPOSE}")
    for name, (expected, is_valid) in fields.items():
        if not is_valid(config[name]):
            raise ScenarioError(f"run config: {name}: got {config[name]!r:.80}, expected {expected}: {app_name} {_PURPOSE}")
    return [config[name] for name in fields]
