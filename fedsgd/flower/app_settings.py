"""Settings of a `CompressedStrategy`, as tables of a scenario, and in the form in which they travel to nodes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsgd.compress import COMPRESSORS, Ageing, Compressor, Operator, Scheme
from fedsgd.engine import Recipe
from fedsgd.errors import FedsgdError, ScenarioError, WireError, did_you_mean
from fedsgd.flower.app_model import Arrangement
from fedsgd.optim import SGD
from fedsgd.rounds import Plan
from fedsgd.schema import from_table, to_table
from fedsgd.tables import Downlink, Uplink
from fedsgd.wire import ALL

VERSION = 2
MAX_TERMS = 2**26
"""Bytes of unpacked terms: names and shapes of a million arrays."""
_NUMBERS = ("seed", "session", "cohort", "first", "state_bytes")


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


def downlink_of(settings: str | Mapping[str, object] | None) -> Downlink:
    """Return the settings of the downlink, by default those of the whole model.

    Args:
        settings: a table, or the name of a policy.

    Raises:
        ScenarioError: a setting is wrong.
    """
    try:
        table = {"policy": settings} if isinstance(settings, str) else settings
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


@dataclass(frozen=True)
class Terms:
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

    uplink: Uplink
    downlink: Downlink
    model: Arrangement
    seed: int = 0
    session: int = 1
    cohort: int = 1
    key: str = "arrays"
    weighted_by: str = "num-examples"
    first: int = 1
    state_bytes: int = 0

    def plan(self) -> Plan:
        """Return the plan of the rounds. Its settings of training and averaging are not used: they are the app's."""
        recipe = Recipe(SGD(), None, 1, None)
        scheme: Scheme = self.uplink.scheme()
        link = self.downlink.link()
        return Plan(self.seed, self.model.layout, recipe, scheme, link, SGD(), "uniform", ALL, self.cohort)

    def packed(self) -> bytes:
        """Return the terms as bytes."""
        plain = {name: getattr(self, name) for name in (*_NUMBERS, "key", "weighted_by")}
        at = {name: i for i, name in enumerate(self.model.names)}
        tied = [[at[name] for name in group] for group in self.model.tied]
        model = [self.model.names, self.model.shapes, [i for i, exact in enumerate(self.model.exact) if exact]]
        types = [[at[name], dtype] for name, dtype in self.model.types]
        model += [tied, types] if tied or types else []
        tables = {"uplink": to_table(self.uplink), "downlink": to_table(self.downlink)}
        said = json.dumps({"version": VERSION, **plain, **tables, "model": model}, separators=(",", ":"))
        return zlib.compress(said.encode(), 9)


def read_terms(data: bytes) -> Terms:
    """Return the terms that `Terms.packed` packed. WireError for other bytes, and for those of another release."""
    try:
        unpacker = zlib.decompressobj()
        said = json.loads(unpacker.decompress(data, MAX_TERMS))
        if said.pop("version") != VERSION:
            raise WireError(0, "the server has another release of fedsgd than this node: they have to be the same")
        model = _read_model(*said.pop("model"))
        if not all(isinstance(said[name], int) for name in _NUMBERS):
            raise WireError(0, "the server's settings have no numbers where they should")
        uplink = from_table(Uplink, said.pop("uplink"), registered_only=True)
        downlink = from_table(Downlink, said.pop("downlink"), registered_only=True)
        return Terms(uplink, downlink, model, **said)
    except FedsgdError as error:
        raise error if isinstance(error, WireError) else WireError(0, f"the server's settings: {error}") from None
    except (zlib.error, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise WireError(0, "the server's settings cannot be read") from None


def _read_model(
    names: list[str],
    shapes: list[list[int]],
    exact: list[int],
    tied: Sequence[Sequence[int]] = (),
    types: Sequence[tuple[int, str]] = (),
) -> Arrangement:
    aside = set(exact)
    groups = tuple(tuple(names[i] for i in group) for group in tied)
    named = tuple((names[i], dtype) for i, dtype in types)
    is_aside = tuple(i in aside for i in range(len(names)))
    return Arrangement(tuple(names), tuple(map(tuple, shapes)), is_aside, groups, named)
