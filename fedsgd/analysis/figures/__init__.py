"""Figures for a paper, one or two columns wide, drawn from ledgers and prices."""

from __future__ import annotations

from fedsgd.analysis.figures.style import paper_style

# isort: split
# the import above must precede that of matplotlib, so that matplotlib accepts every value of MPLBACKEND
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from fedsgd.analysis.figures.accuracy import plot_metric_by_bytes, plot_metric_by_rounds, plot_metric_by_time, plot_pareto
from fedsgd.analysis.figures.breakdown import plot_byte_breakdown, plot_round_time
from fedsgd.analysis.figures.clients import plot_client_traffic, plot_residuals
from fedsgd.analysis.figures.link_speed import plot_link_speed
from fedsgd.analysis.figures.series import MethodSeries, build_series
from fedsgd.analysis.methods import Method
from fedsgd.analysis.page.payload import ReportOptions
from fedsgd.errors import OutputError, make_write_error, suggest_name
from fedsgd.storage.run_directory import write_atomically
from fedsgd.sweeps.labels import slugify

FigureFormat = Literal["pdf", "svg", "png"]
METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
FORMATS = tuple(METADATA)
FIGURES: dict[str, Callable[[Sequence[MethodSeries], ReportOptions], Figure | None]] = {
    "accuracy-bytes": plot_metric_by_bytes,
    "accuracy-rounds": plot_metric_by_rounds,
    "accuracy-time": plot_metric_by_time,
    "link-speed": plot_link_speed,
    "pareto": plot_pareto,
    "anatomy": plot_byte_breakdown,
    "round-time": plot_round_time,
    "clients": plot_client_traffic,
    "memory": plot_residuals,
}
"""Plot functions by the name of their file, in which the target's metric takes the place of "accuracy".

A function returns None for a figure without data, such as measured values.
"""


def draw_figures(methods: Sequence[Method], options: ReportOptions, folder: Path, file_format: FigureFormat) -> list[Path]:
    """Draw all figures that have data, and return their paths, one file each. Equal runs give equal files.

    The folder is created if its parent exists. An error leaves no partial file.
    """
    check_figure_folder(folder, file_format)
    with paper_style():
        images = {name: _render_figure(figure, file_format) for name, figure in build_figures(methods, options).items()}
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise make_write_error(folder, error) from None
    for name, data in images.items():
        write_atomically(folder / f"{name}.{file_format}", data)
    return [folder / f"{name}.{file_format}" for name in images]


def check_figure_folder(folder: Path, file_format: str) -> None:
    """Raise OutputError unless figures of a format can be written to a folder."""
    if file_format not in FORMATS:
        raise OutputError(f'got the format "{file_format}"{suggest_name(file_format, FORMATS)}')
    if not folder.parent.is_dir():
        raise OutputError(f"{folder}: there is no folder {folder.parent}")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is not a folder")


def build_figures(methods: Sequence[Method], options: ReportOptions) -> dict[str, Figure]:
    """Return the figures of `draw_figures` by name; each run is priced once."""
    with paper_style():
        series = build_series(methods, options)
        figures = {
            name.replace("accuracy", slugify(options.target.metric)): plot(series, options) for name, plot in FIGURES.items()
        }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _render_figure(figure: Figure, file_format: str) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=file_format, metadata=METADATA[file_format])
    return data.getvalue()
