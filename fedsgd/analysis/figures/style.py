"""Style of figures for a paper: a style for each method, labels of limited width, ticks in common units."""

from __future__ import annotations

from fedsgd.analysis.figures.matplotlib_settings import use_figure_settings

# isort: split
# the import above must precede that of matplotlib, so that matplotlib accepts every value of MPLBACKEND
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
"""Widths in inches, as in most two-column papers."""
SMALL_FONT_SIZE = 7.0
RULE_COLOUR = "#555555"
RC_PARAMS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # part of matplotlib, so that figures are equal on every machine
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
    "text.parse_math": False,  # "$" in a label is no mathematics
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fedsgd",
    "savefig.dpi": 300,
}
COLOURS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#999933", "#44AA99", "#DDAA33", "#AA4499")
"""Paul Tol's "muted" scheme, with a darker yellow: colours that colour-blind readers can distinguish."""
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d")
MAX_LABEL_POINTS = 190.0
"""Width of a label, in points, that fits next to its line in one column."""


@dataclass(frozen=True)
class MethodStyle:
    """Style of a method, equal in all figures. The label is cut to the width of a legend; `index` counts methods from 0."""

    label: str
    colour: str
    dashes: Any
    marker: str
    index: int

    def get_line_properties(self) -> dict[str, Any]:
        """Return the properties of lines. Methods have different marker positions, so that equal lines show all markers."""
        marker_positions = (0.02 + 0.05 * (self.index % 4), 0.2)
        return {**self.get_marker_properties(), "linestyle": self.dashes, "markevery": marker_positions, "gid": self.gid}

    def get_marker_properties(self) -> dict[str, Any]:
        """Return the properties of markers."""
        return {"color": self.colour, "marker": self.marker, "markeredgecolor": "white", "zorder": 3 + 0.01 * self.index}

    @property
    def gid(self) -> str:
        """Id of the method's line in an SVG."""
        return f"method-{self.index + 1}"


@contextmanager
def paper_style() -> Iterator[None]:
    """Use the settings of figures for a paper, independent of the user's settings."""
    with use_figure_settings(RC_PARAMS):
        yield


def method_styles(labels: Sequence[str]) -> list[MethodStyle]:
    """Return a style for each method. The first 36 methods have different lines, and the first 117 colour and marker."""
    return [
        MethodStyle(label, COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)], i)
        for i, label in enumerate(truncate_labels(labels))
    ]


def truncate_labels(labels: Sequence[str], max_points: float = MAX_LABEL_POINTS) -> list[str]:
    """Cut labels to a width, so that different labels stay different."""
    texts: list[str] = []
    for label in labels:
        text, n = truncate_label(label, max_points), 1
        while text in texts:
            n += 1
            text = truncate_label(label, max_points, f" #{n}")
        texts.append(text)
    return texts


def truncate_label(label: str, max_points: float, suffix: str = "") -> str:
    """Return a label on one line, cut to a width in points, without unprintable characters."""
    plain = "".join(c if c.isprintable() else " " for c in label)
    plain = " ".join(plain.split()) or "(no name)"
    plain = f" {plain}" if plain.startswith("_") else plain  # matplotlib hides labels with a leading "_"
    if measure_width(plain + suffix) <= max_points:
        return plain + suffix
    low, high = 0, len(plain)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure_width(f"{plain[:middle]}…{suffix}") <= max_points else (low, middle)
    return f"{plain[:low].rstrip()}…{suffix}"


def label_with_note(label: str, note: str) -> str:
    """Return a label with a note in parentheses, on a second line if the first line is too short for both."""
    if not note:
        return label
    text = f"{label} ({note})"
    return text if measure_width(text) <= MAX_LABEL_POINTS else f"{label}\n({note})"


def measure_width(text: str) -> float:
    """Return the width of a text in points, at SMALL_FONT_SIZE."""
    outline = TextPath((0, 0), text, size=SMALL_FONT_SIZE).vertices
    return float(np.ptp(outline[:, 0])) if len(outline) else 0.0


def add_legend(figure: Figure, entries: Sequence[tuple[Artist, str]]) -> None:
    """Add a legend below the axes, in as many columns as fit, and increase the figure's height for the legend.

    A line that is too short for its first marker gets a marker, because its entry in the legend has one. Without entries there
    is no legend.
    """
    if not entries:
        return
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
    """Mark the first point of a line that ends before its first marker, such as a line of one point."""
    marker_positions = line.get_markevery()
    if not isinstance(marker_positions, tuple) or line.axes is None:
        return
    points = line.get_transform().transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(np.float64))
    points = points[np.isfinite(points).all(axis=1)]
    length = np.hypot(*np.diff(points, axis=0).T).sum()
    if length <= 1.1 * marker_positions[0] * np.hypot(line.axes.bbox.width, line.axes.bbox.height):
        line.set_markevery([int(np.flatnonzero(np.isfinite(line.get_ydata()))[0])] if len(points) else None)


