"""What is drawn of each method: its runs, priced where they can be, and curves over their seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fedsgd.arrays import F64
from fedsgd.report.facts import Facts, read_facts
from fedsgd.report.figures.style import Look, beside, looks
from fedsgd.report.methods import Method
from fedsgd.report.payload import Asked
from fedsgd.report.price import Priced, Racer, price, race
from fedsgd.report.runs import Run

SHOWN_PLACES = 1000
NOT_PRICED = "not priced: who took part depended on time"


@dataclass(frozen=True, eq=False)
class Shown:
    """priced: the method's runs on the terms asked for, none if they cannot be priced; facts: of each of its runs."""

    method: Method
    look: Look
    priced: tuple[Priced, ...]
    facts: tuple[Facts, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Of the variant that the method is shown at."""
        return self.method.runs

    def entry(self, why: str = "", line: bool = True) -> tuple[Artist, str]:
        """In a legend, of lines or of dots. why: it is not in the figure."""
        failed, diverged = self.method.chosen.failed, len(self.method.diverged)
        n = failed + len(self.runs)
        counts = ((failed, "failed"), (diverged, "diverged"))
        notes = [how if n == 1 else f"{m} of {n} seeds {how}" for m, how in counts if m]
        notes += [why] if why else []
        handle = Line2D([], [], **{**self.look.dots(), "linestyle": self.look.dashes if line else "none"})
        return handle, beside(self.look.label, ", ".join(notes))

    def racer(self, target: float) -> Racer:
        """In the race to the target; a seed that failed does not get there."""
        return race(self.look.label, self.priced, target, self.method.chosen.failed)


def show(methods: Sequence[Method], asked: Asked) -> list[Shown]:
    """Each method, read and priced once."""
    return [_shown(*each, asked) for each in zip(methods, looks([method.label for method in methods]), strict=True)]


def _shown(method: Method, look: Look, asked: Asked) -> Shown:
    if any(run.time_dependent is not None for run in method.runs):
        return Shown(method, look, (), tuple(read_facts(run) for run in method.runs))
    priced = tuple(price(run, [asked.terms], asked.measured_coding)[0] for run in method.runs)
    return Shown(method, look, priced, tuple(one.facts for one in priced))


@dataclass(frozen=True, eq=False)
class Band:
    """Over the seeds at each place x: the median, the least and the largest [X]."""

    x: F64
    median: F64
    low: F64
    high: F64

    def draw(self, ax: Axes, one: Shown, shade: bool = True) -> None:
        """The median as the method's line, what lies between the least and the largest shaded."""
        ax.plot(self.x, self.median, **one.look.line())
        if shade and len(one.runs) > 1:
            top = 1e6 * max((value for value in self.values() if math.isfinite(value)), default=1.0)
            high = np.where(np.isposinf(self.high), top, self.high)  # a seed without it: to the edge and beyond
            ax.fill_between(self.x, self.low, high, color=one.look.colour, alpha=0.16, linewidth=0)

    def same(self, other: Band) -> bool:
        """Whether both look alike."""
        pairs = ((self.x, other.x), (self.low, other.low), (self.median, other.median), (self.high, other.high))
        return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)

    def values(self) -> Iterator[float]:
        """All of y."""
        for values in (self.median, self.low, self.high):
            yield from values.tolist()


def band(x: F64, curves: Sequence[F64 | list[float]]) -> Band:
    """Of curves at the same places, one a seed [S, X]."""
    stacked = np.asarray(curves)
    return Band(x, np.median(stacked, axis=0), stacked.min(axis=0), stacked.max(axis=0))


def joined(curves: Sequence[tuple[F64, F64]]) -> Band | None:
    """Of curves at places of their own (x ascending), between which they are straight; None if there are none.

    It begins where all seeds have begun. A seed that has ended keeps its last value up to where half of them have: a run
    stopped at its target has got there. So, of curves that only rise, the median meets a height where the median seed does.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    start = max(float(x[0]) for x, _ in curves)
    end = max(start, float(np.median([x[-1] for x, _ in curves])))
    places = np.unique(np.concatenate([[start, end], *(x for x, _ in curves)]))
    places = places[(places >= start) & (places <= end)]
    if len(places) > SHOWN_PLACES:
        places = places[np.linspace(0, len(places) - 1, SHOWN_PLACES).round().astype(np.int64)]
    return band(places, [np.interp(places, x, y) for x, y in curves])
