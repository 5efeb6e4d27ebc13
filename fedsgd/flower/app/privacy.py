"""Differential privacy of a Flower app whose updates are compressed: clipping norms, and orders that cannot hold.

Flower's wrappers for client-side clipping send a norm under the key `clipping_norm` of a ConfigRecord. Flower's mods shorten an
update to that norm before it is compressed. A compressor may lengthen it again, so the decoded update is clipped once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM
from numpy.typing import NDArray

from fedsgd.compression.schemes.plain import MemorylessScheme
from fedsgd.errors import ModelError, ScenarioError
from fedsgd.flower.app.inner_strategy import iterate_strategies
from fedsgd.scenario.sections import UplinkConfig

DP_WRAPPERS = (
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyClientSideAdaptiveClipping,
)
_NORM_TOLERANCE = 1e-6
"""Relative excess over a norm that is float32's rounding."""
NON_EXPANSIVE_COMPRESSORS = ("dense", "sign", "top-k")
"""Compressors that do not lengthen an update, if nothing is held back."""
_NON_EXPANSIVE_NAMES = ", ".join(f'"{name}"' for name in NON_EXPANSIVE_COMPRESSORS)
_MIN_LOGGED_EXCESS = 1e-3
"""Relative excess over a norm that is logged."""

AnyArray = NDArray[Any]


@dataclass(frozen=True, eq=False)
class ClippingNorm:
    """Clipping norm of one node in one round.

    Arrays without dimensions, such as the batch counter of batch norm, are left out: Flower's mods do not shorten them.

    Attributes:
        norm: largest Euclidean norm of the node's update, over all arrays with dimensions.
        message: the node's message.
        content: content of the message before it was compressed.
    """

    norm: float
    message: Message
    content: RecordDict

    def clip_update(self, content: RecordDict) -> float:
        """Scale the update in a reply to the norm, if it is longer.

        Args:
            content: content of the decoded reply. Its arrays are replaced, unless the norm holds.

        Returns:
            Norm of the update, before, in units of the clipping norm.

        Raises:
            ModelError: the update cannot be measured.
        """
        records = list(content.array_records)
        if not records:
            return 0.0
        if len(records) > 1:
            raise ModelError(f"the reply has the ArrayRecords {', '.join(records)}, expected one, to which a norm applies")
        after, before = content.array_records[records[0]], self._find_sent_record(records[0])
        if after.keys() != before.keys():
            raise ModelError(f"the reply's arrays are {sorted(after)}, expected {sorted(before)}, to which a norm applies")
        clipped = [name for name in after if after[name].shape or before[name].shape]
        length = math.sqrt(math.fsum(_squared_norm(_subtract(before[name], after[name])) for name in clipped))
        if not math.isfinite(length):
            raise ModelError("the update is not finite, and has no norm that could be clipped")
        if length > self.norm * (1 + _NORM_TOLERANCE):
            factor = self.norm / length
            short = {name: Array(_scale_update(before[name], after[name], factor)) for name in clipped}
            content[records[0]] = ArrayRecord({name: short.get(name, array) for name, array in after.items()})
        return length / self.norm if self.norm else math.inf if length else 0.0

    def _find_sent_record(self, key: str) -> ArrayRecord:
        records = self.content.array_records
        if len(records) == 1:
            return next(iter(records.values()))
        if key not in records:
            raise ModelError(f'the reply has an ArrayRecord "{key}", which its message has not, so it has no norm')
        return records[key]


def find_clipping_norms(messages: Iterable[Message]) -> dict[int, ClippingNorm]:
    """Return the clipping norm of each node to which a strategy sends one.

    Args:
        messages: the strategy's messages, before they are compressed.
    """
    found: dict[int, ClippingNorm] = {}
    for message in messages:
        for record in message.content.config_records.values():
            norm = record.get(KEY_CLIPPING_NORM)
            if isinstance(norm, int | float) and not isinstance(norm, bool) and norm >= 0:
                found.setdefault(message.metadata.dst_node_id, ClippingNorm(float(norm), message, message.content))
    return found


