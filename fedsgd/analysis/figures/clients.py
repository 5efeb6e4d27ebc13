"""What single clients carry and hold back."""

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
    """How unevenly traffic falls on clients: bytes of each in the whole run, clients sorted by that. Those without any are left
    out: a line begins where its clients have some."""
    figure = Figure(figsize=(TWO_COLUMNS, 2.2), layout="constrained")
    axes = figure.subplots(1, 2)
    ways: tuple[tuple[str, Callable[[LedgerStats], F64]], ...] = (
        ("uplink", lambda facts: facts.uplink_bytes_by_client),
        ("downlink", lambda facts: facts.downlink_bytes_by_client),
    )
    for ax, (way, of) in zip(axes, ways, strict=True):
        bands = [
            build_band(CLIENT_PERCENTILES, [_compute_quantiles(of(facts)) for facts in one.ledger_stats])
            for one in method_series
        ]
        for one, curve in zip(method_series, bands, strict=True):
            curve.draw(ax, one)
        scale_axis(ax.yaxis, BYTES, *find_finite_range(value for curve in bands for value in curve.iter_values()))
        ax.set(xlim=(-2, 102), xlabel="% of clients that carry no more", ylabel=f"{way} of a client")
    add_legend(figure, [one.legend_entry() for one in method_series])
    return figure


def _compute_quantiles(values: F64) -> F64:
    """Of the clients' bytes, NaN where that is nothing, for which a logarithmic axis has no place [X]."""
    quantiles: F64 = np.quantile(values, CLIENT_PERCENTILES / 100)
    return np.where(quantiles > 0, quantiles, np.nan)


def plot_residuals(method_series: Sequence[MethodSeries], options: ReportOptions) -> Figure | None:
    """What clients hold back for later, and how old that gets: the methods that have any."""
    norms = [(one, _build_round_band(one, "residual_norm")) for one in method_series]
    held = [(one, curve) for one, curve in norms if curve is not None]
    if not held:
        return None
    figure = Figure(figsize=(TWO_COLUMNS, 2.2), layout="constrained")
    axes = figure.subplots(1, 2)
    missed = [(one, _build_round_band(one, "rounds_missed")) for one, _ in held]
    panels = ((held, "residual norm of a client"), ([(o, c) for o, c in missed if c is not None], "rounds missed by a client"))
    for ax, (bands, label) in zip(axes, panels, strict=True):
        for i, (one, curve) in enumerate(bands):  # who takes part is often the same: shades would add up
            curve.draw(ax, one, shade=not any(curve.equals(earlier) for _, earlier in bands[:i]))
        scale_axis(ax.xaxis, NUMBER, *find_finite_range(x for _, curve in bands for x in curve.x.tolist()), log=False)
        low, high = find_finite_range(value for _, curve in bands for value in curve.iter_values())
        log = low > 0 and high > 30 * low
        scale_axis(ax.yaxis, NUMBER, low if log else 0.0, high, log=log)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set(xlabel="round", ylabel=label)
    add_legend(figure, [one.legend_entry() for one, _ in held])
    return figure


def _build_round_band(series: MethodSeries, column: str) -> SeedBand | None:
    return interpolate_band([_select_finite_points(run, column) for run in series.runs])


def _select_finite_points(run: Run, column: str) -> tuple[F64, F64]:
    values = run.rounds[column]
    at = np.flatnonzero(np.isfinite(values))
    return at.astype(np.float64) + 1, values[at]
