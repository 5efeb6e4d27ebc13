"""Client side of the downlink: apply MODEL frames to the stored model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsgd.compression import CodecContext
from fedsgd.compression.operators.sparsifier import decode_sparse
from fedsgd.compression.updates import DenseUpdate
from fedsgd.errors import WireError
from fedsgd.federation.downlink.frames import ASSIGN_CODEC, ContextFactory, ModelBroadcast, max_model_bytes
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.reductions import all_finite
from fedsgd.wire import ALL_CLIENTS, HEADER_OFFSETS, Frame, FrameKind, decode_frame, require_header


def apply_model_frames(
    downlink: ModelBroadcast,
    frames: Sequence[bytes],
    round_and_base: tuple[int, int],
    client_model: tuple[int, F32 | None],
    context: ContextFactory,
) -> F32:
    """Return the model after a message's MODEL frames, [P] float32.

    Frames that are damaged, or that do not lead from the base round to the message's round, raise a WireError.

    Args:
        downlink: settings of the downlink.
        frames: MODEL frames of the message, in order.
        round_and_base: round of the message, and base round of the first frame; 0 if the frame has the full model.
        client_model: round of the client's stored model, not before the base round, and the model itself, [P] float32.
        context: function of a round to the codec context.
    """
    round, base = round_and_base
    max_frames = max(1, round - base if base else 1)
    if not 1 <= len(frames) <= max_frames:
        raise WireError(0, f"got {len(frames)} MODEL frames, expected 1 to {max_frames}, from round {base} to round {round}")
    model_round, out = client_model
    is_copy = False
    for data in frames:
        frame = _decode_model_frame(downlink, data, base, context)
        header, ctx = frame.header, context(frame.header.round)
        if not base:
            update = downlink.full_model_operator.decode(frame.sections, ctx)
            out, is_copy = (update.values, False) if isinstance(update, DenseUpdate) else (update.to_dense(), True)
        elif header.round > model_round:
            assert out is not None
            out, is_copy = out if is_copy else out.copy(), True
            _apply_difference(downlink, frame, out, ctx)
        base = header.round
    if base != round:
        raise WireError(HEADER_OFFSETS["round"], f"the MODEL frames end in round {base}, expected {round}")
    assert out is not None
    if not all_finite(out):
        raise WireError(0, "the model is not finite after the MODEL frames are applied")
    return out


def _apply_difference(downlink: ModelBroadcast, frame: Frame, model: F32, ctx: CodecContext) -> None:
    """Apply a difference to `model` [P] in place."""
    if frame.header.codec == ASSIGN_CODEC:
        assignment = decode_sparse(frame.sections, "float32", ctx)
        model[assignment.indices] = assignment.values
    else:
        with np.errstate(over="ignore"):
            downlink.operator.decode(frame.sections, ctx).add_to(model, 1.0)


def _decode_model_frame(downlink: ModelBroadcast, data: bytes, base_round: int, context: ContextFactory) -> Frame:
    """Decode a MODEL frame. Raise a WireError if the policy sends no frame with such a header for `base_round`."""
    layout = context(1).layout
    frame = decode_frame(data, max_model_bytes(downlink, layout))
    header = frame.header
    additive_codecs = () if downlink.policy in ("model", "difference") else (downlink.operator.codec,)
    codecs = (ASSIGN_CODEC, *additive_codecs) if base_round else (downlink.full_model_operator.codec,)
    expected_fields = {"base": (base_round,), "client": (ALL_CLIENTS,), "acknowledged": (0,), "examples": (0,)}
    require_header(header, kind=(FrameKind.MODEL,), codec=codecs, **expected_fields)
    if header.round <= base_round or (base_round and header.codec != ASSIGN_CODEC and header.round != base_round + 1):
        raise WireError(HEADER_OFFSETS["round"], f"round is {header.round} for a base of round {base_round}")
    return frame
