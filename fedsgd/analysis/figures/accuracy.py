"""Figures of accuracy, or of another metric of the target, against bytes, rounds and time, and of the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedsgd.analysis.figures.series import NOT_PRICED, MethodSeries, SeedBand, interpolate_band
from fedsgd.analysis.figures.style import (
    BYTES,
    FRACTION,
    MAX_LABEL_POINTS,
    NUMBER,
    ONE_COLUMN,
    RULE_COLOUR,
    SECONDS,
    TWO_COLUMNS,
    AxisUnit,
    add_legend,
    find_finite_range,
    scale_axis,
    truncate_label,
)
from fedsgd.analysis.methods import TunedVariant
from fedsgd.analysis.page.payload import ReportOptions
from fedsgd.analysis.runs import Run
from fedsgd.experiment.time_to_target import list_best_so_far
from fedsgd.numerics.arrays import F64
from fedsgd.scenario.target import Criterion, Target

NOT_MEASURED = "not measured"
OTHER_VALUE_STYLE: dict[str, Any] = {"markersize": 3, "markerfacecolor": "white"}
Curve = tuple[F64, F64]


def _build_metric_curve(run: Run, x_values: F64, criterion: Criterion) -> Curve:
    """Return the curve of the best value so far. `x_values` [R + 1] has the horizontal position after each round."""
    measurements = run.get_measurements(criterion.metric)
    rounds = np.array([round for round, _ in measurements], dtype=np.int64)
    return x_values[rounds], np.array(list_best_so_far([value for _, value in measurements], criterion))


def _build_metric_curves(x_values_of: Callable[[Run], F64], criterion: Criterion, series: MethodSeries) -> list[Curve]:
    """Return the curve of each run. `x_values_of` returns a run's horizontal positions."""
    return [_build_metric_curve(run, x_values_of(run), criterion) for run in series.runs]


def _draw_metric_bands(ax: Axes, bands: Sequence[tuple[MethodSeries, SeedBand]], target: Target) -> None:
    """Draw the curves, and a horizontal line at the target."""
    for series, band in bands:
        band.draw(ax, series)
    ax.axhline(target.threshold, color=RULE_COLOUR, linewidth=0.7, zorder=2.5, gid="target")
    values = [target.threshold, *(value for _, band in bands for value in band.iter_values())]
    scale_axis(ax.yaxis, _get_unit(target.criterion), *find_finite_range(values), log=False)


def _get_unit(criterion: Criterion) -> AxisUnit:
    return FRACTION if criterion.metric == "accuracy" else NUMBER


def _name_best(criterion: Criterion) -> str:
    return truncate_label(criterion.best_name, MAX_LABEL_POINTS / 2)


def _build_bands(
    method_series: Sequence[MethodSeries], curves_of: Callable[[MethodSeries], Sequence[Curve]]
) -> list[tuple[MethodSeries, SeedBand]]:
    bands = [(series, interpolate_band(curves_of(series))) for series in method_series]
    return [(series, band) for series, band in bands if band is not None]


def _scale_x_axis(
    ax: Axes, unit: AxisUnit, bands: Sequence[tuple[MethodSeries, SeedBand]], max_ticks: int = 5, log: bool | None = None
) -> None:
    scale_axis(ax.xaxis, unit, *find_finite_range([x for _, band in bands for x in band.x.tolist()]), max_ticks, log)


def _add_legend(
    figure: Figure,
    method_series: Sequence[MethodSeries],
    bands: Sequence[tuple[MethodSeries, SeedBand]],
    target: Target,
    missing_note: str,
) -> None:
    series_with_band = [series for series, _ in bands]
    entries = [series.legend_entry("" if series in series_with_band else missing_note) for series in method_series]
    target_label = truncate_label(f"target {target}", MAX_LABEL_POINTS)
    add_legend(figure, [*entries, (Line2D([], [], color=RULE_COLOUR, linewidth=0.7), target_label)])


def _select_downlink_column(options: ReportOptions) -> str:
    """Return the column of the downlink bytes that the network transfers."""
    return "downlink_broadcast_bytes" if options.pricing_model.network.downlink == "broadcast" else "downlink_bytes"


