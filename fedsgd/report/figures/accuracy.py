"""What accuracy costs: in bytes, in rounds, in seconds, and which methods are best at that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedsgd.arrays import F64
from fedsgd.report.figures.shown import NOT_PRICED, Band, Shown, joined
from fedsgd.report.figures.style import (
    BYTES,
    FRACTION,
    NUMBER,
    ONE_COLUMN,
    RULE,
    SECONDS,
    TWO_COLUMNS,
    Unit,
    bounds,
    fit,
    legend,
    scale,
)
from fedsgd.report.methods import Variant
from fedsgd.report.payload import Asked
from fedsgd.report.runs import Run
from fedsgd.target import best_so_far

ACCURACY = "best accuracy so far"
NOT_MEASURED = "not measured"
OTHER_VALUE: dict[str, Any] = {"markersize": 3, "markerfacecolor": "white"}
Curve = tuple[F64, F64]


def _along(run: Run, cumulative: F64) -> Curve:
    """Best accuracy so far against an axis that has a figure for after each round [R + 1]."""
    at = np.array([round for round, _ in run.measured], dtype=np.int64)
    return cumulative[at], np.array(best_so_far([accuracy for _, accuracy in run.measured]))


def _alongs(cumulative: Callable[[Run], F64], one: Shown) -> list[Curve]:
    """The same of each run, against what it says of that run."""
    return [_along(run, cumulative(run)) for run in one.runs]


def _accuracies(ax: Axes, bands: Sequence[tuple[Shown, Band]], target: float) -> None:
    """The curves, and the target as a rule."""
    for one, curve in bands:
        curve.draw(ax, one)
    ax.axhline(target, color=RULE, linewidth=0.7, zorder=2.5, gid="target")
    scale(ax.yaxis, FRACTION, *bounds([target, *(value for _, curve in bands for value in curve.values())]), log=False)


def _bands(shown: Sequence[Shown], of: Callable[[Shown], Sequence[Curve]]) -> list[tuple[Shown, Band]]:
    made = [(one, joined(of(one))) for one in shown]
    return [(one, curve) for one, curve in made if curve is not None]


def _x(ax: Axes, unit: Unit, bands: Sequence[tuple[Shown, Band]], most: int = 5, log: bool | None = None) -> None:
    scale(ax.xaxis, unit, *bounds([x for _, curve in bands for x in curve.x.tolist()]), most, log)


def _legend(figure: Figure, shown: Sequence[Shown], bands: Sequence[tuple[Shown, Band]], target: float, why: str) -> None:
    drawn = [one for one, _ in bands]
    entries = [one.entry("" if one in drawn else why) for one in shown]
    legend(figure, [*entries, (Line2D([], [], color=RULE, linewidth=0.7), f"target {target:g}")])


def _down(asked: Asked) -> str:
    """Which bytes of the downlink are paid for."""
    return "downlink_broadcast_bytes" if asked.terms.network.downlink == "broadcast" else "downlink_bytes"


def accuracy_bytes(shown: Sequence[Shown], asked: Asked) -> Figure | None:
    """Accuracy against the bytes of all clients together, of the uplink and of both directions."""
    down = _down(asked)

    def up_only(run: Run) -> F64:
        return run.cumulative("uplink_bytes")

    def both_ways(run: Run) -> F64:
        return run.cumulative("uplink_bytes") + run.cumulative(down)

    figure = Figure(figsize=(TWO_COLUMNS, 2.3), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, label, bytes_of in zip(axes, ("uplink", "uplink and downlink"), (up_only, both_ways), strict=True):
        bands = _bands(shown, partial(_alongs, bytes_of))
        if not bands:
            return None
        _accuracies(ax, bands, asked.target)
        _x(ax, BYTES, bands)
        ax.set_xlabel(f"{label}, all clients together")
    axes[0].set_ylabel(ACCURACY)
    _legend(figure, shown, bands, asked.target, NOT_MEASURED)
    return figure


def accuracy_rounds(shown: Sequence[Shown], asked: Asked) -> Figure | None:
    """Accuracy against rounds."""
    bands = _bands(shown, lambda one: [_along(run, np.arange(run.n_rounds + 1.0)) for run in one.runs])
    if not bands:
        return None
    figure = Figure(figsize=(ONE_COLUMN, 2.2), layout="constrained")
    ax = figure.add_subplot()
    _accuracies(ax, bands, asked.target)
    _x(ax, NUMBER, bands, log=False)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set(xlabel="round", ylabel=ACCURACY)
    _legend(figure, shown, bands, asked.target, NOT_MEASURED)
    return figure


def accuracy_time(shown: Sequence[Shown], asked: Asked) -> Figure | None:
    """Accuracy against time on the network that was asked for."""
    bands = _bands(shown, lambda one: [_along(priced.run, priced.seconds) for priced in one.priced])
    if not bands:
        return None
    figure = Figure(figsize=(ONE_COLUMN, 2.2), layout="constrained")
    ax = figure.add_subplot()
    _accuracies(ax, bands, asked.target)
    _x(ax, SECONDS, bands)
    ax.set(xlabel=f"time on {fit(asked.network, 140)}", ylabel=ACCURACY)
    _legend(figure, shown, bands, asked.target, NOT_PRICED)
    return figure


def pareto(shown: Sequence[Shown], asked: Asked) -> Figure | None:
    """The best accuracy of each method against the bytes that it took to get there, small and hollow with other values of what
    was tuned, and which of all these no other one betters in both."""
    down = _down(asked)
    points = {one: {variant: _best(variant, down) for variant in one.method.variants} for one in shown}
    found = [point for of_one in points.values() for point in of_one.values() if point is not None]
    if not found:
        return None
    figure = Figure(figsize=(ONE_COLUMN, 2.2), layout="constrained")
    ax = figure.add_subplot()
    for one, of_one in points.items():
        for variant, point in of_one.items():
            if point is not None:
                _draw_point(ax, one, point, variant is one.method.chosen)
    scale(ax.xaxis, BYTES, *bounds([x for point in found for x in point[0].tolist()]), pad=0.06)
    scale(ax.yaxis, FRACTION, *bounds([y for point in found for y in point[1].tolist()]), log=False, pad=0.06)
    front = pareto_front([(float(np.median(x)), float(np.median(y))) for x, y in found])
    xs, ys = [*(x for x, _ in front), ax.get_xlim()[1]], [*(y for _, y in front), front[-1][1]]
    ax.step(xs, ys, where="post", color=RULE, linewidth=0.8, gid="front")
    broadcast = "broadcast " if down == "downlink_broadcast_bytes" else ""
    ax.set(xlabel=f"uplink and {broadcast}downlink bytes until then, all clients", ylabel="best accuracy")
    entries = [one.entry("" if points[one][one.method.chosen] is not None else NOT_MEASURED, line=False) for one in shown]
    if len(found) > sum(of_one[one.method.chosen] is not None for one, of_one in points.items()):
        entries.append(
            (Line2D([], [], linestyle="none", marker="o", color=RULE, **OTHER_VALUE), "other values that were tried")
        )
    legend(figure, [*entries, (Line2D([], [], color=RULE, linewidth=0.8), "Pareto front")])
    return figure


def _draw_point(ax: Axes, one: Shown, point: Curve, chosen: bool) -> None:
    """At its medians over the seeds, with bars from the least to the largest if it is the chosen one."""
    middle = np.median(point, axis=1)
    dots = {**one.look.dots(), "linestyle": "none"}
    if not chosen:
        ax.plot(*middle, **{**dots, **OTHER_VALUE, "markeredgecolor": one.look.colour})
        return
    (left, lower), (right, upper) = middle - np.min(point, axis=1), np.max(point, axis=1) - middle
    x, y = middle
    ax.errorbar(x, y, [[lower], [upper]], [[left], [right]], fmt="none", ecolor=one.look.colour, elinewidth=0.7)
    ax.plot(*middle, **{**dots, "markersize": 5.5, "gid": one.look.gid})


def _best(variant: Variant, down: str) -> Curve | None:
    """(bytes in both directions until then, its best accuracy) of each run; None if it was never measured."""
    curves = [_along(run, run.cumulative("uplink_bytes") + run.cumulative(down)) for run in variant.runs if run.measured]
    if not curves:
        return None
    return np.array([x[y.argmax()] for x, y in curves]), np.array([y.max() for _, y in curves])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, accuracy) than which no other one costs as little and is as accurate, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front
