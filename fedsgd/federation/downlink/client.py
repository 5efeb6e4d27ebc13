"""The client's side: from the model that it holds, by MODEL frames, to the present one. P parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsgd.compression import CodecContext
from fedsgd.compression.operators.sparsifier import decode_sparse
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
    """The model [P] after a message's MODEL frames. at: (its round, the round of the model that it builds on, 0 for none);
    held: (the round of the client's model, that model [P]), at least as new as what the message builds on.

    WireError for frames that do not lead from the one to the other.
    """
    round, base = round_and_base
    if not 1 <= len(frames) <= max(1, round - base if base else 1):
        raise WireError(0, f"{len(frames)} MODEL frames lead from round {base} to round {round}")
    known, out = client_model
    own = False
    for data in frames:
        frame = _decode_model_frame(downlink, data, base, context)
        header, ctx = frame.header, context(frame.header.round)
        if not base:
            out, own = downlink.full_model_operator.decode(frame.sections, ctx).to_dense(), True
        elif header.round > known:
            assert out is not None
            out, own = out if own else out.copy(), True
            _apply_difference(downlink, frame, out, ctx)
        base = header.round
    if base != round:
        raise WireError(HEADER_OFFSETS["round"], f"the MODEL frames end in round {base}, expected {round}")
    assert out is not None
    if not all_finite(out):
        raise WireError(0, "the model is not finite after what the MODEL frames add to it")
    return out


def _apply_difference(downlink: ModelBroadcast, frame: Frame, model: F32, ctx: CodecContext) -> None:
    """A difference, in place."""
    if frame.header.codec == ASSIGN_CODEC:
        found = decode_sparse(frame.sections, "float32", ctx)
        model[found.indices] = found.values
    else:
        with np.errstate(over="ignore"):
            downlink.operator.decode(frame.sections, ctx).add_to(model, 1.0)


def _decode_model_frame(downlink: ModelBroadcast, data: bytes, base_round: int, context: ContextFactory) -> Frame:
    """A MODEL frame that builds on the model of round `base_round`; WireError if it is not one that this policy sends."""
    layout = context(1).layout
    frame = decode_frame(data, max_model_bytes(downlink, layout))
    header = frame.header
    additive = () if downlink.policy in ("model", "difference") else (downlink.operator.codec,)
    codecs = (ASSIGN_CODEC, *additive) if base_round else (downlink.full_model_operator.codec,)
    require_header(
        header,
        kind=(FrameKind.MODEL,),
        codec=codecs,
        base=(base_round,),
        client=(ALL_CLIENTS,),
        acknowledged=(0,),
        examples=(0,),
    )
    if header.round <= base_round or (base_round and header.codec != ASSIGN_CODEC and header.round != base_round + 1):
        raise WireError(HEADER_OFFSETS["round"], f"round is {header.round}, on a model of round {base_round}")
    return frame
