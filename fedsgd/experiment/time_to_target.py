"""When a run reaches a target: one rule, used by everything that says so.

McMahan et al. 2017, section 3: make the curve monotone by the best value so far, and interpolate linearly between the two
measurements that the target lies between. Where on another axis that is (bytes, seconds) follows by the same interpolation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


class CumulativeAxis(Protocol):
    """What has a figure for after each round, the one for 0 being what there is before the first."""

    def __getitem__(self, round: int, /) -> float: ...


@dataclass(frozen=True)
class TargetReached:
    """The target is met between the measurements after rounds `before` and `after`, at this `share` of the way; before = after
    where the first measurement meets it."""

    before: int
    after: int
    share: float

    @property
    def rounds(self) -> float:
        """How many rounds that took."""
        return self.before + self.share * (self.after - self.before)

    def interpolate_on(self, axis: CumulativeAxis) -> float:
        """The same place on an axis that has a figure for after each round [0, ..., R]."""
        start, end = float(axis[self.before]), float(axis[self.after])
        return start + self.share * (end - start)


def find_first_reached(measurements: Iterable[tuple[int, float]], target: float) -> TargetReached | None:
    """Where a run first meets `target`, or None: not reached. measured: (round, accuracy) ascending, of rounds where it was
    measured; NaN counts as not measured."""
    before, best = 0, -math.inf
    for round, accuracy in measurements:
        if accuracy >= target:
            if not before:
                return TargetReached(round, round, 0.0)
            return TargetReached(before, round, (target - best) / (accuracy - best))
        if not math.isnan(accuracy):
            before, best = round, max(best, accuracy)
    return None


def running_maximum(values: Sequence[float]) -> list[float]:
    """The monotone curve: of each value and all before it the largest, NaN left out."""
    best, out = -math.inf, []
    for value in values:
        best = best if math.isnan(value) else max(best, value)
        out.append(best)
    return out


@dataclass(frozen=True)
class SeedSummary:
    """A figure of several runs that differ by their seeds. median: infinite where at least half of them do not have it ("not
    reached"); low, high: the least and the largest; reached: how many have it, of n."""

    median: float
    low: float
    high: float
    reached: int
    n: int


def summarize_seeds(figures: Sequence[float | None]) -> SeedSummary:
    """None: not reached, which is more than any figure."""
    values = [math.inf if figure is None else float(figure) for figure in figures]
    return SeedSummary(
        statistics.median(values), min(values), max(values), sum(math.isfinite(value) for value in values), len(values)
    )