@dataclass(frozen=True)
class AxisUnit:
    """Unit of an axis.

    Attributes:
        format_value: function that formats a value with its unit.
        tick_levels: positions of ticks on a logarithmic axis, from the finest level to the coarsest.
        tick_multiples: units of ticks on a linear axis, descending; the axis uses the first that is not above its maximum.
    """

    format_value: Callable[[float], str]
    tick_levels: tuple[tuple[float, ...], ...]
    tick_multiples: tuple[float, ...] = (1.0,)


def _build_decade_levels(low: int, high: int) -> tuple[tuple[float, ...], ...]:
    fine = tuple(m * 10.0**k for k in range(low, high) for m in (1, 2, 5))
    half = tuple(m * 10.0**k for k in range(low, high) for m in (1, 3))
    return fine, half, *(tuple(10.0**k for k in range(low, high, step)) for step in (1, 3, 6))


def _build_time_levels() -> tuple[tuple[float, ...], ...]:
    subseconds = [m * 10.0**k for k in range(-9, 0) for m in (1, 2, 5)]
    clock_times = [m * unit for unit, steps in ((1, (1, 2, 5, 10, 20)), (60, (0.5, 1, 2, 5, 10, 20, 30))) for m in steps]
    clock_times += [3600.0 * m for m in (1, 2, 5, 12)]
    days = [86400 * m * 10.0**k for k in range(9) for m in (1, 2, 5)]
    tens = [10.0**k for k in range(-9, 2)]
    coarse = [*tens, 60.0, 600.0, 3600.0, 36000.0, *(86400 * 4 * 10.0**k for k in range(9))]
    coarser = [*(10.0**k for k in range(-9, 0, 3)), 1.0, 60.0, 3600.0, 86400.0, *(86400 * 10.0**k for k in range(2, 9, 2))]
    return tuple(subseconds + clock_times + days), tuple(coarse), tuple(coarser)


BYTES = AxisUnit(lambda x: format_bytes(round(x)), _build_decade_levels(0, 19))
RATE = AxisUnit(format_rate, _build_decade_levels(-3, 16))
SECONDS = AxisUnit(lambda x: "0" if x == 0 else format_seconds(x), _build_time_levels(), (86400.0, 3600.0, 60.0, 1.0))
FRACTION = AxisUnit(lambda x: f"{x:.4g}", _build_decade_levels(-12, 2))
NUMBER = AxisUnit(lambda x: f"{x:,.6g}", _build_decade_levels(-12, 16))


def scale_axis(
    axis: Axis, unit: AxisUnit, low: float, high: float, max_ticks: int = 5, log: bool | None = None, pad: float = 0.03
) -> None:
    """Set scale, limits and ticks of an axis for values from `low` to `high`, with a share `pad` of the range as margin.

    `max_ticks` limits the ticks with a label; a linear axis may have one more. By default, an axis is logarithmic if the values
    span a factor of three. An axis with low = 0 is linear.
    """
    name = "x" if isinstance(axis, XAxis) else "y"
    log = low > 0 and (high >= 3 * low if log is None else log)
    axis.axes.set(**{f"{name}scale": "log" if log else "linear"})
    visible_levels = [[x for x in level if low * 0.999 <= x <= high * 1.001] for level in unit.tick_levels]
    major = next((ticks for ticks in visible_levels if 2 <= len(ticks) <= max_ticks), None)
    minor: list[float] = []
    if log and major is not None:
        finest = next(ticks for ticks in visible_levels if len(ticks) <= 30 or ticks is major)
        minor = [x for x in finest if x not in major]
    else:
        multiple = next((m for m in unit.tick_multiples if m <= high), unit.tick_multiples[-1])
        ticks = MaxNLocator(max_ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(low / multiple, high / multiple)
        major = [multiple * float(x) for x in ticks if x > 0 or not log]
    axis.set_major_locator(FixedLocator(major))
    axis.set_minor_locator(FixedLocator(minor))
    axis.set_major_formatter(FuncFormatter(lambda x, _: unit.format_value(x)))
    axis.set_minor_formatter(NullFormatter())
    factor = max(high / low, 1.2) ** pad if log else 0.0
    margin = pad * (high - low) or 0.05 * abs(high) or 1.0
    start = low / factor if log else low - margin if low else 0.0
    axis.axes.set(**{f"{name}lim": (start, high * factor if log else high + margin)})


def find_finite_range(values: Iterable[float]) -> tuple[float, float]:
    """Return the smallest and the largest finite value; 0 and 1 without finite values."""
    finite_values = [value for value in values if math.isfinite(value)]
    return (min(finite_values), max(finite_values)) if finite_values else (0.0, 1.0)
