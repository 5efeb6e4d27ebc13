"""The frames that a client is sent, by what it holds."""

from __future__ import annotations

import numpy as np

from fedsgd.arrays import I32
from fedsgd.downlink.frames import ContextOf, Downlink, Encoded, changes_of, whole_of
from fedsgd.downlink.public import Published


class Post:
    """The MODEL frames of one round, by what the client holds; each is encoded once, and only if somebody needs it."""

    def __init__(self, link: Downlink, published: Published, context: ContextOf) -> None:
        self.link = link
        self.published = published
        self._ctx = context(published.round)
        self._whole = published.whole
        self._ways: dict[int, tuple[Encoded, ...]] = {}
        self._by_size: dict[int, Encoded] = {}

    def frames(self, base: int) -> tuple[Encoded, ...]:
        """The cheapest way from the model of round `base` (0: none) to the present one; of equals the first in the order of the
        module's docstring."""
        if base not in self._ways:
            self._ways[base] = self._cheapest(base)
        return self._ways[base]

    def _cheapest(self, base: int) -> tuple[Encoded, ...]:
        at = self.published
        if not base:
            return (self.whole(),)
        ways: list[tuple[Encoded, ...]] = []
        missed = at.round - base
        if missed <= len(at.differences):
            ways.append(at.differences[len(at.differences) - missed :])
        if at.changed is not None and not (ways and missed == 1 and self.link.policy == "difference"):
            ways += self._merged(at.changed, base, ways)
        if _may_be_less(len(at.model), ways):
            ways.append((self.whole(),))
        return min(ways, key=_weight)

    def _merged(self, changed: I32, base: int, ways: list[tuple[Encoded, ...]]) -> list[tuple[Encoded, ...]]:
        """The frame with the present values of all that changed since round `base`, if it may be the cheapest way. It builds on
        the earliest model from which it leads here too, so that it need be made only once."""
        missed = changed > base
        n = int(np.count_nonzero(missed))
        if n == len(changed) or not _may_be_less(n, ways):
            return []
        if n not in self._by_size:  # what changed since one round is part of what changed since an earlier one
            earliest = max(1, int(changed[~missed].max()))
            self._by_size[n] = changes_of(earliest, self.published.model, np.flatnonzero(missed), self._ctx)
        return [(self._by_size[n],)]

    def whole(self) -> Encoded:
        """The whole model."""
        if self._whole is None:
            self._whole = whole_of(self.link, self.published.model, self._ctx)[1]
        return self._whole


def _may_be_less(coordinates: int, ways: list[tuple[Encoded, ...]]) -> bool:
    """Whether so many exact values may weigh less than the ways there are: of a float32, three bytes are never coded."""
    return not ways or 3 * coordinates < min(map(_weight, ways))


def _weight(frames: tuple[Encoded, ...]) -> int:
    return sum(len(frame.data) for frame in frames)
