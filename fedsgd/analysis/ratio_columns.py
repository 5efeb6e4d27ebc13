"""Table of ratios to the baseline over paired seeds, and remarks on intervals, pairs and censored runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsgd.analysis.comparison import Comparison, ComparisonRow, NetworkCost
from fedsgd.analysis.row_statistics import BaselineRatios
from fedsgd.analysis.seed_statistics import MIN_SEEDS, MedianEstimate, RatioEstimate
from fedsgd.config.quantities import format_bytes, format_significant
from fedsgd.config.text_columns import TextColumn
from fedsgd.experiment.time_to_target import SeedSummary

RATIO_COLUMNS = (
    ("rounds", "rounds", "rounds", 5),
    ("up", "uplink", "up_bytes", 1),
    ("down", "downlink", "down_bytes", 4),
    ("both", "both ways", "all_bytes", 0),
)
"""Name, heading, figure and rank of each column of ratios, without those of networks."""
SUMMARIES = ("best_value", "final_value", "rounds", "up_bytes", "down_bytes", "all_bytes")
"""Fields of `ComparisonRow` with a summary over seeds."""
MIN_P = 0.001
"""Smallest p that is written as a number."""
MAX_LISTED_SEEDS = 6
"""Maximum number of seeds that a remark lists."""


def has_intervals(comparison: Comparison) -> bool:
    """Return True if a ratio to the baseline has an interval, so that a table of ratios says more than the medians."""
    return any(ratio.interval for _, to_baseline in _list_compared_rows(comparison) for ratio in to_baseline.ratios.values())


def describe_ratios(comparison: Comparison) -> str:
    """Return the title of the table of ratios."""
    end = "in all" if comparison.target is None else f"to {comparison.target}"
    return f"{comparison.baseline.label} / method, {end}: ratio of medians over paired seeds, with its interval"


def build_ratio_columns(comparison: Comparison, names: Sequence[str] = (), separator: str = " ") -> list[TextColumn]:
    """Return the columns of the ratios, with a row for each method but the baseline.

    Args:
        comparison: methods.
        names: names of the columns of the table of methods; columns of other figures are left out. Empty for all.
        separator: text between a ratio and its interval.
    """
    rows = _list_compared_rows(comparison)
    columns = [
        TextColumn("method", "method", tuple(row.label for row, _ in rows), align="left", shorten="distinct"),
        TextColumn("seeds", "pairs", tuple(str(len(to_baseline.seeds)) for _, to_baseline in rows), 6),
    ]
    figures = [column for column in RATIO_COLUMNS if not names or column[0] in names]
    if not names or "time" in names:
        networks = enumerate(comparison.pricing_models)
        figures += [("time", f"time, {name}", f"seconds {name}", 0 if i == 0 else 3) for i, name in networks]
    for name, heading, figure, rank in figures:
        cells = tuple(format_ratio(to_baseline.ratios.get(figure), separator) for _, to_baseline in rows)
        columns.append(TextColumn(name, heading, cells, rank))
    if comparison.target is not None:
        columns.append(TextColumn("p", "log-rank p", tuple(format_p(to_baseline.logrank_p) for _, to_baseline in rows), 2))
    return columns


def describe_row_ratios(comparison: Comparison) -> Iterator[str]:
    """Yield a line for each method with an interval, with the ratio of bytes in both directions."""
    end = "in all" if comparison.target is None else f"to {comparison.target}"
    for row, to_baseline in _list_compared_rows(comparison):
        ratio = to_baseline.ratios.get("all_bytes")
        if ratio is not None and ratio.interval is not None:
            yield f"{to_baseline.baseline} / {row.label}: {format_ratio(ratio)} bytes both ways {end}, {ratio.n} pairs"


def _list_compared_rows(comparison: Comparison) -> list[tuple[ComparisonRow, BaselineRatios]]:
    """Return the methods that are compared with the baseline."""
    statistics = ((row, row.statistics) for row in comparison.rows)
    return [(row, s.to_baseline) for row, s in statistics if s is not None and s.to_baseline is not None]


def format_ratio(estimate: RatioEstimate | None, separator: str = " ") -> str:
    """Return a ratio with its interval: "7.3× (6.1 to 8.8)", "> 4×"; "–" for None.

    >>> from fedsgd.analysis.seed_statistics import Interval
    >>> format_ratio(RatioEstimate(7.3, "=", Interval(6.1, 8.8, 0.9375), 5))
    '7.3× (6.1 to 8.8)'
    >>> format_ratio(RatioEstimate(4.0, ">", Interval(3.5, math.inf, 0.75), 3))
    '> 4× (3.5 to ∞)'
    """
    if estimate is None:
        return "–"
    relation = "" if estimate.relation == "=" else f"{estimate.relation} "
    text = f"{relation}{format_significant(estimate.ratio)}×"
    if estimate.interval is None:
        return text
    ends = estimate.interval.low, estimate.interval.high
    low, high = (format_significant(end) if math.isfinite(end) else "∞" for end in ends)
    return f"{text}{separator}{low}–{high}" if separator == "\n" else f"{text}{separator}({low} to {high})"


def format_p(p: float | None) -> str:
    """Return a p, with two significant figures; "–" for None."""
    return "–" if p is None else f"< {MIN_P}" if p < MIN_P else f"{p:.2g}"


def collect_statistics_notes(comparison: Comparison, statistic: str = "median") -> Iterator[str]:
    """Yield remarks on intervals, censored runs and pairs, each one line, for a table of a `Statistic`."""
    numbers = [row.seeds + row.n_failed for row in comparison.rows]
    if max(numbers) < MIN_SEEDS and (len(numbers) > 1 or max(numbers) > 1):
        yield f"no confidence intervals and log-rank p: they need {MIN_SEEDS} seeds, and 6 for 95 %"
    if statistic != "mean":
        yield from _describe_median_intervals(comparison, statistic)
    yield from _describe_ratio_intervals(comparison)
    for row in comparison.rows:
        yield from _describe_censoring(row)
    for row, to_baseline in _list_compared_rows(comparison):
        yield from _describe_pairs(row, to_baseline)


def _describe_ratio_intervals(comparison: Comparison) -> Iterator[str]:
    """Yield the confidence of the intervals of ratios by number of pairs, and the method of these intervals."""
    ratios = [ratio for _, to_baseline in _list_compared_rows(comparison) for ratio in to_baseline.ratios.values()]
    for method, cause in (("bootstrap", "by paired bootstrap"), ("order statistics", "of which runs miss the target")):
        confidences = {
            ratio.n: ratio.interval.confidence for ratio in ratios if ratio.interval and ratio.interval.method == method
        }
        texts = [f"{_format_confidence(confidence)} ({n} pairs)" for n, confidence in sorted(confidences.items())]
        if texts:
            subject = f"intervals of ratios to {comparison.baseline.label}, {cause}"
            yield f"{subject}: confidence {', '.join(texts)}"


def _describe_median_intervals(comparison: Comparison, statistic: str) -> Iterator[str]:
    """Yield the confidence of the intervals of medians, or of the range from minimum to maximum."""
    rounds = [row.statistics.medians.get("rounds") for row in comparison.rows if row.statistics is not None]
    confidences = {estimate.n: estimate.interval.confidence for estimate in rounds if estimate and estimate.interval}
    if statistic == "median":
        confidences = {n: 1 - 2.0 ** (1 - n) for n in confidences}
    texts = [f"{_format_confidence(confidence)} ({n} seeds)" for n, confidence in sorted(confidences.items())]
    subject = "minimum to maximum covers" if statistic == "median" else "intervals cover"
    if texts:
        yield f"{subject} the true median with a confidence of {', '.join(texts)}"


def _format_confidence(confidence: float) -> str:
    """Return a confidence in percent, rounded down."""
    return f"{math.floor(1000 * confidence) / 10:g} %"


def _describe_censoring(row: ComparisonRow) -> Iterator[str]:
    """Yield the Kaplan–Meier medians of a method whose runs ended at different points, where they differ from the medians."""
    medians = {} if row.statistics is None else row.statistics.medians
    rounds, n_bytes = (medians.get(name) for name in ("rounds", "all_bytes"))
    if rounds is None or n_bytes is None or not rounds.n_censored:
        return
    pairs = (rounds.median, row.rounds.median), (n_bytes.median, row.all_bytes.median)
    if all(math.isclose(*pair) for pair in pairs):
        return
    figures = [f"{format_significant(rounds.median)} rounds"] if math.isfinite(rounds.median) else []
    figures += [f"{format_bytes(round(n_bytes.median))} both ways"] if math.isfinite(n_bytes.median) else []
    cause = f"{rounds.n_censored} of {rounds.n} runs ended before the target"
    yield f"{row.label}: Kaplan–Meier median {', '.join(figures) or 'not reached'}; {cause}"


def _describe_pairs(row: ComparisonRow, to_baseline: BaselineRatios) -> Iterator[str]:
    """Yield remarks on seeds that are not paired, and on pairs with other cohorts."""
    names = f"{row.label} and {to_baseline.baseline}"
    if to_baseline.unpaired_reason is not None:
        yield f"{names} are not paired by seed: {to_baseline.unpaired_reason}"
        return
    if len(to_baseline.seeds) < MIN_SEEDS:
        return
    if to_baseline.unpaired_seeds:
        shown = ", ".join(map(str, to_baseline.unpaired_seeds[:MAX_LISTED_SEEDS]))
        more = len(to_baseline.unpaired_seeds) - MAX_LISTED_SEEDS
        yield f"{names}: seeds that only one of them has are in no ratio: {shown}{f' and {more} more' if more > 0 else ''}"
    if not to_baseline.has_equal_cohorts:
        yield f"{names} have equal splits and initial models in a pair, but not equal cohorts"


def show_intervals(comparison: Comparison) -> Comparison:
    """Return a comparison whose summaries over seeds have Kaplan–Meier medians, and intervals in place of ranges."""
    factor = (comparison.price_per_gigabyte or 0.0) / 1e9
    rows = []
    for row in comparison.rows:
        medians = {} if row.statistics is None else row.statistics.medians
        summaries: dict[str, SeedSummary | None] = {name: getattr(row, name) for name in SUMMARIES}
        figures: dict[str, Any] = {
            name: _show_interval(summary, medians.get(name)) for name, summary in summaries.items() if summary is not None
        }
        costs = {name: _show_cost_intervals(cost, name, medians, factor) for name, cost in row.network_costs.items()}
        rows.append(replace(row, network_costs=costs, **figures))
    return replace(comparison, rows=tuple(rows))


def _show_cost_intervals(cost: NetworkCost, network: str, medians: Mapping[str, MedianEstimate], factor: float) -> NetworkCost:
    seconds, n_bytes = (medians.get(f"{name} {network}") for name in ("seconds", "bytes"))
    return replace(
        cost,
        seconds=_show_interval(cost.seconds, seconds),
        n_bytes=_show_interval(cost.n_bytes, n_bytes),
        cost=None if cost.cost is None else _show_interval(cost.cost, n_bytes, factor),
    )


def _show_interval(summary: SeedSummary, estimate: MedianEstimate | None, factor: float = 1.0) -> SeedSummary:
    """Return a summary with the median and the interval of an estimate; without an interval, low and high are the median."""
    if estimate is None or estimate.interval is None:
        return replace(summary, low=summary.median, high=summary.median)
    low, median, high = (factor * x for x in (estimate.interval.low, estimate.median, estimate.interval.high))
    return replace(summary, median=median, low=low, high=high)
