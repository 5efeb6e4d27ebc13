"""Cache of the models and of the decoded downlink frames that the clients of one host share."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from fedsgd.errors import RunError, WireError
from fedsgd.federation.buffers import decode_buffers_frame
from fedsgd.federation.client_state import InMemoryModelCache, ModelCache
from fedsgd.federation.downlink import apply_model_frames
from fedsgd.federation.plan import FederationPlan, Message
from fedsgd.numerics.arrays import F32
from fedsgd.wire import ALL_CLIENTS, MAX_SECTIONS, FrameKind, Header, decode_frame, frame_overhead, peek_kind, require_header


@dataclass(frozen=True, eq=False)
class DecodedDownlink:
    """Decoded frames that clients of a round share. Several clients may use one object, so its arrays are never written to.

    Attributes:
        weights: [P] float32, the model.
        buffers: [S'] float32, averaged buffers; None if there are none.
        reference: [P] float32, vector of the REFERENCE frame; None if the scheme sends none.
        decode_seconds: seconds that decoding took. Clients that share the decoded frames all report these seconds.
    """

    weights: F32
    buffers: F32 | None
    reference: F32 | None
    decode_seconds: float


class DownlinkCache:
    """Cache of the clients of one host: their stored models, and the decoded shared frames of the current round.

    Attributes:
        model_cache: models that the clients have stored.
    """

    def __init__(self, model_cache: ModelCache | None = None) -> None:
        self.model_cache = InMemoryModelCache() if model_cache is None else model_cache
        self._round = 0
        self._entries: dict[tuple[int, int, bytes], tuple[Message, DecodedDownlink]] = {}
        self._shared_model: F32 | None = None

    def decode(self, plan: FederationPlan, header: Header, frames: Message, model_round: int) -> DecodedDownlink:
        """Return the model, the buffers and the reference of a message's shared frames.

        Frames that are damaged, missing or for another base round raise a WireError. A model that differs from another client's
        model of the same round raises a RunError.

        Args:
            plan: settings of the federation.
            header: header of the client's TASK frame.
            frames: the message without its TASK frame.
            model_round: round of the model that the client has stored; 0 for none.
        """
        if header.round != self._round:
            self._round, self._entries, self._shared_model = header.round, {}, None
        base_round = model_round if header.base else 0  # a full model does not depend on the client's model
        key = base_round, sum(map(len, frames)), frames[0][: frame_overhead(0)]
        cached_frames, downlink = self._entries.get(key, ((), None))
        if downlink is None or cached_frames != frames:
            downlink = self._decode_frames(plan, header, frames, base_round)
            self._entries[key] = frames, downlink
        return downlink

    def clear(self) -> None:
        """Drop the decoded frames of the current round. Frames that arrive again are decoded again."""
        self._entries = {}

    def _decode_frames(self, plan: FederationPlan, header: Header, frames: Message, model_round: int) -> DecodedDownlink:
        start_time = time.perf_counter()
        model_frames, extra_frames = _split_frames(plan, frames)
        base_model = self.model_cache.get(model_round) if model_round else None
        round_and_base, context = (header.round, header.base), lambda round: plan.make_context(round, ALL_CLIENTS)
        weights = apply_model_frames(plan.downlink, model_frames, round_and_base, (model_round, base_model), context)
        buffers = None
        if FrameKind.BUFFERS in extra_frames and plan.buffers is not None:
            buffers = decode_buffers_frame(extra_frames[FrameKind.BUFFERS], plan.buffers, header.round)
        reference = None
        if FrameKind.REFERENCE in extra_frames:
            reference = _decode_reference(plan, extra_frames[FrameKind.REFERENCE], header.round)
        seconds = time.perf_counter() - start_time
        if plan.downlink.clients_keep_model:
            weights = self._deduplicate_model(header.round, weights, plan.downlink.history_rounds)
        return DecodedDownlink(weights, buffers, reference, seconds)

    def _deduplicate_model(self, round: int, weights: F32, history_rounds: int | None) -> F32:
        """Return the host's one copy of this round's model, and check that all clients decode the same bits."""
        if self._shared_model is None:
            self._shared_model = self.model_cache.put(round, weights, 0 if history_rounds is None else round - history_rounds)
        if not np.array_equal(self._shared_model.view(np.uint32), weights.view(np.uint32)):
            raise RunError(round, None, "two clients that decoded different frames of the downlink have different models")
        return self._shared_model


def _split_frames(plan: FederationPlan, frames: Message) -> tuple[Message, dict[int, bytes]]:
    """Return the MODEL frames, and the other shared frames by kind. Raise a WireError if a frame is missing or out of order."""
    kinds = [peek_kind(frame) for frame in frames]
    extra_frames = {
        kind: frame for kind, frame in zip(kinds, frames, strict=True) if kind in (FrameKind.BUFFERS, FrameKind.REFERENCE)
    }
    model_frames = frames[: len(frames) - len(extra_frames)]
    if kinds[len(model_frames) :] != sorted(extra_frames, reverse=True):
        raise WireError(0, "expected MODEL frames, then at most one BUFFERS, then at most one REFERENCE")
    if (FrameKind.BUFFERS in extra_frames) != (plan.buffers is not None and plan.buffers.n_averaged > 0):
        raise WireError(0, f"expected {'no' if FrameKind.BUFFERS in extra_frames else 'a'} BUFFERS frame")
    return model_frames, extra_frames


def _decode_reference(plan: FederationPlan, frame: bytes, round: int) -> F32 | None:
    reference_frame = decode_frame(frame, frame_overhead(MAX_SECTIONS) + plan.uplink.max_reference_bytes(plan.layout))
    expected_fields = {"base": (0,), "client": (ALL_CLIENTS,), "acknowledged": (0,), "examples": (0,)}
    require_header(
        reference_frame.header, kind=(FrameKind.REFERENCE,), codec=(plan.uplink.codec,), round=(round,), **expected_fields
    )
    return plan.uplink.decode_reference(reference_frame.sections, plan.make_context(round, ALL_CLIENTS))
