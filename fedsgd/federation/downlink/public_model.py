"""Public model at the server: step from round to round, and the history that catch-up needs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from fedsgd.compression import CodecContext
from fedsgd.compression.operators.dense import Dense
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
    """Public model at the server.

    Attributes:
        round: round whose clients decode the model.
        weights: [P] float32, the model.
        full_model_frame: frame of the full model; None if the full model was not encoded.
        difference_frames: differences of the last rounds, newest last; together no larger than a full model, or only one frame.
        change_rounds: [P] int32, round in which each coordinate changed last, 0 for never; None under "model".
        residual: [P] float32, residual of the operator under "error-feedback"; None otherwise.
    """

    round: int
    weights: F32
    full_model_frame: EncodedFrame | None
    difference_frames: tuple[EncodedFrame, ...] = ()
    change_rounds: I32 | None = None
    residual: F32 | None = None


def initial_public_model(downlink: ModelBroadcast, weights: F32, context: ContextFactory) -> PublicModel:
    """Return the public model of round 1.

    Args:
        downlink: settings of the downlink.
        weights: [P] float32, initial model.
        context: function of a round to the codec context.
    """
    is_exact = isinstance(downlink.full_model_operator, Dense) and downlink.full_model_operator.lossless
    if is_exact:  # encoded by the first broadcast, so that a run does not store the frame until its end
        model, full_model_frame = weights, None
    else:
        model, full_model_frame = encode_full_model(downlink, weights, context(1))
    if not downlink.clients_keep_model:
        return PublicModel(1, model, full_model_frame)
    return PublicModel(1, model, full_model_frame, (), np.zeros(len(weights), dtype=np.int32))


def next_public_model(
    downlink: ModelBroadcast, previous: PublicModel, weights: F32, step: F32 | None, context: ContextFactory
) -> tuple[F32, PublicModel]:
    """Return the model from which the server continues, [P] float32, and the next round's public model, by the policy's rule.

    Raise a NonFiniteError if a value leaves float32's range.

    Args:
        downlink: settings of the downlink.
        previous: public model of the last round.
        weights: [P] float32, the server's model after the step of the server's optimizer.
        step: [P] float32, step of the server's optimizer; None if the policy does not use the step.
        context: function of a round to the codec context.
    """
    round = previous.round + 1
    ctx = context(round)
    if previous.change_rounds is None:
        model, full_model_frame = encode_full_model(downlink, weights, ctx)
        return weights, PublicModel(round, model, full_model_frame)
    if downlink.policy == "difference":
        return weights, _exact_difference(downlink, previous, weights, ctx)
    start_time = time.perf_counter()
    with np.errstate(over="ignore", invalid="ignore"):  # non-finite values raise an error below
        delta = weights - previous.weights if downlink.policy == "ef21-p" else step
        assert delta is not None
        if previous.residual is not None:
            delta = delta + previous.residual
        if not all_finite(delta):
            raise NonFiniteError(previous.round, None, "the vector that the downlink compresses leaves float32's range")
        sections, update = downlink.operator.encode(delta, ctx)
        header = Header(FrameKind.MODEL, round, downlink.operator.codec, base=previous.round)
        difference = make_frame(header, sections, update.n_coordinates, start_time)
        model, residual = previous.weights.copy(), None
        update.add_to(model, 1.0)
        if downlink.policy == "error-feedback":
            residual = delta.copy()
            update.add_to(residual, -1.0)
    for label, vector in (("the public model", model), ("the residual of the downlink", residual)):
        if vector is not None and not all_finite(vector):
            raise NonFiniteError(previous.round, None, f"{label} leaves float32's range")
    change_rounds = np.where(_find_changes(model, previous.weights), np.int32(round), previous.change_rounds)
    difference_frames = _trim_differences((*previous.difference_frames, difference), len(model))
    public_model = PublicModel(round, model, None, difference_frames, change_rounds, residual)
    return weights if downlink.policy == "ef21-p" else model, public_model


def _exact_difference(downlink: ModelBroadcast, previous: PublicModel, weights: F32, ctx: CodecContext) -> PublicModel:
    """Return the server's model as the public model. If every coordinate changed, a full model replaces the difference."""
    assert previous.change_rounds is not None
    is_changed = _find_changes(weights, previous.weights)
    indices = np.flatnonzero(is_changed)
    if len(indices) == len(weights):
        change_rounds = np.full(len(weights), ctx.round, dtype=np.int32)
        return PublicModel(ctx.round, weights, encode_full_model(downlink, weights, ctx)[1], (), change_rounds)
    difference = encode_changes(previous.round, weights, indices, ctx)
    change_rounds = np.where(is_changed, np.int32(ctx.round), previous.change_rounds)
    difference_frames = _trim_differences((*previous.difference_frames, difference), len(weights))
    return PublicModel(ctx.round, weights, None, difference_frames, change_rounds)


def _trim_differences(difference_frames: tuple[EncodedFrame, ...], size: int) -> tuple[EncodedFrame, ...]:
    """Return the newest differences whose bytes do not exceed the maximum of a full model, and at least one difference."""
    n_bytes, first_index = len(difference_frames[-1].data), len(difference_frames) - 1
    while first_index and n_bytes + len(difference_frames[first_index - 1].data) <= _max_full_model_bytes(size):
        first_index -= 1
        n_bytes += len(difference_frames[first_index].data)
    return difference_frames[first_index:]


def _max_full_model_bytes(size: int) -> int:
    """Return the maximum number of bytes in the frame of a full model with `size` = P parameters."""
    return frame_overhead(MAX_SECTIONS) + LOSSLESS_DENSE.max_bytes(ParameterLayout.from_size(size))


def _find_changes(a: F32, b: F32) -> BoolArray:
    """Return a mask [P] of the coordinates whose bits differ; the signs of zeros count."""
    is_different: BoolArray = a.view(np.uint32) != b.view(np.uint32)
    return is_different
