"""What single clients carry and hold back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsgd.arrays import F64
from fedsgd.report.facts import Facts
from fedsgd.report.figures.shown import Band, Shown, band, joined
from fedsgd.report.figures.style import BYTES, NUMBER, TWO_COLUMNS, bounds, legend, scale
from fedsgd.report.payload import QUANTILES, Asked
from fedsgd.report.runs import Run

SHARES = np.linspace(0, 100, QUANTILES)


def clients(shown: Sequence[Shown], asked: Asked) -> Figure:
    """How unevenly traffic falls on clients: bytes of each in the whole run, clients sorted by that. Those without any are left
    out: a line begins where its clients have some."""
    figure = Figure(figsize=(TWO_COLUMNS, 2.2), layout="constrained")
    axes = figure.subplots(1, 2)
    ways: tuple[tuple[str, Callable[[Facts], F64]], ...] = (
        ("uplink", lambda facts: facts.clients_up),
        ("downlink", lambda facts: facts.clients_down),
    )
    for ax, (way, of) in zip(axes, ways, strict=True):
        bands = [band(SHARES, [_quantiles(of(facts)) for facts in one.facts]) for one in shown]
        for one, curve in zip(shown, bands, strict=True):
            curve.draw(ax, one)
        scale(ax.yaxis, BYTES, *bounds(value for curve in bands for value in curve.values()))
        ax.set(xlim=(-2, 102), xlabel="% of clients that carry no more", ylabel=f"{way} of a client")
    legend(figure, [one.entry() for one in shown])
    return figure


def _quantiles(values: F64) -> F64:
    """Of the clients' bytes, NaN where that is nothing, for which a logarithmic axis has no place [X]."""
    quantiles: F64 = np.quantile(values, SHARES / 100)
    return np.where(quantiles > 0, quantiles, np.nan)


def memory(shown: Sequence[Shown], asked: Asked) -> Figure | None:
    """What clients hold back for later, and how old that gets: the methods that have any."""
    norms = [(one, _over_rounds(one, "residual_norm")) for one in shown]
    held = [(one, curve) for one, curve in norms if curve is not None]
    if not held:
        return None
    figure = Figure(figsize=(TWO_COLUMNS, 2.2), layout="constrained")
    axes = figure.subplots(1, 2)
    missed = [(one, _over_rounds(one, "rounds_missed")) for one, _ in held]
    panels = ((held, "residual norm of a client"), ([(o, c) for o, c in missed if c is not None], "rounds missed by a client"))
    for ax, (bands, label) in zip(axes, panels, strict=True):
        for i, (one, curve) in enumerate(bands):  # who takes part is often the same: shades would add up
            curve.draw(ax, one, shade=not any(curve.same(earlier) for _, earlier in bands[:i]))
        scale(ax.xaxis, NUMBER, *bounds(x for _, curve in bands for x in curve.x.tolist()), log=False)
        low, high = bounds(value for _, curve in bands for value in curve.values())
        log = low > 0 and high > 30 * low
        scale(ax.yaxis, NUMBER, low if log else 0.0, high, log=log)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set(xlabel="round", ylabel=label)
    legend(figure, [one.entry() for one, _ in held])
    return figure


def _over_rounds(one: Shown, column: str) -> Band | None:
    return joined([_known(run, column) for run in one.runs])


def _known(run: Run, column: str) -> tuple[F64, F64]:
    values = run.rounds[column]
    at = np.flatnonzero(np.isfinite(values))
    return at.astype(np.float64) + 1, values[at]
