"""Selection of the MODEL frames that a client is sent."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedsgd.federation.downlink.frames import ContextFactory, EncodedFrame, ModelBroadcast, encode_changes, encode_full_model
from fedsgd.federation.downlink.public_model import PublicModel
from fedsgd.numerics.arrays import I32
from fedsgd.wire import FrameKind


class CatchUpPlanner:
    """Planner of one round's MODEL frames. Each frame is encoded once, and only if a client needs the frame.

    Args:
        downlink: settings of the downlink.
        public_model: public model of the round.
        context: function of a round to the codec context.
        sent_frames: frames of the round that were sent before; the frame of the full model is not encoded again.
    """

    def __init__(
        self,
        downlink: ModelBroadcast,
        public_model: PublicModel,
        context: ContextFactory,
        sent_frames: Iterable[EncodedFrame] = (),
    ) -> None:
        self.downlink = downlink
        self.public_model = public_model
        self._ctx = context(public_model.round)
        self._full_model_frame = public_model.full_model_frame or next(filter(_has_full_model, sent_frames), None)
        self._frames_by_base: dict[int, tuple[EncodedFrame, ...]] = {}
        self._merged_by_size: dict[int, EncodedFrame] = {}

    def plan_frames(self, base_round: int) -> tuple[EncodedFrame, ...]:
        """Return the smallest frames that bring a client from an earlier model to the current model.

        Candidates of equal size are preferred in the order that `fedsgd.federation.downlink` lists.

        Args:
            base_round: round of the model that the client has stored; 0 for none.
        """
        if base_round not in self._frames_by_base:
            self._frames_by_base[base_round] = self._select_cheapest(base_round)
        return self._frames_by_base[base_round]

    def _select_cheapest(self, base_round: int) -> tuple[EncodedFrame, ...]:
        public = self.public_model
        if not base_round:
            return (self.get_full_model_frame(),)
        candidates: list[tuple[EncodedFrame, ...]] = []
        n_missed = public.round - base_round
        if n_missed <= len(public.difference_frames):
            candidates.append(public.difference_frames[len(public.difference_frames) - n_missed :])
        if public.change_rounds is not None and not (candidates and n_missed == 1 and self.downlink.policy == "difference"):
            candidates += self._merge_changes(public.change_rounds, base_round, candidates)
        if _can_be_smaller(len(public.weights), candidates):
            candidates.append((self.get_full_model_frame(),))
        return min(candidates, key=_total_bytes)

    def _merge_changes(
        self, change_rounds: I32, base_round: int, candidates: list[tuple[EncodedFrame, ...]]
    ) -> list[tuple[EncodedFrame, ...]]:
        """Return the frame that assigns all coordinates changed since `base_round`, if the frame may be the smallest candidate.

        The frame's base is the earliest model to which the frame can be applied, so that several base rounds share the frame.
        """
        is_missed = change_rounds > base_round
        n = int(np.count_nonzero(is_missed))
        if n == len(change_rounds) or not _can_be_smaller(n, candidates):
            return []
        if n not in self._merged_by_size:  # the changes since a later round are a subset, so equal counts mean equal sets
            base = max(1, int(change_rounds[~is_missed].max()))
            self._merged_by_size[n] = encode_changes(base, self.public_model.weights, np.flatnonzero(is_missed), self._ctx)
        return [(self._merged_by_size[n],)]

    def get_full_model_frame(self) -> EncodedFrame:
        """Return the frame of the full model."""
        if self._full_model_frame is None:
            self._full_model_frame = encode_full_model(self.downlink, self.public_model.weights, self._ctx)[1]
        return self._full_model_frame


def _has_full_model(frame: EncodedFrame) -> bool:
    header = frame.decoded.header
    return header.kind == FrameKind.MODEL and not header.base


def _can_be_smaller(n_coordinates: int, candidates: list[tuple[EncodedFrame, ...]]) -> bool:
    """Return whether n exact float32 values may be smaller than all candidates. At most one byte in four is entropy-coded."""
    return not candidates or 3 * n_coordinates < min(map(_total_bytes, candidates))


def _total_bytes(frames: tuple[EncodedFrame, ...]) -> int:
    return sum(len(frame.data) for frame in frames)
