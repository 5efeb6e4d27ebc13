"""Pictures of a partition, as PNG or SVG."""

from __future__ import annotations

from fedsgd.analysis.figures.matplotlib_settings import use_figure_settings

# isort: split
# the import above must precede that of matplotlib, so that matplotlib accepts every value of MPLBACKEND
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from fedsgd.errors import OutputError, suggest_name
from fedsgd.experiment.partition_summary import PartitionSummary
from fedsgd.numerics.arrays import F64, I64
from fedsgd.storage.run_directory import write_atomically

FORMATS = (".png", ".svg")
MAX_BARS = 40
"""Maximum number of clients that are drawn as bars. More clients are drawn as columns of a map."""
COLOURS = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#666666")
"""Paul Tol's "muted" scheme, with a grey: colours that colour-blind readers can distinguish, also on paper."""
OTHER_CLASSES_COLOUR = "#DDDDDD"
MAX_MAP_COLUMNS = 1000
THOUSANDS_FORMATTER = StrMethodFormatter("{x:,.0f}")
RC_PARAMS: Any = {"font.size": 10, "svg.hashsalt": "fedsgd", "axes.spines.top": False, "axes.spines.right": False}


def check_picture_path(path: Path) -> None:
    """Raise OutputError unless a picture can be written to a path."""
    if path.suffix.lower() not in FORMATS:
        hint = suggest_name(path.suffix, FORMATS)
        raise OutputError(f'{path}: got a picture "{path.suffix}"{hint}')
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}")


def draw_partition(partition_summary: PartitionSummary, path: Path) -> None:
    """Draw the classes of each client, as bars or, for many clients, as a map. Equal partitions give equal files."""
    check_picture_path(path)
    data = io.BytesIO()
    with use_figure_settings(RC_PARAMS):
        figure = _draw_bars(partition_summary) if len(partition_summary.sizes) <= MAX_BARS else _draw_map(partition_summary)
        format = path.suffix.lower().removeprefix(".")
        figure.savefig(data, format=format, dpi=150, metadata={"Date": None} if format == "svg" else None)
    write_atomically(path, data.getvalue())


def _build_title(partition_summary: PartitionSummary) -> str:
    low, high = partition_summary.sizes.min(), partition_summary.sizes.max()
    spread = f"{low:,} to {high:,} examples each, median {np.median(partition_summary.sizes):,.0f}"
    if low == high:
        spread = f"{low:,} examples each"
    name, population = _escape_text(partition_summary.name), partition_summary.population_text
    return f"{name}: {partition_summary.partition} over {population}, {spread}"


def _collect_class_counts(partition_summary: PartitionSummary) -> list[tuple[str, str, I64]]:
    """Return label, colour and [N] clients' targets for each of the most frequent classes, and for all others together."""
    if partition_summary.counts is None:
        return [("examples", COLOURS[0], partition_summary.sizes)]
    by_frequency = np.argsort(-partition_summary.counts.sum(axis=0), kind="stable")
    n_named = len(by_frequency) if len(by_frequency) <= len(COLOURS) else len(COLOURS) - 1
    named_classes = sorted(by_frequency[:n_named].tolist())
    stacks = [
        (_format_class_name(partition_summary.class_names[c]), colour, partition_summary.counts[:, c])
        for c, colour in zip(named_classes, COLOURS, strict=False)
    ]
    if n_named < len(by_frequency):
        other_classes = by_frequency[n_named:]
        counts = partition_summary.counts[:, other_classes].sum(axis=1)
        stacks.append((f"{len(other_classes)} others", OTHER_CLASSES_COLOUR, counts))
    return stacks


def _format_class_name(name: str) -> str:
    """Return a class name of at most 16 visible characters."""
    visible_name = {" ": "space", "\n": "line end"}.get(name, name)
    return _escape_text(visible_name if len(visible_name) <= 16 else visible_name[:15] + "…")


def _escape_text(text: str) -> str:
    """Escape "$", which starts mathematics, and a leading "_", which hides a label."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _draw_bars(partition_summary: PartitionSummary) -> Figure:
    n = len(partition_summary.sizes)
    figure = Figure(figsize=(9, max(3.0, 1.8 + 0.24 * n)), layout="constrained")
    ax = figure.add_subplot()
    left = np.zeros(n)
    for label, colour, widths in _collect_class_counts(partition_summary):
        ax.barh(np.arange(n), widths, left=left, color=colour, edgecolor="white", linewidth=0.4, label=label, height=0.82)
        left += widths
    counts, sizes = partition_summary.counts, partition_summary.sizes
    unit = "examples" if counts is None or counts.sum() == sizes.sum() else "targets"
    ax.set(ylabel="client", xlabel=f"training {unit}", ylim=(n - 0.4, -0.6), yticks=np.arange(0, n, 1 if n <= 20 else 5))
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter(THOUSANDS_FORMATTER)
    if partition_summary.counts is not None:
        figure.legend(loc="outside right upper", frameon=False, handlelength=1.0)
    figure.suptitle(_build_title(partition_summary), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _draw_map(partition_summary: PartitionSummary) -> Figure:
    """Draw clients as columns, sorted by their largest class and the share of this class."""
    shares = partition_summary.compute_class_distributions()
    figure = Figure(figsize=(9, 2.8 if shares is None else 5.2), layout="constrained")
    figure.suptitle(_build_title(partition_summary), x=0.01, ha="left", fontsize=11, fontweight="bold")
    if shares is None:
        ax = figure.add_subplot()
        _draw_size_panel(ax, np.sort(partition_summary.sizes)[::-1])
        ax.set(xlabel="clients, by size")
        return figure
    order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
    grid = figure.add_gridspec(2, 1, height_ratios=(1, 2.6))
    top = figure.add_subplot(grid[0])
    _draw_size_panel(top, partition_summary.sizes[order])
    top.tick_params(labelbottom=False)
    ax = figure.add_subplot(grid[1], sharex=top)
    stacks = _collect_class_counts(partition_summary)
    labels = [label for label, _, _ in stacks]
    columns = np.array([counts for _, _, counts in stacks]) / sum(counts for _, _, counts in stacks)
    extent = (0, len(order), len(labels) - 0.5, -0.5)
    image = ax.imshow(
        _bin_columns(columns[:, order]), aspect="auto", cmap="cividis", vmin=0, extent=extent, interpolation="nearest"
    )
    ax.set(yticks=range(len(labels)), yticklabels=labels, ylabel="class", xlabel="clients, by largest class")
    ax.xaxis.set_major_formatter(THOUSANDS_FORMATTER)
    ax.tick_params(axis="y", length=0)
    figure.colorbar(image, ax=ax, label="share of the client's targets", pad=0.01)
    return figure


def _bin_columns(values: NDArray[Any]) -> F64:
    """Average neighboring columns, [..., N], so that at most MAX_MAP_COLUMNS remain."""
    n = values.shape[-1]
    n_bins = min(n, MAX_MAP_COLUMNS)
    starts = np.arange(n_bins) * n // n_bins
    means: F64 = np.add.reduceat(values, starts, axis=-1) / np.diff(starts, append=n)
    return means


def _draw_size_panel(ax: Axes, sizes: I64) -> None:
    heights = _bin_columns(sizes)
    edges = np.linspace(0, len(sizes), len(heights) + 1)
    ax.fill_between(edges, np.append(heights, heights[-1]), step="post", color=COLOURS[1], linewidth=0)
    if sizes.max() > 20 * max(1, np.median(sizes)):
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, None)
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(THOUSANDS_FORMATTER)
    ax.set(ylabel="examples", xlim=(0, len(sizes)))
