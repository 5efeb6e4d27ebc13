"""Figure of the time to the target against the link speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedsgd.analysis.figures.series import NOT_PRICED, MethodSeries, build_band
from fedsgd.analysis.figures.style import (
    MAX_LABEL_POINTS,
    ONE_COLUMN,
    RATE,
    RULE_COLOUR,
    SECONDS,
    SMALL_FONT_SIZE,
    add_legend,
    find_finite_range,
    scale_axis,
    truncate_label,
)
from fedsgd.analysis.page.payload import ReportOptions
from fedsgd.analysis.pricing import SPEEDS, BreakEven, MethodTiming, break_evens
from fedsgd.config.quantities import format_rate
from fedsgd.network import Network

MIN_SHOWN_SPEED, MAX_SHOWN_SPEED = 1e3, 1e10
"""Range of the figure in bits per second. The network's speed and break-evens extend the range."""
BASELINE_MARK_STYLE = dict[str, Any](marker="o", markersize=4.5, markerfacecolor="none", markeredgewidth=0.8, zorder=4)
FASTEST_MARK_STYLE = dict[str, Any](marker="o", markersize=3.5, color="black", markeredgecolor="white", zorder=4.1)


@dataclass(frozen=True)
class BreakEvenMark:
    """Marker of a break-even. `series` is the method that is compared with the baseline, or the new fastest method."""

    up_bits_per_second: float
    seconds: float
    series: MethodSeries


