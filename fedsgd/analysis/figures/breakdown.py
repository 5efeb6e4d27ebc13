"""Bar charts of bytes by part of a frame, and of a round's time by phase. A method's name is above its bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fedsgd.analysis.figures.series import NOT_PRICED, MethodSeries
from fedsgd.analysis.figures.style import (
    ONE_COLUMN,
    SECONDS,
    SMALL_FONT_SIZE,
    TWO_COLUMNS,
    add_legend,
    scale_axis,
    truncate_label,
)
from fedsgd.analysis.page.payload import ReportOptions
from fedsgd.config.quantities import format_bytes, format_seconds

BREAKDOWN_COLOURS = {"value": "#4477AA", "index": "#EE6677", "header": "#BBBBBB", "side": "#CCBB44"}
ROUND_TIME_PHASES = {
    "down": ("downlink", "#4477AA"),
    "compute": ("training", "#228833"),
    "coding": ("coding", "#CCBB44"),
    "up": ("uplink", "#EE6677"),
    "server_seconds": ("server", "#AA3377"),
    "lost_reply_wait": ("waiting for lost replies", "#BBBBBB"),
}
BAR_HEIGHT = 0.4
BOUND_MARKER_STYLE: dict[str, Any] = {"marker": "|", "markersize": 11, "color": "black", "markeredgewidth": 1}
BarSegment = tuple[float, str]


def plot_byte_breakdown(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure:
    """Plot the shares of value, index, header and side bytes in each direction, as means over seeds, with the total bytes."""
    figure = Figure(figsize=(TWO_COLUMNS, _figure_height(len(method_series))), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    has_bound, used_parts = False, set[str]()
    for ax, direction in zip(axes, ("uplink", "downlink"), strict=True):
        for i, series in enumerate(method_series):
            sums = {part: float(np.mean([run.summary[direction][part] for run in series.runs])) for part in BREAKDOWN_COLOURS}
            total = sum(sums.values())
            used_parts |= {part for part, n in sums.items() if n}
            shares = [(100 * n / total if total else 0.0, BREAKDOWN_COLOURS[part]) for part, n in sums.items()]
            _draw_bar(ax, i, shares, format_bytes(round(total)), 100)
            bound = float(np.mean([stats.bound_bytes for stats in series.ledger_stats]))
            if direction == "uplink" and bound:
                has_bound = True
                x = 100 * (sums["value"] + bound) / total
                ax.plot(x, i, linestyle="none", gid="bound", **BOUND_MARKER_STYLE)
        ax.set(xlim=(0, 100), xlabel=f"% of the {direction} bytes")
        _draw_names(ax, method_series)
    entries: list[tuple[Artist, str]] = [
        (Patch(facecolor=colour), part) for part, colour in BREAKDOWN_COLOURS.items() if part in used_parts
    ]
    if has_bound:
        marker = Line2D([], [], linestyle="none", **BOUND_MARKER_STYLE)
        entries.append((marker, "lower bound for random positions, log₂C(P, k)"))
    add_legend(figure, entries)
    return figure


def plot_round_time(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure | None:
    """Plot the phases of a round, first of the slowest client, then of the server: means over rounds and seeds."""
    means: Mapping[MethodSeries, Mapping[str, float]] = {
        series: {
            name: float(np.mean([getattr(run.breakdown, name).mean() for run in series.priced_runs]))
            for name in ROUND_TIME_PHASES
        }
        for series in method_series
        if series.priced_runs
    }
    if not means:
        return None
    figure = Figure(figsize=(ONE_COLUMN, _figure_height(len(method_series))), layout="constrained")
    ax = figure.add_subplot()
    longest = max(sum(phases.values()) for phases in means.values())
    for i, series in enumerate(method_series):
        phases = means.get(series)
        if phases is None:
            ax.text(0, i, f" {NOT_PRICED}", va="center", fontsize=SMALL_FONT_SIZE)
        else:
            segments = [(phases[name], colour) for name, (_, colour) in ROUND_TIME_PHASES.items()]
            _draw_bar(ax, i, segments, format_seconds(sum(phases.values())))
    scale_axis(ax.xaxis, SECONDS, 0.0, longest, max_ticks=4, log=False)
    ax.set_xlabel(f"time of a round on {truncate_label(options.network_name, 120)}")
    _draw_names(ax, method_series)
    used_phases = [name for name in ROUND_TIME_PHASES if any(phases[name] > 0 for phases in means.values())]
    add_legend(figure, [(Patch(facecolor=ROUND_TIME_PHASES[name][1]), ROUND_TIME_PHASES[name][0]) for name in used_phases])
    return figure


def _figure_height(n: int) -> float:
    return 0.55 + 0.33 * n


def _draw_bar(ax: Axes, bar_index: int, segments: Sequence[BarSegment], total_text: str, text_x: float | None = None) -> None:
    """Draw segments from left to right, with the total after the bar or at `text_x`."""
    left = 0.0
    for size, colour in segments:
        if size > 0:
            ax.barh(bar_index, size, BAR_HEIGHT, left=left, color=colour, edgecolor="white", linewidth=0.3)
        left += size
    position = (left if text_x is None else text_x, bar_index)
    ax.annotate(
        total_text, position, (3, 0), textcoords="offset points", va="center", fontsize=SMALL_FONT_SIZE, annotation_clip=False
    )


def _draw_names(ax: Axes, method_series: Sequence[MethodSeries]) -> None:
    """Write the methods' names above their bars, where there is space for long names."""
    for i, series in enumerate(method_series):
        placement: dict[str, Any] = {"xytext": (2.5, 2), "textcoords": "offset points", "va": "bottom"}
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.3}
        ax.annotate(
            series.style.label, (0, i - BAR_HEIGHT / 2), **placement, fontsize=SMALL_FONT_SIZE, annotation_clip=False, bbox=box
        )
    ax.set_ylim(len(method_series) - 0.5, -0.75)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", left=False, labelleft=False)
    ax.spines["left"].set_bounds(len(method_series) - 0.5, -0.75)
