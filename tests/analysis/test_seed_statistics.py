"""Statistics over seeds: published values, plain loops, and the coverage of intervals."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from fedsgd.analysis import seed_statistics
from fedsgd.analysis.seed_statistics import (
    Interval,
    SeedFigure,
    compute_logrank_p,
    compute_logrank_scores,
    compute_median,
    estimate_median,
    estimate_ratio,
    find_order_interval,
)

MERCAPTOPURINE = "6 6 6 6* 7 9* 10 10* 11* 13 16 17* 19* 20* 22 23 25* 32* 32* 34* 35*"
PLACEBO = "1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23"
"""Weeks of remission of Freireich et al. 1963, as in Kaplan–Meier examples of textbooks; * for censored."""


def read_figures(text: str) -> list[SeedFigure]:
    """Return figures of a text; "9*" is censored at 9, and "never" never reaches the target."""
    return [
        SeedFigure(None)
        if word == "never"
        else SeedFigure(None, float(word[:-1]))
        if word[-1] == "*"
        else SeedFigure(float(word))
        for word in text.split()
    ]


def compute_median_by_loop(figures: list[SeedFigure]) -> float:
    """Return the Kaplan–Meier median by the product over events in exact fractions; the middle of a span at 1/2."""
    from fractions import Fraction

    survival, start = Fraction(1), None
    for time in sorted({figure.value for figure in figures if figure.value is not None}):
        at_risk = sum(figure.low >= time for figure in figures)
        survival *= 1 - Fraction(sum(figure.value == time for figure in figures), at_risk)
        if survival < Fraction(1, 2):
            return time if start is None else (start + time) / 2
        if survival == Fraction(1, 2) and start is None:
            start = time
    return math.inf


def test_median_of_textbook_data_is_the_published_one() -> None:
    assert compute_median(read_figures(MERCAPTOPURINE)) == 23
    assert compute_median(read_figures(PLACEBO)) == 8


def test_median_with_censored_runs_equals_a_product_of_fractions() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        n = int(generator.integers(1, 9))
        times, is_censored = generator.integers(1, 7, n), generator.random(n) < 0.4
        ends = np.where(generator.random(n) < 0.2, math.inf, times)
        figures = [
            SeedFigure(None, float(end)) if censored else SeedFigure(float(time))
            for time, end, censored in zip(times, ends, is_censored, strict=True)
        ]
        assert compute_median(figures) == compute_median_by_loop(figures), figures


@pytest.mark.parametrize(
    ("text", "median"),
    [
        ("3 5 9", 5),
        ("3 5 9 11", 7),
        ("4* 10*", math.inf),
        ("never", math.inf),
        ("3 never", math.inf),
        ("3 5 never", 5),
        ("3 3 3 3", 3),
        ("2", 2),
        ("3 4* 5 10*", 5),  # 3/4, then 3/4 · 1/2 < 1/2 at 5
        ("3 5 10* 10*", math.inf),
    ],
)
def test_median_of_few_seeds(text: str, median: float) -> None:
    assert compute_median(read_figures(text)) == median


def test_median_without_censored_runs_is_the_ordinary_median() -> None:
    values = [3.5, 1.25, 9.0, 2.5]
    assert compute_median([SeedFigure(value) for value in values]) == statistics.median(values)


def test_interval_of_a_median_has_the_binomial_confidence() -> None:
    for n in range(3, 25):
        interval = find_order_interval([(float(i), float(i)) for i in range(1, n + 1)])
        assert interval is not None
        k = int(interval.low)
        assert interval.high == n + 1 - k
        assert interval.confidence == pytest.approx(1 - 2 * stats.binom.cdf(k - 1, n, 0.5))
        assert interval.confidence >= 0.95 or k == 1
        assert n < 6 or 1 - 2 * stats.binom.cdf(k, n, 0.5) < 0.95, "the next interval is too narrow"
    assert find_order_interval([(1.0, 1.0), (2.0, 2.0)]) is None


def test_interval_of_a_median_covers_it_as_often_as_stated() -> None:
    samples = np.random.default_rng(2).exponential(size=(1000, 9))
    intervals = [find_order_interval([(x, x) for x in sample]) for sample in samples]
    covered = [interval is not None and interval.low <= math.log(2) <= interval.high for interval in intervals]
    assert intervals[0] is not None
    assert np.mean(covered) == pytest.approx(intervals[0].confidence, abs=0.02)


def test_interval_of_censored_runs_is_bounded_by_their_ends_only() -> None:
    estimate = estimate_median(read_figures("2 3 4 4* never"))
    assert estimate.interval == Interval(2, math.inf, 0.9375)
    assert (estimate.n, estimate.n_censored, estimate.n_never) == (5, 1, 1)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_ratio_of_few_pairs_has_the_range_of_the_pairs_as_interval(n: int) -> None:
    generator = np.random.default_rng(n)
    baseline, method = generator.lognormal(2, 0.3, n), generator.lognormal(0, 0.3, n)
    estimate = estimate_ratio(*([SeedFigure(float(value)) for value in values] for values in (baseline, method)))
    assert estimate is not None
    assert estimate.ratio == pytest.approx(np.median(baseline) / np.median(method))
    assert estimate.interval is not None
    assert estimate.interval.confidence == 1 - 2.0 ** (1 - n)
    pairs = baseline / method
    assert (estimate.interval.low, estimate.interval.high) == pytest.approx((pairs.min(), pairs.max()))


def test_interval_of_a_ratio_equals_a_loop_over_resampled_pairs() -> None:
    generator = np.random.default_rng(0)
    baseline, method = generator.lognormal(2, 0.3, 7), generator.lognormal(0, 0.3, 7)
    figures = [[SeedFigure(float(value)) for value in values] for values in (baseline, method)]
    first, second = estimate_ratio(*figures), estimate_ratio(*figures)
    assert first is not None
    assert first == second, "equal figures have equal intervals"
    ratios = []
    for _ in range(2000):
        chosen = generator.integers(0, 7, 7)
        ratios.append(np.median(baseline[chosen]) / np.median(method[chosen]))
    assert first.interval is not None
    assert (first.interval.low, first.interval.high) == pytest.approx(np.quantile(ratios, (0.025, 0.975)), rel=0.05)
    assert (first.interval.confidence, first.interval.method, first.n) == (0.95, "bootstrap", 7)


@pytest.mark.parametrize(("n", "lowest"), [(3, 0.75), (5, 0.9375), (7, 0.93)])
def test_interval_of_a_ratio_covers_it_nearly_as_often_as_stated(
    n: int, lowest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 samples: the standard deviation of their share is at most 0.045. The pairs have a correlation of 1/2."""
    monkeypatch.setattr(seed_statistics, "RESAMPLES", 499)
    generator, covered = np.random.default_rng(n), []
    for _ in range(100):
        common, first, second = generator.normal(0, 0.1, (3, n))
        figures = ([SeedFigure(float(x)) for x in np.exp(common + own)] for own in (2 + first, second))
        estimate = estimate_ratio(*figures)
        assert estimate is not None
        assert estimate.interval is not None
        covered.append(estimate.interval.low <= math.exp(2) <= estimate.interval.high)
    assert np.mean(covered) >= lowest - 0.09


