"""Figures for a paper, at the width of one column or of two, drawn from what the ledger has and Python's own price says."""

from __future__ import annotations

from fedsgd.analysis.figures.style import paper_style

# isort: split
# what is above is imported before matplotlib, and lets it be imported whatever MPLBACKEND names
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from fedsgd.analysis.figures.accuracy import plot_accuracy_by_bytes, plot_accuracy_by_rounds, plot_accuracy_by_time, plot_pareto
from fedsgd.analysis.figures.breakdown import plot_byte_breakdown, plot_round_time
from fedsgd.analysis.figures.clients import plot_client_traffic, plot_residuals
from fedsgd.analysis.figures.link_speed import plot_link_speed
from fedsgd.analysis.figures.series import MethodSeries, build_series
from fedsgd.analysis.methods import Method
from fedsgd.analysis.page.payload import ReportOptions
from fedsgd.errors import OutputError, make_write_error, suggest_name
from fedsgd.storage.run_directory import write_atomically

FigureFormat = Literal["pdf", "svg", "png"]
METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
FORMATS = tuple(METADATA)
FIGURES: dict[str, Callable[[Sequence[MethodSeries], ReportOptions], Figure | None]] = {
    "accuracy-bytes": plot_accuracy_by_bytes,
    "accuracy-rounds": plot_accuracy_by_rounds,
    "accuracy-time": plot_accuracy_by_time,
    "link-speed": plot_link_speed,
    "pareto": plot_pareto,
    "anatomy": plot_byte_breakdown,
    "round-time": plot_round_time,
    "clients": plot_client_traffic,
    "memory": plot_residuals,
}
"""By the name of their file. Each is None where it would be empty: those of accuracy if none was measured, of time if no run
can be priced, of link speeds if no run gets to the target, of memory if no client has any."""


def draw_figures(methods: Sequence[Method], options: ReportOptions, folder: Path, file_format: FigureFormat) -> list[Path]:
    """All FIGURES that there is something to show in, a file each. Equal runs give equal files, and an error leaves none half
    written.

    The folder is made if its parent is there. OutputError for an unknown format, or if a file cannot be written; ReportError as
    of `price`.
    """
    check_figure_folder(folder, file_format)
    with paper_style():
        made = {name: _render_figure(figure, file_format) for name, figure in build_figures(methods, options).items()}
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise make_write_error(folder, error) from None
    for name, data in made.items():
        write_atomically(folder / f"{name}.{file_format}", data)
    return [folder / f"{name}.{file_format}" for name in made]


def check_figure_folder(folder: Path, file_format: str) -> None:
    """OutputError unless figures of that format can be written there."""
    if file_format not in FORMATS:
        raise OutputError(f'got the format "{file_format}"{suggest_name(file_format, FORMATS)}')
    if not folder.parent.is_dir():
        raise OutputError(f"{folder}: there is no folder {folder.parent}")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is not a folder")


def build_figures(methods: Sequence[Method], options: ReportOptions) -> dict[str, Figure]:
    """What `draw_figures` saves, by name; each run is priced once."""
    with paper_style():
        shown = build_series(methods, options)
        made = {name: make(shown, options) for name, make in FIGURES.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def _render_figure(figure: Figure, file_format: str) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=file_format, metadata=METADATA[file_format])
    return data.getvalue()
