"""Differential privacy with compressed updates: clipping of decoded updates, and checks of the order of wrappers.

Flower's wrappers for client-side clipping send a norm under the key `clipping_norm` of a ConfigRecord. Flower's mods clip an
update to this norm before compression. A compressor may increase the norm again, so the decoded update is clipped once more.
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
from fedsgd.scenario.resolution import build_scheme
from fedsgd.scenario.sections import UplinkConfig

DP_WRAPPERS = (
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyClientSideAdaptiveClipping,
)
_NORM_TOLERANCE = 1e-6
"""Relative excess over a norm up to which an update is not clipped, because the rounding of float32 explains the excess."""
NON_EXPANSIVE_COMPRESSORS = ("dense", "sign", "top-k")
"""Compressors that do not increase the norm of an update, without error feedback."""
_NON_EXPANSIVE_NAMES = ", ".join(f'"{name}"' for name in NON_EXPANSIVE_COMPRESSORS)
_MIN_LOGGED_EXCESS = 1e-3
"""Relative excess over a norm above which a warning is logged."""

AnyArray = NDArray[Any]


@dataclass(frozen=True, eq=False)
class ClippingNorm:
    """Maximum Euclidean norm of one node's update in one round, with the message to the node.

    `content` is the content of the message before compression.
    Arrays without dimensions, such as the batch counter of batch norm, do not count, because Flower's mods do not clip them.
    """

    norm: float
    message: Message
    content: RecordDict

    def clip_update(self, content: RecordDict) -> float:
        """Clip a reply's update: replace the returned arrays y by x + min(1, norm / ‖y − x‖) (y − x), with the sent arrays x.

        Returns:
            Norm of the update before clipping, divided by the clipping norm.

        Raises:
            ModelError: the update cannot be clipped: it has no norm, or the reply has several ArrayRecords.
        """
        keys = list(content.array_records)
        if not keys:
            return 0.0
        if len(keys) > 1:
            raise ModelError(f"got the ArrayRecords {', '.join(keys)}, expected one ArrayRecord to clip")
        after, before = content.array_records[keys[0]], self._find_sent_record(keys[0])
        if after.keys() != before.keys():
            raise ModelError(f"got the arrays {sorted(after)}, expected {sorted(before)}: the update cannot be clipped")
        names = [name for name in after if after[name].shape or before[name].shape]
        update_norm = math.sqrt(math.fsum(_compute_squared_norm(_subtract(before[name], after[name])) for name in names))
        if not math.isfinite(update_norm):
            raise ModelError("the update is not finite, so it cannot be clipped")
        if update_norm > self.norm * (1 + _NORM_TOLERANCE):
            factor = self.norm / update_norm
            clipped_arrays = {name: Array(_scale_update(before[name], after[name], factor)) for name in names}
            content[keys[0]] = ArrayRecord({name: clipped_arrays.get(name, array) for name, array in after.items()})
        return update_norm / self.norm if self.norm else math.inf if update_norm else 0.0

    def _find_sent_record(self, key: str) -> ArrayRecord:
        records = self.content.array_records
        if len(records) == 1:
            return next(iter(records.values()))
        if key not in records:
            raise ModelError(f'got an ArrayRecord "{key}", which the message does not have, so the update cannot be clipped')
        return records[key]


def find_clipping_norms(messages: Iterable[Message]) -> dict[int, ClippingNorm]:
    """Return the clipping norms in a strategy's messages before compression, by node."""
    norms: dict[int, ClippingNorm] = {}
    for message in messages:
        for record in message.content.config_records.values():
            norm = record.get(KEY_CLIPPING_NORM)
            if isinstance(norm, int | float) and not isinstance(norm, bool) and norm >= 0:
                norms.setdefault(message.metadata.dst_node_id, ClippingNorm(float(norm), message, message.content))
    return norms