def plot_metric_by_bytes(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure | None:
    """Plot the target's metric against the bytes of all clients, for the uplink and for both directions."""
    downlink_column, criterion = _select_downlink_column(options), options.target.criterion

    def get_uplink_bytes(run: Run) -> F64:
        return run.get_cumulative("uplink_bytes")

    def get_total_bytes(run: Run) -> F64:
        return run.get_cumulative("uplink_bytes") + run.get_cumulative(downlink_column)

    figure = Figure(figsize=(TWO_COLUMNS, 2.3), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, label, bytes_of in zip(axes, ("uplink", "uplink and downlink"), (get_uplink_bytes, get_total_bytes), strict=True):
        bands = _build_bands(method_series, partial(_build_metric_curves, bytes_of, criterion))
        if not bands:
            return None
        _draw_metric_bands(ax, bands, options.target)
        _scale_x_axis(ax, BYTES, bands)
        ax.set_xlabel(f"{label}, all clients together")
    axes[0].set_ylabel(f"{_name_best(criterion)} so far")
    _add_legend(figure, method_series, bands, options.target, NOT_MEASURED)
    return figure


def plot_metric_by_rounds(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure | None:
    """Plot the target's metric against rounds."""
    criterion = options.target.criterion
    bands = _build_bands(method_series, partial(_build_metric_curves, lambda run: np.arange(run.n_rounds + 1.0), criterion))
    if not bands:
        return None
    figure = Figure(figsize=(ONE_COLUMN, 2.2), layout="constrained")
    ax = figure.add_subplot()
    _draw_metric_bands(ax, bands, options.target)
    _scale_x_axis(ax, NUMBER, bands, log=False)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set(xlabel="round", ylabel=f"{_name_best(criterion)} so far")
    _add_legend(figure, method_series, bands, options.target, NOT_MEASURED)
    return figure


def plot_metric_by_time(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure | None:
    """Plot the target's metric against time on the network of `options`."""
    criterion = options.target.criterion
    bands = _build_bands(
        method_series,
        lambda series: [_build_metric_curve(run.run, run.cumulative_seconds, criterion) for run in series.priced_runs],
    )
    if not bands:
        return None
    figure = Figure(figsize=(ONE_COLUMN, 2.2), layout="constrained")
    ax = figure.add_subplot()
    _draw_metric_bands(ax, bands, options.target)
    _scale_x_axis(ax, SECONDS, bands)
    ax.set(xlabel=f"time on {truncate_label(options.network_name, 140)}", ylabel=f"{_name_best(criterion)} so far")
    _add_legend(figure, method_series, bands, options.target, NOT_PRICED)
    return figure


def plot_pareto(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure | None:
    """Plot each method's best value against the bytes up to that round, and the Pareto front.

    Small, hollow markers show the other tuned variants.
    """
    downlink_column, criterion = _select_downlink_column(options), options.target.criterion
    points = {
        series: {variant: _find_best_points(variant, downlink_column, criterion) for variant in series.method.variants}
        for series in method_series
    }
    all_points = [point for variants in points.values() for point in variants.values() if point is not None]
    if not all_points:
        return None
    figure = Figure(figsize=(ONE_COLUMN, 2.2), layout="constrained")
    ax = figure.add_subplot()
    for series, variants in points.items():
        for variant, point in variants.items():
            if point is not None:
                _draw_point(ax, series, point, variant is series.method.best_variant)
    x_range = find_finite_range([x for point in all_points for x in point[0].tolist()])
    y_range = find_finite_range([y for point in all_points for y in point[1].tolist()])
    scale_axis(ax.xaxis, BYTES, *x_range, pad=0.06)
    scale_axis(ax.yaxis, _get_unit(criterion), *y_range, log=False, pad=0.06)
    front = pareto_front([(float(np.median(x)), float(np.median(y))) for x, y in all_points], criterion.sign)
    xs, ys = [*(x for x, _ in front), ax.get_xlim()[1]], [*(y for _, y in front), front[-1][1]]
    ax.step(xs, ys, where="post", color=RULE_COLOUR, linewidth=0.8, gid="front")
    broadcast = "broadcast " if downlink_column == "downlink_broadcast_bytes" else ""
    ax.set(xlabel=f"uplink and {broadcast}downlink bytes until then, all clients", ylabel=_name_best(criterion))
    entries = [
        series.legend_entry("" if points[series][series.method.best_variant] is not None else NOT_MEASURED, as_line=False)
        for series in method_series
    ]
    if len(all_points) > sum(variants[series.method.best_variant] is not None for series, variants in points.items()):
        marker = Line2D([], [], linestyle="none", marker="o", color=RULE_COLOUR, **OTHER_VALUE_STYLE)
        entries.append((marker, "other values that were tried"))
    add_legend(figure, [*entries, (Line2D([], [], color=RULE_COLOUR, linewidth=0.8), "Pareto front")])
    return figure


def _draw_point(ax: Axes, series: MethodSeries, point: Curve, is_best: bool) -> None:
    """Draw a point at its medians over seeds; for the best variant, with bars from minimum to maximum."""
    middle = np.median(point, axis=1)
    dots = {**series.style.get_marker_properties(), "linestyle": "none"}
    if not is_best:
        ax.plot(*middle, **{**dots, **OTHER_VALUE_STYLE, "markeredgecolor": series.style.colour})
        return
    (left, lower), (right, upper) = middle - np.min(point, axis=1), np.max(point, axis=1) - middle
    x, y = middle
    ax.errorbar(x, y, [[lower], [upper]], [[left], [right]], fmt="none", ecolor=series.style.colour, elinewidth=0.7)
    ax.plot(*middle, **{**dots, "markersize": 5.5, "gid": series.style.gid})


def _find_best_points(variant: TunedVariant, downlink_column: str, criterion: Criterion) -> Curve | None:
    """Return each run's bytes up to its best value, and this value; None if the metric was not measured."""
    curves = [
        _build_metric_curve(run, run.get_cumulative("uplink_bytes") + run.get_cumulative(downlink_column), criterion)
        for run in variant.runs
        if run.get_measurements(criterion.metric)
    ]
    if not curves:
        return None
    best_positions = [int((criterion.sign * y).argmax()) for _, y in curves]
    x, y = ([curve[i][best] for curve, best in zip(curves, best_positions, strict=True)] for i in (0, 1))
    return np.array(x), np.array(y)


def pareto_front(points: Sequence[tuple[float, float]], sign: float = 1.0) -> list[tuple[float, float]]:
    """Return the pairs of cost and value that no other pair dominates, by ascending cost.

    `sign` is 1 if larger values are better, and -1 if smaller values are better.

    >>> pareto_front([(3.0, 0.9), (1.0, 0.5), (2.0, 0.5)])
    [(1.0, 0.5), (3.0, 0.9)]
    """
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((cost, value))
    return front
