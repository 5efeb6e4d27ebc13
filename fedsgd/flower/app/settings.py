"""Settings of a `CompressedStrategy`, and their encoding in the messages to nodes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fedsgd.aggregation import WeightedMean
from fedsgd.compression import COMPRESSORS, CompressionOperator, CompressionScheme, Compressor, StaleResidualPolicy
from fedsgd.config.component import describe_value
from fedsgd.config.python_objects import PYTHON_OBJECT_NAME
from fedsgd.errors import FedsgdError, ScenarioError, WireError, suggest_name
from fedsgd.federation import FederationPlan
from fedsgd.flower.app.array_layout import ArrayLayout
from fedsgd.optim import SGD
from fedsgd.scenario.parsing import dump_table, errors_in_section, parse_table
from fedsgd.scenario.resolution import build_downlink, build_scheme
from fedsgd.scenario.sections import DownlinkConfig, UplinkConfig
from fedsgd.training import LocalTraining
from fedsgd.wire import ALL_CLIENTS

SETTINGS_VERSION = 2
MAX_SETTINGS_BYTES = 2**26
"""Maximum size of decompressed settings, enough for the names and shapes of a million arrays."""
_INTEGER_FIELDS = ("seed", "session", "cohort", "first", "state_bytes")


def parse_uplink(compressor: str | Mapping[str, object] | Compressor, error_feedback: str) -> UplinkConfig:
    """Return the settings of the uplink.

    Raises:
        ScenarioError: a setting is wrong, or the compressor's server does more than decode updates.
    """
    table = dump_table(compressor) if isinstance(compressor, Compressor) else compressor
    if isinstance(table, Mapping) and table.get("name") == PYTHON_OBJECT_NAME:
        raise ScenarioError(f"compressor: got {compressor!r}, expected a compressor whose class nodes can import")
    if isinstance(table, Mapping) and "name" not in table:
        raise ScenarioError(f"compressor.name: missing{suggest_name('', _list_supported_compressors())}")
    name = table.get("name") if isinstance(table, Mapping) else table
    if isinstance(name, str) and not COMPRESSORS.is_valid_name(name):
        raise ScenarioError(f'compressor.name: got "{name}"{suggest_name(name, _list_supported_compressors())}')
    uplink = parse_table(UplinkConfig, {"compressor": table, "error_feedback": error_feedback})
    with errors_in_section(""):
        scheme = build_scheme(uplink)
    if not _is_decoded_per_client(scheme):
        name = uplink.compressor.name
        problem = f'got "{name}", whose server does more than decode updates; a strategy needs each client\'s arrays'
        raise ScenarioError(f"compressor.name: {problem}{suggest_name('', _list_supported_compressors())}")
    return uplink


def parse_downlink(settings: str | Mapping[str, object] | None) -> DownlinkConfig:
    """Return the downlink's settings from a table, a policy's name, or None, which stands for the uncompressed model."""
    if not isinstance(settings, str | Mapping | None):
        raise ScenarioError(f'downlink: got {describe_value(settings)}, expected the name of a policy or a table with "policy"')
    try:
        table = {"policy": settings} if isinstance(settings, str) else settings
        return parse_table(DownlinkConfig, {} if table is None else table)
    except ScenarioError as error:
        raise ScenarioError(f"downlink.{error}") from None


def _is_decoded_per_client(scheme: Compressor) -> bool:
    if isinstance(scheme, CompressionOperator):
        return True
    if isinstance(scheme, StaleResidualPolicy):
        return _is_decoded_per_client(scheme.scheme)
    assert isinstance(scheme, CompressionScheme)
    sends_reference = type(scheme).encode_reference is not CompressionScheme.encode_reference
    has_server_half = scheme.aggregator is not None or scheme.server_mirrors_clients
    return not (has_server_half or sends_reference or scheme.corrects_gradients)


def _list_supported_compressors() -> list[str]:
    return [name for name in COMPRESSORS if _is_decoded_per_client(COMPRESSORS[name]())]


@dataclass(frozen=True)
class CompressionSettings:
    """Settings of a session, which server and nodes both apply.

    Attributes:
        seed: seed of the randomness that server and clients share.
        session: number of the session in the server's process, from 1.
        cohort: number of nodes that are sent a message in the round.
        key: name of the record with the model.
        weighted_by: name of the metric with a node's number of training examples.
        first: number of the strategy's first session. Later sessions of the strategy replace earlier sessions.
        state_bytes: bytes of a client's state after two rounds, measured on the server; 0 for a scheme without state.
    """

    uplink: UplinkConfig
    downlink: DownlinkConfig
    array_layout: ArrayLayout
    seed: int = 0
    session: int = 1
    cohort: int = 1
    key: str = "arrays"
    weighted_by: str = "num-examples"
    first: int = 1
    state_bytes: int = 0

    def build_plan(self) -> FederationPlan:
        """Return the plan of the rounds. App and strategy train and aggregate, so the plan's settings for both are unused."""
        training = LocalTraining(SGD(), None, 1, None)
        return FederationPlan(
            self.seed,
            self.array_layout.layout,
            training,
            build_scheme(self.uplink),
            build_downlink(self.downlink),
            SGD(),
            "uniform",
            ALL_CLIENTS,
            self.cohort,
            aggregator=WeightedMean(),
        )

    def encode(self) -> bytes:
        """Return the settings as compressed JSON."""
        values = {name: getattr(self, name) for name in (*_INTEGER_FIELDS, "key", "weighted_by")}
        index = {name: i for i, name in enumerate(self.array_layout.names)}
        tied_groups = [[index[name] for name in group] for group in self.array_layout.tied_groups]
        model = [
            self.array_layout.names,
            self.array_layout.shapes,
            [i for i, exact in enumerate(self.array_layout.exact) if exact],
        ]
        dtypes = [[index[name], dtype] for name, dtype in self.array_layout.dtypes]
        model += [tied_groups, dtypes] if tied_groups or dtypes else []
        tables = {"uplink": dump_table(self.uplink), "downlink": dump_table(self.downlink)}
        text = json.dumps({"version": SETTINGS_VERSION, **values, **tables, "model": model}, separators=(",", ":"))
        return zlib.compress(text.encode(), 9)


