"""Settings of a `CompressedStrategy`, as tables of a scenario."""

from __future__ import annotations

from collections.abc import Mapping

from fedsgd.compress import COMPRESSORS, Ageing, Compressor, Operator, Scheme
from fedsgd.errors import ScenarioError, did_you_mean
from fedsgd.schema import from_table, to_table
from fedsgd.tables import Downlink, Uplink


def uplink_of(compressor: str | Mapping[str, object] | Compressor, error_feedback: str) -> Uplink:
    """Return the settings of the uplink.

    Raises:
        ScenarioError: a setting is wrong, or the compressor's server does more than to decode each client's update. A strategy
            gets every client's arrays.
    """
    given = to_table(compressor, by_path=False) if isinstance(compressor, Compressor) else compressor
    name = given.get("name") if isinstance(given, Mapping) else given
    if isinstance(name, str) and name not in COMPRESSORS and ":" not in name:
        raise ScenarioError(f'compressor.name: got "{name}"{did_you_mean(name, _usable())}')
    uplink = from_table(Uplink, {"compressor": given, "error_feedback": error_feedback}, registered_only=True)
    if isinstance(compressor, Compressor) and uplink.compressor != compressor:
        raise ScenarioError(f"compressor: got {compressor!r}, which clients would not know by its name")
    if not _is_by_client(uplink.scheme()):
        name = uplink.compressor.name
        problem = f'got "{name}", whose server works on the whole cohort, not on each client\'s arrays as a strategy does'
        raise ScenarioError(f"compressor.name: {problem}{did_you_mean('', _usable())}")
    return uplink


def downlink_of(table: Mapping[str, object] | None) -> Downlink:
    """Return the settings of the downlink, by default those of the whole model.

    Raises:
        ScenarioError: a setting is wrong.
    """
    try:
        return from_table(Downlink, {} if table is None else table, registered_only=True)
    except ScenarioError as error:
        raise ScenarioError(f"downlink.{error}") from None


def _is_by_client(scheme: Compressor) -> bool:
    if isinstance(scheme, Operator):
        return True
    if isinstance(scheme, Ageing):
        return _is_by_client(scheme.scheme)
    assert isinstance(scheme, Scheme)
    own = type(scheme).fold is not Scheme.fold or type(scheme).downlink is not Scheme.downlink
    return not (own or scheme.mirrored or scheme.corrects)


def _usable() -> list[str]:
    return [name for name in COMPRESSORS if _is_by_client(COMPRESSORS[name]())]
