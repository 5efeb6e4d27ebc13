"""The public model at the server: how it follows the server's own, and what is remembered of how it did. P parameters."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from fedsgd.compression import CodecContext
from fedsgd.errors import NonFiniteError
from fedsgd.federation.downlink.frames import (
    LOSSLESS_DENSE,
    ContextFactory,
    EncodedFrame,
    ModelBroadcast,
    encode_changes,
    encode_full_model,
    make_frame,
)
from fedsgd.numerics.arrays import F32, I32, BoolArray
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import all_finite
from fedsgd.wire import MAX_SECTIONS, FrameKind, Header, frame_overhead


@dataclass(frozen=True, eq=False)
class PublicModel:
    """What the server knows of the public model. round: that which it is for; model: [P]; whole: the model by itself, if it was
    encoded; differences: those that led to it, one a round, the newest last, as far back as they weigh less than the model;
    changed: the round in which each coordinate changed last [P], 0 if never; residual: what the compressor has left out [P]."""

    round: int
    weights: F32
    full_model_frame: EncodedFrame | None
    difference_frames: tuple[EncodedFrame, ...] = ()
    change_rounds: I32 | None = None
    residual: F32 | None = None


def initial_public_model(downlink: ModelBroadcast, weights: F32, context: ContextFactory) -> PublicModel:
    """The public model of round 1."""
    model, whole = encode_full_model(downlink, weights, context(1))
    if not downlink.clients_keep_model:
        return PublicModel(1, model, whole)
    return PublicModel(1, model, whole, (), np.zeros(len(weights), dtype=np.int32))


def next_public_model(
    downlink: ModelBroadcast, previous: PublicModel, weights: F32, step: F32, context: ContextFactory
) -> tuple[F32, PublicModel]:
    """(the model that the server goes on from [P], the public model of the coming round). weights: the server's own, after its
    optimiser's step [P]; step: that step [P]. NonFiniteError if the public model leaves float32's range."""
    round = previous.round + 1
    ctx = context(round)
    if previous.change_rounds is None:
        model, whole = encode_full_model(downlink, weights, ctx)
        return weights, PublicModel(round, model, whole)
    if downlink.policy == "difference":
        return weights, _exact_difference(downlink, previous, weights, ctx)
    begun = time.perf_counter()
    with np.errstate(over="ignore", invalid="ignore"):  # what leaves float32's range is found below
        wanted = weights - previous.weights if downlink.policy == "shift" else step
        if previous.residual is not None:
            wanted = wanted + previous.residual
        if not all_finite(wanted):
            raise NonFiniteError(previous.round, None, "what the downlink is to send leaves float32's range")
        sections, update = downlink.operator.encode(wanted, ctx)
        difference = make_frame(
            Header(FrameKind.MODEL, round, downlink.operator.codec, base=previous.round), sections, update.n_coordinates, begun
        )
        model, residual = previous.weights.copy(), None
        update.add_to(model, 1.0)
        if downlink.policy == "error-feedback":
            residual = wanted.copy()
            update.add_to(residual, -1.0)
    for what, vector in (("the public model", model), ("what the downlink has held back", residual)):
        if vector is not None and not all_finite(vector):
            raise NonFiniteError(previous.round, None, f"{what} leaves float32's range")
    changed = np.where(_find_changes(model, previous.weights), np.int32(round), previous.change_rounds)
    history = _trim_differences((*previous.difference_frames, difference), len(model))
    return weights if downlink.policy == "shift" else model, PublicModel(round, model, None, history, changed, residual)


def _exact_difference(downlink: ModelBroadcast, previous: PublicModel, weights: F32, ctx: CodecContext) -> PublicModel:
    """The server's own model as the public one. Where every coordinate changed there is no difference worth its name."""
    assert previous.change_rounds is not None
    differ = _find_changes(weights, previous.weights)
    indices = np.flatnonzero(differ)
    if len(indices) == len(weights):
        everywhere = np.full(len(weights), ctx.round, dtype=np.int32)
        return PublicModel(ctx.round, weights, encode_full_model(downlink, weights, ctx)[1], (), everywhere)
    difference = encode_changes(previous.round, weights, indices, ctx)
    changed = np.where(differ, np.int32(ctx.round), previous.change_rounds)
    return PublicModel(
        ctx.round, weights, None, _trim_differences((*previous.difference_frames, difference), len(weights)), changed
    )


def _trim_differences(difference_frames: tuple[EncodedFrame, ...], size: int) -> tuple[EncodedFrame, ...]:
    """The newest of them that together weigh less than any model does; the last one in any case."""
    n_bytes, at = len(difference_frames[-1].data), len(difference_frames) - 1
    while at and n_bytes + len(difference_frames[at - 1].data) <= _max_full_model_bytes(size):
        at -= 1
        n_bytes += len(difference_frames[at].data)
    return difference_frames[at:]


def _max_full_model_bytes(size: int) -> int:
    """The most that a frame with the whole model weighs. size: P."""
    return frame_overhead(MAX_SECTIONS) + LOSSLESS_DENSE.max_bytes(ParameterLayout.from_size(size))


def _find_changes(a: F32, b: F32) -> BoolArray:
    """Where two vectors differ in any bit, the sign of a zero included [P]."""
    differ: BoolArray = a.view(np.uint32) != b.view(np.uint32)
    return differ
