"""What figures for paper look like: one look a method, labels that fit, ticks in the units that people say."""

from __future__ import annotations

from fedsgd.analysis.figures.matplotlib_settings import use_figure_settings

# isort: split
# what is above is imported before matplotlib, and lets it be imported whatever MPLBACKEND names
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from fedsgd.config.quantities import format_bytes, format_rate, format_seconds

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0
"""Inches, as of most two-column papers."""
SMALL_FONT_SIZE = 7.0
RULE_COLOUR = "#555555"
RC_PARAMS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib brings it, so figures are the same everywhere
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "xtick.labelsize": SMALL_FONT_SIZE,
    "ytick.labelsize": SMALL_FONT_SIZE,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "legend.fontsize": SMALL_FONT_SIZE,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "lines.markeredgewidth": 0.5,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,  # "$" in a label is a dollar
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fedsgd",
    "savefig.dpi": 300,
}
COLOURS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#999933", "#44AA99", "#DDAA33", "#AA4499")
"""Paul Tol's "muted" scheme, its yellow darker: distinct for colour-blind readers."""
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d")
MAX_LABEL_POINTS = 190.0
"""As wide as a label may be, so that it fits beside its line in one column."""


@dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn, the same in every figure. label: as shown."""

    label: str
    colour: str
    dashes: Any
    marker: str
    index: int

    def get_line_properties(self) -> dict[str, Any]:
        """For its lines. Markers stand at other places on each, so that those of equal lines are all seen."""
        every = (0.02 + 0.05 * (self.index % 4), 0.2)
        return {**self.get_marker_properties(), "linestyle": self.dashes, "markevery": every, "gid": self.gid}

    def get_marker_properties(self) -> dict[str, Any]:
        """For its markers."""
        return {"color": self.colour, "marker": self.marker, "markeredgecolor": "white", "zorder": 3 + 0.01 * self.index}

    @property
    def gid(self) -> str:
        """What its line is called in an SVG."""
        return f"method-{self.index + 1}"


@contextmanager
def paper_style() -> Iterator[None]:
    """In here figures are made and saved, whatever the user's own settings of matplotlib are."""
    with use_figure_settings(RC_PARAMS):
        yield


def method_styles(labels: Sequence[str]) -> list[MethodStyle]:
    """One for each method. With nine colours, four kinds of line and thirteen markers no two of the first 36 have the same
    line, and no two of the first 117 the same colour and marker."""
    return [
        MethodStyle(label, COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)], i)
        for i, label in enumerate(truncate_labels(labels))
    ]


def truncate_labels(labels: Sequence[str], max_points: float = MAX_LABEL_POINTS) -> list[str]:
    """The labels, none wider than that, and those that differ still different."""
    made: list[str] = []
    for label in labels:
        text, n = truncate_label(label, max_points), 1
        while text in made:
            n += 1
            text = truncate_label(label, max_points, f" #{n}")
        made.append(text)
    return made


def truncate_label(label: str, max_points: float, suffix: str = "") -> str:
    """On one line and cut to that width at the size of small print, without what cannot be shown or would be hidden."""
    plain = "".join(c if c.isprintable() else " " for c in label)
    plain = " ".join(plain.split()) or "(no name)"
    plain = f" {plain}" if plain.startswith("_") else plain  # matplotlib hides labels that begin so
    if measure_width(plain + suffix) <= max_points:
        return plain + suffix
    low, high = 0, len(plain)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure_width(f"{plain[:middle]}…{suffix}") <= max_points else (low, middle)
    return f"{plain[:low].rstrip()}…{suffix}"


def label_with_note(label: str, note: str) -> str:
    """A label and what is to be said of it, below it where both do not fit on a line."""
    if not note:
        return label
    whole = f"{label} ({note})"
    return whole if measure_width(whole) <= MAX_LABEL_POINTS else f"{label}\n({note})"


def measure_width(text: str) -> float:
    """In points at the size of small print."""
    outline = TextPath((0, 0), text, size=SMALL_FONT_SIZE).vertices
    return float(np.ptp(outline[:, 0])) if len(outline) else 0.0


def add_legend(figure: Figure, entries: Sequence[tuple[Artist, str]]) -> None:
    """Under the axes, in as many columns as fit; the figure grows by it. Short lines get the marker that their entry shows."""
    for ax in figure.axes:
        for line in ax.lines:
            _ensure_marker(line)
    handles, labels = [list(column) for column in zip(*entries, strict=True)]
    figure_width, height = figure.get_size_inches()
    widest = max(measure_width(line) for label in labels for line in label.split("\n")) + 28
    columns = max(1, min(4, len(labels), int((72 * figure_width - 8) / (widest + 6))))
    rows = -(-len(labels) // columns)
    lines = rows * max(label.count("\n") + 1 for label in labels)
    figure.set_size_inches(figure_width, height + (10.5 * lines + 4) / 72)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        handlelength=2.4,
        handletextpad=0.6,
        columnspacing=1.2,
        labelspacing=0.3,
        borderpad=0.2,
        borderaxespad=0.2,
    )