def decode_settings(data: bytes, allowed_paths: Collection[str] = ()) -> CompressionSettings:
    """Return the settings that `CompressionSettings.encode` encoded. WireError for any other bytes.

    Of the classes outside fedsgd, only those in `allowed_paths` are imported.
    """
    try:
        decompressor = zlib.decompressobj()
        values = json.loads(decompressor.decompress(data, MAX_SETTINGS_BYTES))
        if values.pop("version") != SETTINGS_VERSION:
            raise WireError(0, "server and node have different releases of fedsgd, expected the same release")
        array_layout = _decode_array_layout(*values.pop("model"))
        if not all(isinstance(values[name], int) for name in _INTEGER_FIELDS):
            raise WireError(0, f"the server's settings have a value that is no integer in one of {', '.join(_INTEGER_FIELDS)}")
        uplink = parse_table(UplinkConfig, values.pop("uplink"), allowed_paths)
        with errors_in_section(""):
            build_scheme(uplink)  # raises for a policy that the compressor does not allow
        downlink = parse_table(DownlinkConfig, values.pop("downlink"), allowed_paths)
        return CompressionSettings(uplink, downlink, array_layout, **values)
    except FedsgdError as error:
        raise error if isinstance(error, WireError) else WireError(0, f"the server's settings: {error}") from None
    except (zlib.error, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise WireError(0, "the server's settings cannot be read") from None


def _decode_array_layout(
    names: list[str],
    shapes: list[list[int]],
    exact: list[int],
    tied_groups: Sequence[Sequence[int]] = (),
    dtypes: Sequence[tuple[int, str]] = (),
) -> ArrayLayout:
    exact_indices = set(exact)
    groups = tuple(tuple(names[i] for i in group) for group in tied_groups)
    named_dtypes = tuple((names[i], dtype) for i, dtype in dtypes)
    is_exact = tuple(i in exact_indices for i in range(len(names)))
    return ArrayLayout(tuple(names), tuple(map(tuple, shapes)), is_exact, groups, named_dtypes)
