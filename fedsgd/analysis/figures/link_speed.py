"""Which method is soonest at its target, by the speed of the links."""

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
"""Bits per second: how far the figure goes, or farther where there is something to be seen."""
BASELINE_MARK_STYLE: dict[str, Any] = {
    "marker": "o",
    "markersize": 4.5,
    "markerfacecolor": "none",
    "markeredgewidth": 0.8,
    "zorder": 4,
}
FASTEST_MARK_STYLE: dict[str, Any] = {
    "marker": "o",
    "markersize": 3.5,
    "color": "black",
    "markeredgecolor": "white",
    "zorder": 4.1,
}


@dataclass(frozen=True)
class BreakEvenMark:
    """Where the order of two methods changes, of which `series` is the one that is not the baseline."""

    up_bits_per_second: float
    seconds: float
    series: MethodSeries


def plot_link_speed(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure | None:
    """Time to the target against the speed of the uplink, with the break-evens where another method becomes the soonest, and
    those with the uncompressed one."""
    network = options.pricing_model.network
    racers = {one: one.build_timing(options.target) for one in method_series}
    bands = {
        one: build_band(
            np.array(SPEEDS), [MethodTiming(racer.label, [each]).compute_curve(network) for each in racer.times_to_target]
        )
        for one, racer in racers.items()
        if any(racer.times_to_target)
    }
    racing = [one for one, curve in bands.items() if np.isfinite(curve.median).any()]
    if not racing:
        return None
    soonest = list(_find_fastest_changes([(one, racers[one], bands[one].median.tolist()) for one in racing], network))
    against = list(_find_baseline_break_evens(racing, racers, network))
    figure = Figure(figsize=(ONE_COLUMN, 2.4), layout="constrained")
    ax = figure.add_subplot()
    marked = [mark.up_bits_per_second for mark in soonest + against]
    low, high = find_finite_range([MIN_SHOWN_SPEED, MAX_SHOWN_SPEED, network.link.up_bits_per_second, *marked])
    seen = (np.array(SPEEDS) >= low * 0.999) & (np.array(SPEEDS) <= high * 1.001)
    least, longest = find_finite_range(value for one in racing for value in bands[one].median[seen])
    for one in racing:
        bands[one].draw(ax, one)
    scale_axis(ax.xaxis, RATE, low, high, max_ticks=4)
    scale_axis(ax.yaxis, SECONDS, least / (3 if soonest else 1), longest, max_ticks=8, log=True)
    _draw_marks(ax, soonest, against)
    _draw_network(ax, options)
    ax.set(xlabel=_format_speed_label(network), ylabel=f"time to accuracy {options.target:g}")
    entries = [one.legend_entry(_describe_absence(one, one in racing)) for one in method_series]
    if soonest:
        entries.append((Line2D([], [], linestyle="none", **FASTEST_MARK_STYLE), "another method becomes the soonest"))
    if against:
        (baseline, *_) = [one for one in racing if one.method.uncompressed]
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
    return "speed of each uplink" + (f", downlinks {ratio:.3g} times that" if ratio != 1 else " and downlink")


def _compute_seconds(timing: MethodTiming, up_bps: float, network: Network) -> float:
    link = network.link
    ratio = link.down_bits_per_second / link.up_bits_per_second
    return timing.compute_median_seconds(up_bps, up_bps * ratio, link.latency_seconds)


def _find_fastest_changes(
    timed_series: Sequence[tuple[MethodSeries, MethodTiming, Sequence[float]]], network: Network
) -> Iterator[BreakEvenMark]:
    """Where another method becomes the soonest of all: the break-even of the two nearest to where that was seen."""
    first = np.argmin([times for _, _, times in timed_series], axis=0)
    for i, (before, after) in enumerate(pairwise(first.tolist())):
        if before == after:
            continue
        _, racer, _ = timed_series[before]
        one, other, _ = timed_series[after]
        found = break_evens(racer, other, network)
        if found:
            middle = (np.log(SPEEDS[i]) + np.log(SPEEDS[i + 1])) / 2
            at = min(found, key=lambda each: abs(np.log(each.up_bits_per_second) - middle))
            yield _make_mark(at, other, one, network)


def _find_baseline_break_evens(
    timed_series: Sequence[MethodSeries], timings: dict[MethodSeries, MethodTiming], network: Network
) -> Iterator[BreakEvenMark]:
    """All break-evens with the first method that does not compress."""
    baselines = [one for one in timed_series if one.method.uncompressed]
    for one in timed_series if baselines else []:
        if one is not baselines[0]:
            for each in break_evens(timings[baselines[0]], timings[one], network):
                yield _make_mark(each, timings[one], one, network)


def _make_mark(break_even: BreakEven, timing: MethodTiming, series: MethodSeries, network: Network) -> BreakEvenMark:
    return BreakEvenMark(
        break_even.up_bits_per_second, _compute_seconds(timing, break_even.up_bits_per_second, network), series
    )


def _draw_marks(ax: Axes, fastest_marks: Sequence[BreakEvenMark], baseline_marks: Sequence[BreakEvenMark]) -> None:
    """Speeds are written below the lowest line."""
    for mark in baseline_marks:
        ax.plot(mark.up_bits_per_second, mark.seconds, color=mark.series.style.colour, gid="break-even", **BASELINE_MARK_STYLE)
    low, high = np.log(ax.get_xlim())
    left = -np.inf
    for mark in fastest_marks:
        ax.plot(mark.up_bits_per_second, mark.seconds, gid="soonest", **FASTEST_MARK_STYLE)
        at = (np.log(mark.up_bits_per_second) - low) / (high - low)
        lower = at < left + 0.25  # beside its neighbour there is no room for it
        left = -np.inf if lower else at
        side = "left" if at < 0.25 else "right"  # lines fall, so to the left below them is room
        place = (3 if side == "left" else -2, -12 if lower else -3)
        text, where = format_rate(mark.up_bits_per_second), (mark.up_bits_per_second, mark.seconds)
        ax.annotate(text, where, place, textcoords="offset points", ha=side, va="top", fontsize=SMALL_FONT_SIZE, zorder=4.2)


def _draw_network(ax: Axes, options: ReportOptions) -> None:
    """A rule at the network that was asked for, its name above the axes."""
    speed = options.pricing_model.network.link.up_bits_per_second
    ax.axvline(speed, color=RULE_COLOUR, linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=2, gid="network")
    low, high = np.log(ax.get_xlim())
    at = (np.log(speed) - low) / (high - low)
    side = "left" if at < 0.3 else "right" if at > 0.7 else "center"
    how: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": side, "va": "bottom"}
    ax.annotate(truncate_label(options.network_name, 100), (at, 1), (0, 2), **how, fontsize=SMALL_FONT_SIZE, color=RULE_COLOUR)
