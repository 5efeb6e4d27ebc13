"""Figures of the traffic and the residuals of individual clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsgd.analysis.figures.series import MethodSeries, SeedBand, build_band, interpolate_band
from fedsgd.analysis.figures.style import BYTES, NUMBER, TWO_COLUMNS, add_legend, find_finite_range, scale_axis
from fedsgd.analysis.ledger_stats import LedgerStats
from fedsgd.analysis.page.payload import N_QUANTILES, ReportOptions
from fedsgd.analysis.runs import Run
from fedsgd.numerics.arrays import F64

CLIENT_PERCENTILES = np.linspace(0, 100, N_QUANTILES)


def plot_client_traffic(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure:
    """Plot quantiles of the clients' bytes in the whole run. A line starts at the first client that has bytes."""
    figure = Figure(figsize=(TWO_COLUMNS, 2.2), layout="constrained")
    axes = figure.subplots(1, 2)
    directions: tuple[tuple[str, Callable[[LedgerStats], F64]], ...] = (
        ("uplink", lambda stats: stats.uplink_bytes_by_client),
        ("downlink", lambda stats: stats.downlink_bytes_by_client),
    )
    for ax, (direction, bytes_of) in zip(axes, directions, strict=True):
        bands = [
            build_band(CLIENT_PERCENTILES, [_compute_quantiles(bytes_of(stats)) for stats in series.ledger_stats])
            for series in method_series
        ]
        for series, band in zip(method_series, bands, strict=True):
            band.draw(ax, series)
        scale_axis(ax.yaxis, BYTES, *find_finite_range(value for band in bands for value in band.iter_values()))
        ax.set(xlim=(-2, 102), xlabel="% of clients with at most these bytes", ylabel=f"{direction} of a client")
    add_legend(figure, [series.legend_entry() for series in method_series])
    return figure


def _compute_quantiles(values: F64) -> F64:
    """Return quantiles of the clients' bytes, with NaN for 0 bytes, which a logarithmic axis cannot show."""
    quantiles: F64 = np.quantile(values, CLIENT_PERCENTILES / 100)
    return np.where(quantiles > 0, quantiles, np.nan)


def plot_residuals(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure | None:
    """Plot the residual norms of clients and the rounds that clients missed, for methods with residuals."""
    norms = [(series, _build_round_band(series, "residual_norm")) for series in method_series]
    norm_bands = [(series, band) for series, band in norms if band is not None]
    if not norm_bands:
        return None
    figure = Figure(figsize=(TWO_COLUMNS, 2.2), layout="constrained")
    axes = figure.subplots(1, 2)
    missed_rounds = [(series, _build_round_band(series, "rounds_missed")) for series, _ in norm_bands]
    missed_bands = [(series, band) for series, band in missed_rounds if band is not None]
    panels = ((norm_bands, "residual norm of a client"), (missed_bands, "rounds missed by a client"))
    for ax, (bands, label) in zip(axes, panels, strict=True):
        for i, (series, band) in enumerate(bands):  # methods often share cohorts: shades of equal bands would add up
            band.draw(ax, series, shade=not any(band.equals(earlier) for _, earlier in bands[:i]))
        scale_axis(ax.xaxis, NUMBER, *find_finite_range(x for _, band in bands for x in band.x.tolist()), log=False)
        low, high = find_finite_range(value for _, band in bands for value in band.iter_values())
        log = low > 0 and high > 30 * low
        scale_axis(ax.yaxis, NUMBER, low if log else 0.0, high, log=log)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set(xlabel="round", ylabel=label)
    add_legend(figure, [series.legend_entry() for series, _ in norm_bands])
    return figure


def _build_round_band(series: MethodSeries, column: str) -> SeedBand | None:
    return interpolate_band([_select_finite_points(run, column) for run in series.runs])


def _select_finite_points(run: Run, column: str) -> tuple[F64, F64]:
    values = run.rounds[column]
    indices = np.flatnonzero(np.isfinite(values))
    return indices.astype(np.float64) + 1, values[indices]
