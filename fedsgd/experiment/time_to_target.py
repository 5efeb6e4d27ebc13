"""Time to target: the rule for the round, the bytes and the seconds at which a run reaches a target.

As in McMahan et al. 2017, section 3, the accuracies are replaced by their running maximum, and interpolated linearly between
the two measurements that enclose the target. The same share of the way holds on other axes, such as bytes or seconds. For a
metric that is to fall, such as the loss, the running minimum takes the place of the running maximum.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedsgd.scenario.target import Criterion, Target


class CumulativeAxis(Protocol):
    """Cumulative figure by round; index 0 is the figure before round 1."""

    def __getitem__(self, round: int, /) -> float: ...


@dataclass(frozen=True)
class TargetReached:
    """Point of a run at which its target is reached.

    Attributes:
        before: round of the last measurement that misses the target; equal to `after` where the first measurement reaches it.
        after: round of the first measurement that reaches the target.
        share: position of the point between the two measurements, 0 to 1.
    """

    before: int
    after: int
    share: float

    @property
    def rounds(self) -> float:
        """Number of rounds to the point."""
        return self.before + self.share * (self.after - self.before)

    def interpolate_on(self, axis: CumulativeAxis) -> float:
        """Return a cumulative figure at the point, from the figure after each round [R + 1]."""
        start, end = float(axis[self.before]), float(axis[self.after])
        return start + self.share * (end - start)


def find_first_reached(measurements: Iterable[tuple[int, float]], target: Target | float) -> TargetReached | None:
    """Find the point at which a run first reaches a target, None if it never does.

    >>> find_first_reached([(10, 0.5), (20, 0.9)], target=0.7).rounds
    15.0
    >>> find_first_reached([(10, 0.9), (20, 0.5)], Target("loss", below=0.6)).rounds
    17.5

    Args:
        measurements: (round, value of the target's metric) by ascending round; a value that is not finite counts as
            not measured.
        target: target; a number is the threshold of a metric that is to rise.
    """
    sign, threshold = (target.criterion.sign, target.threshold) if isinstance(target, Target) else (1.0, target)
    signed_threshold = sign * threshold
    before, best = 0, -math.inf
    for round, value in measurements:
        signed_value = sign * value
        if not math.isfinite(signed_value):
            continue
        if signed_value >= signed_threshold:
            if not before:
                return TargetReached(round, round, 0.0)
            return TargetReached(before, round, (signed_threshold - best) / (signed_value - best))
        before, best = round, max(best, signed_value)
    return None


def list_best_so_far(values: Sequence[float], criterion: Criterion) -> list[float]:
    """Return the best value up to each position, such as the running maximum of accuracies; NaN does not count."""
    best, best_values = -math.inf, []
    for value in values:
        best = best if math.isnan(value) else max(best, criterion.sign * value)
        best_values.append(criterion.sign * best)
    return best_values


@dataclass(frozen=True)
class SeedSummary:
    """Summary of one figure of several runs that differ in their seeds.

    Attributes:
        median: median over the runs; infinite where at least half of the runs do not reach the target.
        low, high: smallest and largest figure; `high` is infinite where a run does not reach the target.
        reached: number of runs that reach the target, of `n` runs.
        mean: mean over the runs; infinite where a run does not reach the target.
        std: sample standard deviation, with n − 1 in the denominator; NaN for a single run or an infinite mean.
    """

    median: float
    low: float
    high: float
    reached: int
    n: int
    mean: float
    std: float


def summarize_seeds(figures: Sequence[float | None]) -> SeedSummary:
    """Summarize a figure over seeds; None means that the target was not reached, and counts as infinite."""
    values = [math.inf if figure is None else float(figure) for figure in figures]
    n_reached = sum(map(math.isfinite, values))
    std = statistics.stdev(values) if 1 < len(values) == n_reached else math.nan
    mean = statistics.fmean(values)
    return SeedSummary(statistics.median(values), min(values), max(values), n_reached, len(values), mean, std)