def _ensure_marker(line: Line2D) -> None:
    """Mark the first point of a line that ends before its first marker, as a line of one point does."""
    every = line.get_markevery()
    if not isinstance(every, tuple) or line.axes is None:
        return
    points = line.get_transform().transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(np.float64))
    points = points[np.isfinite(points).all(axis=1)]
    length = np.hypot(*np.diff(points, axis=0).T).sum()
    if length <= 1.1 * every[0] * np.hypot(line.axes.bbox.width, line.axes.bbox.height):
        line.set_markevery([int(np.flatnonzero(np.isfinite(line.get_ydata()))[0])] if len(points) else None)


@dataclass(frozen=True)
class AxisUnit:
    """text: a figure with its unit; levels: from finest to coarsest, the places where ticks look well on a logarithmic axis;
    whole: on a linear axis ticks are at multiples of the largest of these that is not above its end."""

    format_value: Callable[[float], str]
    tick_levels: tuple[tuple[float, ...], ...]
    tick_multiples: tuple[float, ...] = (1.0,)


def _build_decade_levels(low: int, high: int) -> tuple[tuple[float, ...], ...]:
    fine = tuple(m * 10.0**k for k in range(low, high) for m in (1, 2, 5))
    half = tuple(m * 10.0**k for k in range(low, high) for m in (1, 3))
    return fine, half, *(tuple(10.0**k for k in range(low, high, step)) for step in (1, 3, 6))


def _build_time_levels() -> tuple[tuple[float, ...], ...]:
    below = [m * 10.0**k for k in range(-9, 0) for m in (1, 2, 5)]
    people = [m * unit for unit, steps in ((1, (1, 2, 5, 10, 20)), (60, (0.5, 1, 2, 5, 10, 20, 30))) for m in steps]
    people += [3600.0 * m for m in (1, 2, 5, 12)]
    days = [86400 * m * 10.0**k for k in range(9) for m in (1, 2, 5)]
    tens = [10.0**k for k in range(-9, 2)]
    coarse = [*tens, 60.0, 600.0, 3600.0, 36000.0, *(86400 * 4 * 10.0**k for k in range(9))]
    coarser = [*(10.0**k for k in range(-9, 0, 3)), 1.0, 60.0, 3600.0, 86400.0, *(86400 * 10.0**k for k in range(2, 9, 2))]
    return tuple(below + people + days), tuple(coarse), tuple(coarser)


BYTES = AxisUnit(lambda x: format_bytes(round(x)), _build_decade_levels(0, 19))
RATE = AxisUnit(format_rate, _build_decade_levels(-3, 16))
SECONDS = AxisUnit(lambda x: "0" if x == 0 else format_seconds(x), _build_time_levels(), (86400.0, 3600.0, 60.0, 1.0))
FRACTION = AxisUnit(lambda x: f"{x:.4g}", _build_decade_levels(-12, 2))
NUMBER = AxisUnit(lambda x: f"{x:,.6g}", _build_decade_levels(-12, 16))


def scale_axis(
    axis: Axis, unit: AxisUnit, low: float, high: float, max_ticks: int = 5, log: bool | None = None, pad: float = 0.03
) -> None:
    """Ticks with their unit, for figures from low to high: logarithmic if these span a factor of three (or as said), else
    linear; at most so many, or one more on a linear axis."""
    name = "x" if isinstance(axis, XAxis) else "y"
    log = low > 0 and (high >= 3 * low if log is None else log)
    axis.axes.set(**{f"{name}scale": "log" if log else "linear"})
    inside = [[x for x in level if low * 0.999 <= x <= high * 1.001] for level in unit.tick_levels]
    few = next((ticks for ticks in inside if 2 <= len(ticks) <= max_ticks), None)
    minor: list[float] = []
    if log and few is not None:
        finest = next(ticks for ticks in inside if len(ticks) <= 30 or ticks is few)
        minor = [x for x in finest if x not in few]
    else:
        whole = next((one for one in unit.tick_multiples if one <= high), unit.tick_multiples[-1])
        ticks = MaxNLocator(max_ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(low / whole, high / whole)
        few = [whole * float(x) for x in ticks if x > 0 or not log]
    axis.set_major_locator(FixedLocator(few))
    axis.set_minor_locator(FixedLocator(minor))
    axis.set_major_formatter(FuncFormatter(lambda x, _: unit.format_value(x)))
    axis.set_minor_formatter(NullFormatter())
    factor = max(high / low, 1.2) ** pad if log else 0.0
    margin = pad * (high - low) or 0.05 * abs(high) or 1.0
    start = low / factor if log else low - margin if low else 0.0
    axis.axes.set(**{f"{name}lim": (start, high * factor if log else high + margin)})


def find_finite_range(values: Iterable[float]) -> tuple[float, float]:
    """The least and the largest that are finite."""
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (0.0, 1.0)