def clip_replies(
    clipping_norms: Mapping[int, ClippingNorm], replies: Iterable[Message], compressor: str
) -> tuple[list[Message], dict[int, str], str | None]:
    """Clip the updates in decoded replies to their nodes' norms.

    Returns:
        The replies, with an error instead of each update without a norm; the reasons of these errors, by node; a warning
        about updates with larger norms, or None.
    """
    clipped_replies: list[Message] = []
    reasons: dict[int, str] = {}
    ratios: list[float] = []
    for reply in replies:
        node = reply.metadata.src_node_id
        if node in clipping_norms and not reply.has_error():
            try:
                ratios.append(clipping_norms[node].clip_update(reply.content))
            except ModelError as error:
                reasons[node] = str(error)
                reply = Message(Error(0, f"fedsgd: {error}"), reply_to=clipping_norms[node].message)
        clipped_replies.append(reply)
    n_large = sum(ratio > 1 + _MIN_LOGGED_EXCESS for ratio in ratios)
    if not n_large:
        return clipped_replies, reasons, None
    is_expansive = compressor not in NON_EXPANSIVE_COMPRESSORS
    cause = f'"{compressor}" increases the norm of updates, or ' if is_expansive else ""
    remedy = f"; the compressors {_NON_EXPANSIVE_NAMES} do not increase the norm without error feedback" if is_expansive else ""
    problem = f"{n_large} of {len(ratios)} decoded updates had norms of up to {max(ratios):.3g} times the clipping norm"
    action = "put Flower's clipping mods behind compression_mod()"
    line = f"{problem} and were clipped on the server: {cause}clients do not clip ({action}){remedy}"
    return clipped_replies, reasons, line


def is_private(inner: Strategy) -> bool:
    """Return True if a strategy is, or contains, one of Flower's wrappers for differential privacy."""
    return any(isinstance(part, DP_WRAPPERS) for part in iterate_strategies(inner))


def require_memoryless(uplink: UplinkConfig) -> None:
    """Raise ScenarioError if clients add a part of an update to updates of later rounds."""
    if isinstance(build_scheme(uplink), MemorylessScheme):
        return
    name, policy = uplink.compressor.name, uplink.error_feedback
    if policy == "none":
        problem, remedy = f'compressor.name: got "{name}"', 'a compressor without memory, like "top-k"'
    else:
        problem, remedy = f'error_feedback: got "{policy}"', '"none"'
    raise ScenarioError(
        f"{problem} with differential privacy, expected {remedy}: clients would add a part of each update to later updates, "
        "which then depend on data of earlier rounds; privacy accounting by round does not cover such updates; to allow error "
        "feedback, set CompressedStrategy(..., dp_error_feedback=True)"
    )


def check_outer_strategies(outer_strategies: Sequence[Strategy], inner: Strategy) -> str | None:
    """Return a warning about the outer strategies (innermost first) of a CompressedStrategy; None without outer strategies.

    Raises:
        ScenarioError: an outer strategy is one of Flower's wrappers for differential privacy.
    """
    inner_name = type(inner).__name__
    got, expected = f"CompressedStrategy({inner_name})", f"{inner_name}(...)"
    for strategy in outer_strategies:
        name = type(strategy).__name__
        got, expected = f"{name}({got})", f"{name}({expected}, ...)"
        if isinstance(strategy, DP_WRAPPERS):
            raise ScenarioError(
                f"strategy: got {got}, expected CompressedStrategy({expected}, ...): outside CompressedStrategy, {name} gets "
                "compressed messages and clips no update"
            )
    if not outer_strategies:
        return None
    name = type(outer_strategies[0]).__name__
    order = f"CompressedStrategy({name}({inner_name}(...), ...), ...)"
    return f"{name} wraps CompressedStrategy and gets compressed messages; if {name} reads arrays, write {order}"


def _subtract(before: Array, after: Array) -> AnyArray:
    """Return after − before in float64 or a larger type; 0 where both are the same infinity or both NaN."""
    old, new = _to_numpy(before), _to_numpy(after)
    if old.shape != new.shape:
        raise ModelError(f"got an array of shape {new.shape}, expected {old.shape}: the update cannot be clipped")
    dtype = np.result_type(old.dtype, new.dtype, np.float64)
    old, new = old.astype(dtype), new.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        is_equal = (old == new) | (np.isnan(old) & np.isnan(new))
        difference: AnyArray = np.where(is_equal, 0.0, new - old)
    return difference


def _compute_squared_norm(difference: AnyArray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.vdot(difference, difference).real)


def _scale_update(before: Array, after: Array, factor: float) -> AnyArray:
    """Return before + factor · (after − before) in the type of `after`, rounded towards `before`."""
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
    except Exception as error:  # numpy raises errors of many classes for bytes that are no array
        raise ModelError(f"the update's arrays cannot be read ({error})") from None
