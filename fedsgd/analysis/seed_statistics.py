"""Statistics of a figure over seeds: Kaplan–Meier median, interval of the median, ratio over paired seeds, log-rank test.

A run that ends before its target is censored at its end: its figure is larger than that of its end. A run that ended in an
error, or diverged before it reached the target, never reaches it: its figure is infinite.

- Median: Kaplan and Meier, "Nonparametric estimation from incomplete observations", 1958. Where the survival curve is 1/2 over
  a span, the median is the middle of the span, as for uncensored figures.
- Interval of a median: the order statistics k and n + 1 − k. Their confidence, 1 − 2 P(Bin(n, 1/2) < k), holds for any
  distribution. k is the largest number with 95 %; below 6 seeds there is none, and the interval is the range.
- Interval of a ratio of medians: percentile bootstrap of pairs (Efron, "Bootstrap methods: another look at the jackknife",
  1979). Up to 5 pairs, it is the range of the paired ratios, with the confidence of a range; from 6 pairs on, its coverage in
  simulations is 93 to 96 %. With censored pairs, it is the interval of the median paired ratio by order statistics, from the
  bounds of each pair.
- Log-rank test: Mantel, "Evaluation of survival data and two new rank order statistics arising in its consideration", 1966;
  by permutation, as the normal distribution is too narrow for few seeds.

scipy is imported by the functions that use it, so that a comparison of single runs does not load it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedsgd.numerics.arrays import F64
from fedsgd.numerics.rng import derive_generator

CONFIDENCE = 0.95
"""Nominal confidence of intervals."""
MIN_SEEDS = 3
"""Minimum number of seeds for an interval; the range of two seeds has a confidence of 50 %."""
MAX_SEEDS_OF_RANGE = 5
"""Maximum number of seeds for which the range is the widest interval, and has a confidence below 95 %."""
RESAMPLES = 9999
"""Number of bootstrap samples, and maximum number of permutations."""
RESAMPLING_SEED = 0
"""Seed of bootstrap samples and permutations, so that equal runs give equal statistics."""
Relation = Literal["=", ">", "<"]


@dataclass(frozen=True)
class SeedFigure:
    """Figure of one seed.

    Attributes:
        value: figure at the target; None if the run does not reach the target.
        end: figure at the run's end, at which a run without value is censored; infinite for a run that never reaches the
            target.
    """

    value: float | None
    end: float = math.inf

    @property
    def low(self) -> float:
        """Lower bound of the figure: the value, or the figure at the run's end."""
        return self.end if self.value is None else self.value

    @property
    def high(self) -> float:
        """Upper bound of the figure: the value, or infinity."""
        return math.inf if self.value is None else self.value


@dataclass(frozen=True)
class Interval:
    """Confidence interval.

    Attributes:
        low, high: ends; `high` is infinite where the figures do not bound it.
        confidence: probability that such an interval covers the true value, 0 to 1.
        method: "order statistics" or "bootstrap".
    """

    low: float
    high: float
    confidence: float
    method: Literal["order statistics", "bootstrap"] = "order statistics"


@dataclass(frozen=True)
class MedianEstimate:
    """Kaplan–Meier median of a figure over seeds.

    Attributes:
        median: median; infinite where the survival curve does not fall below 1/2.
        interval: interval of the median; None below `MIN_SEEDS` seeds.
        n: number of seeds.
        n_censored: number of runs that ended before the target.
        n_never: number of runs that ended in an error or diverged before the target.
    """

    median: float
    interval: Interval | None
    n: int
    n_censored: int
    n_never: int


@dataclass(frozen=True)
class RatioEstimate:
    """Median of the baseline divided by the median of a method, over paired seeds.

    Attributes:
        ratio: quotient of the Kaplan–Meier medians, or its bound.
        relation: "=" for a quotient; ">" for a lower bound, where the baseline does not reach the target in the median; "<" for
            an upper bound, where the method does not.
        interval: interval of the ratio; None below `MIN_SEEDS` pairs.
        n: number of pairs.
    """

    ratio: float
    relation: Relation
    interval: Interval | None
    n: int


def estimate_median(figures: Sequence[SeedFigure]) -> MedianEstimate:
    """Estimate the median of a figure and its interval.

    >>> estimate = estimate_median([SeedFigure(float(value)) for value in (5, 1, 4, 2, 3)])
    >>> estimate.median, estimate.interval
    (3.0, Interval(low=1.0, high=5.0, confidence=0.9375, method='order statistics'))
    """
    n_missing, n_never = (sum(f.value is None and test(f.end) for f in figures) for test in (math.isfinite, math.isinf))
    median, interval = compute_median(figures), find_order_interval([(f.low, f.high) for f in figures])
    return MedianEstimate(median, interval, len(figures), n_missing, n_never)


def compute_median(figures: Sequence[SeedFigure]) -> float:
    """Return the Kaplan–Meier median: the ordinary median if no run is censored; infinite if it is not reached."""
    if all(figure.value is not None or math.isinf(figure.end) for figure in figures):
        return statistics.median([figure.high for figure in figures])
    if all(figure.value is None for figure in figures):
        return math.inf
    from scipy.stats import ecdf

    survival = ecdf(_build_censored_data(figures)).sf
    below = np.flatnonzero(survival.probabilities <= 0.5 + 1e-12)  # a product of fractions is not exact
    if not len(below):
        return math.inf
    first = below[0]
    if survival.probabilities[first] < 0.5 - 1e-12:
        return float(survival.quantiles[first])
    falls = np.flatnonzero(survival.probabilities < 0.5 - 1e-12)
    return float(survival.quantiles[first] + survival.quantiles[falls[0]]) / 2 if len(falls) else math.inf


