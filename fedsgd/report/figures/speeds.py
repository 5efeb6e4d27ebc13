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

from fedsgd.network import Network
from fedsgd.report.figures.shown import NOT_PRICED, Shown, band
from fedsgd.report.figures.style import LABEL_POINTS, ONE_COLUMN, RATE, RULE, SECONDS, SMALL, bounds, fit, legend, scale
from fedsgd.report.payload import Asked
from fedsgd.report.price import SPEEDS, BreakEven, Racer, break_evens
from fedsgd.units import rate_text

LEAST_SPEED, MOST_SPEED = 1e3, 1e10
"""Bits per second: how far the figure goes, or farther where there is something to be seen."""
BASELINE: dict[str, Any] = {"marker": "o", "markersize": 4.5, "markerfacecolor": "none", "markeredgewidth": 0.8, "zorder": 4}
SOONEST: dict[str, Any] = {"marker": "o", "markersize": 3.5, "color": "black", "markeredgecolor": "white", "zorder": 4.1}


@dataclass(frozen=True)
class Mark:
    """Where the order of two methods changes, of which `other` is the one that is not the baseline."""

    up_bits_per_second: float
    seconds: float
    other: Shown


def link_speed(shown: Sequence[Shown], asked: Asked) -> Figure | None:
    """Time to the target against the speed of the uplink, with the break-evens where another method becomes the soonest, and
    those with the uncompressed one."""
    network = asked.terms.network
    racers = {one: one.racer(asked.target) for one in shown}
    bands = {
        one: band(np.array(SPEEDS), [Racer(racer.label, [each]).curve(network) for each in racer.reaches])
        for one, racer in racers.items()
        if any(racer.reaches)
    }
    racing = [one for one, curve in bands.items() if np.isfinite(curve.median).any()]
    if not racing:
        return None
    soonest = list(_soonest([(one, racers[one], bands[one].median.tolist()) for one in racing], network))
    against = list(_against(racing, racers, network))
    figure = Figure(figsize=(ONE_COLUMN, 2.4), layout="constrained")
    ax = figure.add_subplot()
    marked = [mark.up_bits_per_second for mark in soonest + against]
    low, high = bounds([LEAST_SPEED, MOST_SPEED, network.link.up_bits_per_second, *marked])
    seen = (np.array(SPEEDS) >= low * 0.999) & (np.array(SPEEDS) <= high * 1.001)
    least, longest = bounds(value for one in racing for value in bands[one].median[seen])
    for one in racing:
        bands[one].draw(ax, one)
    scale(ax.xaxis, RATE, low, high, most=4)
    scale(ax.yaxis, SECONDS, least / (3 if soonest else 1), longest, most=8, log=True)
    _draw_marks(ax, soonest, against)
    _draw_network(ax, asked)
    ax.set(xlabel=_speed_label(network), ylabel=f"time to accuracy {asked.target:g}")
    entries = [one.entry(_why(one, one in racing)) for one in shown]
    if soonest:
        entries.append((Line2D([], [], linestyle="none", **SOONEST), "another method becomes the soonest"))
    if against:
        (baseline, *_) = [one for one in racing if one.method.uncompressed]
        text = fit(f"break-even with {baseline.look.label}", LABEL_POINTS)
        entries.append((Line2D([], [], linestyle="none", color=RULE, **BASELINE), text))
    legend(figure, entries)
    return figure


def _why(one: Shown, racing: bool) -> str:
    if racing:
        return ""
    return "target not reached" if one.priced else NOT_PRICED


def _speed_label(network: Network) -> str:
    ratio = network.link.down_bits_per_second / network.link.up_bits_per_second
    return "speed of each uplink" + (f", downlinks {ratio:.3g} times that" if ratio != 1 else " and downlink")


def _seconds(racer: Racer, up_bps: float, network: Network) -> float:
    link = network.link
    ratio = link.down_bits_per_second / link.up_bits_per_second
    return racer.seconds(up_bps, up_bps * ratio, link.latency_seconds)


def _soonest(racing: Sequence[tuple[Shown, Racer, Sequence[float]]], network: Network) -> Iterator[Mark]:
    """Where another method becomes the soonest of all: the break-even of the two nearest to where that was seen."""
    first = np.argmin([times for _, _, times in racing], axis=0)
    for i, (before, after) in enumerate(pairwise(first.tolist())):
        if before == after:
            continue
        _, racer, _ = racing[before]
        one, other, _ = racing[after]
        found = break_evens(racer, other, network)
        if found:
            middle = (np.log(SPEEDS[i]) + np.log(SPEEDS[i + 1])) / 2
            at = min(found, key=lambda each: abs(np.log(each.up_bits_per_second) - middle))
            yield _mark(at, other, one, network)


def _against(racing: Sequence[Shown], racers: dict[Shown, Racer], network: Network) -> Iterator[Mark]:
    """All break-evens with the first method that does not compress."""
    baselines = [one for one in racing if one.method.uncompressed]
    for one in racing if baselines else []:
        if one is not baselines[0]:
            for each in break_evens(racers[baselines[0]], racers[one], network):
                yield _mark(each, racers[one], one, network)


def _mark(at: BreakEven, racer: Racer, one: Shown, network: Network) -> Mark:
    return Mark(at.up_bits_per_second, _seconds(racer, at.up_bits_per_second, network), one)


def _draw_marks(ax: Axes, soonest: Sequence[Mark], against: Sequence[Mark]) -> None:
    """Speeds are written below the lowest line."""
    for mark in against:
        ax.plot(mark.up_bits_per_second, mark.seconds, color=mark.other.look.colour, gid="break-even", **BASELINE)
    low, high = np.log(ax.get_xlim())
    left = -np.inf
    for mark in soonest:
        ax.plot(mark.up_bits_per_second, mark.seconds, gid="soonest", **SOONEST)
        at = (np.log(mark.up_bits_per_second) - low) / (high - low)
        lower = at < left + 0.25  # beside its neighbour there is no room for it
        left = -np.inf if lower else at
        side = "left" if at < 0.25 else "right"  # lines fall, so to the left below them is room
        place = (3 if side == "left" else -2, -12 if lower else -3)
        text, where = rate_text(mark.up_bits_per_second), (mark.up_bits_per_second, mark.seconds)
        ax.annotate(text, where, place, textcoords="offset points", ha=side, va="top", fontsize=SMALL, zorder=4.2)


def _draw_network(ax: Axes, asked: Asked) -> None:
    """A rule at the network that was asked for, its name above the axes."""
    speed = asked.terms.network.link.up_bits_per_second
    ax.axvline(speed, color=RULE, linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=2, gid="network")
    low, high = np.log(ax.get_xlim())
    at = (np.log(speed) - low) / (high - low)
    side = "left" if at < 0.3 else "right" if at > 0.7 else "center"
    how: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": side, "va": "bottom"}
    ax.annotate(fit(asked.network, 100), (at, 1), (0, 2), **how, fontsize=SMALL, color=RULE)
