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

from fedsgd.report.figures.shown import NOT_PRICED, Shown
from fedsgd.report.figures.style import ONE_COLUMN, SECONDS, SMALL, TWO_COLUMNS, fit, legend, scale
from fedsgd.report.payload import Asked
from fedsgd.sizes import size_text
from fedsgd.units import seconds_text

PARTS = {"value": "#4477AA", "index": "#EE6677", "header": "#BBBBBB", "side": "#CCBB44"}
STACK = {
    "down": ("downlink", "#4477AA"),
    "compute": ("training", "#228833"),
    "coding": ("coding", "#CCBB44"),
    "up": ("uplink", "#EE6677"),
    "serving": ("server", "#AA3377"),
    "waiting": ("waiting for lost replies", "#BBBBBB"),
}
THICK = 0.4
BOUND: dict[str, Any] = {"marker": "|", "markersize": 11, "color": "black", "markeredgewidth": 1}
Part = tuple[float, str]


def anatomy(shown: Sequence[Shown], asked: Asked) -> Figure:
    """Shares of the bytes by what they are, in either direction, the mean over seeds; the whole in bytes beside."""
    figure = Figure(figsize=(TWO_COLUMNS, _height(len(shown))), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    bounded, used = False, set[str]()
    for ax, way in zip(axes, ("uplink", "downlink"), strict=True):
        for i, one in enumerate(shown):
            sums = {part: float(np.mean([run.summary[way][part] for run in one.runs])) for part in PARTS}
            whole = sum(sums.values())
            used |= {part for part, n in sums.items() if n}
            shares = [(100 * n / whole if whole else 0.0, PARTS[part]) for part, n in sums.items()]
            _bar(ax, i, shares, size_text(round(whole)), 100)
            bound = float(np.mean([facts.bound_bytes for facts in one.facts]))
            if way == "uplink" and bound:
                bounded = True
                at = 100 * (sums["value"] + bound) / whole
                ax.plot(at, i, linestyle="none", gid="bound", **BOUND)
        ax.set(xlim=(0, 100), xlabel=f"% of the {way}'s bytes")
        _names(ax, shown)
    entries: list[tuple[Artist, str]] = [(Patch(facecolor=colour), part) for part, colour in PARTS.items() if part in used]
    if bounded:
        entries.append((Line2D([], [], linestyle="none", **BOUND), "least that random positions take, log₂C(P, k)"))
    legend(figure, entries)
    return figure


def round_time(shown: Sequence[Shown], asked: Asked) -> Figure | None:
    """Where the time of a round goes: the last client's, then the server's; the mean over rounds and seeds."""
    means: Mapping[Shown, Mapping[str, float]] = {
        one: {name: float(np.mean([getattr(each.stack, name).mean() for each in one.priced])) for name in STACK}
        for one in shown
        if one.priced
    }
    if not means:
        return None
    figure = Figure(figsize=(ONE_COLUMN, _height(len(shown))), layout="constrained")
    ax = figure.add_subplot()
    longest = max(sum(parts.values()) for parts in means.values())
    for i, one in enumerate(shown):
        parts = means.get(one)
        if parts is None:
            ax.text(0, i, f" {NOT_PRICED}", va="center", fontsize=SMALL)
        else:
            _bar(ax, i, [(parts[name], colour) for name, (_, colour) in STACK.items()], seconds_text(sum(parts.values())))
    scale(ax.xaxis, SECONDS, 0.0, longest, most=4, log=False)
    ax.set_xlabel(f"time of a round on {fit(asked.network, 120)}")
    _names(ax, shown)
    used = [name for name in STACK if any(parts[name] > 0 for parts in means.values())]
    legend(figure, [(Patch(facecolor=STACK[name][1]), STACK[name][0]) for name in used])
    return figure


def _height(n: int) -> float:
    return 0.55 + 0.33 * n


def _bar(ax: Axes, i: int, parts: Sequence[Part], whole: str, end: float | None = None) -> None:
    """From left to right, and how much it is altogether behind it, or at `end`."""
    left = 0.0
    for size, colour in parts:
        if size > 0:
            ax.barh(i, size, THICK, left=left, color=colour, edgecolor="white", linewidth=0.3)
        left += size
    where = (left if end is None else end, i)
    ax.annotate(whole, where, (3, 0), textcoords="offset points", va="center", fontsize=SMALL, annotation_clip=False)


def _names(ax: Axes, shown: Sequence[Shown]) -> None:
    """Above the bars, so that they may be long."""
    for i, one in enumerate(shown):
        where: dict[str, Any] = {"xytext": (2.5, 2), "textcoords": "offset points", "va": "bottom"}
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.3}
        ax.annotate(one.look.label, (0, i - THICK / 2), **where, fontsize=SMALL, annotation_clip=False, bbox=box)
    ax.set_ylim(len(shown) - 0.5, -0.75)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", left=False, labelleft=False)
    ax.spines["left"].set_bounds(len(shown) - 0.5, -0.75)