def find_order_interval(bounds: Sequence[tuple[float, float]]) -> Interval | None:
    """Return the interval of a median by order statistics of the figures' (low, high); None below `MIN_SEEDS` figures."""
    n = len(bounds)
    if n < MIN_SEEDS:
        return None
    ranks = [(k, 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n) for k in range(1, n // 2 + 1)]
    rank, confidence = max((pair for pair in ranks if pair[1] >= CONFIDENCE), default=ranks[0])
    lows, highs = map(sorted, zip(*bounds, strict=True))
    return Interval(lows[rank - 1], highs[n - rank], confidence)


def estimate_ratio(baseline: Sequence[SeedFigure], method: Sequence[SeedFigure]) -> RatioEstimate | None:
    """Estimate the ratio of the baseline's median to that of a method; None if the figures do not bound it.

    >>> pairs = [SeedFigure(v) for v in (8.0, 10.0, 12.0)], [SeedFigure(v) for v in (4.0, 4.0, 5.0)]
    >>> estimate = estimate_ratio(*pairs)
    >>> estimate.ratio, estimate.interval
    (2.5, Interval(low=2.0, high=2.5, confidence=0.75, method='bootstrap'))

    Args:
        baseline: figures of the baseline, one for each pair.
        method: figures of the method, in the order of the pairs.
    """
    if not baseline or any(figure.low <= 0 for figure in method):
        return None
    above, below = compute_median(baseline), compute_median(method)
    relation: Relation = "="
    if math.isinf(above) and math.isinf(below):
        return None
    if math.isinf(above):
        relation, above = ">", statistics.median([figure.low for figure in baseline])
    elif math.isinf(below):
        relation, below = "<", statistics.median([figure.low for figure in method])
    if math.isinf(above) or math.isinf(below):  # more than half of the runs of one of them never reach the target
        return None
    return RatioEstimate(above / below, relation, _find_ratio_interval(baseline, method), len(baseline))


def _find_ratio_interval(baseline: Sequence[SeedFigure], method: Sequence[SeedFigure]) -> Interval | None:
    if len(baseline) < MIN_SEEDS:
        return None
    if all(figure.value is not None for figure in (*baseline, *method)):
        values = [np.asarray([figure.value for figure in figures], dtype=np.float64) for figures in (baseline, method)]
        return _bootstrap_ratio(*values)
    return find_order_interval([_bound_ratio(*pair) for pair in zip(baseline, method, strict=True)])


def _bound_ratio(baseline: SeedFigure, method: SeedFigure) -> tuple[float, float]:
    """Return the bounds of a pair's ratio: 0 to infinity if neither run reaches the target."""
    low = 0.0 if math.isinf(method.high) else baseline.low / method.high
    high = math.inf if math.isinf(baseline.high) else baseline.high / method.low
    return low, high


def _bootstrap_ratio(baseline: F64, method: F64) -> Interval:
    """Return the percentile bootstrap interval of a ratio of medians over pairs."""
    from scipy.stats import bootstrap

    def compute_ratio(first: F64, second: F64, axis: int) -> Any:
        return np.median(first, axis=axis) / np.median(second, axis=axis)

    n = len(baseline)
    result = bootstrap(
        (baseline, method),
        compute_ratio,
        n_resamples=RESAMPLES,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=derive_generator(RESAMPLING_SEED, "statistics"),
    )
    low, high = map(float, result.confidence_interval)
    return Interval(low, high, 1 - 2.0 ** (1 - n) if n <= MAX_SEEDS_OF_RANGE else CONFIDENCE, "bootstrap")


def compute_logrank_p(first: Sequence[SeedFigure], second: Sequence[SeedFigure]) -> float | None:
    """Return the two-sided permutation p of the log-rank statistic of two methods' rounds to the target.

    The statistic is a sum over one method's runs of 1 (0 for a censored run) minus the cumulative hazard of all runs. Its
    distribution is that over all divisions of the runs into two methods, or over `RESAMPLES` divisions where there are more. So
    the p is exact for few seeds, unlike that of the normal distribution; with three seeds each, it is at least 0.1.

    None below `MIN_SEEDS` seeds of a method, and if no run reaches the target.
    """
    if min(len(first), len(second)) < MIN_SEEDS or all(figure.value is None for figure in (*first, *second)):
        return None
    from scipy.stats import permutation_test

    scores = compute_logrank_scores([*first, *second])
    result = permutation_test(
        (scores[: len(first)], scores[len(first) :]),
        lambda x, y, axis: np.sum(x, axis=axis),
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=derive_generator(RESAMPLING_SEED, "statistics"),
    )
    return float(result.pvalue)


def compute_logrank_scores(figures: Sequence[SeedFigure]) -> F64:
    """Return [n] log-rank scores: 1 for a run that reaches the target, else 0, minus the Nelson–Aalen hazard at its time."""
    times = np.asarray([figure.low for figure in figures])
    is_event = np.asarray([figure.value is not None for figure in figures])
    event_times, n_events = np.unique(times[is_event], return_counts=True)
    hazards = n_events / (times[:, None] >= event_times).sum(axis=0)
    scores: F64 = is_event - (hazards * (times[:, None] >= event_times)).sum(axis=1)
    return scores


def _build_censored_data(figures: Sequence[SeedFigure]) -> Any:
    """Return figures as scipy's censored data; a run that never reaches its target is censored beyond all figures."""
    from scipy.stats import CensoredData

    beyond = 2 * max((figure.low for figure in figures if math.isfinite(figure.low)), default=0.0) + 1
    values = [figure.low if math.isfinite(figure.low) else beyond for figure in figures]
    return CensoredData.right_censored(values, [figure.value is None for figure in figures])
