"""Settings of a `CompressedStrategy`, as tables of a scenario, and in the form in which they travel to nodes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsgd.compression import COMPRESSORS, CompressionOperator, CompressionScheme, Compressor, StaleResidualPolicy
from fedsgd.errors import FedsgdError, ScenarioError, WireError, suggest_name
from fedsgd.federation import FederationPlan
from fedsgd.flower.app.array_layout import ArrayLayout
from fedsgd.optim import SGD
from fedsgd.scenario.parsing import dump_table, parse_table
from fedsgd.scenario.sections import DownlinkConfig, UplinkConfig
from fedsgd.training import LocalTraining
from fedsgd.wire import ALL_CLIENTS

SETTINGS_VERSION = 2
MAX_SETTINGS_BYTES = 2**26
"""Bytes of unpacked terms: names and shapes of a million arrays."""
_INTEGER_FIELDS = ("seed", "session", "cohort", "first", "state_bytes")


def parse_uplink(compressor: str | Mapping[str, object] | Compressor, error_feedback: str) -> UplinkConfig:
    """Return the settings of the uplink.

    Raises:
        ScenarioError: a setting is wrong, or the compressor's server does more than to decode each client's update. A strategy
            gets every client's arrays.
    """
    given = dump_table(compressor, use_import_paths=False) if isinstance(compressor, Compressor) else compressor
    name = given.get("name") if isinstance(given, Mapping) else given
    if isinstance(name, str) and name not in COMPRESSORS and ":" not in name:
        raise ScenarioError(f'compressor.name: got "{name}"{suggest_name(name, _list_supported_compressors())}')
    uplink = parse_table(UplinkConfig, {"compressor": given, "error_feedback": error_feedback}, registered_only=True)
    if isinstance(compressor, Compressor) and uplink.compressor != compressor:
        raise ScenarioError(f"compressor: got {compressor!r}, which clients would not know by its name")
    if not _is_decoded_per_client(uplink.build_scheme()):
        name = uplink.compressor.name
        problem = f'got "{name}", whose server works on the whole cohort, not on each client\'s arrays as a strategy does'
        raise ScenarioError(f"compressor.name: {problem}{suggest_name('', _list_supported_compressors())}")
    return uplink


def parse_downlink(settings: str | Mapping[str, object] | None) -> DownlinkConfig:
    """Return the settings of the downlink, by default those of the whole model.

    Args:
        settings: a table, or the name of a policy.

    Raises:
        ScenarioError: a setting is wrong.
    """
    try:
        table = {"policy": settings} if isinstance(settings, str) else settings
        return parse_table(DownlinkConfig, {} if table is None else table, registered_only=True)
    except ScenarioError as error:
        raise ScenarioError(f"downlink.{error}") from None


def _is_decoded_per_client(scheme: Compressor) -> bool:
    if isinstance(scheme, CompressionOperator):
        return True
    if isinstance(scheme, StaleResidualPolicy):
        return _is_decoded_per_client(scheme.scheme)
    assert isinstance(scheme, CompressionScheme)
    own = (
        type(scheme).aggregate is not CompressionScheme.aggregate
        or type(scheme).encode_reference is not CompressionScheme.encode_reference
    )
    return not (own or scheme.server_mirrors_clients or scheme.corrects_gradients)


def _list_supported_compressors() -> list[str]:
    return [name for name in COMPRESSORS if _is_decoded_per_client(COMPRESSORS[name]())]


@dataclass(frozen=True)
class CompressionSettings:
    """Settings that server and node both apply.

    Attributes:
        uplink: table as in a scenario.
        downlink: table as in a scenario.
        model: names, shapes and order of the app's arrays.
        seed: seed of the randomness that both ends share.
        session: number of the session in the run, from 1.
        cohort: number of nodes that are sent a message in the round.
        key: record that has the model.
        weighted_by: metric that has the number of examples that a node trained on.
        first: number of the first session of the same strategy, whose later sessions replace earlier ones.
        state_bytes: size of a client's state after two rounds, by trial on the server; 0 if its scheme stores nothing.
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
        """Return the plan of the rounds. Its settings of training and averaging are not used: they are the app's."""
        recipe = LocalTraining(SGD(), None, 1, None)
        scheme: CompressionScheme = self.uplink.build_scheme()
        link = self.downlink.build_downlink()
        return FederationPlan(
            self.seed, self.array_layout.layout, recipe, scheme, link, SGD(), "uniform", ALL_CLIENTS, self.cohort
        )

    def encode(self) -> bytes:
        """Return the terms as bytes."""
        plain = {name: getattr(self, name) for name in (*_INTEGER_FIELDS, "key", "weighted_by")}
        at = {name: i for i, name in enumerate(self.array_layout.names)}
        tied = [[at[name] for name in group] for group in self.array_layout.tied_groups]
        model = [
            self.array_layout.names,
            self.array_layout.shapes,
            [i for i, exact in enumerate(self.array_layout.exact) if exact],
        ]
        types = [[at[name], dtype] for name, dtype in self.array_layout.dtypes]
        model += [tied, types] if tied or types else []
        tables = {"uplink": dump_table(self.uplink), "downlink": dump_table(self.downlink)}
        said = json.dumps({"version": SETTINGS_VERSION, **plain, **tables, "model": model}, separators=(",", ":"))
        return zlib.compress(said.encode(), 9)


def decode_settings(data: bytes) -> CompressionSettings:
    """Return the terms that `CompressionSettings.encode` packed. WireError for other bytes, and for those of another
    release."""
    try:
        unpacker = zlib.decompressobj()
        said = json.loads(unpacker.decompress(data, MAX_SETTINGS_BYTES))
        if said.pop("version") != SETTINGS_VERSION:
            raise WireError(0, "the server has another release of fedsgd than this node: they have to be the same")
        model = _decode_array_layout(*said.pop("model"))
        if not all(isinstance(said[name], int) for name in _INTEGER_FIELDS):
            raise WireError(0, "the server's settings have no numbers where they should")
        uplink = parse_table(UplinkConfig, said.pop("uplink"), registered_only=True)
        downlink = parse_table(DownlinkConfig, said.pop("downlink"), registered_only=True)
        return CompressionSettings(uplink, downlink, model, **said)
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
    aside = set(exact)
    groups = tuple(tuple(names[i] for i in group) for group in tied_groups)
    named = tuple((names[i], dtype) for i, dtype in dtypes)
    is_aside = tuple(i in aside for i in range(len(names)))
    return ArrayLayout(tuple(names), tuple(map(tuple, shapes)), is_aside, groups, named)
