"""The client's side: from the model that it holds, by MODEL frames, to the present one. P parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsgd.arrays import F32
from fedsgd.compress import Context
from fedsgd.compress.sparse import decode_sparse
from fedsgd.downlink.frames import CHANGES, ContextOf, Downlink, max_model_bytes
from fedsgd.errors import WireError
from fedsgd.vectors import all_finite
from fedsgd.wire import ALL, HEADER_OFFSETS, Frame, Kind, decode_frame, expect


def follow(
    link: Downlink, frames: Sequence[bytes], at: tuple[int, int], held: tuple[int, F32 | None], context: ContextOf
) -> F32:
    """The model [P] after a message's MODEL frames. at: (its round, the round of the model that it builds on, 0 for none);
    held: (the round of the client's model, that model [P]), at least as new as what the message builds on.

    WireError for frames that do not lead from the one to the other.
    """
    round, base = at
    if not 1 <= len(frames) <= max(1, round - base if base else 1):
        raise WireError(0, f"{len(frames)} MODEL frames lead from round {base} to round {round}")
    known, out = held
    own = False
    for data in frames:
        frame = _opened(link, data, base, context)
        header, ctx = frame.header, context(frame.header.round)
        if not base:
            out, own = link.whole.decode(frame.sections, ctx).to_dense(), True
        elif header.round > known:
            assert out is not None
            out, own = out if own else out.copy(), True
            _apply(link, frame, out, ctx)
        base = header.round
    if base != round:
        raise WireError(HEADER_OFFSETS["round"], f"the MODEL frames end in round {base}, expected {round}")
    assert out is not None
    if not all_finite(out):
        raise WireError(0, "the model is not finite after what the MODEL frames add to it")
    return out


def _apply(link: Downlink, frame: Frame, model: F32, ctx: Context) -> None:
    """A difference, in place."""
    if frame.header.codec == CHANGES:
        found = decode_sparse(frame.sections, "float32", ctx)
        model[found.indices] = found.values
    else:
        with np.errstate(over="ignore"):
            link.op.decode(frame.sections, ctx).add_to(model, 1.0)


def _opened(link: Downlink, data: bytes, base: int, context: ContextOf) -> Frame:
    """A MODEL frame that builds on the model of round `base`; WireError if it is not one that this policy sends."""
    layout = context(1).layout
    frame = decode_frame(data, max_model_bytes(link, layout))
    header = frame.header
    additive = () if link.policy in ("model", "difference") else (link.op.codec,)
    codecs = (CHANGES, *additive) if base else (link.whole.codec,)
    expect(header, kind=(Kind.MODEL,), codec=codecs, base=(base,), client=(ALL,), acknowledged=(0,), examples=(0,))
    if header.round <= base or (base and header.codec != CHANGES and header.round != base + 1):
        raise WireError(HEADER_OFFSETS["round"], f"round is {header.round}, on a model of round {base}")
    return frame
