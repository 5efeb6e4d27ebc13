"""Data of the figures: priced runs of each method, and curves with their range over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fedsgd.analysis.figures.style import MethodStyle, label_with_note, method_styles
from fedsgd.analysis.ledger_stats import LedgerStats, read_ledger_stats
from fedsgd.analysis.methods import Method
from fedsgd.analysis.page.payload import ReportOptions
from fedsgd.analysis.pricing import MethodTiming, PricedRun, build_method_timing, price
from fedsgd.analysis.runs import Run
from fedsgd.numerics.arrays import F64
from fedsgd.scenario.target import Target

MAX_POINTS = 1000
"""Maximum number of points of a curve."""
NOT_PRICED = "not priced: participation depended on time"


@dataclass(frozen=True, eq=False)
class MethodSeries:
    """A method with the data and the style of its curves. `priced_runs` is empty if the runs cannot be priced."""

    method: Method
    style: MethodStyle
    priced_runs: tuple[PricedRun, ...]
    ledger_stats: tuple[LedgerStats, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Finished runs of the best variant."""
        return self.method.runs

    def legend_entry(self, missing_note: str = "", as_line: bool = True) -> tuple[Artist, str]:
        """Return handle and text of a legend entry. `missing_note` is the reason why the method is not in the figure."""
        n_failed, n_diverged = self.method.best_variant.n_failed, len(self.method.divergence_by_seed)
        n = n_failed + len(self.runs)
        counts = ((n_failed, "failed"), (n_diverged, "diverged"))
        notes = [outcome if n == 1 else f"{m} of {n} seeds {outcome}" for m, outcome in counts if m]
        notes += [missing_note] if missing_note else []
        handle = Line2D([], [], **{**self.style.get_marker_properties(), "linestyle": self.style.dashes if as_line else "none"})
        return handle, label_with_note(self.style.label, ", ".join(notes))

    def build_timing(self, target: Target) -> MethodTiming:
        """Return the method's times to a target; failed seeds do not reach the target."""
        return build_method_timing(self.style.label, self.priced_runs, target, self.method.best_variant.n_failed)


def build_series(methods: Sequence[Method], options: ReportOptions) -> list[MethodSeries]:
    """Read and price the runs of each method, each run once."""
    return [
        _build_method_series(method, style, options)
        for method, style in zip(methods, method_styles([method.label for method in methods]), strict=True)
    ]


def _build_method_series(method: Method, style: MethodStyle, options: ReportOptions) -> MethodSeries:
    if any(run.why_not_repriceable is not None for run in method.runs):
        return MethodSeries(method, style, (), tuple(read_ledger_stats(run) for run in method.runs))
    priced_runs = tuple(price(run, [options.pricing_model], options.measured_coding)[0] for run in method.runs)
    return MethodSeries(method, style, priced_runs, tuple(run.ledger_stats for run in priced_runs))


@dataclass(frozen=True, eq=False)
class SeedBand:
    """Curve over seeds: [X] positions x, and [X] medians, minima and maxima."""

    x: F64
    median: F64
    low: F64
    high: F64

    def draw(self, ax: Axes, series: MethodSeries, shade: bool = True) -> None:
        """Draw the median in the method's line style, and shade the range over seeds."""
        ax.plot(self.x, self.median, **series.style.get_line_properties())
        if shade and len(series.runs) > 1:
            top = 1e6 * max((value for value in self.iter_values() if math.isfinite(value)), default=1.0)
            high = np.where(np.isposinf(self.high), top, self.high)  # an infinite maximum is drawn beyond the edge
            ax.fill_between(self.x, self.low, high, color=series.style.colour, alpha=0.16, linewidth=0)

    def equals(self, other: SeedBand) -> bool:
        """Return True if two bands have equal values."""
        pairs = ((self.x, other.x), (self.low, other.low), (self.median, other.median), (self.high, other.high))
        return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)

    def iter_values(self) -> Iterator[float]:
        """Yield all values of the three curves."""
        for values in (self.median, self.low, self.high):
            yield from values.tolist()


def build_band(x: F64, curves: Sequence[F64 | list[float]]) -> SeedBand:
    """Return the band of curves [S, X] over S seeds, at common positions x."""
    values = np.asarray(curves)
    return SeedBand(x, np.median(values, axis=0), values.min(axis=0), values.max(axis=0))


def interpolate_band(curves: Sequence[tuple[F64, F64]]) -> SeedBand | None:
    """Return the band of curves with different, ascending x, by linear interpolation; None if all curves are empty.

    The band starts where the last curve starts, and ends at the median of the curves' last positions. A curve that ends earlier
    keeps its last value. For ascending curves, the median therefore reaches a value where the median seed reaches the value.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    start = max(float(x[0]) for x, _ in curves)
    end = max(start, float(np.median([x[-1] for x, _ in curves])))
    positions = np.unique(np.concatenate([[start, end], *(x for x, _ in curves)]))
    positions = positions[(positions >= start) & (positions <= end)]
    if len(positions) > MAX_POINTS:
        positions = positions[np.linspace(0, len(positions) - 1, MAX_POINTS).round().astype(np.int64)]
    return build_band(positions, [np.interp(positions, x, y) for x, y in curves])
