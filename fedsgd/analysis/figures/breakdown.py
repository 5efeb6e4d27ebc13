"""Figures of bars: where the bytes go, and where the time of a round goes. Each method's name stands above its bar."""

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
    """Shares of the bytes by what they are, in either direction, the mean over seeds; the whole in bytes beside."""
    figure = Figure(figsize=(TWO_COLUMNS, _figure_height(len(method_series))), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    bounded, used = False, set[str]()
    for ax, way in zip(axes, ("uplink", "downlink"), strict=True):
        for i, one in enumerate(method_series):
            sums = {part: float(np.mean([run.summary[way][part] for run in one.runs])) for part in BREAKDOWN_COLOURS}
            whole = sum(sums.values())
            used |= {part for part, n in sums.items() if n}
            shares = [(100 * n / whole if whole else 0.0, BREAKDOWN_COLOURS[part]) for part, n in sums.items()]
            _draw_bar(ax, i, shares, format_bytes(round(whole)), 100)
            bound = float(np.mean([facts.bound_bytes for facts in one.ledger_stats]))
            if way == "uplink" and bound:
                bounded = True
                at = 100 * (sums["value"] + bound) / whole
                ax.plot(at, i, linestyle="none", gid="bound", **BOUND_MARKER_STYLE)
        ax.set(xlim=(0, 100), xlabel=f"% of the {way}'s bytes")
        _draw_names(ax, method_series)
    entries: list[tuple[Artist, str]] = [
        (Patch(facecolor=colour), part) for part, colour in BREAKDOWN_COLOURS.items() if part in used
    ]
    if bounded:
        entries.append(
            (Line2D([], [], linestyle="none", **BOUND_MARKER_STYLE), "least that random positions take, log₂C(P, k)")
        )
    add_legend(figure, entries)
    return figure


def plot_round_time(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure | None:
    """Where the time of a round goes: the last client's, then the server's; the mean over rounds and seeds."""
    means: Mapping[MethodSeries, Mapping[str, float]] = {
        one: {
            name: float(np.mean([getattr(each.breakdown, name).mean() for each in one.priced_runs]))
            for name in ROUND_TIME_PHASES
        }
        for one in method_series
        if one.priced_runs
    }
    if not means:
        return None
    figure = Figure(figsize=(ONE_COLUMN, _figure_height(len(method_series))), layout="constrained")
    ax = figure.add_subplot()
    longest = max(sum(parts.values()) for parts in means.values())
    for i, one in enumerate(method_series):
        parts = means.get(one)
        if parts is None:
            ax.text(0, i, f" {NOT_PRICED}", va="center", fontsize=SMALL_FONT_SIZE)
        else:
            _draw_bar(
                ax,
                i,
                [(parts[name], colour) for name, (_, colour) in ROUND_TIME_PHASES.items()],
                format_seconds(sum(parts.values())),
            )
    scale_axis(ax.xaxis, SECONDS, 0.0, longest, max_ticks=4, log=False)
    ax.set_xlabel(f"time of a round on {truncate_label(options.network_name, 120)}")
    _draw_names(ax, method_series)
    used = [name for name in ROUND_TIME_PHASES if any(parts[name] > 0 for parts in means.values())]
    add_legend(figure, [(Patch(facecolor=ROUND_TIME_PHASES[name][1]), ROUND_TIME_PHASES[name][0]) for name in used])
    return figure


def _figure_height(n: int) -> float:
    return 0.55 + 0.33 * n


def _draw_bar(ax: Axes, bar_index: int, segments: Sequence[BarSegment], total_text: str, text_x: float | None = None) -> None:
    """From left to right, and how much it is altogether behind it, or at `text_x`."""
    left = 0.0
    for size, colour in segments:
        if size > 0:
            ax.barh(bar_index, size, BAR_HEIGHT, left=left, color=colour, edgecolor="white", linewidth=0.3)
        left += size
    where = (left if text_x is None else text_x, bar_index)
    ax.annotate(
        total_text, where, (3, 0), textcoords="offset points", va="center", fontsize=SMALL_FONT_SIZE, annotation_clip=False
    )


def _draw_names(ax: Axes, method_series: Sequence[MethodSeries]) -> None:
    """Above the bars, so that they may be long."""
    for i, one in enumerate(method_series):
        where: dict[str, Any] = {"xytext": (2.5, 2), "textcoords": "offset points", "va": "bottom"}
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.3}
        ax.annotate(
            one.style.label, (0, i - BAR_HEIGHT / 2), **where, fontsize=SMALL_FONT_SIZE, annotation_clip=False, bbox=box
        )
    ax.set_ylim(len(method_series) - 0.5, -0.75)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", left=False, labelleft=False)
    ax.spines["left"].set_bounds(len(method_series) - 0.5, -0.75)
