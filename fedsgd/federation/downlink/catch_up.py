"""The frames that a client is sent, by what it holds."""

from __future__ import annotations

import numpy as np

from fedsgd.federation.downlink.frames import ContextFactory, EncodedFrame, ModelBroadcast, encode_changes, encode_full_model
from fedsgd.federation.downlink.public_model import PublicModel
from fedsgd.numerics.arrays import I32


class CatchUpPlanner:
    """The MODEL frames of one round, by what the client holds; each is encoded once, and only if somebody needs it."""

    def __init__(self, downlink: ModelBroadcast, public_model: PublicModel, context: ContextFactory) -> None:
        self.downlink = downlink
        self.public_model = public_model
        self._ctx = context(public_model.round)
        self._full_model_frame = public_model.full_model_frame
        self._frames_by_base: dict[int, tuple[EncodedFrame, ...]] = {}
        self._merged_by_size: dict[int, EncodedFrame] = {}

    def plan_frames(self, base_round: int) -> tuple[EncodedFrame, ...]:
        """The cheapest way from the model of round `base_round` (0: none) to the present one; of equals the first in the order
        of the
        module's docstring."""
        if base_round not in self._frames_by_base:
            self._frames_by_base[base_round] = self._select_cheapest(base_round)
        return self._frames_by_base[base_round]

    def _select_cheapest(self, base_round: int) -> tuple[EncodedFrame, ...]:
        at = self.public_model
        if not base_round:
            return (self.get_full_model_frame(),)
        ways: list[tuple[EncodedFrame, ...]] = []
        missed = at.round - base_round
        if missed <= len(at.difference_frames):
            ways.append(at.difference_frames[len(at.difference_frames) - missed :])
        if at.change_rounds is not None and not (ways and missed == 1 and self.downlink.policy == "difference"):
            ways += self._merge_changes(at.change_rounds, base_round, ways)
        if _can_be_smaller(len(at.weights), ways):
            ways.append((self.get_full_model_frame(),))
        return min(ways, key=_total_bytes)

    def _merge_changes(
        self, change_rounds: I32, base_round: int, candidates: list[tuple[EncodedFrame, ...]]
    ) -> list[tuple[EncodedFrame, ...]]:
        """The frame with the present values of all that changed since round `base_round`, if it may be the cheapest way. It
        builds on
        the earliest model from which it leads here too, so that it need be made only once."""
        missed = change_rounds > base_round
        n = int(np.count_nonzero(missed))
        if n == len(change_rounds) or not _can_be_smaller(n, candidates):
            return []
        if n not in self._merged_by_size:  # what changed since one round is part of what changed since an earlier one
            earliest = max(1, int(change_rounds[~missed].max()))
            self._merged_by_size[n] = encode_changes(earliest, self.public_model.weights, np.flatnonzero(missed), self._ctx)
        return [(self._merged_by_size[n],)]

    def get_full_model_frame(self) -> EncodedFrame:
        """The whole model."""
        if self._full_model_frame is None:
            self._full_model_frame = encode_full_model(self.downlink, self.public_model.weights, self._ctx)[1]
        return self._full_model_frame


def _can_be_smaller(n_coordinates: int, candidates: list[tuple[EncodedFrame, ...]]) -> bool:
    """Whether so many exact values may weigh less than the ways there are: of a float32, three bytes are never coded."""
    return not candidates or 3 * n_coordinates < min(map(_total_bytes, candidates))


def _total_bytes(frames: tuple[EncodedFrame, ...]) -> int:
    return sum(len(frame.data) for frame in frames)