def clip_replies(
    clipping_norms: Mapping[int, ClippingNorm], replies: Iterable[Message], compressor: str
) -> tuple[list[Message], dict[int, str], str | None]:
    """Scale the updates in decoded replies to their nodes' clipping norms.

    Args:
        clipping: norms by node, of `find_clipping_norms`.
        replies: replies as the strategy is to get them.
        compressor: name of the uplink's compressor.

    Returns:
        The replies, with errors in the place of updates without a norm; the reason of each such error by node; one line about
        updates that were longer than their norms, None if none was.
    """
    clipped: list[Message] = []
    refused: dict[int, str] = {}
    ratios: list[float] = []
    for reply in replies:
        node = reply.metadata.src_node_id
        if node in clipping_norms and not reply.has_error():
            try:
                ratios.append(clipping_norms[node].clip_update(reply.content))
            except ModelError as error:
                refused[node] = str(error)
                reply = Message(Error(0, f"fedsgd: {error}"), reply_to=clipping_norms[node].message)
        clipped.append(reply)
    longer = [ratio for ratio in ratios if ratio > 1 + _MIN_LOGGED_EXCESS]
    if not longer:
        return clipped, refused, None
    lengthens = compressor not in NON_EXPANSIVE_COMPRESSORS
    cause = f'"{compressor}" lengthens updates, or ' if lengthens else ""
    remedy = f"; of the compressors, {_NON_EXPANSIVE_NAMES} do not lengthen updates" if lengthens else ""
    line = (
        f"{len(longer)} of {len(ratios)} decoded updates were up to {max(longer):.3g} times as long as the clipping norm, and "
        f"were clipped on the server: {cause}clients do not clip (Flower's mods belong behind compression_mod()){remedy}"
    )
    return clipped, refused, line


def is_private(inner: Strategy) -> bool:
    """Return True if a strategy is one of Flower's wrappers for differential privacy, or wraps one."""
    return any(isinstance(part, DP_WRAPPERS) for part in iterate_strategies(inner))


def require_memoryless(uplink: UplinkConfig) -> None:
    """Raise ScenarioError if clients keep a part of their updates for later rounds."""
    if isinstance(uplink.build_scheme(), MemorylessScheme):
        return
    name, policy = uplink.compressor.name, uplink.error_feedback
    if policy == "none":
        got, remedy = f'compressor.name: got "{name}", which keeps', 'expected a compressor without memory, like "top-k"'
    else:
        got, remedy = f'error_feedback: got "{policy}", which keeps', 'expected "none"'
    raise ScenarioError(
        f"{got} a part of each update for later rounds, under differential privacy: an update then depends on data of earlier "
        f"rounds, which accounting by round does not cover; {remedy}, or CompressedStrategy(..., dp_error_feedback=True)"
    )


def check_outer_strategies(outer_strategies: Sequence[Strategy], inner: Strategy) -> str | None:
    """Return a warning about the innermost strategy around a CompressedStrategy; None if there is none.

    Args:
        outer: strategies around the CompressedStrategy, from the innermost on.
        inner: the strategy inside it.

    Raises:
        ScenarioError: one of them is a wrapper of Flower's for differential privacy.
    """
    inside = type(inner).__name__
    got, expected = f"CompressedStrategy({inside})", f"{inside}(...)"
    for strategy in outer_strategies:
        name = type(strategy).__name__
        got, expected = f"{name}({got})", f"{name}({expected}, ...)"
        if isinstance(strategy, DP_WRAPPERS):
            raise ScenarioError(
                f"strategy: got {got}, expected CompressedStrategy({expected}, ...): around it, {name} gets compressed "
                "messages, and clips no update"
            )
    if not outer_strategies:
        return None
    name = type(outer_strategies[0]).__name__
    order = f"CompressedStrategy({name}({inside}(...), ...), ...)"
    return f"{name} wraps CompressedStrategy and gets compressed messages; if it reads arrays, write {order}"


def _subtract(before: Array, after: Array) -> AnyArray:
    """Return after - before in float64, 0 where both are the same infinity or not a number."""
    old, new = _to_numpy(before), _to_numpy(after)
    if old.shape != new.shape:
        raise ModelError(f"got an array of shape {new.shape}, expected {old.shape}: its update has no norm")
    wide = np.result_type(old.dtype, new.dtype, np.float64)
    old, new = old.astype(wide), new.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        same = (old == new) | (np.isnan(old) & np.isnan(new))
        difference: AnyArray = np.where(same, 0.0, new - old)
    return difference


def _squared_norm(difference: AnyArray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.vdot(difference, difference).real)


def _scale_update(before: Array, after: Array, factor: float) -> AnyArray:
    """Return before + factor · (after - before) in the type of `after`, rounded towards `before`."""
    step, old, dtype = _subtract(before, after) * factor, _to_numpy(before), _to_numpy(after).dtype
    if dtype.kind in "biu":
        return np.asarray(old.astype(np.int64) + np.trunc(step).astype(np.int64)).astype(dtype)
    value = np.asarray((old + step).astype(dtype))
    if dtype.kind == "c":
        return value
    with np.errstate(invalid="ignore"):
        is_longer = np.abs(value.astype(np.float64) - old) > np.abs(step)
    return np.asarray(np.where(is_longer, np.nextafter(value, old.astype(dtype)), value))


def _to_numpy(array: Array) -> AnyArray:
    try:
        return array.numpy()
    except Exception as error:  # whatever numpy raises for bytes that are no array
        raise ModelError(f"the update has no norm: its arrays cannot be read ({error})") from None