def plot_link_speed(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure | None:
    """Plot the time to the target against the uplink speed.

    Markers show break-evens with the uncompressed method, and break-evens at which the fastest method changes.
    """
    network = options.pricing_model.network
    timings = {series: series.build_timing(options.target) for series in method_series}
    bands = {
        series: build_band(
            np.array(SPEEDS), [MethodTiming(timing.label, [time]).compute_curve(network) for time in timing.times_to_target]
        )
        for series, timing in timings.items()
        if any(timing.times_to_target)
    }
    timed_series = [series for series, band in bands.items() if np.isfinite(band.median).any()]
    if not timed_series:
        return None
    curves = [(series, timings[series], bands[series].median.tolist()) for series in timed_series]
    fastest_marks = list(_find_fastest_changes(curves, network))
    baseline_marks = list(_find_baseline_break_evens(timed_series, timings, network))
    figure = Figure(figsize=(ONE_COLUMN, 2.4), layout="constrained")
    ax = figure.add_subplot()
    mark_speeds = [mark.up_bits_per_second for mark in fastest_marks + baseline_marks]
    low, high = find_finite_range([MIN_SHOWN_SPEED, MAX_SHOWN_SPEED, network.link.up_bits_per_second, *mark_speeds])
    visible_mask = (np.array(SPEEDS) >= low * 0.999) & (np.array(SPEEDS) <= high * 1.001)
    shortest, longest = find_finite_range(value for series in timed_series for value in bands[series].median[visible_mask])
    for series in timed_series:
        bands[series].draw(ax, series)
    scale_axis(ax.xaxis, RATE, low, high, max_ticks=4)
    scale_axis(ax.yaxis, SECONDS, shortest / (3 if fastest_marks else 1), longest, max_ticks=8, log=True)
    _draw_marks(ax, fastest_marks, baseline_marks)
    _draw_network(ax, options)
    ax.set(
        xlabel=_format_speed_label(network),
        ylabel=f"time to {truncate_label(options.target.metric, MAX_LABEL_POINTS / 2)} {options.target.threshold:g}",
    )
    entries = [series.legend_entry(_describe_absence(series, series in timed_series)) for series in method_series]
    if fastest_marks:
        entries.append((Line2D([], [], linestyle="none", **FASTEST_MARK_STYLE), "change of the fastest method"))
    if baseline_marks:
        (baseline, *_) = [series for series in timed_series if series.method.uncompressed]
        text = truncate_label(f"break-even with {baseline.style.label}", MAX_LABEL_POINTS)
        entries.append((Line2D([], [], linestyle="none", color=RULE_COLOUR, **BASELINE_MARK_STYLE), text))
    add_legend(figure, entries)
    return figure


def _describe_absence(series: MethodSeries, is_timed: bool) -> str:
    if is_timed:
        return ""
    return "target not reached" if series.priced_runs else NOT_PRICED


def _format_speed_label(network: Network) -> str:
    ratio = network.link.down_bits_per_second / network.link.up_bits_per_second
    return "speed of each uplink" + (f", downlinks {ratio:.3g} times as fast" if ratio != 1 else " and downlink")


def _compute_seconds(timing: MethodTiming, up_bps: float, network: Network) -> float:
    link = network.link
    ratio = link.down_bits_per_second / link.up_bits_per_second
    return timing.compute_median_seconds(up_bps, up_bps * ratio, link.latency_seconds)


def _find_fastest_changes(
    timed_series: Sequence[tuple[MethodSeries, MethodTiming, Sequence[float]]], network: Network
) -> Iterator[BreakEvenMark]:
    """Yield, for each change of the fastest method between two SPEEDS, the two methods' break-even nearest to the change."""
    fastest = np.argmin([seconds for _, _, seconds in timed_series], axis=0)
    for i, (before, after) in enumerate(pairwise(fastest.tolist())):
        if before == after:
            continue
        _, previous_timing, _ = timed_series[before]
        series, timing, _ = timed_series[after]
        candidates = break_evens(previous_timing, timing, network)
        if candidates:
            middle = (np.log(SPEEDS[i]) + np.log(SPEEDS[i + 1])) / 2
            nearest = min(candidates, key=lambda point: abs(np.log(point.up_bits_per_second) - middle))
            yield _make_mark(nearest, timing, series, network)


def _find_baseline_break_evens(
    timed_series: Sequence[MethodSeries], timings: dict[MethodSeries, MethodTiming], network: Network
) -> Iterator[BreakEvenMark]:
    """Yield all break-evens with the first uncompressed method."""
    baselines = [series for series in timed_series if series.method.uncompressed]
    for series in timed_series if baselines else []:
        if series is not baselines[0]:
            for point in break_evens(timings[baselines[0]], timings[series], network):
                yield _make_mark(point, timings[series], series, network)


def _make_mark(break_even: BreakEven, timing: MethodTiming, series: MethodSeries, network: Network) -> BreakEvenMark:
    return BreakEvenMark(
        break_even.up_bits_per_second, _compute_seconds(timing, break_even.up_bits_per_second, network), series
    )


def _draw_marks(ax: Axes, fastest_marks: Sequence[BreakEvenMark], baseline_marks: Sequence[BreakEvenMark]) -> None:
    """Draw the markers, and write the speeds of `fastest_marks` below the lowest line."""
    for mark in baseline_marks:
        ax.plot(mark.up_bits_per_second, mark.seconds, color=mark.series.style.colour, gid="break-even", **BASELINE_MARK_STYLE)
    low, high = np.log(ax.get_xlim())
    last_fraction = -np.inf
    for mark in fastest_marks:
        ax.plot(mark.up_bits_per_second, mark.seconds, gid="soonest", **FASTEST_MARK_STYLE)
        fraction = (np.log(mark.up_bits_per_second) - low) / (high - low)
        is_lowered = fraction < last_fraction + 0.25  # the neighboring mark's text needs the space on its right
        last_fraction = -np.inf if is_lowered else fraction
        side = "left" if fraction < 0.25 else "right"  # lines fall, so there is space on the left below a line
        offset = (3 if side == "left" else -2, -12 if is_lowered else -3)
        text, position = format_rate(mark.up_bits_per_second), (mark.up_bits_per_second, mark.seconds)
        ax.annotate(text, position, offset, textcoords="offset points", ha=side, va="top", fontsize=SMALL_FONT_SIZE, zorder=4.2)


def _draw_network(ax: Axes, options: ReportOptions) -> None:
    """Draw a vertical line at the speed of the network, with its name above the axes."""
    speed = options.pricing_model.network.link.up_bits_per_second
    ax.axvline(speed, color=RULE_COLOUR, linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=2, gid="network")
    low, high = np.log(ax.get_xlim())
    fraction = (np.log(speed) - low) / (high - low)
    side = "left" if fraction < 0.3 else "right" if fraction > 0.7 else "center"
    placement: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": side, "va": "bottom"}
    name = truncate_label(options.network_name, 100)
    ax.annotate(name, (fraction, 1), (0, 2), **placement, fontsize=SMALL_FONT_SIZE, color=RULE_COLOUR)