@pytest.mark.parametrize(
    ("baseline", "method", "ratio", "relation", "interval"),
    [
        ("8 10 12", "4 5 6", 2, "=", (2, 2)),
        ("20* 20* 20*", "4 5 5", 4, ">", (4, math.inf)),
        ("20* 20* 10", "4 5 5", 4, ">", (2, math.inf)),
        ("8 10 12", "20* 20* 40*", 0.5, "<", (0, 0.5)),
        ("8 10 12", "4 5 40*", 2, "=", (0, 2)),
        ("8 10 12", "4 never 5", 2, "=", (0, 2.4)),
        ("8 10 12", "never never 5", None, "", None),
        ("never never 12", "4 5 5", None, "", None),
        ("20* 20* 20*", "20* 20* 20*", None, "", None),
        ("8 10", "4 5", 2, "=", None),
        ("8", "4", 2, "=", None),
        ("", "", None, "", None),
        ("8 10 12", "0 0 0", None, "", None),
        ("6 6 6 6 6 6", "6 6 6 6 6 6", 1, "=", (1, 1)),
    ],
)
def test_ratio_of_censored_runs_is_a_bound(
    baseline: str, method: str, ratio: float | None, relation: str, interval: tuple[float, float] | None
) -> None:
    estimate = estimate_ratio(read_figures(baseline), read_figures(method))
    if ratio is None:
        assert estimate is None
        return
    assert estimate is not None
    assert (estimate.ratio, estimate.relation) == (ratio, relation)
    assert interval == (None if estimate.interval is None else (estimate.interval.low, estimate.interval.high))


def test_logrank_statistic_of_textbook_data_is_the_published_one() -> None:
    """The 6-MP group has 9 events, of 19.25 expected; χ² = 16.79."""
    figures = read_figures(MERCAPTOPURINE), read_figures(PLACEBO)
    scores = compute_logrank_scores([*figures[0], *figures[1]])
    assert scores[:21].sum() == pytest.approx(9 - 19.25, abs=0.01)
    assert scores.sum() == pytest.approx(0, abs=1e-9)
    data = [stats.CensoredData.right_censored([f.low for f in group], [f.value is None for f in group]) for group in figures]
    result = stats.logrank(*data)
    assert result.statistic**2 == pytest.approx(16.79, abs=0.01)
    p = compute_logrank_p(*figures)
    assert p is not None
    assert p < 0.001
    assert result.pvalue < 0.001


def test_logrank_p_of_few_seeds_is_the_share_of_divisions_that_are_as_extreme() -> None:
    first, second = read_figures("3 5 7 9*"), read_figures("4 8 10* never")
    scores = compute_logrank_scores([*first, *second])
    sums = np.asarray([sum(scores[i] for i in chosen) for chosen in itertools.combinations(range(8), 4)])
    own = scores[:4].sum()
    tails = np.mean(sums >= own - 1e-9), np.mean(sums <= own + 1e-9)
    assert compute_logrank_p(first, second) == pytest.approx(min(1, 2 * min(tails)))
    assert compute_logrank_p(read_figures("1 2 3"), read_figures("4 5 6")) == pytest.approx(2 / 20)


def test_logrank_p_is_none_without_events_and_one_for_equal_figures() -> None:
    assert compute_logrank_p(read_figures("3 4"), read_figures("3 4 5")) is None
    assert compute_logrank_p(read_figures("3* 4* never"), read_figures("3* 4* 5*")) is None
    assert compute_logrank_p(read_figures("3 3 3"), read_figures("3 3 3")) == 1
