"""What is drawn of each method: its runs, priced where they can be, and curves over their seeds."""

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

MAX_POINTS = 1000
NOT_PRICED = "not priced: who took part depended on time"


@dataclass(frozen=True, eq=False)
class MethodSeries:
    """priced: the method's runs on the terms asked for, none if they cannot be priced; facts: of each of its runs."""

    method: Method
    style: MethodStyle
    priced_runs: tuple[PricedRun, ...]
    ledger_stats: tuple[LedgerStats, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Of the variant that the method is shown at."""
        return self.method.runs

    def legend_entry(self, missing_note: str = "", as_line: bool = True) -> tuple[Artist, str]:
        """In a legend, of lines or of dots. why: it is not in the figure."""
        failed, diverged = self.method.best_variant.n_failed, len(self.method.divergence_by_seed)
        n = failed + len(self.runs)
        counts = ((failed, "failed"), (diverged, "diverged"))
        notes = [how if n == 1 else f"{m} of {n} seeds {how}" for m, how in counts if m]
        notes += [missing_note] if missing_note else []
        handle = Line2D([], [], **{**self.style.get_marker_properties(), "linestyle": self.style.dashes if as_line else "none"})
        return handle, label_with_note(self.style.label, ", ".join(notes))

    def build_timing(self, target: float) -> MethodTiming:
        """In the race to the target; a seed that failed does not get there."""
        return build_method_timing(self.style.label, self.priced_runs, target, self.method.best_variant.n_failed)


def build_series(methods: Sequence[Method], options: ReportOptions) -> list[MethodSeries]:
    """Each method, read and priced once."""
    return [
        _build_method_series(*each, options)
        for each in zip(methods, method_styles([method.label for method in methods]), strict=True)
    ]


def _build_method_series(method: Method, style: MethodStyle, options: ReportOptions) -> MethodSeries:
    if any(run.why_not_repriceable is not None for run in method.runs):
        return MethodSeries(method, style, (), tuple(read_ledger_stats(run) for run in method.runs))
    priced = tuple(price(run, [options.pricing_model], options.measured_coding)[0] for run in method.runs)
    return MethodSeries(method, style, priced, tuple(one.ledger_stats for one in priced))


@dataclass(frozen=True, eq=False)
class SeedBand:
    """Over the seeds at each place x: the median, the least and the largest [X]."""

    x: F64
    median: F64
    low: F64
    high: F64

    def draw(self, ax: Axes, series: MethodSeries, shade: bool = True) -> None:
        """The median as the method's line, what lies between the least and the largest shaded."""
        ax.plot(self.x, self.median, **series.style.get_line_properties())
        if shade and len(series.runs) > 1:
            top = 1e6 * max((value for value in self.iter_values() if math.isfinite(value)), default=1.0)
            high = np.where(np.isposinf(self.high), top, self.high)  # a seed without it: to the edge and beyond
            ax.fill_between(self.x, self.low, high, color=series.style.colour, alpha=0.16, linewidth=0)

    def equals(self, other: SeedBand) -> bool:
        """Whether both look alike."""
        pairs = ((self.x, other.x), (self.low, other.low), (self.median, other.median), (self.high, other.high))
        return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)

    def iter_values(self) -> Iterator[float]:
        """All of y."""
        for values in (self.median, self.low, self.high):
            yield from values.tolist()


def build_band(x: F64, curves: Sequence[F64 | list[float]]) -> SeedBand:
    """Of curves at the same places, one a seed [S, X]."""
    stacked = np.asarray(curves)
    return SeedBand(x, np.median(stacked, axis=0), stacked.min(axis=0), stacked.max(axis=0))


def interpolate_band(curves: Sequence[tuple[F64, F64]]) -> SeedBand | None:
    """Of curves at places of their own (x ascending), between which they are straight; None if there are none.

    It begins where all seeds have begun. A seed that has ended keeps its last value up to where half of them have: a run
    stopped at its target has got there. So, of curves that only rise, the median meets a height where the median seed does.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    start = max(float(x[0]) for x, _ in curves)
    end = max(start, float(np.median([x[-1] for x, _ in curves])))
    places = np.unique(np.concatenate([[start, end], *(x for x, _ in curves)]))
    places = places[(places >= start) & (places <= end)]
    if len(places) > MAX_POINTS:
        places = places[np.linspace(0, len(places) - 1, MAX_POINTS).round().astype(np.int64)]
    return build_band(places, [np.interp(places, x, y) for x, y in curves])
